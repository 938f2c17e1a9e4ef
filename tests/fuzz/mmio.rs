//! Any accesses to the registers of the memory-mapped transport, of any width and offset, in any order. Shared by the fuzz target and
//! the replay of its corpus. What must hold is in [`Bench::step`] and [`Probe`].

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use sandbox_vmm::bus::BusDevice as _;
use sandbox_vmm::seccomp::ThreadKind;
use sandbox_vmm::virtio::mmio::MmioTransport;
use sandbox_vmm::virtio::{
    ActivateError, Activation, Interrupt, Registers, VirtioDevice, WorkerThread,
};
use virtio_queue::QueueT as _;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const MEMORY_BYTES: u64 = 1 << 20;
/// Of the queues, at most.
const SIZES: [u16; 3] = [256, 16, 1];
const OFFERED: u64 = 1 << 3 | 1 << 28 | 1 << 29 | 1 << 40;
const VERSION_1: u64 = 1 << 32;
const DEVICE: u32 = 77;
const CONFIG: u64 = 0x100;
const CONFIG_BYTES: [u8; 5] = [1, 2, 3, 4, 5];

const FEATURES: u64 = 0x020;
const FEATURES_SELECTED: u64 = 0x024;
const QUEUE_SELECTED: u64 = 0x030;
const QUEUE_SIZE: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
const INTERRUPT_STATUS: u64 = 0x060;
const STATUS: u64 = 0x070;
const RINGS: [u64; 3] = [0x080, 0x090, 0x0a0];

/// What the device saw.
#[derive(Debug, Default)]
struct Seen {
    active: bool,
    /// It refuses to come up.
    refuses: bool,
    resets: usize,
    config_writes: usize,
    /// What must not be.
    wrong: Option<String>,
}

/// A device that does nothing but look at what it gets.
struct Probe(Arc<Mutex<Seen>>);

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether what a device is activated with is as promised.
fn is_sound(activation: &Activation) -> Result<(), String> {
    let features = activation.features;
    if features & !(OFFERED | VERSION_1) != 0 || features & VERSION_1 == 0 {
        return Err(format!("it was activated with features {features:#x}"));
    }
    if activation.queues.len() != SIZES.len() {
        return Err(format!("{} queues", activation.queues.len()));
    }
    for (active, most) in activation.queues.iter().zip(SIZES) {
        let Some(active) = active else { continue };
        let queue = &active.queue;
        let size = queue.size();
        if !size.is_power_of_two() || size > most || !queue.ready() {
            return Err(format!("a queue of {size} entries"));
        }
        let size = u64::from(size);
        for (at, bytes) in [
            (queue.desc_table(), 16 * size),
            (queue.avail_ring(), 6 + 2 * size),
            (queue.used_ring(), 6 + 8 * size),
        ] {
            if at.checked_add(bytes).is_none_or(|end| end > MEMORY_BYTES) {
                return Err(format!("a ring at {at:#x}"));
            }
        }
    }
    Ok(())
}

impl VirtioDevice for Probe {
    fn device_type(&self) -> u32 {
        DEVICE
    }

    fn thread(&self) -> (String, ThreadKind) {
        ("probe".to_owned(), ThreadKind::Block)
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &SIZES
    }

    fn features(&self) -> u64 {
        OFFERED
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let from = CONFIG_BYTES.iter().skip(offset as usize);
        for (to, from) in data.iter_mut().zip(from) {
            *to = *from;
        }
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        lock(&self.0).config_writes += 1;
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut seen = lock(&self.0);
        if seen.active {
            seen.wrong = Some("it was activated twice".to_owned());
        } else if let Err(wrong) = is_sound(&activation) {
            seen.wrong = Some(wrong);
        }
        seen.active = true;
        match seen.refuses {
            true => Err(ActivateError::QueueDisabled { index: 0 }),
            false => Ok(()),
        }
    }

    fn reset(&mut self) {
        let mut seen = lock(&self.0);
        seen.active = false;
        seen.resets += 1;
    }
}

struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let count = N.min(self.0.len());
        bytes[..count].copy_from_slice(&self.0[..count]);
        self.0 = &self.0[count..];
        bytes
    }

    fn byte(&mut self) -> u8 {
        u8::from_le_bytes(self.take())
    }
}

/// What all registers below the configuration space read as.
type Snapshot = Vec<u32>;

struct Bench {
    transport: MmioTransport,
    seen: Arc<Mutex<Seen>>,
}

impl Bench {
    fn new() -> Result<Self, String> {
        static THREAD: OnceLock<WorkerThread> = OnceLock::new();
        let text = |error: std::io::Error| error.to_string();
        let thread = match THREAD.get() {
            Some(thread) => thread.clone(),
            None => {
                let made = WorkerThread::spawn("probe", || {}).map_err(text)?;
                THREAD.get_or_init(|| made).clone()
            }
        };
        let memory = [(GuestAddress(0), MEMORY_BYTES as usize)];
        let memory = GuestMemoryMmap::from_ranges(&memory).map_err(|error| error.to_string())?;
        let registers = Registers::alone().map_err(|error| error.to_string())?;
        let interrupt = Interrupt::new(EventFd::new(EFD_NONBLOCK).map_err(text)?, registers);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let probe = Box::new(Probe(Arc::clone(&seen)));
        let transport = MmioTransport::new(probe, memory, interrupt, thread);
        Ok(Self {
            transport: transport.map_err(|error| error.to_string())?,
            seen,
        })
    }

    fn get(&mut self, register: u64) -> u32 {
        let mut word = [0xff; 4];
        self.transport.read(register, &mut word);
        u32::from_le_bytes(word)
    }

    fn set(&mut self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    fn snapshot(&mut self) -> Snapshot {
        (0..CONFIG).step_by(4).map(|at| self.get(at)).collect()
    }

    /// As a driver begins, up to a phase.
    fn begin(&mut self, phase: u8, features: u64) {
        for status in [1, 3, 11, 15].into_iter().take(usize::from(phase % 5)) {
            if status == 11 {
                for half in [0, 1] {
                    self.set(FEATURES_SELECTED, half);
                    self.set(FEATURES, (features >> (32 * half)) as u32);
                }
            }
            self.set(STATUS, status);
        }
    }

    fn queue(&mut self, rest: &mut Bytes<'_>) {
        self.set(QUEUE_SELECTED, u32::from(rest.byte() % 4));
        let size = [256_u32, 16, 1, 0, 3, 0x1_0000][usize::from(rest.byte() % 6)];
        self.set(QUEUE_SIZE, size);
        for register in RINGS {
            let high = u32::from(rest.byte() / 0xf0);
            self.set(register, u32::from_le_bytes(rest.take()) & 0x001f_ffff);
            self.set(register + 4, high);
        }
        self.set(QUEUE_READY, 1);
    }

    /// A write of any width and offset, and what it may change.
    fn write(&mut self, rest: &mut Bytes<'_>) -> Result<(), String> {
        let offset = u64::from(u16::from_le_bytes(rest.take()) % 0x140);
        let width = usize::from(rest.byte() % 9);
        let bytes: [u8; 8] = rest.take();
        let before = self.snapshot();
        let (resets, writes) = {
            let seen = lock(&self.seen);
            (seen.resets, seen.config_writes)
        };
        self.transport.write(offset, &bytes[..width]);
        let after = self.snapshot();
        let status = before[STATUS as usize / 4];
        let is_register = offset < CONFIG && width == 4 && offset.is_multiple_of(4);
        if !is_register && before != after {
            return Err(format!("{width} bytes at {offset:#x} changed a register"));
        }
        let seen = lock(&self.seen);
        if seen.config_writes != writes && (offset < CONFIG || status & 2 == 0 || status & 128 != 0)
        {
            return Err(format!("its space was written to in status {status:#x}"));
        }
        let resets_it = is_register && offset == STATUS && bytes[..4] == [0; 4];
        if (seen.resets != resets) != resets_it {
            return Err(format!("{width} bytes at {offset:#x}: a reset or none"));
        }
        let is_queue = (0x38..STATUS).contains(&offset) && offset != 0x50 && offset != 0x64
            || (0x80..CONFIG).contains(&offset);
        if is_queue && status & 15 != 11 && before != after {
            return Err(format!("a queue was set up in status {status:#x}"));
        }
        Ok(())
    }

    /// A read of any width and offset, which changes nothing.
    fn read(&mut self, rest: &mut Bytes<'_>) -> Result<(), String> {
        let offset = u64::from(u16::from_le_bytes(rest.take()) % 0x140);
        let width = usize::from(rest.byte() % 9);
        let before = self.snapshot();
        let mut bytes = [0xff; 8];
        self.transport.read(offset, &mut bytes[..width]);
        if before != self.snapshot() {
            return Err(format!("a read of {width} bytes at {offset:#x} changed it"));
        }
        let mut window: Vec<u8> = before.iter().flat_map(|word| word.to_le_bytes()).collect();
        window.extend(CONFIG_BYTES);
        let there = window.into_iter().chain(std::iter::repeat(0));
        let there: Vec<u8> = there.skip(offset as usize).take(width).collect();
        if bytes[..width] != there {
            return Err(format!(
                "{width} bytes at {offset:#x} read as {bytes:?}, not {there:?}"
            ));
        }
        Ok(())
    }

    fn step(&mut self, rest: &mut Bytes<'_>) -> Result<(), String> {
        match rest.byte() % 9 {
            0 => {
                let register = u64::from(rest.byte() % 64) * 4;
                self.set(register, u32::from_le_bytes(rest.take()));
            }
            1 => self.write(rest)?,
            2 => self.read(rest)?,
            3 => {
                let phase = rest.byte();
                self.begin(phase, u64::from_le_bytes(rest.take()));
            }
            4 => self.begin(rest.0.first().copied().unwrap_or(4), VERSION_1 | 1 << 29),
            5 => self.queue(rest),
            6 => self.set(STATUS, 0),
            // The device's side.
            7 => {
                let changed = self.transport.interrupt().signal_config(0, CONFIG_BYTES[0]);
                changed.map_err(|error| error.to_string())?;
            }
            _ => {
                let refuses = rest.byte().is_multiple_of(2);
                lock(&self.seen).refuses = refuses;
            }
        }
        let status = self.get(STATUS);
        let seen = lock(&self.seen);
        if let Some(wrong) = &seen.wrong {
            return Err(wrong.clone());
        }
        // Only who said DRIVER_OK, and gave up afterwards or not, has an active device.
        if seen.active && status & 15 != 15 {
            return Err(format!("it is active in status {status:#x}"));
        }
        Ok(())
    }

    /// It lets itself be reset, and then works.
    fn works(&mut self) -> Result<(), String> {
        lock(&self.seen).refuses = false;
        self.set(STATUS, 0);
        for queue in 0..4 {
            self.set(QUEUE_SELECTED, queue);
            if self.get(QUEUE_READY) != 0 {
                return Err(format!("queue {queue} is ready after a reset"));
            }
        }
        if (self.get(STATUS), self.get(INTERRUPT_STATUS)) != (0, 1) {
            return Err("something is left after a reset".to_owned());
        }
        if [self.get(0), self.get(4), self.get(8)] != [0x7472_6976, 2, DEVICE] {
            return Err("it is another device".to_owned());
        }
        self.begin(3, VERSION_1);
        self.queue(&mut Bytes(&[
            0, 1, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0x20,
        ]));
        self.set(STATUS, 15);
        let status = self.get(STATUS);
        match status == 15 && lock(&self.seen).active {
            true => Ok(()),
            false => Err(format!("brought up anew, its status is {status:#x}")),
        }
    }
}

/// Runs `program` against the registers.
///
/// # Errors
/// What must not be.
pub(crate) fn check(program: &[u8]) -> Result<(), String> {
    let mut bench = Bench::new()?;
    let mut rest = Bytes(program);
    while !rest.0.is_empty() {
        bench.step(&mut rest)?;
    }
    bench.works()
}
