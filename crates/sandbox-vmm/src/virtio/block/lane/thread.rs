//! A lane that is a thread, which does one request after the other: where the host has no io_uring.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Done;
use crate::virtio::WorkerThread;
use crate::virtio::block::ENTRIES;
use crate::virtio::block::disk::Disk;
use crate::virtio::block::error::BlockError;
use crate::virtio::block::request::Request;
use crate::virtio::block::task::serve;

/// The lane. Dropped, it waits until nothing reaches the guest's memory any more.
#[derive(Debug)]
pub(in crate::virtio::block) struct ThreadLane {
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

impl ThreadLane {
    /// One on this thread.
    ///
    /// # Errors
    /// What the kernel says.
    pub(in crate::virtio::block) fn new(thread: WorkerThread) -> io::Result<Self> {
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
        self.under_way >= ENTRIES
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

    /// Waits until nothing is under way.
    pub(super) fn settle(&mut self) {
        while self.under_way > 0 {
            // Each sends when it is done or lost.
            if self.results.recv().is_err() {
                return;
            }
            self.under_way -= 1;
        }
    }
}

impl Drop for ThreadLane {
    fn drop(&mut self) {
        self.settle();
    }
}

impl AsFd for ThreadLane {
    /// Readable when something is done.
    fn as_fd(&self) -> BorrowedFd<'_> {
        crate::fd::borrow(&self.event)
    }
}
