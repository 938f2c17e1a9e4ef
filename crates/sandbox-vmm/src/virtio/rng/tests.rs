//! A driver's requests, well-formed and not.

use virtio_bindings::virtio_ring::VRING_DESC_F_WRITE;
use virtio_queue::Queue;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::request::MAX_REQUEST_BYTES;
use super::*;
use crate::virtio::worker::WorkerTask as _;
use crate::virtio::{ActiveQueue, Interrupt};

const DATA: u64 = 0x10_0000;

fn descriptor(address: u64, length: u32, flags: u32) -> RawDescriptor {
    RawDescriptor::from(Descriptor::new(
        address,
        length,
        u16::try_from(flags).unwrap(),
        0,
    ))
}

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x40_0000)]).unwrap()
}

/// Serves one chain, and says what the used ring has for it.
fn serve(memory: &GuestMemoryMmap, chain: &[RawDescriptor]) -> u32 {
    let mock = MockSplitQueue::new(memory, 16);
    mock.build_desc_chain(chain).unwrap();
    let queue: Queue = mock.create_queue().unwrap();
    let irq = EventFd::new(EFD_NONBLOCK).unwrap();
    let mut task = AnsweringTask {
        answers: HostEntropy,
        queue: ActiveQueue {
            queue,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
        },
        memory: memory.clone(),
        interrupt: Interrupt::new(irq.try_clone().unwrap()),
    };
    task.ready(0).unwrap();
    assert!(irq.read().is_ok());
    memory
        .read_obj(GuestAddress(mock.used_addr().0 + 8))
        .unwrap()
}

#[test]
fn buffer_is_filled_and_nothing_behind_it() {
    let memory = memory();
    let chain = [descriptor(DATA, 1000, VRING_DESC_F_WRITE)];
    assert_eq!(serve(&memory, &chain), 1000);
    let mut bytes = [0; 1064];
    memory.read_slice(&mut bytes, GuestAddress(DATA)).unwrap();
    // The chance that 64 random bytes are all zero is that of guessing a 512-bit key.
    assert!(bytes[936..1000].iter().any(|byte| *byte != 0));
    assert!(bytes[1000..].iter().all(|byte| *byte == 0));
}

#[test]
fn buffer_over_the_limit_is_filled_up_to_it() {
    let memory = memory();
    let chain = [
        descriptor(DATA, 100, VRING_DESC_F_WRITE),
        descriptor(DATA + 0x1000, 0x20_0000, VRING_DESC_F_WRITE),
    ];
    assert_eq!(serve(&memory, &chain), MAX_REQUEST_BYTES);
}

#[test]
fn request_without_a_buffer_or_outside_memory_gets_nothing() {
    let memory = memory();
    for chain in [
        descriptor(DATA, 64, 0),
        descriptor(DATA, 0, VRING_DESC_F_WRITE),
        descriptor(u64::MAX - 10, 64, VRING_DESC_F_WRITE),
    ] {
        assert_eq!(serve(&memory, &[chain]), 0);
    }
}
