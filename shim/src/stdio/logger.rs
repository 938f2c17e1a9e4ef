//! A program that takes a process's output: containerd's logging binaries.
//!
//! It gets standard output on descriptor 3, standard error on descriptor 4, and descriptor 5, which it closes (or
//! writes to) when it is ready; `CONTAINER_ID` and `CONTAINER_NAMESPACE` are in its environment. Its input ends when the
//! process's output does; then it gets a moment to write what it has.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::process::Child;

/// How long it may take until it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// Numbers below it are the program's interface.
const FIRST_FREE_FD: RawFd = 10;

/// Why a logging program does not run.
#[derive(Debug, thiserror::Error)]
#[error("the logging program {} {problem}", program.display())]
pub(crate) struct LoggerError {
    program: PathBuf,
    problem: LoggerProblem,
    #[source]
    source: Option<io::Error>,
}

/// What is wrong with it.
#[derive(Debug, thiserror::Error)]
enum LoggerProblem {
    #[error("cannot be started")]
    Start,
    #[error(
        "was not ready (it did not close descriptor 5) within {} s",
        READY_TIMEOUT.as_secs()
    )]
    NotReady,
}

/// A running logging program and the pipes to it.
pub(crate) struct Logger {
    pub(crate) child: Child,
    pub(crate) stdout: pipe::Sender,
    pub(crate) stderr: pipe::Sender,
}

/// Whose output it is.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) id: String,
    pub(crate) namespace: String,
}

/// Starts the program and waits until it is ready.
///
/// # Errors
/// [`LoggerError`]; the program does not run then.
pub(crate) async fn start(
    program: &Path,
    arguments: &[OsString],
    identity: &Identity,
) -> Result<Logger, LoggerError> {
    let failed = |source| LoggerError {
        program: program.to_owned(),
        problem: LoggerProblem::Start,
        source: Some(source),
    };
    let (logger, ready) = spawn(program, arguments, identity).map_err(failed)?;
    let mut ready = pipe::Receiver::from_owned_fd(ready).map_err(failed)?;
    match tokio::time::timeout(READY_TIMEOUT, ready.read(&mut [0; 1])).await {
        Ok(Ok(_)) => Ok(logger),
        Ok(Err(source)) => Err(failed(source)),
        // Dropping it kills it.
        Err(_) => Err(LoggerError {
            program: program.to_owned(),
            problem: LoggerProblem::NotReady,
            source: None,
        }),
    }
}

fn spawn(
    program: &Path,
    arguments: &[OsString],
    identity: &Identity,
) -> io::Result<(Logger, OwnedFd)> {
    // The pipe by which the standard library learns of a failed exec takes the lowest free number; it must not be one that
    // is replaced in the child.
    let _occupied = occupy_low_descriptors()?;
    let (stdout_end, stdout) = io::pipe()?;
    let (stderr_end, stderr) = io::pipe()?;
    let (ready, ready_end) = io::pipe()?;
    let mut command = std::process::Command::new(program);
    command
        .args(arguments)
        .env("CONTAINER_ID", &identity.id)
        .env("CONTAINER_NAMESPACE", &identity.namespace)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let ends = [
        OwnedFd::from(stdout_end),
        OwnedFd::from(stderr_end),
        OwnedFd::from(ready_end),
    ];
    command
        .fd_mappings(
            ends.into_iter()
                .zip(3..)
                .map(|(parent_fd, child_fd)| FdMapping {
                    parent_fd,
                    child_fd,
                })
                .collect(),
        )
        .map_err(io::Error::other)?;
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true);
    let child = command.spawn()?;
    // Our copies of the child's ends go with the command.
    drop(command);
    Ok((
        Logger {
            child,
            stdout: pipe::Sender::from_owned_fd(stdout.into())?,
            stderr: pipe::Sender::from_owned_fd(stderr.into())?,
        },
        ready.into(),
    ))
}

/// Fills the free descriptor numbers below [`FIRST_FREE_FD`] for as long as the result lives.
fn occupy_low_descriptors() -> io::Result<Vec<std::fs::File>> {
    let mut held = Vec::new();
    loop {
        let file = std::fs::File::open("/dev/null")?;
        if file.as_raw_fd() >= FIRST_FREE_FD {
            return Ok(held);
        }
        held.push(file);
    }
}
