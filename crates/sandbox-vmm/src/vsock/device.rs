//! The muxer as a virtio device of our own monitor.

use std::os::fd::{AsFd, BorrowedFd};

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::error::VsockError;
use super::muxer::{Muxer, MuxerConfig};
use super::protocol::{FEATURES, QUEUE_SIZES};
use super::service::serve;
use crate::seccomp::ThreadKind;
use crate::virtio::{
    ActivateError, Activation, ActiveQueue, Interrupt, VirtioDevice, Worker, WorkerTask,
    copy_config,
};

/// What the worker's descriptors are called.
const RX: u64 = 0;
const TX: u64 = 1;
const HOST: u64 = 2;
const AGAIN: u64 = 3;

/// The vsock device (VirtIO 1.3, 5.10).
#[derive(Debug)]
pub struct Vsock {
    guest_cid: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Waits for a driver. Boxed, as a muxer is large beside the others.
    Idle(Box<Muxer>),
    Active(Worker<Task>),
    /// The worker was lost; the device never comes up again.
    Lost,
}

impl Vsock {
    /// A device that waits for its driver.
    ///
    /// # Errors
    /// As [`Muxer::new`].
    pub fn new(config: MuxerConfig) -> Result<Self, VsockError> {
        let muxer = Muxer::new(config)?;
        Ok(Self {
            guest_cid: muxer.guest_cid(),
            state: State::Idle(Box::new(muxer)),
        })
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn thread(&self) -> (String, ThreadKind) {
        ("vsock".to_owned(), ThreadKind::Vsock)
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.guest_cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        // The event queue is never written to, so that it may be missing.
        let [rx, tx] = activation.take_queues()?;
        let again =
            EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|source| ActivateError::Host {
                action: "make the vsock worker's event",
                source,
            })?;
        match std::mem::replace(&mut self.state, State::Lost) {
            State::Idle(muxer) => {
                let task = Task {
                    muxer,
                    memory: activation.memory,
                    rx,
                    tx,
                    interrupt: activation.interrupt.clone(),
                    again,
                };
                let worker = Worker::start(&activation.thread, task, activation.interrupt)?;
                self.state = State::Active(worker);
                Ok(())
            }
            other => {
                self.state = other;
                Err(ActivateError::Host {
                    action: "activate the vsock device twice, or after its worker was lost",
                    source: std::io::ErrorKind::InvalidInput.into(),
                })
            }
        }
    }

    fn reset(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Lost) {
            State::Active(worker) => match worker.stop() {
                Some(mut task) => {
                    task.muxer.reset();
                    State::Idle(task.muxer)
                }
                None => State::Lost,
            },
            other => other,
        };
    }
}

/// What the worker has.
#[derive(Debug)]
struct Task {
    muxer: Box<Muxer>,
    memory: GuestMemoryMmap,
    rx: ActiveQueue,
    tx: ActiveQueue,
    interrupt: Interrupt,
    /// Set when a pass reached its bound, so that stopping comes between two passes.
    again: EventFd,
}

impl WorkerTask for Task {
    type Error = VsockError;

    fn watched(&self) -> Vec<(BorrowedFd<'_>, u64)> {
        vec![
            (crate::fd::borrow(&self.rx.kick), RX),
            (crate::fd::borrow(&self.tx.kick), TX),
            (self.muxer.as_fd(), HOST),
            (crate::fd::borrow(&self.again), AGAIN),
        ]
    }

    fn ready(&mut self, number: u64) -> Result<(), VsockError> {
        // Nothing to read is no error: another pass may have been woken by the same kick.
        let _ = match number {
            RX => self.rx.kick.read(),
            TX => self.tx.kick.read(),
            AGAIN => self.again.read(),
            _ => Ok(0),
        };
        let notify = serve(
            &mut self.muxer,
            &self.memory,
            &mut self.rx.queue,
            &mut self.tx.queue,
        )?;
        if notify.rx || notify.tx {
            self.interrupt
                .signal_queue()
                .map_err(VsockError::system("interrupt the driver"))?;
        }
        if notify.again {
            self.again
                .write(1)
                .map_err(VsockError::system("wake itself up"))?;
        }
        Ok(())
    }
}
