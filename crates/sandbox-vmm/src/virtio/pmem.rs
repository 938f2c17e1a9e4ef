//! Persistent memory device (VirtIO 1.3, 5.19): tells the driver where in its memory the files of a
//! [`Window`](crate::memory::window::Window) are.
//!
//! What the driver reads, it reads without the device. Its one queue takes flush requests, with nothing to be done for them, because
//! nothing can be written. Neither `VIRTIO_PMEM_F_SHMEM_REGION` is offered, nor shared memory regions.
//!
//! Members: the device; [`request`], the parser; [`error`].

pub mod error;
pub mod request;
#[cfg(test)]
mod tests;

use virtio_bindings::virtio_ids::VIRTIO_ID_PMEM;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestMemoryMmap};

use self::error::PmemError;
use self::request::Request;
use super::answering::{AnsweringTask, Answers};
use super::{ActivateError, Activation, VirtioDevice, Worker, copy_config};
use crate::bus::BusRange;
use crate::seccomp::ThreadKind;

/// Entries in the queue.
const QUEUE_SIZE: u16 = 64;
/// `virtio_pmem_config` (5.19.4): `start` and `size`.
const CONFIG_BYTES: usize = 16;

#[derive(Debug)]
enum State {
    Idle,
    Active(Worker<AnsweringTask<Flushes>>),
}

/// The persistent memory device.
#[derive(Debug)]
pub struct Pmem {
    config: [u8; CONFIG_BYTES],
    state: State,
}

impl Pmem {
    /// A device over these addresses of the guest's, which waits for a driver.
    #[must_use]
    pub fn new(range: BusRange) -> Self {
        let mut config = [0; CONFIG_BYTES];
        let (start, size) = config.split_at_mut(CONFIG_BYTES / 2);
        start.copy_from_slice(&range.start.to_le_bytes());
        size.copy_from_slice(&range.length.to_le_bytes());
        Self {
            config,
            state: State::Idle,
        }
    }
}

impl VirtioDevice for Pmem {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_PMEM
    }

    fn thread(&self) -> (String, ThreadKind) {
        ("pmem".to_owned(), ThreadKind::Pmem)
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.config, offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let [queue] = activation.take_queues()?;
        let task = AnsweringTask {
            answers: Flushes,
            queue,
            memory: activation.memory,
            interrupt: activation.interrupt.clone(),
        };
        self.state = State::Active(Worker::start(
            &activation.thread,
            task,
            activation.interrupt,
        )?);
        Ok(())
    }

    fn reset(&mut self) {
        if let State::Active(worker) = std::mem::replace(&mut self.state, State::Idle) {
            worker.stop();
        }
    }
}

/// Has nothing to flush.
#[derive(Debug)]
struct Flushes;

impl Answers for Flushes {
    const DEVICE: &'static str = "pmem";
    type Refusal = PmemError;

    fn answer(
        &mut self,
        chain: DescriptorChain<&GuestMemoryMmap>,
        memory: &GuestMemoryMmap,
    ) -> Result<u32, PmemError> {
        Request::parse(chain, memory)?.answer(memory)
    }
}

impl Request {
    /// Answers it, and says how many bytes were written.
    fn answer(&self, memory: &GuestMemoryMmap) -> Result<u32, PmemError> {
        memory
            .write_slice(&self.result().to_le_bytes(), self.response)
            .map_err(PmemError::Memory)?;
        Ok(request::RESPONSE_BYTES)
    }
}
