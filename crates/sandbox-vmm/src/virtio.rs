//! Virtio devices (VirtIO 1.3), and what they share.
//!
//! A device knows nothing of the transport it is reached through. It names its type, queues, features and
//! configuration space, and from [`VirtioDevice::activate`] to [`VirtioDevice::reset`] it owns its queues,
//! as a rule on a `Worker` thread. Everything it says to the driver goes through an [`Interrupt`].
//!
//! Members: the trait; [`interrupt`]; `worker`; `answering`, all that the simplest devices have in common; [`chain`], on which the
//! parsers work; `vectors`, guest memory for system calls; `pace`, how often something may be done; the transport [`mmio`], and what a driver reads of it, [`registers`]; and [`vhost_user`], for devices that another process serves. Each device is a folder of the device
//! itself, the parser of its requests, and its error: [`balloon`], [`block`], [`mem`], [`net`], [`pmem`], [`rng`], [`fs`], and [`crate::vsock`].

pub(crate) mod answering;
pub mod balloon;
pub mod block;
pub mod chain;
pub mod fs;
pub mod interrupt;
pub mod mem;
pub mod mmio;
pub mod net;
pub(crate) mod pace;
pub mod pmem;
pub mod registers;
pub mod rng;
mod vectors;
pub mod vhost_user;
pub(crate) mod worker;

use std::io;

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use crate::seccomp::ThreadKind;

pub use interrupt::Interrupt;
pub use registers::Registers;
pub use worker::WorkerThread;
pub(crate) use worker::{Worker, WorkerTask};

/// A queue that the driver has set up.
#[derive(Debug)]
pub struct ActiveQueue {
    /// The rings, checked to lie in guest memory; `event_idx` is as negotiated.
    pub queue: Queue,
    /// Readable when the driver has notified the device of this queue.
    pub kick: EventFd,
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

impl ActiveQueue {
    /// Gives the buffer `head` back, with so many bytes written into it, and tells the driver if it wants to know.
    ///
    /// # Errors
    /// [`QueueError`].
    pub(crate) fn give_back(
        &mut self,
        memory: &GuestMemoryMmap,
        head: u16,
        written: u32,
        interrupt: &Interrupt,
    ) -> Result<(), QueueError> {
        let queue = &mut self.queue;
        queue
            .add_used(memory, head, written)
            .map_err(QueueError::Ring)?;
        if queue.needs_notification(memory).map_err(QueueError::Ring)? {
            interrupt.signal_queue().map_err(QueueError::Interrupt)?;
        }
        Ok(())
    }
}

/// What a device gets when the driver sets `DRIVER_OK`.
#[derive(Debug)]
pub struct Activation {
    /// Guest memory.
    pub memory: GuestMemoryMmap,
    /// One entry for each of [`VirtioDevice::queue_max_sizes`], in that order. `None` is a queue that the
    /// driver left disabled.
    pub queues: Vec<Option<ActiveQueue>>,
    /// The way to the driver.
    pub interrupt: Interrupt,
    /// What was negotiated: a subset of what was offered.
    pub features: u64,
    /// The device's thread, which waits.
    pub thread: WorkerThread,
    /// Those of [`VirtioDevice::more_threads`], in that order, which wait too.
    pub more_threads: Vec<WorkerThread>,
}

impl Activation {
    /// The queues of a device that can do nothing without all `N` of them.
    ///
    /// # Errors
    /// [`ActivateError::QueueDisabled`] names the first that is missing.
    pub(crate) fn take_queues<const N: usize>(
        &mut self,
    ) -> Result<[ActiveQueue; N], ActivateError> {
        let mut queues = std::mem::take(&mut self.queues).into_iter();
        let mut taken = Vec::with_capacity(N);
        for index in 0..N {
            match queues.next().flatten() {
                Some(queue) => taken.push(queue),
                None => return Err(ActivateError::QueueDisabled { index }),
            }
        }
        taken
            .try_into()
            .map_err(|_| ActivateError::QueueDisabled { index: N })
    }
}

/// Why a device did not come up. The transport answers with `DEVICE_NEEDS_RESET`.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver set `DRIVER_OK` without a queue that the device needs.
    #[error("the driver left queue {index} disabled, which the device needs")]
    QueueDisabled {
        /// Which.
        index: usize,
    },
    /// The driver does without a feature that the device cannot do without.
    #[error("the driver did not accept {feature}, which the device needs")]
    Feature {
        /// As the specification calls it.
        feature: &'static str,
    },
    /// A resource of the host was refused.
    #[error("cannot {action}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The device's thread was lost earlier, or with it what it worked on.
    #[error("the device was lost when its thread ended")]
    Lost,
    /// The vhost-user back end refused.
    #[error("the vhost-user back end refused to {action}")]
    Backend {
        /// What was tried.
        action: &'static str,
        /// What it said.
        source: vhost::Error,
    },
}

/// A virtio device, without its transport.
pub trait VirtioDevice: Send {
    /// The device's number in VirtIO 1.3, 5.
    fn device_type(&self) -> u32;

    /// The name of its thread, and what that may do.
    fn thread(&self) -> (String, ThreadKind);

    /// Further threads, of a device that serves several queues at once.
    fn more_threads(&self) -> Vec<(String, ThreadKind)> {
        Vec::new()
    }

    /// The most entries of each queue, each a power of two; their number is the number of queues.
    fn queue_max_sizes(&self) -> &[u16];

    /// What the device offers. The transport adds `VIRTIO_F_VERSION_1`.
    fn features(&self) -> u64;

    /// Fills `data` from the configuration space at `offset`; bytes beyond its end stay as they are (the
    /// transport passes zeroes). It has no more than 256.
    ///
    /// Not asked for each read of the driver's, but after a reset and after [`Self::write_config`]. What changes otherwise is told to
    /// the driver by [`Interrupt::signal_config`], and read here too from then on.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Whether the device has to see each read of its configuration space. Its driver cannot read anything by itself then.
    fn sees_config_reads(&self) -> bool {
        false
    }

    /// Whether another process reads the notifications of its queues, from the same open file.
    fn is_served_elsewhere(&self) -> bool {
        false
    }

    /// A driver's write to the configuration space. Most devices have nothing writable and ignore it.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver set `DRIVER_OK`: begin to serve the queues. Called once between resets.
    ///
    /// # Errors
    /// An [`ActivateError`]; the driver then finds `DEVICE_NEEDS_RESET`.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Stop serving, wait for requests in flight, and forget all that the driver said (VirtIO 1.3, 2.4).
    /// Called also on a device that was never activated.
    fn reset(&mut self);
}

/// Copies from `space` at `offset` as much as there is.
pub(crate) fn copy_config(space: &[u8], offset: u64, data: &mut [u8]) {
    let Some(rest) = usize::try_from(offset).ok().and_then(|at| space.get(at..)) else {
        return;
    };
    for (to, from) in data.iter_mut().zip(rest) {
        *to = *from;
    }
}
