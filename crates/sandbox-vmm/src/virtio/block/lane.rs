//! Requests that have to wait for the host's disk: reads of what the host has not in memory, flushes, and ranges that become holes. The disk's
//! second thread does them, one after the other; the first gives them back to the driver, whose ring it alone has.
//!
//! The order among requests that are under way at the same time is nobody's (VirtIO 1.3, 5.2.6.2: a flush is of the writes that were completed
//! before it was submitted).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::disk::Disk;
use super::error::BlockError;
use super::request::Request;
use super::{QUEUE_SIZE, serve};
use crate::virtio::WorkerThread;

/// A request's head, and how many bytes were written for it.
type Done = (u16, u32);

/// What waits. Dropped, it waits until nothing reaches the guest's memory any more.
#[derive(Debug)]
pub(super) struct Lane {
    thread: WorkerThread,
    results: Receiver<Done>,
    sender: Sender<Done>,
    event: Arc<EventFd>,
    under_way: u16,
}

/// Says that a request is done, also when its thread was lost.
struct Answer {
    done: Done,
    results: Sender<Done>,
    event: Arc<EventFd>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        // Nobody listens any more when the machine ends. The counter cannot overflow.
        let _ = self.results.send(self.done);
        let _ = self.event.write(1);
    }
}

impl Lane {
    /// One on this thread.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn new(thread: WorkerThread) -> io::Result<Self> {
        let (sender, results) = channel();
        Ok(Self {
            thread,
            results,
            sender,
            event: Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?),
            under_way: 0,
        })
    }

    /// No more is taken until something is done.
    pub(super) fn is_full(&self) -> bool {
        self.under_way >= QUEUE_SIZE
    }

    /// Has a request done.
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
        let answer = Answer {
            done: (head, 0),
            results: self.sender.clone(),
            event: Arc::clone(&self.event),
        };
        let (disk, memory) = (Arc::clone(disk), memory.clone());
        self.under_way = self.under_way.saturating_add(1);
        self.thread
            .run(move || {
                let mut answer = answer;
                answer.done.1 = serve(&disk, &memory, &request);
            })
            .map_err(|_| BlockError::Lost)
    }

    /// Forgets that something is done: what is done from now on is told anew, so that this comes before [`Self::done`].
    pub(super) fn rewind(&self) {
        // Not yet is no error.
        let _ = self.event.read();
    }

    /// The next request that is done.
    pub(super) fn done(&mut self) -> Option<Done> {
        let next = self.results.try_recv().ok()?;
        self.under_way = self.under_way.saturating_sub(1);
        Some(next)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        while self.under_way > 0 {
            // Each sends when it is done or lost.
            if self.results.recv().is_err() {
                return;
            }
            self.under_way -= 1;
        }
    }
}

impl AsFd for Lane {
    /// Readable when something is done.
    fn as_fd(&self) -> BorrowedFd<'_> {
        crate::fd::borrow(&self.event)
    }
}
