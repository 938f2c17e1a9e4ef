//! What a queue's thread does when: limits, and requests that wait in a lane.

use super::*;
use crate::virtio::WorkerThread;
use crate::virtio::block::lane::{Lane, ThreadLane};
use crate::virtio::block::task::{KICK, LANE, LOOK_EVERY, TIMER, serve_at_once};

/// A task that nobody has notified, and that is not limited.
pub(super) fn task(bench: &Bench, queue: Queue, lane: Option<Lane>) -> BlockTask {
    BlockTask {
        disk: Arc::clone(&bench.disk),
        turnstile: None,
        lane,
        queue: ActiveQueue {
            queue,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
        },
        memory: bench.memory.clone(),
        interrupt: interrupt(),
    }
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
    let mut task = task(&bench, queue, None);
    assert!(matches!(
        task.ready(0),
        Err(BlockError::Queue(QueueError::Ring(_)))
    ));
}

/// A queue with so many reads of a sector in its ring, and where its used ring is.
fn queue_of_reads(bench: &Bench, count: u16) -> (Queue, u64) {
    bench.header(VIRTIO_BLK_T_IN, 3);
    let read = [
        readable(HEADER, 16),
        writable(DATA, 512),
        writable(STATUS, 1),
    ];
    queue_of(bench, &read, count)
}

/// A task with four reads of a sector in its ring, and the ring's used index.
fn limited(bench: &Bench, limits: &DiskLimits) -> (BlockTask, impl Fn() -> u16 + use<>) {
    let (queue, used) = queue_of_reads(bench, 4);
    let task = BlockTask {
        turnstile: Some(Turnstile::new(DiskPace::new(limits).unwrap()).unwrap()),
        ..task(bench, queue, None)
    };
    let memory = bench.memory.clone();
    (task, move || {
        memory.read_obj(GuestAddress(used + 2)).unwrap()
    })
}

#[test]
fn disk_that_is_limited_leaves_requests_in_the_ring() {
    // What a request reads takes more than eight minutes.
    let limits = DiskLimits {
        bytes_per_second: NonZeroU64::new(1),
        ..DiskLimits::default()
    };
    let (mut task, used) = limited(&Bench::new(true), &limits);
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
    let (mut task, used) = limited(&Bench::new(true), &limits);
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
    (Lane::Thread(ThreadLane::new(thread).unwrap()), release)
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
    let task = task(bench, mock.create_queue().unwrap(), Some(lane));
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
fn what_waited_is_given_back_before_a_full_ring_is_empty() {
    const HEAD: u16 = 127;
    let bench = Bench::new(false);
    let (queue, used) = queue_of_reads(&bench, 40);
    let (lane, release) = held_lane();
    let mut task = task(&bench, queue, Some(lane));
    let request = Request {
        operation: Operation::Flush,
        status: GuestAddress(STATUS + 1),
    };
    let lane = task.lane.as_mut().unwrap();
    lane.take(&task.disk, &task.memory, HEAD, request).unwrap();
    drop(release);
    wait_for(lane.as_fd());
    task.ready(KICK).unwrap();
    let heads: Vec<u32> = (0..41)
        .map(|at| {
            let entry = GuestAddress(used + 4 + 8 * at);
            bench.memory.read_obj(entry).unwrap()
        })
        .collect();
    let place = heads.iter().position(|head| *head == u32::from(HEAD));
    assert_eq!(place, Some(LOOK_EVERY));
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
    let (mut task, used) = flush_and_read(&bench, Lane::Thread(ThreadLane::new(thread).unwrap()));
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
    for _ in 0..ENTRIES {
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
    while used().0 != ENTRIES + 2 {
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
