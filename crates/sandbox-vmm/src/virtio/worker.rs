//! The one way in which a device gets a thread: named, confined, there before the guest runs; with an epoll set for as long as a
//! driver has activated the device.
//!
//! ```text
//! WorkerThread:  spawn ──> waiting <────────────────────────┐
//!                            │ start                        │ stop: the task is handed back
//! Worker:                 serving ──(task fails)──> stalled ┤
//!                            └──────────────────────────────┘
//! ```
//!
//! Stalled is: NEEDS_RESET is set, nothing is served. A task that panics takes the thread along; its device is lost then.

use std::error::Error;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc;
use std::thread;

use rustix::event::epoll;
use rustix::io::Errno;
use sandbox_types::WithCauses;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{ActivateError, Interrupt};
use crate::log;
use crate::process::THREAD_STACK_BYTES;

/// `epoll` data of the stop event; tasks number theirs from 0.
const STOP: u64 = u64::MAX;
/// Events taken from the kernel at once.
const EVENTS: usize = 16;

/// What a worker thread does.
pub(crate) trait WorkerTask: Send + 'static {
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

    /// The worker serves nothing more, and is about to hand the task back. Called on its thread.
    fn stopped(&mut self) {}
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread that waits for a task. It ends when nobody can give it one any more.
#[derive(Debug, Clone)]
pub struct WorkerThread {
    name: String,
    jobs: mpsc::Sender<Job>,
}

impl WorkerThread {
    /// Starts a thread called `name` (at most 15 bytes are visible). It calls `prepare` first, and then waits.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn spawn(name: &str, prepare: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let (jobs, waiting) = mpsc::channel::<Job>();
        thread::Builder::new()
            .name(name.to_owned())
            .stack_size(THREAD_STACK_BYTES)
            .spawn(move || {
                prepare();
                for job in waiting {
                    job();
                }
            })?;
        Ok(Self {
            name: name.to_owned(),
            jobs,
        })
    }

    /// Has it do something, after all that it was given before. What the job has is dropped also when it is never done.
    ///
    /// # Errors
    /// [`ActivateError::Lost`] if the thread has ended.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) -> Result<(), ActivateError> {
        self.jobs
            .send(Box::new(job))
            .map_err(|_| ActivateError::Lost)
    }
}

/// A task on its thread.
#[derive(Debug)]
pub(crate) struct Worker<T> {
    done: mpsc::Receiver<T>,
    stop: EventFd,
}

impl<T: WorkerTask> Worker<T> {
    /// Lets `thread` serve `task`. When the task fails, `interrupt` tells the driver that the device needs a reset.
    ///
    /// # Errors
    /// [`ActivateError::Host`], or [`ActivateError::Lost`] if the thread is.
    pub(crate) fn start(
        thread: &WorkerThread,
        task: T,
        interrupt: Interrupt,
    ) -> Result<Self, ActivateError> {
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
        let (result, done) = mpsc::channel();
        let name = thread.name.clone();
        let job = move || {
            let mut task = serve(&name, task, &set, &interrupt);
            task.stopped();
            // First, so that nothing watches the task's descriptors any more when it is handed back.
            drop(set);
            // Nobody waits for it when the machine is ending.
            let _ = result.send(task);
        };
        thread.run(job)?;
        Ok(Self { done, stop })
    }

    /// Ends the task after what it is doing, and gives it back; `None` if it panicked.
    pub(crate) fn stop(self) -> Option<T> {
        if let Err(error) = self.stop.write(1) {
            // The counter of a fresh event descriptor cannot overflow, so this does not happen; waiting
            // would be for ever.
            eprintln!("sandbox-vmm: cannot stop a worker: {error}");
            return None;
        }
        self.done.recv().ok()
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
                // A driver can cause this as often as it resets the device.
                log::guest(format_args!("{name}: {}", WithCauses(&error)));
                // From here on only the stop event is waited for.
                for (fd, _) in task.watched() {
                    let _ = epoll::delete(&set, fd);
                }
                if let Err(error) = interrupt.needs_reset() {
                    log::guest(format_args!("{name}: cannot interrupt the driver: {error}"));
                }
                break;
            }
        }
    }
}
