//! A first process for containers whose program is not made to be one: it starts the program, passes every signal on
//! to it, reaps what becomes orphaned, and ends with the program's exit code.
//!
//! The program has a process group of its own. With a terminal, that group is its foreground, so that Ctrl-C
//! reaches the program from the terminal and not a second time from here.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::SignalFd;
use nix::unistd::{Pid, getpid, setpgid, tcsetpgrp};
use rustix::process::{WaitOptions, wait};

use super::{Program, complain};
use crate::sys;

/// No such program (as shells and `docker run` have it).
const NOT_FOUND: u8 = 127;
/// It is there and cannot be executed.
const NOT_EXECUTABLE: u8 = 126;
/// Anything else went wrong.
const FAILED: u8 = 125;

/// Signals that the kernel sends a process for what it did itself.
const OF_ITS_OWN: [Signal; 7] = [
    Signal::SIGFPE,
    Signal::SIGILL,
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGABRT,
    Signal::SIGTRAP,
    Signal::SIGSYS,
];
/// Signals that are for this process alone: its children's, and the terminal's for a process in the background.
const KEPT: [Signal; 3] = [Signal::SIGCHLD, Signal::SIGTTIN, Signal::SIGTTOU];

pub(super) fn main(arguments: &[OsString]) -> ExitCode {
    match run(arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            complain(Program::Init, &error.to_string());
            ExitCode::from(FAILED)
        }
    }
}

fn run(arguments: &[OsString]) -> io::Result<u8> {
    // execveat leaves the descriptor's number as the name.
    let _ = rustix::thread::set_name(c"init");
    let Some((program, arguments)) = arguments.split_first() else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "there is no command",
        ));
    };
    let mut handled = SigSet::all();
    for signal in OF_ITS_OWN {
        handled.remove(signal);
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&handled), None)?;
    if std::process::id() != 1 {
        // In a pid namespace that is another container's, orphans would go to that one's first process.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    }
    let mut command = Command::new(program);
    command.args(arguments);
    in_foreground(&mut command);
    let child = match command.spawn() {
        Ok(child) => child.id(),
        Err(error) => {
            let program = program.display();
            complain(Program::Init, &format!("cannot execute {program}: {error}"));
            return Ok(match error.kind() {
                io::ErrorKind::NotFound => NOT_FOUND,
                _ => NOT_EXECUTABLE,
            });
        }
    };
    let child = i32::try_from(child).map_err(io::Error::other)?;
    let signals = SignalFd::new(&handled)?;
    loop {
        let Some(signal) = signals.read_signal()? else {
            continue;
        };
        let signal = i32::try_from(signal.ssi_signo).map_err(io::Error::other)?;
        if signal == Signal::SIGCHLD as i32 {
            if let Some(code) = reap(child) {
                return Ok(code);
            }
        } else if KEPT.iter().all(|&kept| signal != kept as i32) {
            // It may have ended, which SIGCHLD says.
            let _ = sys::kill(child, signal);
        }
    }
}

/// Takes in what has ended; the exit code once it is the program's.
fn reap(child: i32) -> Option<u8> {
    let mut code = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if pid.as_raw_nonzero().get() == child {
            let signal = status.terminating_signal().map(|signal| 128 + signal);
            let ended = status.exit_status().or(signal);
            code = ended.and_then(|code| u8::try_from(code).ok()).or(code);
        }
    }
    code
}

/// Has the command run in a process group of its own, which is the foreground of its terminal, if it has one.
#[expect(
    unsafe_code,
    reason = "what runs between fork and exec must be async-signal-safe"
)]
fn in_foreground(command: &mut Command) {
    let prepare = || {
        setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
        // From the background, tcsetpgrp stops its caller unless this signal is blocked.
        let mut background = SigSet::empty();
        background.add(Signal::SIGTTOU);
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&background), None)?;
        // Without a terminal there is no foreground.
        let _ = tcsetpgrp(io::stdin(), getpid());
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
        Ok(())
    };
    // SAFETY: the closure makes system calls only; this program has one thread, so no lock is held by another.
    unsafe { command.pre_exec(prepare) };
}
