//! Programs whose streams are watched with a clock: what comes when, to the microsecond, and an end to those that hang.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::iter;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A handle on the process `pid`, which stays that process's.
///
/// # Errors
/// When there is no such process.
pub(crate) fn handle(pid: u32) -> Result<OwnedFd> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let number = number.with_context(|| format!("{pid} is no process"))?;
    pidfd_open(number, PidfdFlags::empty()).with_context(|| format!("process {pid} is gone"))
}

/// Waits for the end of a process that need not be a child; its descriptor becomes readable then.
///
/// # Errors
/// When it has not ended within `limit`.
pub(crate) fn wait_for_end(process: &OwnedFd, limit: Duration) -> Result<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd as _;
    let mut wait = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    ensure!(
        poll(&mut wait, timeout)? == 1,
        "a process had not ended after {limit:?}"
    );
    Ok(())
}

/// Kills a process at a deadline, unless it is dropped before.
pub(crate) struct Deadline {
    _off: Sender<()>,
}

impl Deadline {
    /// For this process.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn set(pid: u32, limit: Duration) -> Result<Self> {
        let process = handle(pid)?;
        let (off, dropped) = channel::<()>();
        std::thread::spawn(move || {
            if dropped.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                let _ = pidfd_send_signal(&process, Signal::KILL);
            }
        });
        Ok(Self { _off: off })
    }
}

/// The name of the program, and its arguments: what is the same on every host.
fn said(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(command.get_program());
    let words = iter::once(name).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

/// A program that runs, and when it was started.
pub(crate) struct Timed {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    begun: Instant,
    errors: PathBuf,
    what: String,
    _deadline: Deadline,
}

impl Timed {
    /// Starts `command`; its standard error goes to a file in `folder`. It has until `limit` to end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(
        command: &mut Command,
        folder: &Path,
        name: &str,
        limit: Duration,
    ) -> Result<Self> {
        let what = said(command);
        let errors = folder.join(format!("{name}.stderr"));
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&errors)?);
        let begun = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {what}"))?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        Ok(Self {
            stdin: child.stdin.take(),
            stdout: BufReader::with_capacity(1 << 16, stdout),
            begun,
            errors,
            what,
            _deadline: Deadline::set(child.id(), limit)?,
            child,
        })
    }

    /// Reads a line; it, and how long after the start it came.
    ///
    /// # Errors
    /// When the output ends instead, with what the program said.
    pub(crate) fn line(&mut self) -> Result<(String, Duration)> {
        let mut line = String::new();
        let length = self.stdout.read_line(&mut line)?;
        let time = self.begun.elapsed();
        if length == 0 {
            bail!("{} ended without output: {}", self.what, self.errors());
        }
        Ok((line.trim_end().to_owned(), time))
    }

    /// Writes to its input.
    ///
    /// # Errors
    /// When it has closed it.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let stdin = self.stdin.as_mut().context("its input is closed")?;
        Ok(stdin.write_all(bytes)?)
    }

    /// Has what it writes from now on read and forgotten.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub(crate) fn forget_output(&self) -> Result<()> {
        use std::os::fd::AsFd as _;
        let mut output = File::from(self.stdout.get_ref().as_fd().try_clone_to_owned()?);
        // Until there is no more.
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        Ok(())
    }

    /// Closes its input: nothing more comes.
    pub(crate) fn close(&mut self) {
        self.stdin = None;
    }

    /// Sends so many bytes through it and back; how long that took.
    ///
    /// # Errors
    /// When fewer come back.
    pub(crate) fn echo(&mut self, bytes: usize) -> Result<Duration> {
        const CHUNK: usize = 64 << 10;
        let mut stdin = self.stdin.take().context("its input is closed")?;
        let begun = Instant::now();
        let writer = std::thread::spawn(move || -> std::io::Result<ChildStdin> {
            let chunk = vec![b'x'; CHUNK];
            for _ in 0..bytes / CHUNK {
                stdin.write_all(&chunk)?;
            }
            Ok(stdin)
        });
        let mut back = vec![0; CHUNK];
        let mut left = bytes / CHUNK * CHUNK;
        while left > 0 {
            let want = left.min(CHUNK);
            let length = self.stdout.read(&mut back[..want])?;
            ensure!(
                length > 0,
                "{left} bytes did not come back: {}",
                self.errors()
            );
            left -= length;
        }
        let spent = begun.elapsed();
        let written = writer
            .join()
            .map_err(|_| anyhow::anyhow!("the writer panicked"))?;
        self.stdin = Some(written?);
        Ok(spent)
    }

    /// Closes its input and waits for its end, which must be a success; how long after the start that was.
    ///
    /// # Errors
    /// With what the program said.
    pub(crate) fn end(&mut self) -> Result<Duration> {
        self.stdin = None;
        let mut rest = Vec::new();
        self.stdout.read_to_end(&mut rest)?;
        let status = self.child.wait()?;
        let time = self.begun.elapsed();
        ensure!(
            status.success(),
            "{}: {status}: {}",
            self.what,
            self.errors()
        );
        Ok(time)
    }

    /// The end of what it wrote to its standard error.
    pub(crate) fn errors(&self) -> String {
        let text = std::fs::read_to_string(&self.errors).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        self.stdin = None;
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let _ = std::fs::remove_file(&self.errors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(script: &str, limit: Duration) -> Timed {
        let name = format!("timed-{}-{:p}", std::process::id(), script);
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Timed::start(&mut command, &std::env::temp_dir(), &name, limit).unwrap()
    }

    #[test]
    fn line_comes_before_the_end_and_both_have_their_time() {
        let mut timed = start("echo up; cat", Duration::from_secs(60));
        let (line, first) = timed.line().unwrap();
        assert_eq!(line, "up");
        timed.write(b"x\n").unwrap();
        assert_eq!(timed.line().unwrap().0, "x");
        timed.echo(1 << 20).unwrap();
        assert!(timed.end().unwrap() >= first);
    }

    #[test]
    fn program_that_fails_says_what_it_said() {
        let mut timed = start("echo no such thing >&2; exit 3", Duration::from_secs(60));
        let error = timed.line().unwrap_err().to_string();
        assert!(error.contains("no such thing"), "{error}");
        let mut timed = start("exit 3", Duration::from_secs(60));
        assert!(
            timed
                .end()
                .unwrap_err()
                .to_string()
                .contains("exit status: 3")
        );
    }

    #[test]
    fn program_that_hangs_is_ended() {
        let mut timed = start("exec sleep 600", Duration::from_millis(50));
        assert!(timed.end().unwrap_err().to_string().contains("signal: 9"));
    }
}
