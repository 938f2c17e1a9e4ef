//! The talk with a probe in a container: one line of JSON each way. And with processes that are added to it, [`writer`] among them.

mod writer;

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::case::Flood;
use crate::image::PROBE;

pub(crate) use writer::Writer;

/// How long a container may take to start: emulation is slow.
const START: Duration = Duration::from_secs(180);
/// How long an attempt may take: more than the probe gives it.
const ATTEMPT: Duration = Duration::from_secs(90);
/// How long a container may take to end when its probe does.
const END: Duration = Duration::from_secs(60);
/// The longest line that is taken from a probe, in bytes.
const LINE_BYTES: usize = 2 << 20;
/// How often the wish to stop is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// What an added process attempts that says what it is confined to.
const CONFINEMENT: &str = "confinement";
/// What one attempts that writes.
const FLOOD: &str = "flood";
/// What that writes.
const FLOOD_BYTE: u8 = b'.';

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The runtime's program cannot be run.
    #[error("cannot run {program}")]
    Run {
        /// Which.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// The container ended.
    #[error("the container ended{}", after_colon(said))]
    Ended {
        /// What its runtime said.
        said: String,
    },
    /// The container is silent.
    #[error("no answer within {} s{}", limit.as_secs(), after_colon(said))]
    Silent {
        /// How long was waited.
        limit: Duration,
        /// What its runtime said.
        said: String,
    },
    /// The probe answered with something else.
    #[error("the probe's answer is none: {answer}")]
    Answer {
        /// Its beginning.
        answer: String,
    },
    /// The probe could not make the attempt.
    #[error("the attempt failed: {why}")]
    Attempt {
        /// The probe's words.
        why: String,
    },
    /// Whoever runs us wants an end.
    #[error("interrupted")]
    Interrupted,
    /// A pipe failed.
    #[error("cannot talk to the probe")]
    Pipe(#[from] io::Error),
}

fn after_colon(said: &str) -> String {
    match said.trim() {
        "" => String::new(),
        said => format!(": {said}"),
    }
}

/// What is done with a container from outside.
pub(crate) struct Commands {
    /// Adds a process to it: what is still missing is that process's command line.
    pub(crate) added: Command,
    /// Remove it, however it is.
    pub(crate) removal: Vec<Command>,
}

/// A container with a probe that answers.
pub(crate) struct Session {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    unread: Vec<u8>,
    /// What the runtime's program wrote.
    errors: PathBuf,
    commands: Commands,
    stop: &'static AtomicBool,
    next: u64,
    broken: bool,
}

impl Session {
    /// Starts the container and waits for its probe. The commands that remove it run when the session ends, in any way.
    pub(crate) fn start(
        mut command: Command,
        commands: Commands,
        errors: PathBuf,
        stop: &'static AtomicBool,
    ) -> Result<Self, SessionError> {
        use std::os::unix::process::CommandExt as _;
        let failed = |command: &Command, source| SessionError::Run {
            program: command.get_program().to_string_lossy().into_owned(),
            source,
        };
        let file = fs::File::create(&errors)?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(file)
            // A key of our terminal that means a signal is ours: containers are ended in order.
            .process_group(0)
            .spawn()
            .map_err(|source| failed(&command, source))?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(&command, io::ErrorKind::BrokenPipe.into()));
        };
        let mut session = Self {
            child,
            stdin: Some(stdin),
            stdout,
            unread: Vec::new(),
            errors,
            commands,
            stop,
            next: 1,
            broken: false,
        };
        let ready = session.line(START)?;
        if ready["ready"] != true {
            return Err(wrong(&ready));
        }
        Ok(session)
    }

    /// Whether another attempt can be made.
    pub(crate) fn is_usable(&self) -> bool {
        !self.broken
    }

    /// Makes an attempt, which is held until [`Session::release`].
    pub(crate) fn attempt(&mut self, attempt: &str, params: &Value) -> Result<Value, SessionError> {
        let id = self.next;
        self.next += 1;
        let request = json!({ "id": id, "attempt": attempt, "params": params });
        let answer = self.exchange(&request, ATTEMPT)?;
        if answer["id"] != id {
            self.broken = true;
            return Err(wrong(&answer));
        }
        if let Some(why) = answer["failed"].as_str() {
            return Err(SessionError::Attempt {
                why: why.to_owned(),
            });
        }
        Ok(answer["seen"].clone())
    }

    /// Ends what the last attempt holds.
    pub(crate) fn release(&mut self) -> Result<(), SessionError> {
        let answer = self.exchange(&json!({ "release": true }), ATTEMPT)?;
        if answer["released"] == true {
            return Ok(());
        }
        self.broken = true;
        Err(wrong(&answer))
    }

    /// Adds a process to the container: the probe, which makes an attempt and says, in a line, what it saw.
    fn add(&self, attempt: &str) -> Result<Child, SessionError> {
        let added = &self.commands.added;
        let mut command = Command::new(added.get_program());
        command
            .args(added.get_args())
            .args([PROBE, "attempt", attempt]);
        let errors = fs::OpenOptions::new().append(true).open(&self.errors)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn();
        child.map_err(|source| SessionError::Run {
            program: added.get_program().to_string_lossy().into_owned(),
            source,
        })
    }

    fn none_added(&self) -> SessionError {
        SessionError::Attempt {
            why: format!("no added process{}", after_colon(&self.said())),
        }
    }

    /// Adds a process to the container that writes as fast as it can, and waits until it does.
    pub(crate) fn flood(&self, flood: Flood) -> Result<Writer, SessionError> {
        let before_mib = (flood.weight)();
        let mut child = self.add(FLOOD)?;
        let begun = match child.stdout.take() {
            Some(mut stdout) => self.begun(&mut stdout).map(|()| stdout),
            None => Err(self.none_added()),
        };
        match begun {
            Ok(stdout) => Ok(Writer::new(child, stdout, flood, before_mib, self.stop)),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// Waits for the first that a process writes without end.
    fn begun(&self, stdout: &mut ChildStdout) -> Result<(), SessionError> {
        self.wait_for(stdout, Instant::now(), ATTEMPT)?;
        let mut part = [0u8; 4096];
        let length = stdout.read(&mut part)?;
        let part = part.get(..length).unwrap_or_default();
        match part {
            [] => Err(self.none_added()),
            part if part.iter().all(|byte| *byte == FLOOD_BYTE) => Ok(()),
            part => Err(unexpected(part)),
        }
    }

    /// What a process says that is added to the container, and ends.
    pub(crate) fn added(&self) -> Result<Value, SessionError> {
        let mut child = self.add(CONFINEMENT)?;
        if !ends_within(&mut child, ATTEMPT) {
            let _ = child.kill();
            let _ = child.wait();
            let (limit, said) = (ATTEMPT, self.said());
            return Err(SessionError::Silent { limit, said });
        }
        let mut answer = String::new();
        if let Some(stdout) = child.stdout.take() {
            // Of a line: more than the pipe holds has not been written by who has ended.
            stdout.take(LINE_BYTES as u64).read_to_string(&mut answer)?;
        }
        serde_json::from_str(&answer).map_err(|_| self.none_added())
    }

    /// What the runtime's program had to say of the container's end, when it has ended too.
    pub(crate) fn last_words(&mut self) -> String {
        ends_within(&mut self.child, END);
        self.said()
    }

    fn exchange(&mut self, request: &Value, limit: Duration) -> Result<Value, SessionError> {
        let sent = match &mut self.stdin {
            Some(stdin) => writeln!(stdin, "{request}").and_then(|()| stdin.flush()),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        };
        if sent.is_err() {
            self.broken = true;
            return Err(SessionError::Ended { said: self.said() });
        }
        self.line(limit)
    }

    fn line(&mut self, limit: Duration) -> Result<Value, SessionError> {
        let answer = self.raw_line(limit);
        if answer.is_err() {
            self.broken = true;
        }
        let line = answer?;
        serde_json::from_slice(&line).map_err(|_| {
            self.broken = true;
            unexpected(&line)
        })
    }

    fn raw_line(&mut self, limit: Duration) -> Result<Vec<u8>, SessionError> {
        let start = Instant::now();
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let rest = self.unread.split_off(end + 1);
                return Ok(std::mem::replace(&mut self.unread, rest));
            }
            if self.unread.len() > LINE_BYTES {
                let answer = "a line without end".to_owned();
                return Err(SessionError::Answer { answer });
            }
            self.wait_for(&self.stdout, start, limit)?;
            let mut part = [0u8; 16 << 10];
            let length = self.stdout.read(&mut part)?;
            if length == 0 {
                return Err(SessionError::Ended { said: self.said() });
            }
            self.unread
                .extend_from_slice(part.get(..length).unwrap_or_default());
        }
    }

    /// Waits until there is something to be read, or an end: from `start` on no longer than `limit`.
    fn wait_for(
        &self,
        stdout: &ChildStdout,
        start: Instant,
        limit: Duration,
    ) -> Result<(), SessionError> {
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(SessionError::Interrupted);
            }
            let left = limit.saturating_sub(start.elapsed());
            if left.is_zero() {
                let said = self.said();
                return Err(SessionError::Silent { limit, said });
            }
            if readable(stdout, left.min(LOOK))? {
                return Ok(());
            }
        }
    }

    /// The end of what the runtime's program wrote.
    fn said(&self) -> String {
        let text = fs::read(&self.errors).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines
            .iter()
            .skip(lines.len().saturating_sub(4))
            .copied()
            .collect::<Vec<_>>()
            .join("; ")
    }

    fn remove(&mut self) {
        for command in &mut self.commands.removal {
            // What is gone already cannot be removed, and says so.
            let _ = command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
    }

    /// Waits for the end of what the container writes, which is its own.
    fn drain(&mut self) {
        let start = Instant::now();
        let mut part = [0u8; 16 << 10];
        while start.elapsed() < END && !self.stop.load(Ordering::Relaxed) {
            match readable(&self.stdout, LOOK) {
                Ok(false) => continue,
                Ok(true) => {}
                Err(_) => return,
            }
            if !matches!(self.stdout.read(&mut part), Ok(1..)) {
                return;
            }
        }
    }
}

/// Ends the container: in order where it answers, by force where not.
impl Drop for Session {
    fn drop(&mut self) {
        // The probe ends with its input.
        self.stdin = None;
        if self.broken {
            // One that is still being made is not there to be removed: whoever makes it stops.
            let _ = kill(
                Pid::from_raw(self.child.id().cast_signed()),
                Signal::SIGTERM,
            );
        } else {
            self.drain();
        }
        self.remove();
        // The program sees its container's end a moment after us.
        if !ends_within(&mut self.child, END) {
            let _ = self.child.kill();
            let _ = self.child.wait();
            self.remove();
        }
    }
}

/// What came is no answer: its beginning.
fn unexpected(bytes: &[u8]) -> SessionError {
    let text = String::from_utf8_lossy(bytes);
    SessionError::Answer {
        answer: text.chars().take(200).collect(),
    }
}

/// Whether there is something to be read, or an end, in time.
fn readable(stdout: &ChildStdout, within: Duration) -> Result<bool, SessionError> {
    let mut wait = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(within).unwrap_or(PollTimeout::ZERO);
    match poll(&mut wait, timeout) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(io::Error::from(errno).into()),
    }
}

/// Whether the process ends by itself in time.
fn ends_within(child: &mut Child, limit: Duration) -> bool {
    let start = Instant::now();
    while start.elapsed() < limit {
        if !matches!(child.try_wait(), Ok(None)) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

fn wrong(answer: &Value) -> SessionError {
    SessionError::Answer {
        answer: answer.to_string().chars().take(200).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static STOP: AtomicBool = AtomicBool::new(false);

    /// The folder is to go after the session.
    fn shell(script: &str) -> (Result<Session, SessionError>, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let mark = folder.path().join("removed");
        let mut removal = Command::new("touch");
        removal.arg(&mark);
        let mut added = Command::new("sh");
        added.args(["-c", "echo '{\"filter\":\"2\"}'"]);
        let removal = vec![removal];
        let commands = Commands { added, removal };
        let session = Session::start(command, commands, folder.path().join("errors"), &STOP);
        (session, folder)
    }

    #[test]
    fn container_that_ends_at_once_is_named_with_what_its_runtime_said() {
        let (session, _folder) = shell("echo no such thing >&2");
        let error = session.err().unwrap();
        assert_eq!(error.to_string(), "the container ended: no such thing");
    }

    #[test]
    fn answer_to_another_question_breaks_the_session() {
        let script = r#"echo '{"ready":true}'; read a; echo '{"id":7,"seen":{}}'; read a"#;
        let (session, _folder) = shell(script);
        let mut session = session.unwrap();
        let error = session.attempt("read", &Value::Null).err().unwrap();
        assert!(matches!(error, SessionError::Answer { .. }), "{error}");
        assert!(!session.is_usable());
    }

    #[test]
    fn failed_attempt_leaves_the_session_usable() {
        let script = r#"echo '{"ready":true}'; read a; echo '{"id":1,"failed":"killed"}'; read a; echo '{"released":true}'; read a"#;
        let (session, _folder) = shell(script);
        let mut session = session.unwrap();
        let error = session.attempt("fork", &Value::Null).err().unwrap();
        assert!(matches!(error, SessionError::Attempt { .. }), "{error}");
        session.release().unwrap();
        assert!(session.is_usable());
    }

    #[test]
    fn added_process_is_heard_and_one_that_says_nothing_is_no_answer() {
        let script = r#"echo '{"ready":true}'; read a"#;
        let (session, _folder) = shell(script);
        let mut session = session.unwrap();
        assert_eq!(session.added().unwrap()["filter"], "2");
        session.commands.added = Command::new("true");
        let error = session.added().err().unwrap();
        assert!(matches!(error, SessionError::Attempt { .. }), "{error}");
        assert!(session.is_usable());
    }

    /// What is said to be used grows by 100 MiB with each look.
    fn flood(is_kept: bool) -> Flood {
        let used = std::cell::Cell::new(0);
        Flood {
            is_kept,
            weight: Box::new(move || {
                used.set(used.get() + 100);
                used.get()
            }),
            enough_mib: 150,
        }
    }

    #[test]
    fn writer_is_left_unread_or_kept_whole_and_ends() {
        let (session, _folder) = shell(r#"echo '{"ready":true}'; read a"#);
        let mut session = session.unwrap();
        for (is_kept, script) in [
            (false, "exec tr '\\0' . </dev/zero"),
            (true, "head -c 1000000 /dev/zero | tr '\\0' ."),
        ] {
            session.commands.added = Command::new("sh");
            session.commands.added.args(["-c", script]);
            let mut writer = session.flood(flood(is_kept)).unwrap();
            assert_eq!(writer.held_mib(), 200);
            assert!(writer.end());
        }
    }

    #[test]
    fn added_process_that_writes_something_else_is_no_writer() {
        let (session, _folder) = shell(r#"echo '{"ready":true}'; read a"#);
        let mut session = session.unwrap();
        let error = session.flood(flood(false)).err().unwrap();
        assert!(matches!(error, SessionError::Answer { .. }), "{error}");
        session.commands.added = Command::new("true");
        let error = session.flood(flood(false)).err().unwrap();
        assert!(matches!(error, SessionError::Attempt { .. }), "{error}");
    }

    #[test]
    fn last_words_are_those_of_who_has_ended() {
        let script =
            r#"echo '{"ready":true}'; read a; exec >&-; sleep 0.1; echo the kernel panicked >&2"#;
        let (session, _folder) = shell(script);
        let mut session = session.unwrap();
        let error = session.attempt("crash", &Value::Null).err().unwrap();
        assert!(matches!(error, SessionError::Ended { .. }), "{error}");
        assert_eq!(session.last_words(), "the kernel panicked");
    }
}
