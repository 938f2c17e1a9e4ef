//! A first process that does nothing: it holds a container's namespaces and root until it is killed, and reaps what
//! becomes orphaned meanwhile.

use std::convert::Infallible;
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};
use rustix::process::{WaitOptions, wait};

use super::{Program, complain};

pub(super) fn main() -> ExitCode {
    // execveat leaves the descriptor's number as the name.
    let _ = rustix::thread::set_name(c"pause");
    let Err(error) = reap_for_ever();
    complain(Program::Pause, &error.to_string());
    ExitCode::FAILURE
}

/// The first process of a PID namespace is spared every signal that it has no handler for, but the host's SIGKILL; one
/// that shares its namespace ends by them, which is right too.
fn reap_for_ever() -> nix::Result<Infallible> {
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block()?;
    loop {
        children.wait()?;
        // One signal may stand for many ends.
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
    }
}
