//! Running a program under test with a deadline.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How a program ended and what it printed.
#[derive(Debug)]
pub struct Finished {
    /// Exit code, or 128 plus the signal that ended it, as a shell says it.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Requires an exit code.
    ///
    /// # Errors
    /// With everything that was printed, when it was another.
    pub fn expect_code(self, code: i32) -> Result<Self> {
        ensure!(
            self.code == code,
            "exit code {} instead of {code}\nstdout: {}\nstderr: {}",
            self.code,
            self.text().chars().take(2000).collect::<String>(),
            self.stderr
        );
        Ok(self)
    }

    /// Requires that standard error contains every one of these, whatever the case of letters.
    ///
    /// # Errors
    /// Naming what is missing.
    pub fn expect_stderr(self, parts: &[&str]) -> Result<Self> {
        let stderr = self.stderr.to_lowercase();
        for part in parts {
            ensure!(
                stderr.contains(&part.to_lowercase()),
                "standard error does not say {part:?}: {}",
                self.stderr
            );
        }
        Ok(self)
    }

    /// Requires exactly this on standard output.
    ///
    /// # Errors
    /// Showing both.
    pub fn expect_stdout(self, expected: &str) -> Result<Self> {
        ensure!(
            self.stdout == expected.as_bytes(),
            "standard output is {:?} instead of {expected:?}\nstderr: {}",
            self.text(),
            self.stderr
        );
        Ok(self)
    }
}

/// A program that runs. Dropped, it is killed.
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<Vec<u8>>,
    seen: Vec<u8>,
    stdout: Option<JoinHandle<()>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    deadline: Instant,
    what: String,
}

impl Running {
    /// Starts `command` with all three streams piped; it has until `limit` from now to end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command, limit: Duration) -> Result<Self> {
        let what = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {what}"))?;
        let stdin = child.stdin.take();
        let out = child.stdout.take().context("stdout is piped")?;
        let mut err = child.stderr.take().context("stderr is piped")?;
        let (sender, lines) = channel();
        let stdout = std::thread::spawn(move || {
            let mut out = BufReader::new(out);
            let mut line = Vec::new();
            while out.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                if sender.send(std::mem::take(&mut line)).is_err() {
                    break;
                }
            }
        });
        let stderr = std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = err.read_to_end(&mut text);
            text
        });
        Ok(Self {
            child,
            stdin,
            lines,
            seen: Vec::new(),
            stdout: Some(stdout),
            stderr: Some(stderr),
            deadline: Instant::now() + limit,
            what,
        })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX))
    }

    /// Writes to its standard input.
    ///
    /// # Errors
    /// When the pipe is closed.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let stdin = self.stdin.as_mut().context("standard input is closed")?;
        stdin.write_all(bytes)?;
        stdin.flush()?;
        Ok(())
    }

    /// Ends its standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid(), signal).with_context(|| format!("cannot send {signal} to {}", self.what))
    }

    /// Waits until a line of its standard output contains `part`.
    ///
    /// # Errors
    /// When it ends first, or the deadline passes.
    pub fn wait_for_line(&mut self, part: &str) -> Result<String> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.seen.extend_from_slice(&line);
                    let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                    if line.contains(part) {
                        return Ok(line);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    bail!("{}: no line with {part:?} in time", self.what)
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let _ = self.child.kill();
                    let stderr = self.stderr.take().and_then(|thread| thread.join().ok());
                    bail!(
                        "{}: ended without a line with {part:?}: {}{}",
                        self.what,
                        String::from_utf8_lossy(&self.seen),
                        String::from_utf8_lossy(&stderr.unwrap_or_default())
                    )
                }
            }
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When the deadline passes; it is killed then.
    pub fn finish(mut self) -> Result<Finished> {
        self.stdin = None;
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.seen.extend_from_slice(&line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    let _ = self.child.kill();
                    let stderr = self.stderr.take().and_then(|thread| thread.join().ok());
                    bail!(
                        "{}: did not end in time\nstdout: {}\nstderr: {}",
                        self.what,
                        String::from_utf8_lossy(&self.seen)
                            .chars()
                            .take(2000)
                            .collect::<String>(),
                        String::from_utf8_lossy(&stderr.unwrap_or_default())
                    );
                }
            }
        }
        // Standard output is closed: the end of the process is near, but still has a deadline.
        while self.child.try_wait()?.is_none() {
            if Instant::now() > self.deadline {
                let _ = self.child.kill();
                bail!("{}: closed its output but did not end in time", self.what);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let status = self.child.wait()?;
        let stderr = self
            .stderr
            .take()
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default();
        Ok(Finished {
            code: status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            stdout: std::mem::take(&mut self.seen),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stdin = None;
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        // The reading threads end with the pipes; whoever else holds those is the leak check's business.
        drop(self.stdout.take());
        drop(self.stderr.take());
    }
}

/// Runs `command` to its end with `input` on its standard input.
///
/// # Errors
/// When it cannot be started or does not end within `limit`.
pub fn run(command: &mut Command, input: &[u8], limit: Duration) -> Result<Finished> {
    let mut running = Running::start(command, limit)?;
    let stdin = running.stdin.take();
    let input = input.to_vec();
    // Written from a thread: the program may print before it has read everything.
    let writer = std::thread::spawn(move || {
        if let Some(mut stdin) = stdin {
            let _ = stdin.write_all(&input);
        }
    });
    let finished = running.finish();
    if finished.is_ok() {
        let _ = writer.join();
    }
    finished
}

/// Copies a program that is to be run. Another process does it: what one of our threads has open for writing, the child that
/// another thread is just starting has open as well, and the program cannot be run meanwhile (ETXTBSY, execve(2)).
///
/// # Errors
/// With what `cp` said.
pub fn copy_program(from: &Path, to: &Path) -> Result<()> {
    let output = Command::new("cp").arg(from).arg(to).output()?;
    ensure!(
        output.status.success(),
        "cannot copy {}: {}",
        from.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Looks again and again until `look` finds something, for conditions outside this process that nobody
/// announces.
///
/// # Errors
/// When `limit` passes first.
pub fn wait_until<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Option<T>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("waited {limit:?} in vain: {what}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
