//! Memory device (VirtIO 1.3, 5.15, virtio-mem): memory that the guest gets while it runs.
//!
//! The guest is told how much it is to have of a range of addresses ([`MemorySize::request`]), and asks for blocks of it itself. It gets
//! no more than that, whichever blocks it asks for; what it does not have of the range it cannot reach
//! ([`Later`](crate::memory::later::Later)), and gives back whatever it likes.
//!
//! Whether its kernel has come to use what it has been given, no request says. The device tells the driver once more of a change
//! when the last block has been given, and takes the driver's looking at it for the answer.
//!
//! Members: the device; [`blocks`], its state; [`request`], the parser; [`error`].

pub mod blocks;
pub mod error;
pub mod request;
#[cfg(test)]
mod tests;

use virtio_bindings::virtio_ids::VIRTIO_ID_MEM;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::DescriptorChain;
use vm_memory::GuestMemoryMmap;

pub use self::blocks::MemorySize;
use self::blocks::REQUESTED;
use self::error::MemError;
use self::request::Request;
use super::answering::{AnsweringTask, Answers};
use super::{ActivateError, Activation, VirtioDevice, Worker, copy_config};
use crate::seccomp::ThreadKind;

/// Entries in the queue.
const QUEUE_SIZE: u16 = 64;
/// The driver reaches for nothing that it has not plugged (5.15.3).
const VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE: u32 = 1;

#[derive(Debug)]
enum State {
    Idle,
    Active(Worker<AnsweringTask<Plugging>>),
}

/// The memory device. What the guest has, it keeps when the device is reset (5.15.6.2): its driver begins with giving it back.
#[derive(Debug)]
pub struct Mem {
    size: MemorySize,
    state: State,
}

impl Mem {
    /// A device that gives what `size` is told to, and waits for a driver.
    #[must_use]
    pub fn new(size: MemorySize) -> Self {
        Self {
            size,
            state: State::Idle,
        }
    }
}

impl VirtioDevice for Mem {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_MEM
    }

    fn thread(&self) -> (String, ThreadKind) {
        ("mem".to_owned(), ThreadKind::Mem)
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut blocks = self.size.lock();
        copy_config(&blocks.config(), offset, data);
        let end = offset.saturating_add(data.len() as u64);
        if matches!(self.state, State::Active(_)) && offset < REQUESTED.end && end > REQUESTED.start
        {
            blocks.has_been_read();
        }
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        if activation.features & (1 << VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE) == 0 {
            let feature = "VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE";
            return Err(ActivateError::Feature { feature });
        }
        let [queue] = activation.take_queues()?;
        let task = AnsweringTask {
            answers: Plugging {
                size: self.size.clone(),
            },
            queue,
            memory: activation.memory,
            interrupt: activation.interrupt.clone(),
        };
        self.size.lock().interrupt = Some(activation.interrupt.clone());
        self.state = State::Active(Worker::start(
            &activation.thread,
            task,
            activation.interrupt,
        )?);
        Ok(())
    }

    fn reset(&mut self) {
        self.size.lock().interrupt = None;
        if let State::Active(worker) = std::mem::replace(&mut self.state, State::Idle) {
            worker.stop();
        }
    }
}

/// Gives blocks and takes them back.
#[derive(Debug)]
struct Plugging {
    size: MemorySize,
}

impl Answers for Plugging {
    const DEVICE: &'static str = "memory";
    type Refusal = MemError;

    fn answer(
        &mut self,
        chain: DescriptorChain<&GuestMemoryMmap>,
        memory: &GuestMemoryMmap,
    ) -> Result<u32, MemError> {
        let request = Request::parse(chain, memory)?;
        let response = self.size.lock().serve(&request, memory);
        request.answer(memory, response)
    }
}
