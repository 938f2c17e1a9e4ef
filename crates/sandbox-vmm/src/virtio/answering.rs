//! The thread of a device with one queue, whose requests are answered as they come.

use std::error::Error;
use std::os::fd::BorrowedFd;

use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::worker::WorkerTask;
use super::{ActiveQueue, Interrupt, QueueError};
use crate::log;

/// How a device answers.
pub trait Answers: Send + 'static {
    /// What the device is called in the log.
    const DEVICE: &'static str;
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
}

/// The thread's part.
#[derive(Debug)]
pub struct AnsweringTask<A> {
    pub(super) answers: A,
    pub(super) queue: ActiveQueue,
    pub(super) memory: GuestMemoryMmap,
    pub(super) interrupt: Interrupt,
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
                    log::guest(format_args!(
                        "{}: {}",
                        A::DEVICE,
                        crate::error_chain(&error)
                    ));
                    0
                }
            };
            active.give_back(memory, head, used, &self.interrupt)?;
        }
        Ok(())
    }
}
