//! A driver's lists of pages, well-formed and not.

use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::Queue;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::request::{MAX_PAGE_NUMBERS, PAGE_BYTES};
use super::*;
use crate::virtio::{Registers, WorkerThread};

const DATA: u64 = 0x10_0000;
const MEMORY: u64 = 0x40_0000;
const FULL: u8 = 0x5a;
const NONE: [u64; 0] = [];

fn descriptor(address: u64, length: u64, flags: u32) -> RawDescriptor {
    RawDescriptor::from(Descriptor::new(
        address,
        u32::try_from(length).unwrap(),
        u16::try_from(flags).unwrap(),
        0,
    ))
}

fn free(address: u64, length: u64) -> RawDescriptor {
    descriptor(address, length, VRING_DESC_F_WRITE)
}

/// Memory whose pages from [`DATA`] on are full.
fn memory() -> GuestMemoryMmap {
    let bytes = usize::try_from(MEMORY).unwrap();
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes)]).unwrap();
    let full = vec![FULL; usize::try_from(MEMORY - DATA).unwrap()];
    memory.write_slice(&full, GuestAddress(DATA)).unwrap();
    memory
}

/// Serves chains of one queue until nothing is left to do, and says how often the thread was woken for it.
fn serve_all(memory: &GuestMemoryMmap, purpose: Purpose, chains: &[Vec<RawDescriptor>]) -> usize {
    let mock = MockSplitQueue::new(memory, 256);
    let mut place = 0;
    for chain in chains {
        let first = place;
        let linked: Vec<RawDescriptor> = chain
            .iter()
            .map(|one| {
                place += 1;
                let one = Descriptor::from(*one);
                let more = usize::from(place - first) < chain.len();
                let next = if more { VRING_DESC_F_NEXT } else { 0 };
                let flags = one.flags() | u16::try_from(next).unwrap();
                Descriptor::new(one.addr().0, one.len(), flags, place).into()
            })
            .collect();
        mock.add_desc_chains(&linked, first).unwrap();
    }
    let queue: Queue = mock.create_queue().unwrap();
    let irq = EventFd::new(EFD_NONBLOCK).unwrap();
    let kick = EventFd::new(EFD_NONBLOCK).unwrap();
    kick.write(1).unwrap();
    let mut task = BalloonTask {
        queues: vec![(
            purpose,
            ActiveQueue {
                queue,
                kick: kick.try_clone().unwrap(),
            },
        )],
        memory: memory.clone(),
        reclaim: Reclaim::default(),
        interrupt: Interrupt::new(irq.try_clone().unwrap(), Registers::alone().unwrap()),
    };
    let mut times = 0;
    while rustix::event::poll(
        &mut [rustix::event::PollFd::from_borrowed_fd(
            crate::fd::borrow(&kick),
            rustix::event::PollFlags::IN,
        )],
        Some(&rustix::time::Timespec::default()),
    ) == Ok(1)
    {
        task.ready(0).unwrap();
        times += 1;
    }
    assert!(irq.read().is_ok());
    let used: u16 = memory
        .read_obj(GuestAddress(mock.used_addr().0 + 2))
        .unwrap();
    assert_eq!(usize::from(used), chains.len());
    times
}

fn serve_one(memory: &GuestMemoryMmap, purpose: Purpose, chain: &[RawDescriptor]) {
    serve_all(memory, purpose, &[chain.to_vec()]);
}

/// The pages from [`DATA`] on that are empty, by number.
fn empty(memory: &GuestMemoryMmap) -> Vec<u64> {
    let mut empty = Vec::new();
    for number in 0..(MEMORY - DATA) / PAGE_BYTES {
        let mut page = [0; 4096];
        let start = GuestAddress(DATA + number * PAGE_BYTES);
        memory.read_slice(&mut page, start).unwrap();
        match page {
            page if page.iter().all(|byte| *byte == 0) => empty.push(number),
            page => assert!(page.iter().all(|byte| *byte == FULL), "page {number}"),
        }
    }
    empty
}

#[test]
fn reported_ranges_are_empty_and_nothing_else_is() {
    let memory = memory();
    let chain = [
        free(DATA + PAGE_BYTES, PAGE_BYTES),
        free(MEMORY - PAGE_BYTES, PAGE_BYTES),
        free(DATA + 5 * PAGE_BYTES, 2 * PAGE_BYTES),
    ];
    serve_one(&memory, Purpose::Report, &chain);
    assert_eq!(empty(&memory), [1, 5, 6, 767]);
}

#[test]
fn report_with_one_range_that_is_none_is_refused_whole() {
    for wrong in [
        free(DATA + 512, PAGE_BYTES),
        free(DATA + PAGE_BYTES, 512),
        free(MEMORY, PAGE_BYTES),
        free(MEMORY - PAGE_BYTES, 2 * PAGE_BYTES),
        free(MEMORY - PAGE_BYTES, 0xffff_e000),
        free(u64::MAX - PAGE_BYTES + 1, PAGE_BYTES),
    ] {
        let memory = memory();
        let chain = [free(DATA, PAGE_BYTES), wrong];
        serve_one(&memory, Purpose::Report, &chain);
        assert_eq!(empty(&memory), NONE);
    }
}

#[test]
fn report_without_a_range_does_nothing() {
    let memory = memory();
    for chain in [free(DATA, 0), descriptor(DATA, PAGE_BYTES, 0)] {
        serve_one(&memory, Purpose::Report, &[chain]);
    }
    assert_eq!(empty(&memory), NONE);
}

/// Puts page numbers, counted from [`DATA`], into memory below it, and serves them.
fn inflate(memory: &GuestMemoryMmap, numbers: &[u32], cut: u64) {
    let first = u32::try_from(DATA / PAGE_BYTES).unwrap();
    let list = GuestAddress(DATA / 2);
    for (index, number) in (0..).zip(numbers) {
        let at = GuestAddress(list.0 + index * 4);
        memory
            .write_obj(first.wrapping_add(*number).to_le(), at)
            .unwrap();
    }
    let bytes = u64::try_from(numbers.len()).unwrap() * 4 - cut;
    serve_one(memory, Purpose::Inflate, &[descriptor(list.0, bytes, 0)]);
}

#[test]
fn inflated_pages_are_empty_in_whatever_order_they_come() {
    let memory = memory();
    inflate(&memory, &[9, 8, 7, 3, 8, 767], 0);
    assert_eq!(empty(&memory), [3, 7, 8, 9, 767]);
}

#[test]
fn inflate_with_numbers_of_no_page_or_too_many_is_refused_whole() {
    let memory = memory();
    inflate(&memory, &[1, 768], 0);
    inflate(&memory, &[1, u32::MAX - 256], 0);
    inflate(&memory, &[1, 2], 1);
    inflate(&memory, &[3; MAX_PAGE_NUMBERS + 1], 0);
    assert_eq!(empty(&memory), NONE);
    inflate(&memory, &[3; MAX_PAGE_NUMBERS], 0);
    assert_eq!(empty(&memory), [3]);
}

#[test]
fn deflated_pages_are_left_alone() {
    let memory = memory();
    serve_one(&memory, Purpose::Deflate, &[descriptor(DATA, 4, 0)]);
    assert_eq!(empty(&memory), NONE);
}

#[test]
fn flood_of_reports_is_served_a_part_at_a_time() {
    let memory = memory();
    let chains = vec![vec![free(DATA, PAGE_BYTES)]; 200];
    let times = serve_all(&memory, Purpose::Report, &chains);
    assert_eq!(times, 200_usize.div_ceil(MAX_REQUESTS.into()));
    assert_eq!(empty(&memory), [0]);
}

#[test]
fn configuration_asks_for_nothing_and_keeps_what_the_driver_says() {
    let mut balloon = Balloon::new();
    let read = |balloon: &Balloon| {
        let mut bytes = [0xff; 12];
        balloon.read_config(0, &mut bytes);
        bytes
    };
    balloon.write_config(0, &[1; 4]);
    balloon.write_config(4, &[2; 8]);
    balloon.write_config(5, &[3; 4]);
    assert_eq!(read(&balloon)[..8], [0; 8]);
    balloon.write_config(4, &[4, 3, 2, 1]);
    assert_eq!(
        read(&balloon),
        [0, 0, 0, 0, 4, 3, 2, 1, 0xff, 0xff, 0xff, 0xff]
    );
    balloon.reset();
    assert_eq!(read(&balloon)[..8], [0; 8]);
}

/// Has it activated without any queue.
fn activate(device: &mut Balloon, memory: &GuestMemoryMmap) -> Result<(), ActivateError> {
    let irq = EventFd::new(EFD_NONBLOCK).unwrap();
    device.activate(Activation {
        memory: memory.clone(),
        queues: Vec::new(),
        interrupt: Interrupt::new(irq, Registers::alone().unwrap()),
        features: 0,
        thread: WorkerThread::spawn("balloon", || {}).unwrap(),
        more_threads: Vec::new(),
    })
}

#[test]
fn huge_pages_that_are_broken_up_count_also_after_a_reset() {
    let memory = memory();
    let mut reclaim = Reclaim::default();
    let page = RamPages::new(&memory, GuestAddress(DATA), PAGE_BYTES).unwrap();
    reclaim.take(&memory, page).unwrap();
    assert_ne!(reclaim, Reclaim::default());
    let mut device = Balloon::new();
    device.state = State::Idle(reclaim.clone());
    for _ in 0..2 {
        activate(&mut device, &memory).unwrap();
        assert!(activate(&mut device, &memory).is_err());
        device.reset();
        assert!(matches!(&device.state, State::Idle(kept) if *kept == reclaim));
    }
}
