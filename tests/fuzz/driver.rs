//! A driver that does to a device whatever some bytes say, and then behaves. Shared by the fuzz targets and the replay of
//! their corpora.
//!
//! The bytes are a program: each operation is one byte, and takes its operands from those after it (zeroes at the end). It
//! writes and reads registers of any width and offset, sets queues up well or badly, puts any descriptors, heads and indices
//! into the rings, fills memory, notifies, and plays the other side, the host's. Beside the memory there is some that is only read. What must hold is in [`check`].

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sandbox_types::monitor::{PMEM_ALIGNMENT, PMEM_HEADER_BYTES};
use sandbox_types::{GuestCid, MacAddress, MemMib};
use sandbox_vmm::bus::BusDevice as _;
use sandbox_vmm::memory::later::Later;
use sandbox_vmm::memory::window::{Window, WindowFile};
use sandbox_vmm::memory::{Sharing, create, is_writable};
use sandbox_vmm::virtio::balloon::Balloon;
use sandbox_vmm::virtio::block::Block;
use sandbox_vmm::virtio::mem::{Mem, MemorySize};
use sandbox_vmm::virtio::mmio::MmioTransport;
use sandbox_vmm::virtio::net::Net;
use sandbox_vmm::virtio::net::tap::Tap;
use sandbox_vmm::virtio::pmem::Pmem;
use sandbox_vmm::virtio::rng::Rng;
use sandbox_vmm::virtio::{Interrupt, Registers, VirtioDevice, WorkerThread};
use sandbox_vmm::vsock::{MuxerConfig, Vsock};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap, GuestRegionMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const MEMORY_BYTES: u64 = 1 << 20;
/// From one queue's rings to the next one's.
const QUEUE_STRIDE: u64 = 0x4000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
/// After the rings of five queues.
const DATA: u64 = 0x1_8000;
const QUEUE_SIZE: u16 = 128;
/// The most operations of a program, and clients of the host's in it.
const MAX_OPERATIONS: usize = 2000;
const MAX_CLIENTS: usize = 32;
/// How long a device that works may take for one thing.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a program waits for an interrupt that may not come.
const GLIMPSE: Duration = Duration::from_millis(1);

/// Where memory begins that is only read: that of a machine without memory above 4 GiB.
const WINDOW: u64 = 1 << 32;
const WINDOW_BYTE: u8 = 0xa5;

const DISK_SECTORS: u8 = 16;
const SECTOR: usize = 512;
const GUEST_CID: u64 = 3;
const HOST_CID: u64 = 2;
/// Of the guest's, to which the host connects in the end.
const PORT: u32 = 52;
const PACKET_HEADER: usize = 44;
/// What the balloon gives up at least.
const PAGE: u64 = 0x1000;
/// The balloon's feature (5.5.3).
const REPORTING: u32 = 1 << 5;

/// What the memory device's guest has from the start, and what may come later, in MiB; and a block of that.
const MEM_FIRST: u64 = 64;
const MEM_LATER: u64 = 128;
const BLOCK: u64 = 2 << 20;
/// `VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE` (5.15.3).
const INACCESSIBLE: u32 = 1 << 1;

const NET_PAIRS: usize = 2;
/// Behind the pairs' queues.
const NET_CONTROL: u64 = 4;
/// `VIRTIO_NET_F_CTRL_VQ` and `VIRTIO_NET_F_MQ`.
const NET_FEATURES: u32 = 1 << 17 | 1 << 22;
/// Header and frame.
const FRAME: usize = 72;

/// Which device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A disk that may be written to.
    Disk,
    /// A disk that may not.
    ReadOnlyDisk,
    /// The entropy device.
    Entropy,
    /// The balloon device.
    Balloon,
    /// The vsock device.
    Vsock,
    /// The persistent memory device.
    Pmem,
    /// A network device with two queue pairs.
    Net,
    /// The memory device.
    Mem,
}

struct Operands<'a>(&'a [u8]);

impl Operands<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let count = N.min(self.0.len());
        let (now, rest) = self.0.split_at(count);
        bytes[..count].copy_from_slice(now);
        self.0 = rest;
        bytes
    }

    fn byte(&mut self) -> u8 {
        u8::from_le_bytes(self.take())
    }

    fn half(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn word(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    /// An address: in memory that is only read, or else in the data, in the rings, at the memory's end, or anywhere.
    fn address(&mut self) -> u64 {
        let kind = self.byte();
        if kind >= 0xf0 {
            return WINDOW - 0x100 + u64::from(self.half());
        }
        match kind % 4 {
            0 => DATA + u64::from(self.half()),
            1 => u64::from(self.half()),
            2 => MEMORY_BYTES.wrapping_sub(u64::from(self.byte())),
            _ => u64::from_le_bytes(self.take()),
        }
    }
}

/// The registers (VirtIO 1.3, 4.2.2).
mod register {
    pub(super) const DRIVER_FEATURES: u64 = 0x020;
    pub(super) const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub(super) const QUEUE_SEL: u64 = 0x030;
    pub(super) const QUEUE_SIZE: u64 = 0x038;
    pub(super) const QUEUE_READY: u64 = 0x044;
    pub(super) const QUEUE_NOTIFY: u64 = 0x050;
    pub(super) const INTERRUPT_ACK: u64 = 0x064;
    pub(super) const STATUS: u64 = 0x070;
    pub(super) const QUEUE_DESC: u64 = 0x080;
    pub(super) const QUEUE_DRIVER: u64 = 0x090;
    pub(super) const QUEUE_DEVICE: u64 = 0x0a0;
}

/// The device status (2.1).
const PHASES: [u32; 5] = [0, 1, 3, 11, 15];
const RUNNING: u32 = 15;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// A device on its transport, its memory, and the host's side of it.
struct Bench {
    kind: Kind,
    transport: MmioTransport,
    memory: GuestMemoryMmap,
    irq: EventFd,
    disk: Option<File>,
    size: Option<MemorySize>,
    clients: Vec<UnixStream>,
    /// In place of a tap, a network for each pair: our end, and a copy of the device's.
    networks: Vec<(UnixDatagram, UnixDatagram)>,
    folder: tempfile::TempDir,
    queues: u64,
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Memory that is only read, of which every device of this process has the same. A device that wrote there would be ended by the kernel.
fn window() -> Result<&'static Window, String> {
    static MADE: OnceLock<Result<Window, String>> = OnceLock::new();
    let make = || -> Result<Window, String> {
        let mut file = tempfile::tempfile().map_err(text)?;
        file.write_all(&[WINDOW_BYTE; 4096]).map_err(text)?;
        let file = WindowFile {
            file,
            offset: PMEM_HEADER_BYTES,
            bytes: 4096,
        };
        let size = MemMib::new(64).map_err(text)?;
        Window::map(size, PMEM_ALIGNMENT, vec![file]).map_err(text)
    };
    MADE.get_or_init(make).as_ref().map_err(Clone::clone)
}

fn memory() -> Result<GuestMemoryMmap, String> {
    let ram = GuestRegionMmap::from_range(GuestAddress(0), MEMORY_BYTES as usize, None);
    let regions = vec![ram.map_err(text)?, window()?.region().map_err(text)?];
    GuestMemoryMmap::from_regions(regions).map_err(text)
}

/// What may come later, where a guest has [`MEM_FIRST`] and the window.
fn later() -> Result<Later, String> {
    let first = MemMib::new(MEM_FIRST).map_err(text)?;
    let most = MemMib::new(MEM_FIRST + MEM_LATER).map_err(text)?;
    Later::new(first, most, window()?.range().length)
        .ok_or_else(|| "nothing comes later".to_owned())
}

fn sectors() -> Vec<u8> {
    (0..DISK_SECTORS)
        .flat_map(|number| [number; SECTOR])
        .collect()
}

impl Bench {
    fn new(kind: Kind) -> Result<Self, String> {
        let memory = match kind {
            Kind::Mem => {
                let first = MemMib::new(MEM_FIRST).map_err(text)?;
                let (window, later) = (window()?, later()?);
                create(first, Sharing::Private, Some(window), Some(later)).map_err(text)?
            }
            _ => memory()?,
        };
        let mut size = None;
        let folder = tempfile::tempdir().map_err(text)?;
        let mut disk = None;
        let mut networks = Vec::new();
        let device: Box<dyn VirtioDevice> = match kind {
            Kind::Disk | Kind::ReadOnlyDisk => {
                let mut file = tempfile::tempfile().map_err(text)?;
                file.write_all(&sectors()).map_err(text)?;
                disk = Some(file.try_clone().map_err(text)?);
                let read_only = kind == Kind::ReadOnlyDisk;
                Box::new(Block::new("disk", file, read_only, "serial", 2).map_err(text)?)
            }
            Kind::Entropy => Box::new(Rng::new()),
            Kind::Balloon => Box::new(Balloon::new()),
            Kind::Vsock => {
                let path = folder.path().join("vsock");
                let listener = UnixListener::bind(&path).map_err(text)?;
                let guest_cid = GuestCid::new(GUEST_CID).map_err(text)?;
                let config = MuxerConfig {
                    guest_cid,
                    listener,
                    path,
                };
                Box::new(Vsock::new(config).map_err(text)?)
            }
            Kind::Pmem => Box::new(Pmem::new(window()?.range())),
            Kind::Mem => {
                let first = MemMib::new(MEM_FIRST).map_err(text)?;
                let made = MemorySize::new(first, later()?).map_err(text)?;
                Box::new(Mem::new(size.insert(made).clone()))
            }
            Kind::Net => {
                for _ in 0..NET_PAIRS {
                    let (theirs, ours) = UnixDatagram::pair().map_err(text)?;
                    ours.set_nonblocking(true).map_err(text)?;
                    theirs.set_nonblocking(true).map_err(text)?;
                    networks.push((ours, theirs));
                }
                let taps = networks.iter().map(|(_, theirs)| {
                    let theirs = OwnedFd::from(theirs.try_clone()?);
                    Ok(Tap::of_messages(theirs.into()))
                });
                let taps: std::io::Result<Vec<_>> = taps.collect();
                let mac = MacAddress::local([1; 6]);
                Box::new(Net::new("net", taps.map_err(text)?, mac, 1500).map_err(text)?)
            }
        };
        let queues = device.queue_max_sizes().len() as u64;
        let irq = EventFd::new(EFD_NONBLOCK).map_err(text)?;
        let registers = Registers::alone().map_err(|error| error.to_string())?;
        let interrupt = Interrupt::new(irq.try_clone().map_err(text)?, registers);
        let thread = WorkerThread::spawn("device", || {}).map_err(text)?;
        let more = device.more_threads().into_iter();
        let more: std::io::Result<Vec<_>> = more
            .map(|(name, _)| WorkerThread::spawn(&name, || {}))
            .collect();
        let transport = MmioTransport::new(device, memory.clone(), interrupt, thread);
        let transport = transport.map_err(text)?;
        Ok(Self {
            kind,
            transport: transport.with_more_threads(more.map_err(text)?),
            memory,
            irq,
            disk,
            size,
            clients: Vec::new(),
            networks,
            folder,
            queues,
        })
    }

    fn set(&mut self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    fn get(&mut self, register: u64) -> u32 {
        let mut word = [0; 4];
        self.transport.read(register, &mut word);
        u32::from_le_bytes(word)
    }

    fn set_address(&mut self, register: u64, address: u64) {
        self.set(register, address as u32);
        self.set(register + 4, (address >> 32) as u32);
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        // A driver may as well write where there is no memory, or where its writes are ignored.
        if is_writable(&self.memory, GuestAddress(address), bytes.len() as u32) {
            let _ = self.memory.write_slice(bytes, GuestAddress(address));
        }
    }

    fn half_at(&self, address: u64) -> u16 {
        self.memory.read_obj(GuestAddress(address)).unwrap_or(0)
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("vsock")
    }

    fn set_queue(&mut self, queue: u64, size: u32, rings: [u64; 3]) {
        self.set(register::QUEUE_SEL, queue as u32);
        self.set(register::QUEUE_SIZE, size);
        for (register, address) in [
            register::QUEUE_DESC,
            register::QUEUE_DRIVER,
            register::QUEUE_DEVICE,
        ]
        .into_iter()
        .zip(rings)
        {
            self.set_address(register, address);
        }
        self.set(register::QUEUE_READY, 1);
    }

    fn rings(queue: u64) -> [u64; 3] {
        let base = queue * QUEUE_STRIDE;
        [base, base + AVAILABLE, base + USED]
    }

    /// `buffer` is its address and length.
    fn descriptor(&self, queue: u64, index: u16, buffer: (u64, u32), flags: u16, next: u16) {
        let (address, length) = buffer;
        let at = queue * QUEUE_STRIDE + 16 * u64::from(index);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.put(at, &bytes);
    }

    /// Makes a chain available, and moves the index by `step`.
    fn offer(&self, queue: u64, head: u16, step: u16) {
        let ring = queue * QUEUE_STRIDE + AVAILABLE;
        let index = self.half_at(ring + 2);
        let slot = ring + 4 + 2 * u64::from(index % QUEUE_SIZE);
        self.put(slot, &head.to_le_bytes());
        self.put(ring + 2, &index.wrapping_add(step).to_le_bytes());
    }

    fn kick(&mut self, queue: u64) {
        self.set(register::QUEUE_NOTIFY, queue as u32);
    }

    /// Waits for an interrupt; whether there was one.
    fn interrupted(&self, within: Duration) -> bool {
        let irq = sandbox_vmm::fd::borrow(&self.irq);
        let mut watched = [PollFd::from_borrowed_fd(irq, PollFlags::IN)];
        let limit = Timespec::try_from(within).ok();
        let came = poll(&mut watched, limit.as_ref()).is_ok_and(|count| count > 0);
        let _ = self.irq.read();
        came
    }

    fn run(&mut self, program: &[u8]) {
        let mut rest = Operands(program);
        for _ in 0..MAX_OPERATIONS {
            if rest.0.is_empty() {
                break;
            }
            self.step(&mut rest);
        }
    }

    fn step(&mut self, rest: &mut Operands<'_>) {
        match rest.byte() % 13 {
            0 => {
                let offset = u64::from(rest.half() % 0x240);
                let width = usize::from(rest.byte() % 9);
                let bytes: [u8; 8] = rest.take();
                self.transport.write(offset, &bytes[..width]);
            }
            1 => {
                let offset = u64::from(rest.half() % 0x240);
                let mut bytes = [0; 8];
                let width = usize::from(rest.byte() % 9);
                self.transport.read(offset, &mut bytes[..width]);
            }
            2 => self.begin(usize::from(rest.byte() % 5), rest.word()),
            3 => {
                let queue = u64::from(rest.byte()) % (self.queues + 1);
                let size = [128, 256, 1, 0, 3, 0x1_0000][usize::from(rest.byte() % 6)];
                let rings = match rest.byte() % 3 {
                    0 => Self::rings(queue),
                    1 => [rest.address(), rest.address(), rest.address()],
                    _ => [DATA; 3],
                };
                self.set_queue(queue, size, rings);
            }
            4 => {
                let queue = u64::from(rest.byte()) % self.queues;
                let (index, address) = (rest.half() % 300, rest.address());
                let buffer = (address, rest.word());
                self.descriptor(queue, index, buffer, rest.half(), rest.half());
            }
            5 => {
                let queue = u64::from(rest.byte()) % self.queues;
                self.offer(queue, rest.half(), rest.half());
            }
            6 => {
                let queue = u64::from(rest.byte());
                self.kick(queue % (self.queues + 1));
            }
            7 => {
                let address = rest.address();
                let bytes: [u8; 64] = rest.take();
                self.put(address, &bytes);
            }
            8 => self.plausible(rest),
            9 => self.set(register::STATUS, 0),
            10 => self.host(rest),
            11 => self.set(register::INTERRUPT_ACK, rest.word()),
            _ => {
                self.interrupted(GLIMPSE);
            }
        }
    }

    /// As a driver begins, up to a phase, with good queues.
    fn begin(&mut self, phase: usize, features: u32) {
        for status in &PHASES[..=phase] {
            if *status == PHASES[3] {
                self.set(register::DRIVER_FEATURES_SEL, 1);
                self.set(register::DRIVER_FEATURES, 1);
                self.set(register::DRIVER_FEATURES_SEL, 0);
                self.set(register::DRIVER_FEATURES, features);
            }
            if *status == RUNNING {
                for queue in 0..self.queues {
                    self.set_queue(queue, QUEUE_SIZE.into(), Self::rings(queue));
                }
            }
            self.set(register::STATUS, *status);
        }
    }

    /// A request in the form that the device expects, with contents of any kind.
    fn plausible(&mut self, rest: &mut Operands<'_>) {
        let at = DATA + u64::from(rest.byte()) * 0x100;
        match self.kind {
            Kind::Disk | Kind::ReadOnlyDisk => {
                let kind = [0_u32, 1, 4, 8, 11, 13, 99][usize::from(rest.byte() % 7)];
                let mut header = [0; 16];
                header[..4].copy_from_slice(&kind.to_le_bytes());
                header[8..10].copy_from_slice(&rest.take::<2>());
                header[15] = rest.byte() & 0x80;
                self.put(at, &header);
                let (data, length) = (rest.address(), rest.word() % 0x1_8000);
                let flags = if kind == 0 || kind == 8 { WRITE } else { 0 };
                self.descriptor(0, 0, (at, 16), NEXT, 1);
                self.descriptor(0, 1, (data, length), NEXT | flags, 2);
                self.descriptor(0, 2, (at + 0x80, 1), WRITE, 0);
                self.offer(0, 0, 1);
                self.kick(0);
            }
            Kind::Entropy => {
                self.descriptor(0, 0, (rest.address(), rest.word() % 0x2_0000), WRITE, 0);
                self.offer(0, 0, 1);
                self.kick(0);
            }
            Kind::Pmem => {
                let kind = u32::from(rest.byte() % 3);
                self.put(at, &kind.to_le_bytes());
                self.descriptor(0, 0, (at, 4), NEXT, 1);
                self.descriptor(0, 1, (rest.address(), rest.word() % 16), WRITE, 0);
                self.offer(0, 0, 1);
                self.kick(0);
            }
            Kind::Mem => {
                let kind = u16::from(rest.byte() % 5);
                let address = match rest.byte() {
                    block @ 0..0xe0 => self.block(u64::from(block % 70)),
                    _ => rest.address(),
                };
                self.mem_request(at, kind, address, rest.half() % 70);
            }
            Kind::Balloon => self.free_pages(at, rest),
            Kind::Vsock => {
                let packet = Packet {
                    from: (GUEST_CID, rest.word() % 8),
                    to: (HOST_CID, (1 << 30) + rest.word() % 8),
                    length: rest.word() % 0x1_0010,
                    kind: 1 + u16::from(rest.byte().is_multiple_of(8)),
                    operation: rest.half() % 9,
                    flags: rest.word() % 4,
                    credit: (rest.word(), rest.word()),
                };
                self.put(at, &packet.encode());
                let header = PACKET_HEADER as u32;
                self.descriptor(1, 0, (at, header), NEXT, 1);
                self.descriptor(1, 1, (rest.address(), rest.word() % 0x1_0010), 0, 0);
                self.offer(1, 0, 1);
                self.kick(1);
                self.receive_buffers(0, rest.byte().into());
            }
            Kind::Net => {
                let what = rest.byte();
                let pair = u64::from(what & 1) * 2;
                match what >> 1 & 3 {
                    0 => self.receive_buffers(pair, rest.byte().into()),
                    1 => {
                        let request: [u8; 6] = rest.take();
                        let length = u32::from(rest.byte() % 7);
                        self.put(at, &request);
                        self.descriptor(NET_CONTROL, 0, (at, length), NEXT, 1);
                        self.descriptor(NET_CONTROL, 1, (at + 0x80, 1), WRITE, 0);
                        self.offer(NET_CONTROL, 0, 1);
                        self.kick(NET_CONTROL);
                    }
                    _ => {
                        let (first, second) = (rest.word() % 0x1_0010, rest.word() % 0x1_0010);
                        self.descriptor(pair + 1, 0, (at, first), NEXT, 1);
                        self.descriptor(pair + 1, 1, (rest.address(), second), 0, 0);
                        self.offer(pair + 1, 0, 1);
                        self.kick(pair + 1);
                    }
                }
            }
        }
    }

    /// Pages that a balloon is to hold or to leave, or that are said to be free.
    fn free_pages(&mut self, at: u64, rest: &mut Operands<'_>) {
        let queue = [0, 1, 2, 4][usize::from(rest.byte() % 4)];
        if queue < 2 {
            let numbers: [u8; 64] = rest.take();
            self.put(at, &numbers);
            self.descriptor(queue, 0, (at, rest.half().into()), 0, 0);
        } else {
            let whole = rest.byte().is_multiple_of(2);
            for index in 0..3 {
                let (mut address, mut length) = (rest.address(), rest.word());
                if whole {
                    address &= !(PAGE - 1);
                    length &= !(PAGE as u32 - 1);
                }
                let flags = if index < 2 { NEXT | WRITE } else { WRITE };
                self.descriptor(queue, index, (address, length), flags, index + 1);
            }
        }
        self.offer(queue, 0, 1);
        self.kick(queue);
    }

    fn receive_buffers(&mut self, queue: u64, count: u16) {
        for index in 0..count % QUEUE_SIZE {
            let at = DATA + 0x8000 + u64::from(index) * 0x200;
            self.descriptor(queue, index, (at, 0x200), WRITE, 0);
            self.offer(queue, index, 1);
        }
        self.kick(queue);
    }

    /// What clients on the host do meanwhile.
    fn host(&mut self, rest: &mut Operands<'_>) {
        let what = rest.byte();
        let bytes: [u8; 24] = rest.take();
        if let (Some(size), Ok(memory)) = (&self.size, MemMib::new(MEM_FIRST + u64::from(what))) {
            size.request(memory);
            return;
        }
        if let Some((network, _)) = self.networks.get(usize::from(what) % NET_PAIRS) {
            // What there is no room for is lost.
            let length = usize::from(bytes[0]) << (bytes[1] % 9);
            let _ = network.send(&bytes.repeat(length / bytes.len() + 1)[..length]);
            return;
        }
        match what % 4 {
            0 if self.kind == Kind::Vsock && self.clients.len() < MAX_CLIENTS => {
                let client = UnixStream::connect(self.socket());
                let client =
                    client.and_then(|client| client.set_nonblocking(true).map(|()| client));
                self.clients.extend(client);
            }
            1 => {
                if let Some(mut client) = self.clients.last() {
                    let line = format!("CONNECT {}\n", bytes[0] % 8);
                    let _ = client.write(line.as_bytes());
                }
            }
            2 => {
                if let Some(mut client) = self.clients.last() {
                    let _ = client.write(&bytes);
                }
            }
            _ => {
                self.clients.pop();
            }
        }
    }

    /// Brings the device up anew, as it must let itself be.
    fn restart(&mut self) -> Result<(), String> {
        self.clients.clear();
        self.set(register::STATUS, 0);
        let status = self.get(register::STATUS);
        if status != 0 {
            return Err(format!("after a reset its status is {status:#x}"));
        }
        for queue in 0..self.queues {
            self.put(queue * QUEUE_STRIDE, &[0; QUEUE_STRIDE as usize]);
        }
        let mut lost = [0];
        for (ours, theirs) in &self.networks {
            while ours.recv(&mut lost).is_ok() {}
            while theirs.recv(&mut lost).is_ok() {}
        }
        let _ = self.irq.read();
        let features = match self.kind {
            Kind::Net => NET_FEATURES,
            Kind::Balloon => REPORTING,
            Kind::Mem => INACCESSIBLE,
            _ => 0,
        };
        self.begin(4, features);
        match self.get(register::STATUS) {
            RUNNING => Ok(()),
            status => Err(format!("brought up anew, its status is {status:#x}")),
        }
    }

    /// Waits until the device has used `count` buffers of a queue.
    fn used(&mut self, queue: u64, count: u16) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        let ring = queue * QUEUE_STRIDE + USED;
        while self.half_at(ring + 2) < count {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.get(register::STATUS) != RUNNING {
                let (used, status) = (self.half_at(ring + 2), self.get(register::STATUS));
                return Err(format!(
                    "of {count} buffers in queue {queue} it used {used}; its status is {status:#x}"
                ));
            }
            self.interrupted(left.min(Duration::from_millis(100)));
        }
        Ok(())
    }

    /// How many bytes it says it wrote into the buffer that it used as number `index`.
    fn used_length(&self, queue: u64, index: u16) -> u32 {
        let at = queue * QUEUE_STRIDE + USED + 4 + 8 * u64::from(index) + 4;
        self.memory.read_obj(GuestAddress(at)).unwrap_or(0)
    }

    fn bytes<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let _ = self.memory.read_slice(&mut bytes, GuestAddress(address));
        bytes
    }

    fn transfer(&mut self, kind: u32, sector: u8, number: u16) -> Result<u8, String> {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8] = sector;
        self.put(DATA, &header);
        let flags = if kind == 0 { WRITE } else { 0 };
        self.descriptor(0, 0, (DATA, 16), NEXT, 1);
        self.descriptor(0, 1, (DATA + 0x1000, SECTOR as u32), NEXT | flags, 2);
        self.descriptor(0, 2, (DATA + 0x100, 1), WRITE, 0);
        self.put(DATA + 0x100, &[0xff]);
        self.offer(0, 0, 1);
        self.kick(0);
        self.used(0, number)?;
        let [status] = self.bytes(DATA + 0x100);
        Ok(status)
    }

    fn disk_works(&mut self) -> Result<(), String> {
        let file = self.disk.take().ok_or("no disk")?;
        let mut now = vec![0; sectors().len()];
        file.read_exact_at(&mut now, 0).map_err(text)?;
        let size = file.metadata().map_err(text)?.len();
        if size != now.len() as u64 {
            return Err(format!("the disk has {size} bytes now"));
        }
        if self.kind == Kind::ReadOnlyDisk && now != sectors() {
            return Err("a disk that may not be written to was changed".to_owned());
        }
        self.put(DATA + 0x1000, &[0x5a; SECTOR]);
        let written = self.transfer(1, 3, 1)?;
        if written != u8::from(self.kind == Kind::ReadOnlyDisk) {
            return Err(format!("a write ended with status {written}"));
        }
        self.put(DATA + 0x1000, &[0; SECTOR]);
        let read = self.transfer(0, 3, 2)?;
        let expected = if written == 0 { 0x5a } else { 3 };
        if read != 0 || self.bytes::<SECTOR>(DATA + 0x1000) != [expected; SECTOR] {
            return Err(format!(
                "a read ended with status {read}, or read something else"
            ));
        }
        Ok(())
    }

    fn entropy_works(&mut self) -> Result<(), String> {
        self.put(DATA, &[0; 64]);
        self.descriptor(0, 0, (DATA, 64), WRITE, 0);
        self.offer(0, 0, 1);
        self.kick(0);
        self.used(0, 1)?;
        let length = self.used_length(0, 0);
        if length != 64 || self.bytes::<64>(DATA) == [0; 64] {
            return Err(format!("{length} bytes of entropy instead of 64"));
        }
        Ok(())
    }

    /// Where a block begins that may come later.
    fn block(&self, number: u64) -> u64 {
        later().map_or(0, |later| later.range().start) + number * BLOCK
    }

    fn mem_request(&mut self, at: u64, kind: u16, address: u64, count: u16) {
        let mut request = [0; 24];
        request[..2].copy_from_slice(&kind.to_le_bytes());
        request[8..16].copy_from_slice(&address.to_le_bytes());
        request[16..18].copy_from_slice(&count.to_le_bytes());
        self.put(at, &request);
        self.put(at + 0x80, &[0xff; 10]);
        self.descriptor(0, 0, (at, 24), NEXT, 1);
        self.descriptor(0, 1, (at + 0x80, 10), WRITE, 0);
        self.offer(0, 0, 1);
        self.kick(0);
    }

    /// It gives everything back, is refused more than there is to be had, and gets that, as zeroes.
    fn mem_works(&mut self) -> Result<(), String> {
        let size = self.size.clone().ok_or("no size")?;
        size.request(MemMib::new(MEM_FIRST + 4).map_err(text)?);
        let requests = [(2, 0, 0, 0), (0, 7, 3, 1), (0, 7, 2, 0), (0, 9, 1, 1)];
        for (number, (kind, block, count, answer)) in (1..).zip(requests) {
            self.mem_request(DATA, kind, self.block(block), count);
            self.used(0, number)?;
            let answered = self.bytes::<1>(DATA + 0x80);
            if answered != [answer] {
                return Err(format!("request {number} was answered with {answered:?}"));
            }
        }
        let place = self.block(8);
        if self.bytes::<64>(place) != [0; 64] {
            return Err("memory that was given is not zeroes".to_owned());
        }
        self.put(place, &[7; 64]);
        match self.bytes::<64>(place) == [7; 64] {
            true => Ok(()),
            false => Err("memory that was given is not kept".to_owned()),
        }
    }

    fn pmem_works(&mut self) -> Result<(), String> {
        self.put(DATA, &[0; 4]);
        self.put(DATA + 0x100, &[0xff; 4]);
        self.descriptor(0, 0, (DATA, 4), NEXT, 1);
        self.descriptor(0, 1, (DATA + 0x100, 4), WRITE, 0);
        self.offer(0, 0, 1);
        self.kick(0);
        self.used(0, 1)?;
        let answer = self.bytes::<4>(DATA + 0x100);
        if self.used_length(0, 0) != 4 || answer != [0; 4] {
            return Err(format!("a flush was answered {answer:?}"));
        }
        match self.bytes::<16>(WINDOW + PMEM_HEADER_BYTES) {
            [WINDOW_BYTE, ..] => Ok(()),
            other => Err(format!("its memory is {other:?}")),
        }
    }

    /// A driver uses both pairs, and frames pass on each both ways.
    fn net_works(&mut self) -> Result<(), String> {
        self.put(DATA, &[4, 0, NET_PAIRS as u8, 0]);
        self.put(DATA + 0x100, &[0xff]);
        self.descriptor(NET_CONTROL, 0, (DATA, 4), NEXT, 1);
        self.descriptor(NET_CONTROL, 1, (DATA + 0x100, 1), WRITE, 0);
        self.offer(NET_CONTROL, 0, 1);
        self.kick(NET_CONTROL);
        self.used(NET_CONTROL, 1)?;
        let [answer] = self.bytes(DATA + 0x100);
        if answer != 0 {
            return Err(format!("two pairs are refused with {answer}"));
        }
        let length = FRAME as u32;
        for pair in 0..NET_PAIRS {
            let (rx, tx) = (2 * pair as u64, 2 * pair as u64 + 1);
            let frame = [pair as u8; FRAME];
            self.put(DATA + 0x1000, &frame);
            self.descriptor(tx, 0, (DATA + 0x1000, length), 0, 0);
            self.offer(tx, 0, 1);
            self.kick(tx);
            self.used(tx, 1)?;
            let mut sent = [0; 2 * FRAME];
            let network = self.networks[pair].0.try_clone().map_err(text)?;
            let count = network.recv(&mut sent).map_err(text)?;
            if sent[..count] != frame {
                return Err(format!("pair {pair} sent {count} other bytes"));
            }
            self.descriptor(rx, 0, (DATA + 0x2000, 0x200), WRITE, 0);
            self.offer(rx, 0, 1);
            self.kick(rx);
            network.send(&frame).map_err(text)?;
            self.used(rx, 1)?;
            let (count, received) = (self.used_length(rx, 0), self.bytes::<FRAME>(DATA + 0x2000));
            // The header says in how many buffers it is.
            if count != length || received[12..] != frame[12..] {
                return Err(format!("pair {pair} received {count} other bytes"));
            }
        }
        Ok(())
    }

    /// Whether a page and the one behind it are full and empty as expected.
    fn pages_are(&self, page: u64, expected: [u8; 2]) -> Result<(), String> {
        let bytes: [[u8; PAGE as usize]; 2] = [self.bytes(page), self.bytes(page + PAGE)];
        for (bytes, expected) in bytes.iter().zip(expected) {
            if bytes.iter().any(|byte| *byte != expected) {
                return Err(format!("a page is not full of {expected}"));
            }
        }
        Ok(())
    }

    /// Of two pages that are full, the first is reported, then the second goes into the balloon, and comes out again.
    fn balloon_works(&mut self) -> Result<(), String> {
        // Behind the rings of five queues.
        let page = 8 * QUEUE_STRIDE;
        self.put(page, &[0x5a; 2 * PAGE as usize]);
        self.descriptor(2, 0, (page, PAGE as u32), WRITE, 0);
        self.offer(2, 0, 1);
        self.kick(2);
        self.used(2, 1)?;
        self.pages_are(page, [0, 0x5a])?;
        self.put(page, &[0xa5; PAGE as usize]);
        let list = page + 2 * PAGE;
        self.put(list, &((page + PAGE) as u32 >> 12).to_le_bytes());
        for queue in [0, 1] {
            self.descriptor(queue, 0, (list, 4), 0, 0);
            self.offer(queue, 0, 1);
            self.kick(queue);
            self.used(queue, 1)?;
            self.pages_are(page, [0xa5, 0])?;
        }
        Ok(())
    }

    /// A client of the host's connects to a port of the guest's, which accepts.
    fn vsock_works(&mut self) -> Result<(), String> {
        self.receive_buffers(0, QUEUE_SIZE - 1);
        let mut client = UnixStream::connect(self.socket()).map_err(text)?;
        client.set_read_timeout(Some(PATIENCE)).map_err(text)?;
        let line = format!("CONNECT {PORT}\n");
        client.write_all(line.as_bytes()).map_err(text)?;
        // Clients of before, already gone, may come first.
        let mut count = 0;
        let request = loop {
            count += 1;
            self.used(0, count)?;
            let element = GuestAddress(USED + 4 + 8 * u64::from(count - 1));
            let head: u32 = self.memory.read_obj(element).map_err(text)?;
            let packet = Packet::decode(&self.bytes(DATA + 0x8000 + u64::from(head) * 0x200));
            if packet.operation == 1 && packet.to == (GUEST_CID, PORT) {
                break packet;
            }
        };
        let answer = Packet {
            from: request.to,
            to: request.from,
            length: 0,
            kind: 1,
            operation: 2,
            flags: 0,
            credit: (0x1_0000, 0),
        };
        self.put(DATA, &answer.encode());
        self.descriptor(1, 0, (DATA, PACKET_HEADER as u32), 0, 0);
        self.offer(1, 0, 1);
        self.kick(1);
        self.used(1, 1)?;
        let mut said = [0; 3];
        client.read_exact(&mut said).map_err(text)?;
        match &said {
            b"OK " => Ok(()),
            other => Err(format!("the client was told {other:?}")),
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // The device's thread ends with its task.
        self.set(register::STATUS, 0);
    }
}

/// `struct virtio_vsock_hdr` (5.10.6): addresses as context identifier and port.
struct Packet {
    from: (u64, u32),
    to: (u64, u32),
    length: u32,
    kind: u16,
    operation: u16,
    flags: u32,
    /// `buf_alloc` and `fwd_cnt`.
    credit: (u32, u32),
}

impl Packet {
    fn encode(&self) -> Vec<u8> {
        [
            &self.from.0.to_le_bytes()[..],
            &self.to.0.to_le_bytes(),
            &self.from.1.to_le_bytes(),
            &self.to.1.to_le_bytes(),
            &self.length.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.operation.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.credit.0.to_le_bytes(),
            &self.credit.1.to_le_bytes(),
        ]
        .concat()
    }

    fn decode(bytes: &[u8; PACKET_HEADER]) -> Self {
        let mut rest = Operands(bytes);
        let cids = [rest.take(), rest.take()].map(u64::from_le_bytes);
        let ports = [rest.word(), rest.word()];
        Self {
            from: (cids[0], ports[0]),
            to: (cids[1], ports[1]),
            length: rest.word(),
            kind: rest.half(),
            operation: rest.half(),
            flags: rest.word(),
            credit: (rest.word(), rest.word()),
        }
    }
}

/// Runs `program` against a device, resets it, and uses it properly.
///
/// # Errors
/// If the device does not come up again, does not do what it is for, or did what it must never do: change a disk that is
/// read-only, or the size of one. A device that hangs or a thread that panics shows as one of these, or as the reset's not
/// coming back.
pub(crate) fn check(kind: Kind, program: &[u8]) -> Result<(), String> {
    let mut bench = Bench::new(kind)?;
    bench.run(program);
    bench.restart()?;
    match kind {
        Kind::Disk | Kind::ReadOnlyDisk => bench.disk_works(),
        Kind::Entropy => bench.entropy_works(),
        Kind::Balloon => bench.balloon_works(),
        Kind::Vsock => bench.vsock_works(),
        Kind::Pmem => bench.pmem_works(),
        Kind::Net => bench.net_works(),
        Kind::Mem => bench.mem_works(),
    }
}
