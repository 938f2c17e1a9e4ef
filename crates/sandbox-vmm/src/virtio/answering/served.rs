//! A driver's ring with one request in it, for the tests of devices that answer.

use virtio_queue::Queue;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{AnsweringTask, Answers};
use crate::virtio::worker::WorkerTask as _;
use crate::virtio::{ActiveQueue, Interrupt, Registers};

/// A descriptor of a chain that [`serve`] links.
pub(in crate::virtio) fn descriptor(address: u64, length: u32, flags: u32) -> RawDescriptor {
    let flags = u16::try_from(flags).unwrap();
    RawDescriptor::from(Descriptor::new(address, length, flags, 0))
}

/// Serves one chain as the device's thread does, and says how many bytes the used ring has for it. The driver is interrupted.
pub(in crate::virtio) fn serve(
    answers: impl Answers,
    memory: &GuestMemoryMmap,
    chain: &[RawDescriptor],
) -> u32 {
    let mock = MockSplitQueue::new(memory, 16);
    mock.build_desc_chain(chain).unwrap();
    let queue: Queue = mock.create_queue().unwrap();
    let irq = EventFd::new(EFD_NONBLOCK).unwrap();
    let mut task = AnsweringTask {
        answers,
        queue: ActiveQueue {
            queue,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
        },
        memory: memory.clone(),
        interrupt: Interrupt::new(irq.try_clone().unwrap(), Registers::alone().unwrap()),
    };
    task.ready(0).unwrap();
    assert!(irq.read().is_ok());
    // The length in the first entry of the ring (VirtIO 1.3, 2.7.8), behind `flags`, `idx` and its `id`.
    memory
        .read_obj(GuestAddress(mock.used_addr().0 + 8))
        .unwrap()
}
