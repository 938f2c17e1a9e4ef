//! The limit of a suite that runs on this machine itself: one that prints nothing for so long hangs, and is ended with its process group.
//!
//! How long a suite takes says nothing: some have tests by the hundred. Each test that ends is a line.

use std::io::{self, BufRead as _, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

/// How long a suite may print nothing: longer than any test takes before it counts as hung itself.
pub(super) const LIMIT: Duration = Duration::from_secs(20 * 60);
/// How long one that is asked to end may take, to take down what it made.
const ENDING: Duration = Duration::from_secs(90);
/// Until it is looked at again.
const PAUSE: Duration = Duration::from_millis(20);

/// Has the command lead a process group of its own, which [`follow`] can end.
pub(super) fn apart(command: &mut Command) {
    command.process_group(0);
}

/// Gives `hear` each line of what the program prints, to its end. Says whether it hung: then it has been ended, which took its process group if
/// it is [`apart`], and is to be waited for as any other.
///
/// # Errors
/// When its output cannot be read.
pub(super) fn follow(
    child: &mut Child,
    limit: Option<Duration>,
    mut hear: impl FnMut(&str),
) -> Result<bool> {
    let lines = lines(child.stdout.take().context("its output is piped")?);
    loop {
        let line = match limit {
            Some(limit) => lines.recv_timeout(limit),
            None => lines.recv().map_err(RecvTimeoutError::from),
        };
        match line {
            Ok(line) => hear(&String::from_utf8_lossy(&line?)),
            Err(RecvTimeoutError::Disconnected) => return Ok(false),
            Err(RecvTimeoutError::Timeout) => {
                end(child)?;
                return Ok(true);
            }
        }
    }
}

/// What it prints, line by line. Whoever keeps the output open beyond the end of the program is left alone with it.
fn lines(output: impl Read + Send + 'static) -> Receiver<io::Result<Vec<u8>>> {
    let (printed, lines) = channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n') {
            if printed.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Asks it to end, and kills what is left of its process group.
fn end(child: &Child) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(child.id()).context("a process has a small id")?);
    // It has not been waited for: its number is its own, and its group's.
    let _ = kill(pid, Signal::SIGTERM);
    let deadline = Instant::now() + ENDING;
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    while matches!(waitid(Id::Pid(pid), look), Ok(WaitStatus::StillAlive))
        && Instant::now() < deadline
    {
        thread::sleep(PAUSE);
    }
    let _ = killpg(pid, Signal::SIGKILL);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Stdio;

    use super::*;

    fn shell(script: &str) -> Child {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdout(Stdio::piped());
        apart(&mut command);
        command.spawn().unwrap()
    }

    #[test]
    fn program_that_prints_nothing_any_more_is_ended_with_what_it_started() {
        // The one in the background has the output too, and is not asked to end.
        let mut child = shell("sleep 1000 & exec sleep 1000");
        let mut output = child.stdout.take().unwrap();
        let (reader, writer) = io::pipe().unwrap();
        child.stdout = Some(std::os::fd::OwnedFd::from(reader).into());
        let copied = thread::spawn(move || io::copy(&mut output, &mut { writer }).unwrap());
        let hung = follow(&mut child, Some(Duration::from_millis(100)), |line| {
            panic!("{line}");
        });
        assert!(hung.unwrap());
        assert_eq!(child.wait().unwrap().signal(), Some(15));
        // Nobody has it any more.
        assert_eq!(copied.join().unwrap(), 0);
    }

    #[test]
    fn program_that_ends_is_heard_to_its_end() {
        for limit in [None, Some(LIMIT)] {
            let mut child = shell("echo one; echo two; exit 3");
            let mut heard = Vec::new();
            let hung = follow(&mut child, limit, |line| heard.push(line.to_owned()));
            assert!(!hung.unwrap());
            assert_eq!(heard, ["one", "two"]);
            assert_eq!(child.wait().unwrap().code(), Some(3));
        }
    }
}
