//! What an interruption of `cargo xtask test` does: the suites that run are asked to end, and have the time to take down what they
//! made. Those of test hosts hear of Ctrl-C themselves, but not of a signal that is sent to us alone; the others are process groups of
//! their own, and hear of neither.

use std::collections::BTreeSet;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// How long suites may take to end.
const ENDING: Duration = Duration::from_secs(90);

/// The suites that run.
static RUNNING: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());
/// We were asked to end: no suite begins any more. Changed with the suites locked.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// A suite that runs, until this is dropped.
pub(super) struct Running(i32);

impl Running {
    /// Notes it. One that was started in the moment of an interruption is asked to end at once.
    ///
    /// # Errors
    /// None in practice: process ids are small.
    pub(super) fn note(child: &Child) -> Result<Self> {
        let pid = i32::try_from(child.id()).context("a process has a small id")?;
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        running.insert(pid);
        if INTERRUPTED.load(Ordering::Relaxed) {
            ask_to_end(pid);
        }
        Ok(Self(pid))
    }

    /// Requires that another suite may begin.
    ///
    /// # Errors
    /// After an interruption.
    pub(super) fn may_begin() -> Result<()> {
        ensure!(
            !INTERRUPTED.load(Ordering::Relaxed),
            "the run was interrupted"
        );
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        running.remove(&self.0);
    }
}

fn ask_to_end(pid: i32) {
    let pid = Pid::from_raw(pid);
    if killpg(pid, Signal::SIGTERM).is_err() {
        let _ = kill(pid, Signal::SIGTERM);
    }
}

/// Asks what runs to end when we are asked to, and waits for it.
///
/// # Errors
/// When no signal can be listened for.
pub(super) fn handle() -> Result<()> {
    sandbox_harness::ending::on_interruption(|| {
        let running = || RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        eprintln!("==> interrupted: the tests that run are ended");
        {
            let suites = running();
            INTERRUPTED.store(true, Ordering::Relaxed);
            suites.iter().copied().for_each(ask_to_end);
        }
        let start = Instant::now();
        while !running().is_empty() && start.elapsed() < ENDING {
            std::thread::sleep(Duration::from_millis(20));
        }
    })
}
