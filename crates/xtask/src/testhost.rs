//! The test host: a throwaway QEMU machine with emulated AMD virtualization, in which a command of this machine runs
//! with a real `/dev/kvm`.
//!
//! It boots Debian's cloud kernel with a small initramfs. That mounts this machine's own root over virtiofs, puts a
//! temporary overlay on it, and runs the command there: the command sees every file of this machine, and nothing
//! that it writes reaches this machine. `/run` is its own, with
//! `TMPDIR` in it; cgroups are version 2. What it prints
//! comes back as it is written, and its exit code, through a small shared folder, and nothing is left behind, whatever
//! ends it.
//!
//! It has one processor unless more are asked for. Where two run at the very same moment, QEMU's emulated SVM goes wrong: a
//! guest of the machine, or the machine itself, finds itself with the other's segment bases. Of 96 starts of a guest, six at
//! a time, seven failed with two processors, and of 84 with one none (QEMU 10.0.2).
//!
//! An emulated machine can wedge. A kernel that reports a lockup, or says nothing of the command for the whole time
//! limit, is reported as the test host's failure and not as the command's.

mod boot_files;
mod console;
mod machine;

use std::process::Command;
use std::time::Duration;

use anyhow::Result;

pub(crate) use boot_files::BootFiles;

/// The exit code when the time limit passed, as timeout(1) has it.
const TIMED_OUT: i32 = 124;
/// The exit code when the test host itself failed.
pub(crate) const WEDGED: i32 = 125;

/// How much memory a test host has where nothing else is asked for, in MiB.
pub(crate) const MEMORY_MIB: u32 = 6144;

/// What to run, and in how big a machine.
pub(crate) struct Options {
    /// The command and its arguments.
    pub(crate) command: Vec<String>,
    /// When to give up.
    pub(crate) timeout: Duration,
    /// Memory, in MiB.
    pub(crate) memory_mib: u32,
    /// Processors.
    pub(crate) cpus: u8,
    /// Environment variables to carry over, by name; `PATH` and `HOME` always are.
    pub(crate) env: Vec<String>,
}

/// The beginning of a command that runs what is appended to it in a test host, which carries `environment` over. It is a
/// program of its own, so that the test host's clean-up does not depend on ours.
///
/// # Errors
/// When this program does not know where it is.
pub(crate) fn command(timeout: Duration, cpus: u8, environment: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["testhost", "--timeout", &timeout.as_secs().to_string()])
        .args(["--cpus", &cpus.to_string()]);
    for name in environment {
        command.args(["--env", name]);
    }
    command.arg("--");
    Ok(command)
}

/// How a run in the test host ended.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// The command ended by itself.
    Exited(i32),
    /// The time limit passed.
    TimedOut,
    /// The machine stopped without the command's exit code, or its kernel reported a lockup.
    Wedged(String),
}

/// Runs the command in a new test host and returns its exit code; 124 when the time limit passed, 125 when the test host
/// itself failed.
///
/// # Errors
/// When the test host cannot be built or started.
pub(crate) fn run(options: &Options) -> Result<i32> {
    let files = BootFiles::get()?;
    let (outcome, console) = machine::run(options, &files)?;
    let tail = || {
        for line in console::what_matters(&console) {
            eprintln!("  | {line}");
        }
    };
    Ok(match outcome {
        Outcome::Exited(code) => code,
        Outcome::TimedOut => {
            eprintln!(
                "testhost: ended after {} s, the time limit; its console said last:",
                options.timeout.as_secs()
            );
            tail();
            TIMED_OUT
        }
        Outcome::Wedged(what) => {
            eprintln!(
                "testhost: the test host failed, not the command: {what}; its console said last:"
            );
            tail();
            WEDGED
        }
    })
}
