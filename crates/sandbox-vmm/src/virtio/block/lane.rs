//! Requests that have to wait for the host's disk: reads of what the host has not in memory, flushes, and ranges that become holes. The queue's
//! thread hands them to a lane, and gives back to the driver what the lane has done.
//!
//! Where the host has io_uring, the lane is a [`ring`]: the kernel does as many at the same time as it holds. Elsewhere it is a second
//! [`thread`], which does one after the other.
//!
//! The order among requests that are under way at the same time is nobody's (VirtIO 1.3, 5.2.6.2: a flush is of the writes that were completed
//! before it was submitted).

mod ring;
mod thread;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use super::disk::Disk;
use super::error::BlockError;
use super::request::Request;

pub(super) use ring::Ring;
pub(super) use thread::ThreadLane;

/// A request's head, and how many bytes were written for it.
pub(super) type Done = (u16, u32);

/// What waits. Dropped, it waits until nothing reaches the guest's memory any more.
#[derive(Debug)]
pub(super) enum Lane {
    Ring(Ring),
    Thread(ThreadLane),
}

impl Lane {
    /// The ring, which outlives what it did, unless the kernel failed it; a thread is there for the next one anyway.
    pub(super) fn into_ring(self) -> Option<Ring> {
        match self {
            Self::Ring(ring) => Some(ring).filter(Ring::is_sound),
            Self::Thread(_) => None,
        }
    }

    /// No more is taken until something is done.
    pub(super) fn is_full(&self) -> bool {
        match self {
            Self::Ring(ring) => ring.is_full(),
            Self::Thread(thread) => thread.is_full(),
        }
    }

    /// Takes a request. It may begin only with [`Self::begin`].
    ///
    /// # Errors
    /// [`BlockError::Lost`].
    pub(super) fn take(
        &mut self,
        disk: &Arc<Disk>,
        memory: &GuestMemoryMmap,
        head: u16,
        request: Request,
    ) -> Result<(), BlockError> {
        match self {
            Self::Ring(ring) => {
                ring.take(memory, head, request);
                Ok(())
            }
            Self::Thread(thread) => thread.take(disk, memory, head, request),
        }
    }

    /// Begins what was taken and has not begun, or is to go on, and says whether there was anything.
    ///
    /// # Errors
    /// [`BlockError::Ring`].
    pub(super) fn begin(&mut self, disk: &Disk) -> Result<bool, BlockError> {
        match self {
            Self::Ring(ring) => ring.begin(disk),
            Self::Thread(_) => Ok(false),
        }
    }

    /// Forgets that something is done: what is done from now on is told anew, so that this comes before [`Self::done`].
    pub(super) fn rewind(&self) {
        match self {
            // It is readable for as long as something is done that nobody has taken.
            Self::Ring(_) => {}
            Self::Thread(thread) => thread.rewind(),
        }
    }

    /// The next request that is done.
    pub(super) fn done(&mut self) -> Option<Done> {
        match self {
            Self::Ring(ring) => ring.done(),
            Self::Thread(thread) => thread.done(),
        }
    }

    /// Waits until nothing is under way. Requests that are done by then are never given back.
    pub(super) fn settle(&mut self) {
        match self {
            Self::Ring(ring) => ring.settle(),
            Self::Thread(thread) => thread.settle(),
        }
    }
}

impl AsFd for Lane {
    /// Readable when something is done.
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Ring(ring) => ring.as_fd(),
            Self::Thread(thread) => thread.as_fd(),
        }
    }
}
