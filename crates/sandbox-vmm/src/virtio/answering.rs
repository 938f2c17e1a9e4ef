//! The thread of a device with one queue, whose requests are answered as they come.

use std::error::Error;
use std::io;
use std::os::fd::BorrowedFd;

use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::worker::WorkerTask;
use super::{ActiveQueue, Interrupt};
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

/// Why a queue cannot be served any more.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The driver broke the ring; the device needs a reset.
    #[error("the driver broke the ring")]
    Ring(#[source] virtio_queue::Error),
    /// The driver cannot be interrupted.
    #[error("cannot interrupt the driver")]
    Interrupt(#[source] io::Error),
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
        let queue = &mut self.queue.queue;
        while let Some(chain) = queue.iter(memory).map_err(QueueError::Ring)?.next() {
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
            queue
                .add_used(memory, head, used)
                .map_err(QueueError::Ring)?;
            if queue.needs_notification(memory).map_err(QueueError::Ring)? {
                self.interrupt
                    .signal_queue()
                    .map_err(QueueError::Interrupt)?;
            }
        }
        Ok(())
    }
}
