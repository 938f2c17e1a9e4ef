//! A driver's requests, well-formed and not.

use std::io::Write;
use std::num::NonZeroU64;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use proptest::prelude::*;
use sandbox_types::MemMib;
use sandbox_types::monitor::{DiskLimits, PMEM_ALIGNMENT, PMEM_HEADER_BYTES};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::Queue;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::request::{Operation, Request};
use super::task::serve;
use super::*;
use crate::memory::window::{Window, WindowFile};
use crate::memory::{Sharing, create};
use crate::virtio::chain::ChainError;
use crate::virtio::worker::WorkerTask;
use crate::virtio::{ActiveQueue, Interrupt, QueueError, Registers};

mod queues;
mod ring;
mod task;

const HEADER: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;
const STATUS: u64 = 0x30_0000;
const MEMORY_BYTES: usize = 0x40_0000;
const DISK_SECTORS: u64 = 16;

fn readable(address: u64, length: u32) -> RawDescriptor {
    RawDescriptor::from(Descriptor::new(address, length, 0, 0))
}

fn writable(address: u64, length: u32) -> RawDescriptor {
    let flags = u16::try_from(VRING_DESC_F_WRITE).unwrap();
    RawDescriptor::from(Descriptor::new(address, length, flags, 0))
}

/// A queue with a chain in its ring so many times, and where its used ring is.
fn queue_of(bench: &Bench, chain: &[RawDescriptor], count: u16) -> (Queue, u64) {
    let length = u16::try_from(chain.len()).unwrap();
    let size = (length * count).next_power_of_two();
    let mock = MockSplitQueue::new(&bench.memory, size);
    let next = u16::try_from(VRING_DESC_F_NEXT).unwrap();
    let chains: Vec<RawDescriptor> = (0..length * count)
        .zip(chain.iter().cycle())
        .map(|(index, one)| {
            let one = Descriptor::from(*one);
            let flags = match (index + 1) % length {
                0 => one.flags(),
                _ => one.flags() | next,
            };
            Descriptor::new(one.addr().0, one.len(), flags, index + 1).into()
        })
        .collect();
    mock.build_multiple_desc_chains(&chains).unwrap();
    (mock.create_queue().unwrap(), mock.used_addr().0)
}

/// A disk whose sectors are filled with their numbers, and guest memory.
struct Bench {
    memory: GuestMemoryMmap,
    disk: Arc<Disk>,
    file: File,
}

impl Bench {
    fn new(read_only: bool) -> Self {
        let mut file = tempfile::tempfile().unwrap();
        for sector in 0..DISK_SECTORS {
            file.write_all(&[u8::try_from(sector).unwrap(); 512])
                .unwrap();
        }
        // Half a sector more, which is not part of the disk.
        file.write_all(&[0xee; 256]).unwrap();
        let disk = Disk::new(file.try_clone().unwrap(), read_only, "serial-1").unwrap();
        let ranges = [(GuestAddress(0), MEMORY_BYTES)];
        Self {
            memory: GuestMemoryMmap::from_ranges(&ranges).unwrap(),
            disk: Arc::new(disk),
            file,
        }
    }

    fn header(&self, kind: u32, sector: u64) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.memory
            .write_slice(&header, GuestAddress(HEADER))
            .unwrap();
    }

    fn parse(&self, descriptors: &[RawDescriptor]) -> Result<Request, BlockError> {
        let mock = MockSplitQueue::new(&self.memory, 256);
        let chain = mock.build_desc_chain(descriptors).unwrap();
        Request::parse(chain, &self.memory)
    }

    /// The status, and the length for the used ring.
    fn request(&mut self, kind: u32, sector: u64, data: &[RawDescriptor]) -> (u8, u32) {
        self.header(kind, sector);
        let mut descriptors = vec![readable(HEADER, 16)];
        descriptors.extend_from_slice(data);
        descriptors.push(writable(STATUS, 1));
        self.memory
            .write_obj(0xff_u8, GuestAddress(STATUS))
            .unwrap();
        let request = self.parse(&descriptors).unwrap();
        let used = serve(&self.disk, &self.memory, &request);
        (self.memory.read_obj(GuestAddress(STATUS)).unwrap(), used)
    }

    fn guest_byte(&self, address: u64) -> u8 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    fn disk_byte(&self, at: u64) -> u8 {
        let mut byte = [0];
        self.file.read_exact_at(&mut byte, at).unwrap();
        byte[0]
    }
}

/// One that nobody waits for.
fn interrupt() -> Interrupt {
    let irq = EventFd::new(EFD_NONBLOCK).unwrap();
    Interrupt::new(irq, Registers::alone().unwrap())
}

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

#[test]
fn read_cut_into_odd_pieces_fills_them_in_order() {
    let mut bench = Bench::new(true);
    let data = [writable(DATA, 500), writable(DATA + 0x1000, 524)];
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 3, &data), (OK, 1025));
    assert_eq!(bench.guest_byte(DATA + 499), 3);
    assert_eq!(bench.guest_byte(DATA + 0x1000 + 11), 3);
    assert_eq!(bench.guest_byte(DATA + 0x1000 + 12), 4);
}

#[test]
fn memory_that_is_only_read_is_written_to_the_disk_and_not_read_into() {
    let mut content = tempfile::tempfile().unwrap();
    content.write_all(&[0x77; 4096]).unwrap();
    let file = WindowFile {
        file: content,
        offset: PMEM_HEADER_BYTES,
        bytes: 4096,
    };
    let size = MemMib::new(64).unwrap();
    let window = Window::map(size, PMEM_ALIGNMENT, vec![file]).unwrap();
    let place = window.range().start + PMEM_HEADER_BYTES;
    let mut bench = Bench {
        memory: create(size, Sharing::Private, Some(&window), None).unwrap(),
        ..Bench::new(false)
    };
    let data = [readable(place, 512)];
    assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 2, &data), (OK, 1));
    assert_eq!(bench.disk_byte(2 * 512), 0x77);
    bench.header(VIRTIO_BLK_T_IN, 3);
    for (data, status) in [(place, STATUS), (DATA, place), (place - 256, STATUS)] {
        let chain = [
            readable(HEADER, 16),
            writable(data, 512),
            writable(status, 1),
        ];
        let refused = bench.parse(&chain);
        assert!(
            matches!(refused, Err(BlockError::Malformed(ChainError::ReadOnly))),
            "{refused:?}"
        );
    }
}

#[test]
fn write_reaches_the_file_and_is_refused_on_a_read_only_disk() {
    let mut bench = Bench::new(false);
    let data = [readable(DATA, 512)];
    bench
        .memory
        .write_slice(&[7; 512], GuestAddress(DATA))
        .unwrap();
    assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 15, &data), (OK, 1));
    assert_eq!(bench.disk_byte(15 * 512), 7);
    assert_eq!(bench.request(VIRTIO_BLK_T_FLUSH, 0, &[]), (OK, 1));

    let mut bench = Bench::new(true);
    assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 15, &data), (IOERR, 1));
    assert_eq!(bench.disk_byte(15 * 512), 15);
}

#[test]
fn sectors_behind_the_end_are_an_error() {
    let mut bench = Bench::new(false);
    for sector in [DISK_SECTORS, DISK_SECTORS - 1, u64::MAX, u64::MAX / 512] {
        let data = [writable(DATA, 1024)];
        assert_eq!(bench.request(VIRTIO_BLK_T_IN, sector, &data), (IOERR, 1));
        let data = [readable(DATA, 1024)];
        assert_eq!(bench.request(VIRTIO_BLK_T_OUT, sector, &data), (IOERR, 1));
    }
    assert_eq!(bench.disk_byte(DISK_SECTORS * 512), 0xee);
}

#[test]
fn part_of_a_sector_is_an_error() {
    let mut bench = Bench::new(false);
    let data = [writable(DATA, 100)];
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 0, &data), (IOERR, 1));
}

#[test]
fn data_outside_guest_memory_is_an_error() {
    let mut bench = Bench::new(false);
    for address in [MEMORY_BYTES as u64 - 256, u64::MAX - 100, 1 << 40] {
        let data = [writable(address, 512)];
        assert_eq!(bench.request(VIRTIO_BLK_T_IN, 0, &data), (IOERR, 1));
    }
}

#[test]
fn serial_number_is_padded_and_cut_to_the_buffer() {
    let mut bench = Bench::new(true);
    let data = [writable(DATA, 20)];
    assert_eq!(bench.request(VIRTIO_BLK_T_GET_ID, 0, &data), (OK, 21));
    let mut id = [0xff; 20];
    bench
        .memory
        .read_slice(&mut id, GuestAddress(DATA))
        .unwrap();
    assert_eq!(&id[..9], b"serial-1\0");
    let data = [writable(DATA + 64, 3)];
    assert_eq!(bench.request(VIRTIO_BLK_T_GET_ID, 0, &data), (OK, 4));
    assert_eq!(bench.guest_byte(DATA + 67), 0);
}

#[test]
fn zeroed_range_reads_as_zeroes_and_bad_ranges_change_nothing() {
    let mut bench = Bench::new(false);
    let range = |sector: u64, sectors: u32, flags: u32| {
        let mut entry = sector.to_le_bytes().to_vec();
        entry.extend(sectors.to_le_bytes());
        entry.extend(flags.to_le_bytes());
        entry
    };
    let data = [readable(DATA, 16)];
    let mut ask = |kind, entry: Vec<u8>| {
        bench
            .memory
            .write_slice(&entry, GuestAddress(DATA))
            .unwrap();
        bench.request(kind, 0, &data).0
    };
    assert_eq!(ask(VIRTIO_BLK_T_WRITE_ZEROES, range(2, 2, 1)), OK);
    assert_eq!(ask(VIRTIO_BLK_T_DISCARD, range(15, 2, 0)), IOERR);
    assert_eq!(ask(VIRTIO_BLK_T_DISCARD, range(u64::MAX, 1, 0)), IOERR);
    assert_eq!(ask(VIRTIO_BLK_T_DISCARD, range(5, 1, 1)), UNSUPP);
    assert_eq!(ask(VIRTIO_BLK_T_WRITE_ZEROES, range(5, 1, 2)), UNSUPP);
    let bytes: Vec<_> = (0..8).map(|sector| bench.disk_byte(sector * 512)).collect();
    assert_eq!(bytes, [0, 1, 0, 0, 4, 5, 6, 7]);
}

#[test]
fn unknown_type_is_unsupported() {
    let mut bench = Bench::new(false);
    assert_eq!(bench.request(99, 0, &[]), (UNSUPP, 1));
}

#[test]
fn chain_without_header_status_or_order_is_malformed() {
    let bench = Bench::new(false);
    bench.header(VIRTIO_BLK_T_IN, 0);
    let malformed = |descriptors: &[RawDescriptor]| match bench.parse(descriptors) {
        Err(BlockError::Malformed(error)) => error,
        other => panic!("{other:?}"),
    };
    assert!(matches!(
        malformed(&[readable(HEADER, 15), writable(STATUS, 1)]),
        ChainError::ReadableTooShort { missing: 1 }
    ));
    assert!(matches!(
        malformed(&[readable(HEADER, 16)]),
        ChainError::WritableTooShort
    ));
    assert!(matches!(
        malformed(&[writable(STATUS, 1), readable(HEADER, 16)]),
        ChainError::Order
    ));
    assert!(matches!(
        malformed(&[readable(u64::MAX - 4, 16), writable(STATUS, 1)]),
        ChainError::Memory(_)
    ));
    let ranges = [
        readable(HEADER, 16),
        readable(DATA, 17 * 16),
        writable(STATUS, 1),
    ];
    bench.header(VIRTIO_BLK_T_DISCARD, 0);
    assert!(matches!(malformed(&ranges), ChainError::TooLong));
}

#[test]
fn header_in_two_pieces_is_read_whole() {
    let bench = Bench::new(false);
    bench.header(VIRTIO_BLK_T_IN, 5);
    let pieces = [
        readable(HEADER, 7),
        readable(HEADER + 7, 9),
        writable(DATA, 512),
        writable(STATUS, 1),
    ];
    let request = bench.parse(&pieces).unwrap();
    assert!(matches!(request.operation, Operation::In { sector: 5, .. }));
    assert_eq!(request.status, GuestAddress(STATUS));
}

#[test]
fn serial_that_is_too_long_is_refused() {
    let file = tempfile::tempfile().unwrap();
    let error = Block::new("vda", file, true, "123456789012345678901", 1).unwrap_err();
    assert!(matches!(error, BlockError::Serial { .. }));
}

fn wait_readable(event: &EventFd) {
    wait_for(crate::fd::borrow(event));
}

fn wait_for(borrowed: BorrowedFd<'_>) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let limit = Timespec::try_from(Duration::from_secs(120)).unwrap();
    let mut fds = [PollFd::new(&borrowed, PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&limit)).unwrap(), 1, "nothing came");
}

proptest! {
    #[test]
    fn request_of_any_descriptors_is_served_or_refused_within_the_disk(
        kind in 0_u32..16,
        sector in prop_oneof![0..20_u64, any::<u64>()],
        descriptors in prop::collection::vec(
            (prop_oneof![0..0x41_0000_u64, any::<u64>()], prop_oneof![0..2048_u32, any::<u32>()],
             any::<bool>()),
            1..12,
        ),
    ) {
        let bench = Bench::new(false);
        bench.header(kind, sector);
        let mut chain = vec![readable(HEADER, 16)];
        chain.extend(descriptors.iter().map(|&(address, length, write)| {
            // The queue itself lies at the beginning, and must stay for the next request.
            let address = address.max(0x1_0000);
            if write { writable(address, length) } else { readable(address, length) }
        }));
        if let Ok(request) = bench.parse(&chain) {
            serve(&bench.disk, &bench.memory, &request);
        }
        prop_assert_eq!(bench.file.metadata().unwrap().len(), DISK_SECTORS * 512 + 256);
        prop_assert_eq!(bench.disk_byte(DISK_SECTORS * 512), 0xee);
    }
}
