//! The back end's calls on their way to the driver.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::FrontEndError;
use crate::virtio::{ActivateError, Interrupt, WorkerTask};

const CALL: u64 = 0;
const PEER: u64 = 1;

/// Passes calls on, and watches for the back end's end. All queues share one event, as all of them are one
/// bit of the interrupt status.
#[derive(Debug)]
pub(super) struct Calls {
    call: EventFd,
    /// The session's socket. Nothing arrives on it unasked, so readable means that the back end is gone.
    peer: UnixStream,
    interrupt: Interrupt,
}

impl Calls {
    pub(super) fn new(peer: UnixStream, interrupt: Interrupt) -> Result<Self, ActivateError> {
        let call =
            EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|source| ActivateError::Host {
                action: "make a back end's call event",
                source,
            })?;
        Ok(Self {
            call,
            peer,
            interrupt,
        })
    }

    /// What the back end writes to.
    pub(super) fn event(&self) -> &EventFd {
        &self.call
    }
}

impl WorkerTask for Calls {
    type Error = FrontEndError;

    fn watched(&self) -> Vec<(BorrowedFd<'_>, u64)> {
        vec![
            (crate::fd::borrow(&self.call), CALL),
            (self.peer.as_fd(), PEER),
        ]
    }

    fn ready(&mut self, number: u64) -> Result<(), FrontEndError> {
        if number == PEER {
            return Err(FrontEndError::Gone);
        }
        // Nothing to read is no error: an interrupt too many is allowed.
        let _ = self.call.read();
        self.interrupt
            .signal_queue()
            .map_err(|source| FrontEndError::Host {
                action: "interrupt the driver",
                source,
            })
    }
}
