//! The one way in which a device gets a thread: named, with an epoll set, and stopped by an event.
//!
//! ```text
//! start ──> serving ──(task fails)──> stalled: NEEDS_RESET is set, nothing is served
//!              │                         │
//!              └──────── stop ───────────┴──> joined, the task is handed back
//! ```

use std::error::Error;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread::{self, JoinHandle};

use rustix::event::epoll;
use rustix::io::Errno;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{ActivateError, Interrupt};

/// `epoll` data of the stop event; tasks number theirs from 0.
const STOP: u64 = u64::MAX;
/// Events taken from the kernel at once.
const EVENTS: usize = 16;

/// What a worker thread does.
pub trait WorkerTask: Send + 'static {
    /// Why the device cannot go on.
    type Error: Error + Send + Sync + 'static;

    /// The descriptors to watch for reading, each with the number that [`Self::ready`]
    /// gets. Asked once, before the thread begins.
    fn watched(&self) -> Vec<(BorrowedFd<'_>, u64)>;

    /// Whether [`Self::ready`] is called once for each time that the descriptor with this number becomes
    /// readable, instead of for as long as it is.
    fn edge_triggered(&self, _number: u64) -> bool {
        false
    }

    /// The descriptor with this number is readable.
    ///
    /// # Errors
    /// The device needs a reset; the worker serves nothing more.
    fn ready(&mut self, number: u64) -> Result<(), Self::Error>;
}

/// A running thread with its task.
#[derive(Debug)]
pub struct Worker<T> {
    thread: JoinHandle<T>,
    stop: EventFd,
}

impl<T: WorkerTask> Worker<T> {
    /// Starts a thread called `name` (at most 15 bytes are visible) that serves `task`. When the task
    /// fails, `interrupt` tells the driver that the device needs a reset.
    ///
    /// # Errors
    /// [`ActivateError::Host`].
    pub fn start(name: &str, task: T, interrupt: Interrupt) -> Result<Self, ActivateError> {
        let host = |action| move |source| ActivateError::Host { action, source };
        let stop =
            EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(host("make a worker's stop event"))?;
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(io::Error::from)
            .map_err(host("make a worker's epoll set"))?;
        let level = epoll::EventFlags::IN;
        watch(&set, crate::fd::borrow(&stop), STOP, level)
            .map_err(host("watch a worker's stop event"))?;
        for (fd, number) in task.watched() {
            let flags = match task.edge_triggered(number) {
                true => level | epoll::EventFlags::ET,
                false => level,
            };
            watch(&set, fd, number, flags).map_err(host("watch a queue's event"))?;
        }
        let label = name.to_owned();
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || serve(&label, task, &set, &interrupt))
            .map_err(host("start a worker thread"))?;
        Ok(Self { thread, stop })
    }

    /// Ends the thread after what it is doing, and gives the task back; `None` if it panicked.
    pub fn stop(self) -> Option<T> {
        if let Err(error) = self.stop.write(1) {
            // The counter of a fresh event descriptor cannot overflow, so this does not happen; joining
            // would wait for ever.
            eprintln!("sandbox-vmm: cannot stop a worker: {error}");
            return None;
        }
        self.thread.join().ok()
    }
}

fn watch(
    set: impl AsFd,
    fd: BorrowedFd<'_>,
    number: u64,
    flags: epoll::EventFlags,
) -> io::Result<()> {
    epoll::add(set, fd, epoll::EventData::new_u64(number), flags).map_err(io::Error::from)
}

fn serve<T: WorkerTask>(name: &str, mut task: T, set: impl AsFd, interrupt: &Interrupt) -> T {
    let mut events = Vec::with_capacity(EVENTS);
    loop {
        events.clear();
        match epoll::wait(&set, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                eprintln!("sandbox-vmm: {name}: epoll: {error}");
                return task;
            }
        }
        for event in &events {
            let number = event.data.u64();
            if number == STOP {
                return task;
            }
            if let Err(error) = task.ready(number) {
                eprintln!("sandbox-vmm: {name}: {}", crate::error_chain(&error));
                // From here on only the stop event is waited for.
                for (fd, _) in task.watched() {
                    let _ = epoll::delete(&set, fd);
                }
                if let Err(error) = interrupt.needs_reset() {
                    eprintln!("sandbox-vmm: {name}: cannot interrupt the driver: {error}");
                }
                break;
            }
        }
    }
}
