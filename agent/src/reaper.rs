//! The one place that waits for processes. PID 1 inherits every orphan, and a wait anywhere else would race
//! with this one for the exits of the containers' processes.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;
use rustix::process::{WaitOptions, wait};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// How many exits of processes that nobody has asked for yet are kept. They matter only from the moment at
/// which a helper has cloned a container's process to the moment at which it has told its pid.
const MAX_UNCLAIMED: usize = 1024;

/// How a process ended, as shells count: its exit code, or 128 plus the signal.
pub(crate) type ExitStatus = u32;

#[derive(Debug, Default)]
struct Table {
    waiting: HashMap<i32, oneshot::Sender<ExitStatus>>,
    unclaimed: HashMap<i32, ExitStatus>,
    /// Helpers that run now; without any, no exit is unclaimed.
    helpers: usize,
}

/// Handle of the reaper.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reaper {
    table: Arc<Mutex<Table>>,
}

/// Keeps the exits of processes that are not known yet while it lives.
#[derive(Debug)]
pub(crate) struct HelperGuard {
    reaper: Reaper,
}

impl Reaper {
    /// Starts reaping.
    pub(crate) fn start() -> io::Result<Self> {
        let reaper = Self::default();
        let mut children = signal(SignalKind::child())?;
        let task = reaper.clone();
        tokio::spawn(async move {
            loop {
                task.reap();
                if children.recv().await.is_none() {
                    break;
                }
            }
        });
        Ok(reaper)
    }

    /// To be held from before a helper is spawned until the processes it made are waited for.
    pub(crate) fn expect_unknown(&self) -> HelperGuard {
        self.lock().helpers += 1;
        HelperGuard {
            reaper: self.clone(),
        }
    }

    /// The exit of `pid`, which has not been asked for before.
    pub(crate) fn wait(&self, pid: i32) -> oneshot::Receiver<ExitStatus> {
        let (sender, receiver) = oneshot::channel();
        let mut table = self.lock();
        if let Some(status) = table.unclaimed.remove(&pid) {
            let _ = sender.send(status);
        } else {
            table.waiting.insert(pid, sender);
        }
        receiver
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reap(&self) {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    if let Some(status) =
                        exit_status(status.exit_status(), status.terminating_signal())
                    {
                        self.lock().record(pid.as_raw_nonzero().get(), status);
                    }
                }
                Err(Errno::INTR) => {}
                Ok(None) | Err(_) => return, // ECHILD: no children
            }
        }
    }
}

impl Drop for HelperGuard {
    fn drop(&mut self) {
        let mut table = self.reaper.lock();
        table.helpers = table.helpers.saturating_sub(1);
        if table.helpers == 0 {
            table.unclaimed.clear();
        }
    }
}

impl Table {
    fn record(&mut self, pid: i32, status: ExitStatus) {
        if let Some(sender) = self.waiting.remove(&pid) {
            let _ = sender.send(status);
        } else if self.helpers > 0 && self.unclaimed.len() < MAX_UNCLAIMED {
            self.unclaimed.insert(pid, status);
        }
    }
}

/// How a process ended; `None` for anything but an end.
fn exit_status(code: Option<i32>, signal: Option<i32>) -> Option<ExitStatus> {
    match (code, signal) {
        (Some(code), _) => u32::try_from(code).ok(),
        (None, Some(signal)) => Some(128 + u32::try_from(signal).ok()?),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_status_is_the_code_or_128_plus_the_signal() {
        assert_eq!(exit_status(Some(42), None), Some(42));
        assert_eq!(exit_status(None, Some(9)), Some(137));
        // SIGRTMIN, which nix's Signal does not know
        assert_eq!(exit_status(None, Some(34)), Some(162));
        assert_eq!(exit_status(None, None), None);
    }

    #[test]
    fn exit_before_the_wait_is_kept_while_a_helper_runs() {
        let reaper = Reaper::default();
        let guard = reaper.expect_unknown();
        reaper.lock().record(7, 3);
        assert_eq!(reaper.wait(7).try_recv(), Ok(3));
        reaper.lock().record(8, 3);
        drop(guard);
        assert!(reaper.wait(8).try_recv().is_err());
    }

    #[test]
    fn exit_of_an_orphan_without_helper_is_forgotten() {
        let reaper = Reaper::default();
        reaper.lock().record(7, 3);
        assert!(reaper.lock().unclaimed.is_empty());
    }
}
