//! A driver's requests, well-formed and not.

use std::io::Write;
use std::num::NonZeroU64;
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
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::memory::window::{Window, WindowFile};
use crate::memory::{Sharing, create};
use crate::virtio::WorkerThread;
use crate::virtio::chain::ChainError;

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
    let error = Block::new("vda", file, true, "123456789012345678901").unwrap_err();
    assert!(matches!(error, BlockError::Serial { .. }));
}

#[test]
fn ring_with_more_entries_than_it_has_needs_a_reset() {
    let bench = Bench::new(false);
    let mock = MockSplitQueue::new(&bench.memory, 16);
    let queue: Queue = mock.create_queue().unwrap();
    bench
        .memory
        .write_obj(17_u16, GuestAddress(mock.avail_addr().0 + 2))
        .unwrap();
    let mut task = BlockTask {
        disk: bench.disk,
        turnstile: None,
        lane: None,
        queue: ActiveQueue {
            queue,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
        },
        memory: bench.memory.clone(),
        interrupt: Interrupt::new(EventFd::new(EFD_NONBLOCK).unwrap()),
    };
    assert!(matches!(
        task.ready(0),
        Err(BlockError::Queue(QueueError::Ring(_)))
    ));
}

#[test]
fn device_serves_again_after_a_reset() {
    let bench = Bench::new(true);
    let mut device = Block::new("vda", bench.file.try_clone().unwrap(), true, "x").unwrap();
    let mut sectors = [0; 8];
    device.read_config(0, &mut sectors);
    assert_eq!(u64::from_le_bytes(sectors), DISK_SECTORS);
    for sector in [2_u8, 9] {
        bench.header(VIRTIO_BLK_T_IN, sector.into());
        let mock = MockSplitQueue::new(&bench.memory, 16);
        let chain = [
            readable(HEADER, 16),
            writable(DATA, 512),
            writable(STATUS, 1),
        ];
        mock.build_desc_chain(&chain).unwrap();
        let irq = EventFd::new(0).unwrap();
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        let active = ActiveQueue {
            queue: mock.create_queue().unwrap(),
            kick: kick.try_clone().unwrap(),
        };
        device
            .activate(Activation {
                memory: bench.memory.clone(),
                queues: vec![Some(active)],
                interrupt: Interrupt::new(irq.try_clone().unwrap()),
                features: 0,
                thread: WorkerThread::spawn("vda", || {}).unwrap(),
                more_threads: Vec::new(),
            })
            .unwrap();
        kick.write(1).unwrap();
        wait_readable(&irq);
        device.reset();
        assert_eq!(bench.guest_byte(DATA), sector);
        let ring = GuestAddress(mock.avail_addr().0 + 2);
        bench.memory.write_obj(0_u16, ring).unwrap();
    }
}

/// A task with four reads of a sector in its ring, and the ring's used index.
fn limited(bench: Bench, limits: &DiskLimits) -> (BlockTask, impl Fn() -> u16) {
    bench.header(VIRTIO_BLK_T_IN, 3);
    let memory = bench.memory.clone();
    let mock = MockSplitQueue::new(&memory, 16);
    let flags = u16::try_from(VRING_DESC_F_NEXT).unwrap();
    let write = u16::try_from(VRING_DESC_F_WRITE).unwrap();
    let chains: Vec<RawDescriptor> = (0..4_u16)
        .flat_map(|index| {
            let of = |address, length, flags, next| {
                RawDescriptor::from(Descriptor::new(address, length, flags, next))
            };
            [
                of(HEADER, 16, flags, 3 * index + 1),
                of(DATA, 512, flags | write, 3 * index + 2),
                of(STATUS, 1, write, 0),
            ]
        })
        .collect();
    mock.build_multiple_desc_chains(&chains).unwrap();
    let task = BlockTask {
        disk: bench.disk,
        turnstile: Some(Turnstile::new(DiskPace::new(limits).unwrap()).unwrap()),
        lane: None,
        queue: ActiveQueue {
            queue: mock.create_queue().unwrap(),
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
        },
        memory: memory.clone(),
        interrupt: Interrupt::new(EventFd::new(EFD_NONBLOCK).unwrap()),
    };
    let index = GuestAddress(mock.used_addr().0 + 2);
    (task, move || memory.read_obj(index).unwrap())
}

#[test]
fn disk_that_is_limited_leaves_requests_in_the_ring() {
    // What a request reads takes more than eight minutes.
    let limits = DiskLimits {
        bytes_per_second: NonZeroU64::new(1),
        ..DiskLimits::default()
    };
    let (mut task, used) = limited(Bench::new(true), &limits);
    for number in [KICK, KICK, TIMER] {
        task.ready(number).unwrap();
        assert_eq!(used(), 1);
    }
    assert_eq!(task.watched().len(), 2);
}

#[test]
fn disk_that_is_limited_goes_on_when_its_timer_says_so() {
    let limits = DiskLimits {
        operations_per_second: NonZeroU64::new(20),
        ..DiskLimits::default()
    };
    let (mut task, used) = limited(Bench::new(true), &limits);
    task.ready(KICK).unwrap();
    while used() < 4 {
        wait_for(task.turnstile.as_ref().unwrap().as_fd());
        task.ready(TIMER).unwrap();
    }
}

/// A lane whose thread does nothing before what is returned is dropped.
fn held_lane() -> (Lane, std::sync::mpsc::Sender<()>) {
    let thread = WorkerThread::spawn("vda-wait", || {}).unwrap();
    let (release, held) = std::sync::mpsc::channel::<()>();
    thread
        .run(move || {
            let _ = held.recv();
        })
        .unwrap();
    (Lane::new(thread).unwrap(), release)
}

/// A flush and a read of sector 3 in the ring of a disk with this lane, and what was used: how many, and the heads.
fn flush_and_read(bench: &Bench, lane: Lane) -> (BlockTask, impl Fn() -> (u16, [u32; 2]) + use<>) {
    const FLUSH: u64 = HEADER + 0x1000;
    bench.header(VIRTIO_BLK_T_IN, 3);
    let kind = VIRTIO_BLK_T_FLUSH.to_le_bytes();
    bench
        .memory
        .write_slice(&kind, GuestAddress(FLUSH))
        .unwrap();
    let memory = bench.memory.clone();
    let mock = MockSplitQueue::new(&memory, 16);
    let next = u16::try_from(VRING_DESC_F_NEXT).unwrap();
    let write = u16::try_from(VRING_DESC_F_WRITE).unwrap();
    let of = |address, length, flags, next| {
        RawDescriptor::from(Descriptor::new(address, length, flags, next))
    };
    let chains = [
        of(FLUSH, 16, next, 1),
        of(STATUS + 1, 1, write, 0),
        of(HEADER, 16, next, 3),
        of(DATA, 512, next | write, 4),
        of(STATUS, 1, write, 0),
    ];
    mock.build_multiple_desc_chains(&chains).unwrap();
    let statuses = [0xff_u8; 2];
    bench
        .memory
        .write_slice(&statuses, GuestAddress(STATUS))
        .unwrap();
    let task = BlockTask {
        disk: Arc::clone(&bench.disk),
        turnstile: None,
        lane: Some(lane),
        queue: ActiveQueue {
            queue: mock.create_queue().unwrap(),
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
        },
        memory: memory.clone(),
        interrupt: Interrupt::new(EventFd::new(EFD_NONBLOCK).unwrap()),
    };
    let used = mock.used_addr().0;
    (task, move || {
        let heads = [used + 4, used + 12].map(|at| memory.read_obj(GuestAddress(at)).unwrap());
        (memory.read_obj(GuestAddress(used + 2)).unwrap(), heads)
    })
}

#[test]
fn flush_that_takes_long_holds_up_nobody_else() {
    let bench = Bench::new(false);
    let (lane, release) = held_lane();
    let (mut task, used) = flush_and_read(&bench, lane);
    task.ready(KICK).unwrap();
    assert_eq!(used(), (1, [2, 0]));
    assert_eq!((bench.guest_byte(STATUS), bench.guest_byte(DATA)), (OK, 3));
    assert_eq!(bench.guest_byte(STATUS + 1), 0xff);
    drop(release);
    wait_for(task.lane.as_ref().unwrap().as_fd());
    task.ready(LANE).unwrap();
    assert_eq!(used(), (2, [2, 0]));
    assert_eq!(bench.guest_byte(STATUS + 1), OK);
}

#[test]
fn end_of_a_task_waits_for_what_is_under_way() {
    let bench = Bench::new(false);
    let (lane, release) = held_lane();
    let (mut task, _) = flush_and_read(&bench, lane);
    task.ready(KICK).unwrap();
    let ending = std::thread::spawn(move || drop(task));
    assert_eq!(bench.guest_byte(STATUS + 1), 0xff);
    drop(release);
    ending.join().unwrap();
    assert_eq!(bench.guest_byte(STATUS + 1), OK);
}

#[test]
fn request_whose_thread_is_lost_is_given_back() {
    let bench = Bench::new(false);
    let thread = WorkerThread::spawn("vda-wait", || {}).unwrap();
    thread.run(|| panic!("the thread of this test")).unwrap();
    let (mut task, used) = flush_and_read(&bench, Lane::new(thread).unwrap());
    // Either it is lost already, or it takes the flush along.
    if task.ready(KICK).is_ok() {
        wait_for(task.lane.as_ref().unwrap().as_fd());
        task.ready(LANE).unwrap();
        assert_eq!(used().0, 2);
    }
    drop(task);
    assert_eq!(bench.guest_byte(STATUS + 1), 0xff);
}

#[test]
fn driver_that_makes_one_request_available_again_and_again_is_bounded() {
    let bench = Bench::new(false);
    let (lane, release) = held_lane();
    let (mut task, used) = flush_and_read(&bench, lane);
    for _ in 0..QUEUE_SIZE {
        let lane = task.lane.as_mut().unwrap();
        assert!(!lane.is_full());
        let request = Request {
            operation: Operation::Flush,
            status: GuestAddress(STATUS),
        };
        lane.take(&task.disk, &task.memory, 0, request).unwrap();
    }
    task.ready(KICK).unwrap();
    assert_eq!(used().0, 0);
    drop(release);
    while used().0 != QUEUE_SIZE + 2 {
        wait_for(task.lane.as_ref().unwrap().as_fd());
        task.ready(LANE).unwrap();
    }
}

#[test]
fn read_of_what_the_host_has_is_done_at_once_and_like_any_other() {
    let bench = Bench::new(true);
    bench.header(VIRTIO_BLK_T_IN, 3);
    let chain = [
        readable(HEADER, 16),
        writable(DATA, 500),
        writable(DATA + 0x1000, 524),
        writable(STATUS, 1),
    ];
    let request = bench.parse(&chain).unwrap();
    // Just written: the host has it in memory, or cannot tell and is waited for.
    let used = serve_at_once(&bench.disk, &bench.memory, &request);
    assert_eq!(used, Some(1025));
    assert_eq!(bench.guest_byte(DATA + 0x1000 + 11), 3);
    assert_eq!(bench.guest_byte(DATA + 0x1000 + 12), 4);
    bench.header(VIRTIO_BLK_T_IN, DISK_SECTORS);
    let request = bench.parse(&chain).unwrap();
    assert_eq!(serve_at_once(&bench.disk, &bench.memory, &request), Some(1));
    assert_eq!(bench.guest_byte(STATUS), IOERR);
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
