//! The client of a container's attendant: what `run`, `start -a` and `attach` are in the foreground.

pub(crate) mod protocol;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use tokio::sync::mpsc;

use crate::report;
use crate::signals::{HANG_UP, KILL, Resizes, Signals};
use crate::stdio::{DetachKeys, Input, InputEnd, OutputEnd, Outputs, duplicate};
use crate::terminal::{self, ControllingTerminal, RawMode};
use protocol::{Lines, Outcome, Report, Request, Streams};

/// What is to be attached.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    /// The container has a terminal.
    pub(crate) terminal: bool,
    /// The keys that leave the container alone.
    pub(crate) keys: Option<DetachKeys>,
    /// Which of our signals are the container's.
    pub(crate) signals: PassedSignals,
    /// The container ends when whoever read our output has gone away.
    pub(crate) ends_with_reader: bool,
}

/// Which signals are passed on to the container. The others are for the client alone, which leaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum PassedSignals {
    /// All.
    #[default]
    All,
    /// Those that come before its process runs: they undo its start.
    UntilStarted,
    /// None.
    None,
}

impl PassedSignals {
    /// Of a client that is not the container's owner: docker passes none on to a container with a terminal.
    pub(crate) fn of_guest(terminal: bool) -> Self {
        if terminal {
            Self::UntilStarted
        } else {
            Self::All
        }
    }

    fn take(self, started: bool) -> bool {
        match self {
            Self::All => true,
            Self::UntilStarted => !started,
            Self::None => false,
        }
    }
}

impl Wanted {
    /// Whether the container is to end because our output broke in this way. A terminal that is gone (`EIO`) is none:
    /// a container outlives the terminal that it was started from.
    fn ends_by(&self, broken: &io::Error) -> bool {
        self.ends_with_reader && broken.kind() == io::ErrorKind::BrokenPipe
    }
}

/// What came next.
#[derive(Debug)]
pub(crate) enum Step {
    /// The container's process runs.
    Started,
    /// It has ended, and all of its output was written.
    Ended(Outcome),
    /// Our output could not be written. The container goes on, unless it ends with the reader of its output.
    Unwritten(io::Error),
    /// The keys that leave the container alone were typed.
    Detached,
    /// This signal came, and is not the container's.
    Interrupted(u32),
    /// The attendant is gone and has not said how the container ended. This signal had been passed on.
    Lost(Option<u32>),
}

/// A connection to the attendant, and our streams through it.
pub(crate) struct Attachment {
    wanted: Wanted,
    connection: UnixStream,
    reports: mpsc::UnboundedReceiver<Report>,
    outputs: Outputs,
    /// Where our input goes; taken once it is copied.
    input_to: Option<File>,
    input: Option<Input>,
    resizes: Option<Resizes>,
    raw_mode: Option<RawMode>,
    broken: Option<io::Error>,
    outcome: Option<Outcome>,
    last_signal: Option<u32>,
    controlling: ControllingTerminal,
    started: bool,
}

impl Attachment {
    /// Attaches to a new attendant, which is to have the other end.
    pub(crate) fn owner(wanted: Wanted) -> io::Result<(Self, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((Self::new(ours, wanted)?, theirs))
    }

    /// Attaches to the attendant that listens at `path`.
    pub(crate) fn connect(path: &Path, wanted: Wanted) -> io::Result<Self> {
        Self::new(UnixStream::connect(path)?, wanted)
    }

    fn new(connection: UnixStream, wanted: Wanted) -> io::Result<Self> {
        let mut streams = Streams::default();
        let mut outputs = Outputs::new();
        let mut input_to = None;
        if wanted.stdin {
            let (theirs, ours) = io::pipe()?;
            streams.stdin = Some(theirs.into());
            input_to = Some(File::from(OwnedFd::from(ours)));
        }
        if wanted.stdout {
            let (ours, theirs) = io::pipe()?;
            streams.stdout = Some(theirs.into());
            let to = File::from(duplicate(io::stdout())?);
            outputs.copy(File::from(OwnedFd::from(ours)), to, "stdout")?;
        }
        if wanted.stderr {
            let (ours, theirs) = io::pipe()?;
            streams.stderr = Some(theirs.into());
            let to = File::from(duplicate(io::stderr())?);
            outputs.copy(File::from(OwnedFd::from(ours)), to, "stderr")?;
        }
        protocol::send_attach(&connection, &streams)?;
        let (sender, reports) = mpsc::unbounded_channel();
        let mut lines = Lines::new(connection.try_clone()?);
        thread::Builder::new()
            .name("reports".to_owned())
            .spawn(move || {
                while let Some(report) = lines.next() {
                    // Whoever listened may be about to end.
                    let _ = sender.send(report);
                }
            })?;
        Ok(Self {
            wanted,
            connection,
            reports,
            outputs,
            input_to,
            input: None,
            resizes: None,
            raw_mode: None,
            broken: None,
            outcome: None,
            last_signal: None,
            controlling: ControllingTerminal::find(),
            started: false,
        })
    }

    /// Passes on input, signals and sizes until something comes that the caller should know.
    pub(crate) async fn next(&mut self, signals: &mut Signals) -> Step {
        loop {
            tokio::select! {
                report = self.reports.recv() => match report {
                    Some(Report::Created) => self.begin(),
                    Some(Report::Started) => {
                        self.begin();
                        self.started = true;
                        self.follow_size();
                        return Step::Started;
                    }
                    Some(Report::Ended(outcome)) => {
                        self.outcome = Some(outcome);
                        return self.finish(signals).await;
                    }
                    None => {
                        self.raw_mode = None;
                        return Step::Lost(self.last_signal);
                    }
                },
                signal = signals.next() => {
                    if !self.is_for_container(signal) {
                        self.raw_mode = None;
                        return Step::Interrupted(signal);
                    }
                    self.last_signal = Some(signal);
                    self.say(Request::Signal(signal));
                }
                () = next_resize(&mut self.resizes) => self.say_size(),
                end = self.outputs.next_end(), if self.outputs.are_open() => {
                    match end {
                        OutputEnd::Complete => {}
                        OutputEnd::Broken(error) if self.wanted.ends_by(&error) => {
                            self.broken = Some(error);
                            self.say(Request::Signal(KILL));
                        }
                        OutputEnd::Broken(error) => {
                            self.raw_mode = None;
                            return Step::Unwritten(error);
                        }
                    }
                }
                end = input_end(&mut self.input) => {
                    self.input = None;
                    match end {
                        Some(InputEnd::Complete(held)) => {
                            self.say(Request::InputEnded);
                            drop(held);
                        }
                        Some(InputEnd::Detached) => {
                            self.raw_mode = None;
                            return Step::Detached;
                        }
                        // Nobody said that there is no more: whoever attaches next may have more.
                        Some(InputEnd::Lost) | None => {}
                    }
                }
            }
        }
    }

    /// A hang-up that the loss of our terminal brought is for nobody: the container outlives it.
    fn is_for_container(&self, signal: u32) -> bool {
        let lost_terminal = signal == HANG_UP && self.controlling.is_gone();
        self.wanted.signals.take(self.started) && !lost_terminal
    }

    /// The container exists: from now on what is typed is for it.
    fn begin(&mut self) {
        let Some(to) = self.input_to.take() else {
            return;
        };
        let begun = || -> io::Result<(Option<RawMode>, Input)> {
            let terminal = self.wanted.terminal && terminal::on_stdin();
            let raw_mode = terminal.then(RawMode::enter).transpose()?;
            let keys = self.wanted.keys.clone().filter(|_| terminal);
            let input = Input::copy(duplicate(io::stdin())?, to, keys)?;
            Ok((raw_mode, input))
        };
        match begun() {
            Ok((raw_mode, input)) => {
                self.raw_mode = raw_mode;
                self.input = Some(input);
            }
            Err(source) => report::warn(&InputError { source }),
        }
    }

    fn follow_size(&mut self) {
        if !self.wanted.terminal || self.resizes.is_some() {
            return;
        }
        match Resizes::catch() {
            Ok(resizes) => self.resizes = Some(resizes),
            Err(error) => report::warn(&error),
        }
        // The size may have changed since it was written into the configuration.
        self.say_size();
    }

    fn say_size(&self) {
        let (columns, rows) = terminal::size();
        self.say(Request::Resize(columns, rows));
    }

    fn say(&self, request: Request) {
        // An attendant that is gone is noticed by its reports' end.
        let _ = protocol::send(&self.connection, &request);
    }

    /// Waits until the outputs were written and the attendant is gone.
    async fn finish(&mut self, signals: &mut Signals) -> Step {
        while self.outputs.are_open() && self.broken.is_none() {
            tokio::select! {
                end = self.outputs.next_end() => if let OutputEnd::Broken(error) = end {
                    self.broken = Some(error);
                },
                // Nobody waits for what a slow reader does not take.
                _ = signals.next() => break,
            }
        }
        self.raw_mode = None;
        while self.reports.recv().await.is_some() {}
        match self.broken.take() {
            Some(error) => Step::Unwritten(error),
            None => Step::Ended(self.outcome.take().unwrap_or_default()),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("cannot pass input on to the container")]
struct InputError {
    source: io::Error,
}

pub(crate) async fn next_resize(resizes: &mut Option<Resizes>) {
    match resizes {
        Some(resizes) => resizes.next().await,
        None => std::future::pending().await,
    }
}

pub(crate) async fn input_end(input: &mut Option<Input>) -> Option<InputEnd> {
    match input {
        Some(input) => input.end().await,
        None => std::future::pending().await,
    }
}

/// Whether whoever read our output just went away.
pub(crate) fn is_hang_up(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
        || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn container_ends_with_the_reader_of_its_owner_only() {
        let owner = Wanted {
            ends_with_reader: true,
            ..Wanted::default()
        };
        let guest = Wanted::default();
        for (wanted, errno, ends) in [
            (&owner, Errno::PIPE, true),
            (&owner, Errno::IO, false),
            (&owner, Errno::NOSPC, false),
            (&guest, Errno::PIPE, false),
            (&guest, Errno::IO, false),
        ] {
            assert_eq!(wanted.ends_by(&errno.into()), ends, "{wanted:?} {errno}");
        }
    }

    #[test]
    fn signals_to_a_guest_of_a_terminal_are_its_own_once_the_container_runs() {
        for (passed, before, after) in [
            (PassedSignals::of_guest(false), true, true),
            (PassedSignals::of_guest(true), true, false),
            (PassedSignals::None, false, false),
        ] {
            assert_eq!((passed.take(false), passed.take(true)), (before, after));
        }
    }
}
