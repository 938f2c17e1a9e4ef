//! A driver's frames and buffers, well-formed and not. The tap is a socket that keeps messages apart.

use std::fs::File;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rustix::fs::{MemfdFlags, memfd_create};
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::Queue;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, FileOffset, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::request::HEADER_BYTES;
use super::super::tap::Tap;
use super::*;
use crate::virtio::pace::Bucket;
use crate::virtio::registers::register;
use crate::virtio::{Registers, WorkerThread};

const MEMORY_BYTES: usize = 0x80_0000;
const RX_RING: u64 = 0;
const TX_RING: u64 = 0x1_0000;
const CONTROL_RING: u64 = 0x2_0000;
const DATA: u64 = 0x10_0000;

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap()
}

fn descriptor(address: u64, length: u32, flags: u32, next: u16) -> RawDescriptor {
    RawDescriptor::from(Descriptor::new(
        address,
        length,
        u16::try_from(flags).unwrap(),
        next,
    ))
}

fn readable(address: u64, length: u32) -> RawDescriptor {
    descriptor(address, length, 0, 0)
}

fn writable(address: u64, length: u32) -> RawDescriptor {
    descriptor(address, length, VRING_DESC_F_WRITE, 0)
}

/// A device's thread, without the thread, and the network behind its tap.
struct Bench<'a> {
    rx: MockSplitQueue<'a, GuestMemoryMmap>,
    tx: MockSplitQueue<'a, GuestMemoryMmap>,
    control: MockSplitQueue<'a, GuestMemoryMmap>,
    task: NetTask,
    network: UnixDatagram,
    link_up: Arc<AtomicBool>,
}

/// One end of a network, in place of a tap, and the other.
fn tap() -> (Tap, UnixDatagram) {
    let (ours, network) = UnixDatagram::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    network.set_nonblocking(true).unwrap();
    (Tap::of_messages(OwnedFd::from(ours).into()), network)
}

/// Waits until it is readable.
fn wait_for(fd: BorrowedFd<'_>) {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    assert_eq!(poll(&mut fds, None).unwrap(), 1);
}

impl<'a> Bench<'a> {
    fn new(memory: &'a GuestMemoryMmap, mergeable: bool) -> Self {
        let (tap, network) = tap();
        Self::over(memory, mergeable, vec![tap], network)
    }

    /// The first pair's thread, of a device with these queues.
    fn over(
        memory: &'a GuestMemoryMmap,
        mergeable: bool,
        taps: Vec<Tap>,
        network: UnixDatagram,
    ) -> Self {
        let pairs = Arc::new(Pairs::new(taps).unwrap());
        Self::of_pairs(memory, mergeable, pairs, network)
    }

    fn of_pairs(
        memory: &'a GuestMemoryMmap,
        mergeable: bool,
        pairs: Arc<Pairs>,
        network: UnixDatagram,
    ) -> Self {
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let mock = |ring| MockSplitQueue::create(memory, GuestAddress(ring), 256);
        let (rx, tx, control) = (mock(RX_RING), mock(TX_RING), mock(CONTROL_RING));
        let active = |mock: &MockSplitQueue<'_, GuestMemoryMmap>| ActiveQueue {
            queue: mock.create_queue::<Queue>().unwrap(),
            kick: event(),
        };
        let usable = pairs.len();
        let lane = Arc::clone(pairs.get(0).unwrap());
        let activation = Activation {
            memory: memory.clone(),
            queues: Vec::new(),
            interrupt: Interrupt::new(event(), Registers::alone().unwrap()),
            features: u64::from(mergeable) << VIRTIO_NET_F_MRG_RXBUF,
            thread: WorkerThread::spawn("net0", || {}).unwrap(),
            more_threads: Vec::new(),
        };
        let link_up = Arc::new(AtomicBool::new(true));
        let queues = [active(&rx), active(&tx)];
        let mut task =
            NetTask::new(pairs, (0, lane), queues, &activation).with_link(Arc::clone(&link_up));
        task.control = Some(ControlQueue {
            queue: active(&control),
            usable,
        });
        Self {
            rx,
            tx,
            control,
            task,
            network,
            link_up,
        }
    }

    /// Offers control chains and has them all obeyed.
    fn command(&mut self, chains: &[RawDescriptor]) -> Result<(), NetError> {
        self.control.build_multiple_desc_chains(chains).unwrap();
        self.task.ready(CONTROL)?;
        self.go_on()
    }

    /// What it sets for itself when there may be more.
    fn go_on(&mut self) -> Result<(), NetError> {
        while self.task.lane.wake.read().is_ok() {
            self.task.lane.wake.write(1).unwrap();
            self.task.ready(AGAIN)?;
        }
        Ok(())
    }

    /// Offers descriptors, of which those chained carry `VRING_DESC_F_NEXT`, for sending.
    fn send(&mut self, chains: &[RawDescriptor]) {
        self.tx.build_multiple_desc_chains(chains).unwrap();
        self.task.ready(TX).unwrap();
    }

    fn offer(&mut self, chains: &[RawDescriptor]) {
        self.rx.build_multiple_desc_chains(chains).unwrap();
        self.task.ready(RX).unwrap();
    }

    fn arrive(&mut self, frame: &[u8]) {
        self.try_arrive(frame).unwrap();
    }

    fn try_arrive(&mut self, frame: &[u8]) -> Result<(), NetError> {
        self.network.send(frame).unwrap();
        self.task.ready(TAP)
    }

    fn on_the_network(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 0x2_0000];
        let length = self.network.recv(&mut frame).ok()?;
        frame.truncate(length);
        Some(frame)
    }

    /// Head and length of each used element.
    fn used(
        mock: &MockSplitQueue<'_, GuestMemoryMmap>,
        memory: &GuestMemoryMmap,
    ) -> Vec<(u32, u32)> {
        let base = mock.used_addr().0;
        let count: u16 = memory.read_obj(GuestAddress(base + 2)).unwrap();
        (0..u64::from(count))
            .map(|at| {
                let element = GuestAddress(base + 4 + 8 * at);
                let length = GuestAddress(element.0 + 4);
                (
                    memory.read_obj(element).unwrap(),
                    memory.read_obj(length).unwrap(),
                )
            })
            .collect()
    }
}

fn frame(bytes: usize) -> Vec<u8> {
    let pattern = (0..=250_u8).cycle().take(bytes - HEADER_BYTES);
    [0; HEADER_BYTES].into_iter().chain(pattern).collect()
}

#[test]
fn frame_is_sent_however_it_is_cut() {
    let memory = memory();
    let whole = frame(200);
    for cuts in [&[200][..], &[12, 188], &[1, 11, 100, 88]] {
        let mut bench = Bench::new(&memory, true);
        memory.write_slice(&whole, GuestAddress(DATA)).unwrap();
        let mut at = 0;
        let chain: Vec<RawDescriptor> = cuts
            .iter()
            .enumerate()
            .map(|(index, length)| {
                let last = index + 1 == cuts.len();
                let next = u16::try_from(index + 1).unwrap();
                let flags = if last { 0 } else { VRING_DESC_F_NEXT };
                let made = descriptor(DATA + at, *length, flags, next);
                at += u64::from(*length);
                made
            })
            .collect();
        bench.send(&chain);
        assert_eq!(bench.on_the_network().unwrap(), whole);
        assert_eq!(Bench::used(&bench.tx, &memory), [(0, 0)]);
    }
}

#[test]
fn frames_of_impossible_length_are_dropped_and_their_chains_used() {
    let memory = memory();
    let mut bench = Bench::new(&memory, true);
    let most = u32::try_from(MAX_FRAME_BYTES).unwrap();
    bench.send(&[
        readable(DATA, 0),
        readable(DATA, 25),
        readable(DATA, most + 1),
        readable(DATA, u32::MAX),
        writable(DATA, 100),
        readable(u64::MAX - 10, 100),
        readable(DATA, 26),
    ]);
    assert_eq!(bench.on_the_network().unwrap().len(), 26);
    assert_eq!(bench.on_the_network(), None);
    let heads: Vec<u32> = Bench::used(&bench.tx, &memory)
        .into_iter()
        .map(|(head, _)| head)
        .collect();
    assert_eq!(heads, [0, 1, 2, 3, 4, 5, 6]);
}

#[test]
fn chain_that_is_a_loop_ends() {
    let memory = memory();
    let mut bench = Bench::new(&memory, true);
    bench.send(&[
        descriptor(DATA, 10, VRING_DESC_F_NEXT, 1),
        descriptor(DATA, 10, VRING_DESC_F_NEXT, 0),
        readable(DATA, 10),
    ]);
    // A chain is walked no further than the queue is long: 256 pieces of 10 bytes.
    assert!(bench.on_the_network().is_none_or(|sent| sent.len() <= 2560));
}

#[test]
fn largest_frame_passes_both_ways() {
    let memory = memory();
    let mut bench = Bench::new(&memory, true);
    let whole = frame(MAX_FRAME_BYTES);
    memory.write_slice(&whole, GuestAddress(DATA)).unwrap();
    bench.send(&[readable(DATA, u32::try_from(MAX_FRAME_BYTES).unwrap())]);
    assert_eq!(bench.on_the_network().unwrap(), whole);

    // 48 buffers of 1,536 bytes; 43 are needed.
    let buffers: Vec<RawDescriptor> = (0..48)
        .map(|index| writable(DATA + 0x10_0000 + index * 0x1000, 1536))
        .collect();
    bench.offer(&buffers);
    bench.arrive(&whole);
    let used = Bench::used(&bench.rx, &memory);
    assert_eq!(used.len(), 43);
    let mut received = Vec::new();
    for (index, (head, length)) in (0_u64..).zip(&used) {
        assert_eq!(u64::from(*head), index);
        let mut part = vec![0; usize::try_from(*length).unwrap()];
        let address = GuestAddress(DATA + 0x10_0000 + index * 0x1000);
        memory.read_slice(&mut part, address).unwrap();
        received.extend(part);
    }
    assert_eq!(received[10..12], 43_u16.to_le_bytes());
    assert_eq!(received[12..], whole[12..]);
}

#[test]
fn frame_waits_for_buffers_and_none_is_lost_or_reordered() {
    let memory = memory();
    let mut bench = Bench::new(&memory, true);
    bench.arrive(&frame(100));
    bench.arrive(&frame(200));
    assert!(Bench::used(&bench.rx, &memory).is_empty());
    bench.offer(&[
        writable(DATA, 60),
        writable(DATA + 0x1000, 1536),
        writable(DATA + 0x2000, 1536),
    ]);
    assert_eq!(
        Bench::used(&bench.rx, &memory),
        [(0, 60), (1, 40), (2, 200)]
    );
    let count: u16 = memory.read_obj(GuestAddress(DATA + 10)).unwrap();
    assert_eq!(count, 2);
}

#[test]
fn frame_that_was_begun_goes_on_in_buffers_that_come_later() {
    let memory = memory();
    let whole = frame(300);
    // Also where a buffer ends within the header, and within what was read before there was room for it.
    for cuts in [[100, 100, 100], [5, 195, 100], [20, 100, 180], [3, 4, 293]] {
        let mut bench = Bench::new(&memory, true);
        let buffer = |index: usize| {
            let at = DATA + 0x1000 * u64::try_from(index).unwrap();
            writable(at, u32::try_from(cuts[index]).unwrap())
        };
        let buffers = [buffer(0), buffer(1), buffer(2)];
        bench.rx.build_multiple_desc_chains(&buffers).unwrap();
        let index = GuestAddress(bench.rx.avail_addr().0 + 2);
        // The driver has shown only two of them yet.
        memory.write_obj(2_u16, index).unwrap();
        bench.arrive(&whole);
        bench.arrive(&frame(40));
        assert!(Bench::used(&bench.rx, &memory).is_empty(), "{cuts:?}");
        memory.write_obj(3_u16, index).unwrap();
        bench.task.ready(RX).unwrap();
        let used = Bench::used(&bench.rx, &memory);
        let lengths: Vec<usize> = used.iter().map(|(_, length)| *length as usize).collect();
        assert_eq!(lengths, cuts, "{cuts:?}");
        let mut received = Vec::new();
        for (index, length) in lengths.iter().enumerate() {
            let mut part = vec![0; *length];
            let at = GuestAddress(DATA + 0x1000 * u64::try_from(index).unwrap());
            memory.read_slice(&mut part, at).unwrap();
            received.extend(part);
        }
        assert_eq!(received[10..12], 3_u16.to_le_bytes(), "{cuts:?}");
        assert_eq!(received[12..], whole[12..], "{cuts:?}");
    }
}

#[test]
fn buffers_that_cannot_be_written_go_back_and_cost_one_frame() {
    let file = File::from(memfd_create("memory", MemfdFlags::CLOEXEC).unwrap());
    let bytes = u64::try_from(MEMORY_BYTES).unwrap();
    file.set_len(bytes).unwrap();
    let backing = FileOffset::new(file.try_clone().unwrap(), 0);
    let ranges = [(GuestAddress(0), MEMORY_BYTES, Some(backing))];
    let memory = GuestMemoryMmap::from_ranges_with_files(&ranges).unwrap();
    let mut bench = Bench::new(&memory, true);
    // The last page is lost.
    let lost = bytes - 4096;
    file.set_len(lost).unwrap();
    bench.offer(&[writable(lost, 1536), writable(DATA, 1536)]);
    bench.arrive(&frame(100));
    assert_eq!(Bench::used(&bench.rx, &memory), [(0, 0), (1, 0)]);
    bench.rx = MockSplitQueue::create(&memory, GuestAddress(RX_RING), 256);
    bench.task.rx.queue = bench.rx.create_queue().unwrap();
    bench.offer(&[writable(DATA, 1536)]);
    bench.arrive(&frame(100));
    assert_eq!(Bench::used(&bench.rx, &memory)[0], (0, 100));
}

#[test]
fn frame_that_does_not_fit_the_one_buffer_it_may_have_is_dropped() {
    let memory = memory();
    let mut bench = Bench::new(&memory, false);
    bench.offer(&[writable(DATA, 100), writable(DATA + 0x1000, 1536)]);
    bench.arrive(&frame(101));
    assert!(Bench::used(&bench.rx, &memory).is_empty());
    bench.arrive(&frame(100));
    assert_eq!(Bench::used(&bench.rx, &memory), [(0, 100)]);
    let count: u16 = memory.read_obj(GuestAddress(DATA + 10)).unwrap();
    assert_eq!(count, 1);
}

#[test]
fn buffers_that_are_none_go_back_empty() {
    let memory = memory();
    let mut bench = Bench::new(&memory, true);
    bench.offer(&[
        readable(DATA, 1536),
        writable(DATA, 0),
        writable(u64::MAX - 10, 1536),
        writable(DATA, 1536),
    ]);
    bench.arrive(&frame(100));
    bench.arrive(&frame(100));
    assert_eq!(
        Bench::used(&bench.rx, &memory),
        [(0, 0), (1, 0), (2, 0), (3, 100)]
    );
}

#[test]
fn tiny_buffers_cannot_keep_a_frame_for_ever() {
    let memory = memory();
    let mut bench = Bench::new(&memory, true);
    let buffers: Vec<RawDescriptor> = (0..255).map(|_| writable(DATA, 1)).collect();
    bench.offer(&buffers);
    bench.arrive(&frame(1000));
    assert_eq!(bench.task.waiting.map(|frame| frame.length), Some(1000));
    // The ring's last buffer: more than the queue holds cannot come.
    bench.rx.desc_table().store(255, writable(DATA, 1)).unwrap();
    memory
        .write_obj(255_u16, GuestAddress(bench.rx.avail_addr().0 + 4 + 2 * 255))
        .unwrap();
    memory
        .write_obj(256_u16, GuestAddress(bench.rx.avail_addr().0 + 2))
        .unwrap();
    bench.task.ready(RX).unwrap();
    assert_eq!(bench.task.waiting, None);
    assert!(bench.task.held.len() <= usize::from(QUEUE_SIZE));
}

#[test]
fn available_index_out_of_range_is_a_corrupt_ring() {
    let memory = memory();
    let mut bench = Bench::new(&memory, true);
    memory
        .write_obj(1000_u16, GuestAddress(bench.tx.avail_addr().0 + 2))
        .unwrap();
    assert!(matches!(bench.task.ready(TX), Err(NetError::Ring(_))));
}

#[test]
fn tap_that_is_gone_takes_the_link_down() {
    let memory = memory();
    let bench = Bench::new(&memory, true);
    let (read_only, _) = std::io::pipe().unwrap();
    // A pipe whose writer is gone reads as ended.
    let gone = Tap::of_messages(OwnedFd::from(read_only).into());
    let mut bench = Bench::over(&memory, true, vec![gone], bench.network);
    bench.offer(&[writable(DATA, 1536)]);
    bench.task.ready(TAP).unwrap();
    assert!(!bench.link_up.load(Ordering::Acquire));
    let mut status = [0xff; 2];
    let registers = bench.task.interrupt.registers();
    registers.read(register::CONFIG + STATUS, &mut status);
    assert_eq!(u16::from_le_bytes(status), LINK_DOWN);
}

#[test]
fn buffer_that_is_the_ring_itself_makes_a_corrupt_ring() {
    let memory = memory();
    let mut bench = Bench::new(&memory, true);
    bench.offer(&[writable(bench.rx.avail_addr().0, 497)]);
    let served = bench
        .try_arrive(&frame(497))
        .and_then(|()| bench.try_arrive(&frame(26)));
    assert!(matches!(served, Err(NetError::Ring(_))), "{served:?}");
}

/// The answers of control chains whose first descriptor is at `DATA`, 16 bytes apart, and whose answer is behind `0x1000`.
fn answers(memory: &GuestMemoryMmap, count: u64) -> Vec<u8> {
    let answer = |index| memory.read_obj(GuestAddress(DATA + 0x1000 + index));
    (0..count).map(|index| answer(index).unwrap()).collect()
}

/// A chain of a request, which is put in memory, and a byte for the answer.
fn control_chain(memory: &GuestMemoryMmap, index: u16, request: &[u8]) -> [RawDescriptor; 2] {
    let (at, ack) = (
        DATA + 16 * u64::from(index),
        DATA + 0x1000 + u64::from(index),
    );
    memory.write_slice(request, GuestAddress(at)).unwrap();
    memory.write_obj(0xff_u8, GuestAddress(ack)).unwrap();
    let length = u32::try_from(request.len()).unwrap();
    [
        descriptor(at, length, VRING_DESC_F_NEXT, 2 * index + 1),
        writable(ack, 1),
    ]
}

#[test]
fn driver_says_how_many_pairs_it_uses_and_others_are_detached() {
    let memory = memory();
    let (taps, networks): (Vec<_>, Vec<_>) = (0..4).map(|_| tap()).unzip();
    let mut networks = networks.into_iter();
    let mut bench = Bench::over(&memory, true, taps, networks.next().unwrap());
    let pairs = Arc::clone(&bench.task.pairs);
    let attached = || -> Vec<bool> {
        let lane = |pair| pairs.get(pair).unwrap().tap.is_attached();
        (0..4).map(lane).collect()
    };
    pairs.set(1).unwrap();
    assert_eq!(attached(), [true, false, false, false]);
    for (index, (count, expected)) in (0..).zip([
        (3_u8, [true, true, true, false]),
        (4, [true; 4]),
        (2, [true, true, false, false]),
        (2, [true, true, false, false]),
    ]) {
        // The mock puts chains where they were before.
        bench.control = MockSplitQueue::create(&memory, GuestAddress(CONTROL_RING), 256);
        let queue = bench.control.create_queue::<Queue>().unwrap();
        bench.task.control.as_mut().unwrap().queue.queue = queue;
        let chain = control_chain(&memory, 0, &[4, 0, count, 0]);
        bench.command(&chain).unwrap();
        assert_eq!(answers(&memory, 1), [0], "step {index}");
        assert_eq!(attached(), expected, "step {index}");
        let active: Vec<bool> = (0..4).map(|pair| pairs.is_active(pair)).collect();
        assert_eq!(active, expected, "step {index}");
    }
}

#[test]
fn changes_beyond_the_pace_wait_in_the_ring_and_the_last_one_counts() {
    const RATE: u64 = 1000;
    let memory = memory();
    let (taps, networks): (Vec<_>, Vec<_>) = (0..2).map(|_| tap()).unzip();
    let mut networks = networks.into_iter();
    let started = Instant::now();
    let burst = Duration::from_millis(15);
    let changes = Bucket::new(NonZeroU64::new(RATE).unwrap(), burst);
    let pairs = Arc::new(Pairs::with_changes(taps, changes).unwrap());
    let mut bench = Bench::of_pairs(&memory, true, pairs, networks.next().unwrap());
    let pairs = Arc::clone(&bench.task.pairs);
    let mut made = 0_u64;
    for _ in 0..10 {
        bench.control = MockSplitQueue::create(&memory, GuestAddress(CONTROL_RING), 256);
        let queue = bench.control.create_queue::<Queue>().unwrap();
        bench.task.control.as_mut().unwrap().queue.queue = queue;
        let used = GuestAddress(bench.control.used_addr().0 + 2);
        memory.write_obj(0_u16, used).unwrap();
        let chains: Vec<RawDescriptor> = (0_u16..)
            .zip([1, 2].repeat(50))
            .flat_map(|(index, count)| control_chain(&memory, index, &[4, 0, count, 0]))
            .collect();
        bench.command(&chains).unwrap();
        loop {
            let used = Bench::used(&bench.control, &memory).len() as u64;
            let may = 16 + RATE * u64::try_from(started.elapsed().as_millis() + 1).unwrap() / 1000;
            assert!(made + used <= may, "{} of {may}", made + used);
            if used == 100 {
                break;
            }
            wait_for(pairs.timer());
            bench.task.ready(TIMER).unwrap();
            bench.go_on().unwrap();
        }
        assert_eq!(answers(&memory, 100), [0; 100]);
        made += 100;
    }
    assert!(pairs.is_active(1));
}

#[test]
fn pair_that_is_not_used_reads_nothing_and_is_woken_when_it_is() {
    let (taps, networks): (Vec<_>, Vec<_>) = (0..2).map(|_| tap()).unzip();
    let pairs = Arc::new(Pairs::new(taps).unwrap());
    pairs.set(1).unwrap();
    let memory = memory();
    let mut bench = Bench::new(&memory, true);
    bench.task.pair = 1;
    bench.task.lane = Arc::clone(pairs.get(1).unwrap());
    bench.task.pairs = Arc::clone(&pairs);
    bench.offer(&[writable(DATA, 1536)]);
    networks[1].send(&frame(100)).unwrap();
    bench.task.ready(TAP).unwrap();
    assert!(Bench::used(&bench.rx, &memory).is_empty());
    assert!(pairs.get(1).unwrap().wake.read().is_err());
    pairs.set(2).unwrap();
    assert_eq!(pairs.get(1).unwrap().wake.read().unwrap(), 1);
    bench.task.ready(AGAIN).unwrap();
    assert_eq!(Bench::used(&bench.rx, &memory), [(0, 100)]);
}

#[test]
fn control_requests_that_are_none_are_refused_and_change_nothing() {
    let memory = memory();
    let (taps, networks): (Vec<_>, Vec<_>) = (0..2).map(|_| tap()).unzip();
    let mut bench = Bench::over(&memory, true, taps, networks.into_iter().next().unwrap());
    bench.task.pairs.set(1).unwrap();
    let requests: [&[u8]; 9] = [
        &[4, 0, 0, 0],
        &[4, 0, 3, 0],
        &[4, 0, 1, 0x80],
        &[4, 1, 2, 0],
        &[0, 0, 2, 0],
        &[4, 0, 2],
        &[4, 0, 2, 0, 0],
        &[4, 0],
        &[0xff; 12],
    ];
    let chains: Vec<RawDescriptor> = (0_u16..)
        .zip(requests)
        .flat_map(|(index, request)| control_chain(&memory, index, request))
        .collect();
    bench.command(&chains).unwrap();
    assert_eq!(answers(&memory, 9), [1; 9]);
    assert_eq!(Bench::used(&bench.control, &memory).len(), 9);
    assert!(!bench.task.pairs.is_active(1));
}

#[test]
fn control_chain_without_a_place_for_the_answer_is_used_and_does_nothing() {
    let memory = memory();
    let (taps, networks): (Vec<_>, Vec<_>) = (0..2).map(|_| tap()).unzip();
    let mut bench = Bench::over(&memory, true, taps, networks.into_iter().next().unwrap());
    bench.task.pairs.set(1).unwrap();
    memory
        .write_slice(&[4, 0, 2, 0], GuestAddress(DATA))
        .unwrap();
    bench
        .command(&[readable(DATA, 4), writable(u64::MAX - 3, 1)])
        .unwrap();
    assert_eq!(Bench::used(&bench.control, &memory), [(0, 0), (1, 0)]);
    assert!(!bench.task.pairs.is_active(1));
}

#[test]
fn control_ring_that_is_broken_is_a_corrupt_ring() {
    let memory = memory();
    let mut bench = Bench::new(&memory, true);
    memory
        .write_obj(1000_u16, GuestAddress(bench.control.avail_addr().0 + 2))
        .unwrap();
    assert!(matches!(bench.task.ready(CONTROL), Err(NetError::Ring(_))));
}

proptest! {
    #[test]
    fn any_chains_end_and_what_is_held_is_bounded(
        chains in prop::collection::vec((any::<u64>(), any::<u32>(), 0_u32..4, 0_u16..32), 1..32),
        mergeable in any::<bool>(),
        lengths in prop::collection::vec(20_usize..3000, 0..8),
    ) {
        let memory = memory();
        let mut bench = Bench::new(&memory, mergeable);
        let descriptors: Vec<RawDescriptor> = chains
            .iter()
            .map(|(address, length, flags, next)| {
                descriptor(address % 0x100_0000, length % 0x4000, *flags, *next)
            })
            .collect();
        for (index, descriptor) in (0_u16..).zip(&descriptors) {
            bench.tx.desc_table().store(index, *descriptor).unwrap();
            bench.rx.desc_table().store(index, *descriptor).unwrap();
        }
        for mock in [&bench.tx, &bench.rx] {
            let count = u16::try_from(descriptors.len()).unwrap();
            for at in 0..count {
                let slot = mock.avail_addr().0 + 4 + 2 * u64::from(at);
                memory.write_obj(at, GuestAddress(slot)).unwrap();
            }
            memory.write_obj(count, GuestAddress(mock.avail_addr().0 + 2)).unwrap();
        }
        bench.task.ready(TX).unwrap();
        for length in lengths {
            // A driver may have frames written over its own ring.
            let served = bench.try_arrive(&vec![1; length]);
            prop_assert!(matches!(served, Ok(()) | Err(NetError::Ring(_))), "{served:?}");
            if served.is_err() {
                break;
            }
        }
        prop_assert!(bench.task.held.len() <= descriptors.len());
    }
}
