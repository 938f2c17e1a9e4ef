//! A first process for containers that only hold namespaces, for the other containers of a pod to join.

use std::io;
use std::process::ExitCode;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::SignalFd;
use rustix::process::{WaitOptions, wait};

use super::{Program, complain};

/// It could not do what it is for.
const FAILED: u8 = 125;

pub(super) fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(Program::Pause, &error.to_string());
            ExitCode::from(FAILED)
        }
    }
}

fn run() -> io::Result<()> {
    // execveat leaves the descriptor's number as the name.
    let _ = rustix::thread::set_name(c"pause");
    let mut handled = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        handled.add(signal);
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&handled), None)?;
    let signals = SignalFd::new(&handled)?;
    loop {
        let signal = signals.read_signal()?.map(|signal| signal.ssi_signo);
        if signal != Some(Signal::SIGCHLD as u32) {
            return Ok(());
        }
        // Who shares its pid namespace leaves orphans to it.
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
    }
}
