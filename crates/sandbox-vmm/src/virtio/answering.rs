//! A device with one queue, whose requests are answered as they come.
//!
//! What one of them is and how it answers is its [`Answers`]; [`Answering`] is the device around it:
//!
//! ```text
//!         activate: a Worker gets a copy of the Answers, and the queue
//! Idle ─────────────────────────────────────────────────────────────────> Active
//!   ^                                                                       │
//!   └────────────────────── reset: the Worker is stopped ───────────────────┘
//! ```

#[cfg(test)]
pub(super) mod served;

use std::error::Error;
use std::os::fd::BorrowedFd;

use sandbox_types::WithCauses;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::worker::WorkerTask;
use super::{ActivateError, Activation, ActiveQueue, Interrupt, QueueError, VirtioDevice, Worker};
use crate::log;
use crate::seccomp::ThreadKind;

/// Entries in the queue.
const QUEUE_SIZE: u16 = 64;

/// What a device is, and how it answers. Copies are the same device: one stays with the transport, one answers on the thread.
pub trait Answers: Clone + Send + 'static {
    /// What the device is called in the log.
    const DEVICE: &'static str;
    /// Its number in VirtIO 1.3, 5.
    const TYPE: u32;
    /// The name of its thread, and what that may do.
    const THREAD: (&'static str, ThreadKind);
    /// The feature of its own that it offers, and cannot do without: the bit, and what the specification calls it.
    const NEEDED: Option<(u32, &'static str)> = None;
    /// As [`VirtioDevice::sees_config_reads`].
    const SEES_CONFIG_READS: bool = false;
    /// Why a request is not answered. The device goes on.
    type Refusal: Error + 'static;

    /// Answers the request in `chain`, and says how many bytes were written.
    ///
    /// # Errors
    /// It is given back with nothing in it, and the log says why.
    fn answer(
        &mut self,
        chain: DescriptorChain<&GuestMemoryMmap>,
        memory: &GuestMemoryMmap,
    ) -> Result<u32, Self::Refusal>;

    /// As [`VirtioDevice::read_config`]; `active` is whether a driver has activated the device.
    fn read_config(&self, _offset: u64, _data: &mut [u8], _active: bool) {}

    /// The queue is about to be served, and this is the way to the driver.
    fn begin(&self, _interrupt: &Interrupt) {}

    /// The device is reset: there is no driver any more.
    fn end(&self) {}
}

/// A device that answers.
#[derive(Debug)]
pub struct Answering<A> {
    answers: A,
    state: State<A>,
}

#[derive(Debug)]
enum State<A> {
    Idle,
    Active(Worker<AnsweringTask<A>>),
}

impl<A: Answers> Answering<A> {
    /// One that waits for a driver.
    pub(super) fn idle(answers: A) -> Self {
        Self {
            answers,
            state: State::Idle,
        }
    }
}

impl<A: Answers> VirtioDevice for Answering<A> {
    fn device_type(&self) -> u32 {
        A::TYPE
    }

    fn thread(&self) -> (String, ThreadKind) {
        let (name, kind) = A::THREAD;
        (name.to_owned(), kind)
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX | A::NEEDED.map_or(0, |(bit, _)| 1 << bit)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let active = matches!(self.state, State::Active(_));
        self.answers.read_config(offset, data, active);
    }

    fn sees_config_reads(&self) -> bool {
        A::SEES_CONFIG_READS
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        if let Some((bit, feature)) = A::NEEDED
            && activation.features & (1 << bit) == 0
        {
            return Err(ActivateError::Feature { feature });
        }
        let [queue] = activation.take_queues()?;
        let task = AnsweringTask {
            answers: self.answers.clone(),
            queue,
            memory: activation.memory,
            interrupt: activation.interrupt.clone(),
        };
        self.answers.begin(&activation.interrupt);
        let worker = Worker::start(&activation.thread, task, activation.interrupt)?;
        self.state = State::Active(worker);
        Ok(())
    }

    fn reset(&mut self) {
        self.answers.end();
        if let State::Active(worker) = std::mem::replace(&mut self.state, State::Idle) {
            worker.stop();
        }
    }
}

/// The thread's part.
#[derive(Debug)]
struct AnsweringTask<A> {
    answers: A,
    queue: ActiveQueue,
    memory: GuestMemoryMmap,
    interrupt: Interrupt,
}

impl<A: Answers> WorkerTask for AnsweringTask<A> {
    type Error = QueueError;

    fn watched(&self) -> Vec<(BorrowedFd<'_>, u64)> {
        vec![(crate::fd::borrow(&self.queue.kick), 0)]
    }

    fn ready(&mut self, _number: u64) -> Result<(), QueueError> {
        // Level-triggered: an empty counter only means that someone was faster.
        let _ = self.queue.kick.read();
        loop {
            self.serve_available()?;
            let queue = &mut self.queue.queue;
            if !queue
                .enable_notification(&self.memory)
                .map_err(QueueError::Ring)?
            {
                return Ok(());
            }
        }
    }
}

impl<A: Answers> AnsweringTask<A> {
    fn serve_available(&mut self) -> Result<(), QueueError> {
        let memory = &self.memory;
        let active = &mut self.queue;
        while let Some(chain) = active.queue.iter(memory).map_err(QueueError::Ring)?.next() {
            let head = chain.head_index();
            let used = match self.answers.answer(chain, memory) {
                Ok(written) => written,
                Err(error) => {
                    log::guest(format_args!("{}: {}", A::DEVICE, WithCauses(&error)));
                    0
                }
            };
            active.give_back(memory, head, used, &self.interrupt)?;
        }
        Ok(())
    }
}
