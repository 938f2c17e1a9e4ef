//! What a driver asks for, what it gets, and what it reaches then.

use proptest::prelude::*;
use sandbox_types::MemMib;
use virtio_bindings::virtio_ring::VRING_DESC_F_WRITE;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::request::{
    BlockState, Response, VIRTIO_MEM_REQ_PLUG, VIRTIO_MEM_REQ_STATE, VIRTIO_MEM_REQ_UNPLUG,
    VIRTIO_MEM_REQ_UNPLUG_ALL,
};
use super::*;
use crate::memory::later::Later;
use crate::memory::{Sharing, create};
use crate::virtio::answering::served::{self, descriptor};
use crate::virtio::{
    ActivateError, Activation, ActiveQueue, Registers, VirtioDevice as _, WorkerThread,
};

const BLOCK: u64 = 2 << 20;
const FIRST: u64 = 64;
/// All that may come later: 64 blocks.
const LATER: u64 = 128;
const BLOCKS: u16 = 64;

fn mib(size: u64) -> MemMib {
    MemMib::new(size).unwrap()
}

/// A guest that may have `requested` MiB more.
struct Bench {
    memory: GuestMemoryMmap,
    later: Later,
    size: MemorySize,
}

impl Bench {
    fn new(sharing: Sharing, requested: u64) -> Self {
        let later = Later::new(mib(FIRST), mib(FIRST + LATER), 0).unwrap();
        let memory = create(mib(FIRST), sharing, None, Some(later)).unwrap();
        let size = MemorySize::new(mib(FIRST), later).unwrap();
        size.request(mib(FIRST + requested));
        Self {
            memory,
            later,
            size,
        }
    }

    fn address(&self, block: u64) -> u64 {
        self.later.range().start + block * BLOCK
    }

    fn ask_at(&self, kind: u16, address: u64, count: u16) -> Response {
        let request = Request {
            kind,
            address,
            count,
            response: GuestAddress(0),
        };
        self.size.lock().serve(&request, &self.memory)
    }

    fn ask(&self, kind: u16, block: u64, count: u16) -> Response {
        self.ask_at(kind, self.address(block), count)
    }

    /// How much of it this process can reach, and so the guest (proc_pid_maps(5)).
    fn accessible(&self) -> u64 {
        let range = self.later.host_range(&self.memory).unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let lines = maps.lines().filter_map(|line| {
            let mut fields = line.split_whitespace();
            let (start, end) = fields.next()?.split_once('-')?;
            let start = usize::from_str_radix(start, 16).ok()?.max(range.start);
            let end = usize::from_str_radix(end, 16).ok()?.min(range.end);
            let open = fields.next()? != "---p" && !line.contains("---s");
            (open && start < end).then(|| (end - start) as u64)
        });
        lines.sum()
    }

    fn plugged(&self) -> u64 {
        let config = self.size.lock().config();
        u64::from_le_bytes(config[40..48].try_into().unwrap())
    }
}

#[test]
fn what_is_plugged_is_there_and_zero_and_what_is_unplugged_is_gone() {
    for sharing in [Sharing::Private, Sharing::Shared] {
        let bench = Bench::new(sharing, LATER);
        assert_eq!(bench.accessible(), 0);
        assert_eq!(bench.ask(VIRTIO_MEM_REQ_PLUG, 3, 2), Response::Ack);
        assert_eq!(
            (bench.accessible(), bench.plugged()),
            (2 * BLOCK, 2 * BLOCK)
        );
        let place = GuestAddress(bench.address(4));
        bench.memory.write_obj(7_u64, place).unwrap();
        assert_eq!(bench.ask(VIRTIO_MEM_REQ_UNPLUG, 4, 1), Response::Ack);
        assert_eq!((bench.accessible(), bench.plugged()), (BLOCK, BLOCK));
        assert_eq!(bench.ask(VIRTIO_MEM_REQ_PLUG, 4, 1), Response::Ack);
        assert_eq!(bench.memory.read_obj::<u64>(place).unwrap(), 0);
        assert_eq!(bench.ask(VIRTIO_MEM_REQ_UNPLUG_ALL, 0, 0), Response::Ack);
        assert_eq!((bench.accessible(), bench.plugged()), (0, 0));
    }
}

#[test]
fn no_more_is_plugged_than_is_requested() {
    let bench = Bench::new(Sharing::Private, 8);
    assert_eq!(bench.ask(VIRTIO_MEM_REQ_PLUG, 0, 5), Response::Nack);
    assert_eq!(bench.ask(VIRTIO_MEM_REQ_PLUG, 0, 3), Response::Ack);
    assert_eq!(bench.ask(VIRTIO_MEM_REQ_PLUG, 9, 2), Response::Nack);
    assert_eq!(bench.ask(VIRTIO_MEM_REQ_PLUG, 9, 1), Response::Ack);
    assert_eq!(bench.accessible(), 4 * BLOCK);
    // Less is to be had now: what is there stays until the driver gives it back.
    bench.size.request(mib(FIRST));
    assert_eq!(bench.accessible(), 4 * BLOCK);
    assert_eq!(bench.ask(VIRTIO_MEM_REQ_PLUG, 20, 1), Response::Nack);
    assert_eq!(bench.ask(VIRTIO_MEM_REQ_UNPLUG, 9, 1), Response::Ack);
}

#[test]
fn blocks_that_are_none_or_in_the_wrong_state_are_refused() {
    let bench = Bench::new(Sharing::Private, LATER);
    for kind in [
        VIRTIO_MEM_REQ_PLUG,
        VIRTIO_MEM_REQ_UNPLUG,
        VIRTIO_MEM_REQ_STATE,
    ] {
        for (address, count) in [
            (0, 1),
            (bench.address(0) - BLOCK, 1),
            (bench.address(0) + 4096, 1),
            (bench.address(0), 0),
            (bench.address(0), BLOCKS + 1),
            (bench.address(1), u16::MAX),
            (bench.address(BLOCKS.into()), 1),
            (u64::MAX, u16::MAX),
        ] {
            assert_eq!(bench.ask_at(kind, address, count), Response::Error);
        }
    }
    assert_eq!(bench.ask(7, 0, 1), Response::Error);
    assert_eq!(bench.ask(VIRTIO_MEM_REQ_UNPLUG, 0, 1), Response::Error);
    assert_eq!(bench.ask(VIRTIO_MEM_REQ_PLUG, 1, 1), Response::Ack);
    assert_eq!(bench.ask(VIRTIO_MEM_REQ_PLUG, 0, 3), Response::Error);
    assert_eq!(bench.ask(VIRTIO_MEM_REQ_UNPLUG, 1, 2), Response::Error);
    let state = |block, count| bench.ask(VIRTIO_MEM_REQ_STATE, block, count);
    assert_eq!(state(1, 1), Response::State(BlockState::Plugged));
    assert_eq!(state(0, 1), Response::State(BlockState::Unplugged));
    assert_eq!(state(0, 3), Response::State(BlockState::Mixed));
    assert_eq!(bench.accessible(), BLOCK);
}

/// The process has something of its own there, so that the kernel changes the access to what comes before, and then fails.
#[expect(unsafe_code, reason = "unmaps memory that is about to be in the way")]
fn make_hole(bench: &Bench, block: u64) {
    let range = bench.later.host_range(&bench.memory).unwrap();
    let place = range.start + usize::try_from(block * BLOCK).unwrap();
    // SAFETY: nobody has this page of guest memory, and nobody is given it.
    unsafe { rustix::mm::munmap(std::ptr::with_exposed_provenance_mut(place), 4096) }.unwrap();
}

#[test]
fn memory_that_could_be_changed_in_part_only_counts_as_the_guests() {
    let bench = Bench::new(Sharing::Private, 8);
    make_hole(&bench, 4);
    assert_eq!(bench.ask(VIRTIO_MEM_REQ_PLUG, 3, 2), Response::Error);
    assert_eq!(bench.plugged(), 2 * BLOCK);
    assert_eq!(bench.ask(VIRTIO_MEM_REQ_PLUG, 10, 3), Response::Nack);
    assert_eq!(bench.ask(VIRTIO_MEM_REQ_UNPLUG, 3, 2), Response::Error);
    assert_eq!(bench.ask(VIRTIO_MEM_REQ_PLUG, 10, 2), Response::Ack);
    assert_eq!(bench.plugged(), 4 * BLOCK);
    assert!(bench.accessible() <= bench.plugged());
    // What can be taken as a whole is.
    assert_eq!(bench.ask(VIRTIO_MEM_REQ_UNPLUG, 3, 1), Response::Ack);
    assert_eq!(bench.plugged(), 3 * BLOCK);
}

proptest! {
    #[test]
    fn any_requests_leave_the_guest_with_what_it_was_told_it_has(
        program in prop::collection::vec((0_u16..5, 0_u64..70, 0_u16..70, 0_u64..200), 1..60),
    ) {
        let bench = Bench::new(Sharing::Private, 0);
        let mut most = 0;
        for (kind, block, count, requested) in program {
            if kind == 4 {
                bench.size.request(mib(FIRST + requested));
                most = most.max(requested.next_multiple_of(2).min(LATER));
            } else {
                bench.ask(kind, block, count);
            }
            prop_assert!(bench.plugged() <= most << 20);
            prop_assert_eq!(bench.accessible(), bench.plugged());
        }
    }
}

/// Serves one chain, and says how many bytes the used ring has for it.
fn serve(bench: &Bench, chain: &[RawDescriptor]) -> u32 {
    let size = bench.size.clone();
    served::serve(Plugging { size }, &bench.memory, chain)
}

#[test]
fn request_is_read_and_answered_and_what_is_none_is_not() {
    const REQUEST: u64 = 0x10_0000;
    const RESPONSE: u64 = 0x10_1000;
    let bench = Bench::new(Sharing::Private, LATER);
    let mut request = [0; 24];
    request[8..16].copy_from_slice(&bench.address(5).to_le_bytes());
    request[16] = 2;
    let memory = &bench.memory;
    memory.write_slice(&request, GuestAddress(REQUEST)).unwrap();
    for chain in [
        vec![descriptor(REQUEST, 24, 0)],
        vec![descriptor(RESPONSE, 10, VRING_DESC_F_WRITE)],
        vec![
            descriptor(REQUEST, 23, 0),
            descriptor(RESPONSE, 10, VRING_DESC_F_WRITE),
        ],
        vec![
            descriptor(REQUEST, 24, 0),
            descriptor(RESPONSE, 9, VRING_DESC_F_WRITE),
        ],
    ] {
        assert_eq!(serve(&bench, &chain), 0);
        assert_eq!(bench.plugged(), 0);
    }
    let chain = [
        descriptor(REQUEST, 24, 0),
        descriptor(RESPONSE, 10, VRING_DESC_F_WRITE),
    ];
    let answer = || memory.read_obj::<[u8; 10]>(GuestAddress(RESPONSE)).unwrap();
    assert_eq!(serve(&bench, &chain), 10);
    assert_eq!((answer(), bench.plugged()), ([0; 10], 2 * BLOCK));
    assert_eq!(serve(&bench, &chain), 10);
    assert_eq!(answer()[0], 3);
}

/// A device with a driver that has accepted `features`.
fn activated(bench: &Bench, features: u64) -> Result<(Mem, EventFd), ActivateError> {
    let mock = MockSplitQueue::new(&bench.memory, 16);
    let irq = EventFd::new(EFD_NONBLOCK).unwrap();
    let mut device = Mem::new(bench.size.clone());
    device.activate(Activation {
        memory: bench.memory.clone(),
        queues: vec![Some(ActiveQueue {
            queue: mock.create_queue().unwrap(),
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
        })],
        interrupt: Interrupt::new(irq.try_clone().unwrap(), Registers::alone().unwrap()),
        features,
        thread: WorkerThread::spawn("mem", || {}).unwrap(),
        more_threads: Vec::new(),
    })?;
    Ok((device, irq))
}

#[test]
fn driver_that_would_reach_for_what_it_has_not_plugged_is_refused() {
    let bench = Bench::new(Sharing::Private, 0);
    let refused = activated(&bench, 0).unwrap_err().to_string();
    assert!(refused.contains("UNPLUGGED_INACCESSIBLE"), "{refused}");
}

#[test]
fn guest_has_its_memory_when_the_driver_looks_again_after_the_last_block() {
    let bench = Bench::new(Sharing::Private, 0);
    let all = 1 << VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE;
    let (mut device, irq) = activated(&bench, all).unwrap();
    let look = |device: &Mem| device.read_config(48, &mut [0; 4]);
    bench.size.request(mib(FIRST + 3));
    assert!(irq.read().is_ok(), "the driver is told");
    look(&device);
    assert_eq!(bench.size.take_settled(), None);
    bench.ask(VIRTIO_MEM_REQ_PLUG, 0, 1);
    assert!(irq.read().is_err());
    bench.ask(VIRTIO_MEM_REQ_PLUG, 1, 1);
    assert!(irq.read().is_ok(), "it is told again");
    assert_eq!(bench.size.take_settled(), None);
    device.read_config(40, &mut [0; 8]);
    assert_eq!(bench.size.take_settled(), None);
    look(&device);
    // In whole blocks.
    assert_eq!(bench.size.take_settled(), Some(mib(FIRST + 4)));
    look(&device);
    assert_eq!(bench.size.take_settled(), None);
    // What is there already is answered too.
    bench.size.request(mib(FIRST + 4));
    look(&device);
    assert_eq!(bench.size.take_settled(), Some(mib(FIRST + 4)));
    device.reset();
    assert_eq!(bench.plugged(), 2 * BLOCK);
    look(&device);
    assert_eq!(bench.size.take_settled(), None);
}

#[test]
fn configuration_says_where_and_how_much() {
    let bench = Bench::new(Sharing::Private, 6);
    let mut config = [0xff; 60];
    Mem::new(bench.size.clone()).read_config(0, &mut config);
    let (words, rest) = config.as_chunks::<8>();
    let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
    let (start, bytes) = (bench.address(0), LATER << 20);
    assert_eq!(words, [BLOCK, 0, start, bytes, bytes, 0, 6 << 20]);
    assert_eq!(rest, [0xff; 4]);
}
