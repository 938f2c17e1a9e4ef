//! Another process, held by a descriptor so that its number cannot come to mean a different one.

#![expect(
    unsafe_code,
    reason = "tokio's AsyncFd has no safe constructor for a descriptor that one owns"
)]

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use sandbox_runtime::process::start_time;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process that is not our child.
#[derive(Debug)]
pub(super) struct ProcessHandle {
    descriptor: AsyncFd<OwnedFd>,
    start_time: u64,
}

impl ProcessHandle {
    /// Takes hold of process `pid`.
    pub(super) fn open(pid: u32) -> io::Result<Self> {
        let number = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let descriptor = pidfd_open(number, PidfdFlags::empty())?;
        // Looked at after the descriptor was opened: if the number changes hands in between, the time does too.
        let start_time = start_time(pid)?;
        // SAFETY: the descriptor is open and owned by the value that is handed over, and nothing replaces or
        // closes it before the `AsyncFd` is dropped.
        let registered = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
        Ok(Self {
            descriptor: registered?,
            start_time,
        })
    }

    /// When it began, in clock ticks since boot.
    pub(super) fn start_time(&self) -> u64 {
        self.start_time
    }

    /// Waits until it has ended. Cancelling this loses nothing.
    pub(super) async fn ended(&self) {
        // The only error is that of a runtime that is shutting down.
        let _ = self.descriptor.readable().await;
    }

    /// Sends it `SIGKILL`, if it still is there.
    pub(super) fn kill(&self) {
        let _ = pidfd_send_signal(self.descriptor.get_ref(), Signal::KILL);
    }
}
