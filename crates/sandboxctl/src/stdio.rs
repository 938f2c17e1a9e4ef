//! The container's standard streams: fifos in its folder, which the shim opens at their other ends, and pipes between
//! its attendant and whoever is attached.
//!
//! Each stream has a thread of its own that passes its bytes on with blocking calls: a slow reader of our output then
//! holds up only that stream, and the container behind it, never signals or the exit. The threads end with
//! their stream or with the process.

use std::fs::File;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use tokio::sync::{mpsc, oneshot};

use crate::timings::monotonic_ns;
pub(crate) use keys::{DEFAULT as DEFAULT_DETACH_KEYS, DetachKeys};
pub(crate) use transfer::Transfer;

mod keys;
mod transfer;

/// The fifos of one container.
#[derive(Debug)]
pub(crate) struct Fifos {
    /// None leaves the container without input.
    pub(crate) stdin: Option<PathBuf>,
    pub(crate) stdout: PathBuf,
    /// None with a terminal, which has but one output.
    pub(crate) stderr: Option<PathBuf>,
}

impl Fifos {
    /// Makes them in `folder`.
    pub(crate) fn create(folder: &Path, stdin: bool, stderr: bool) -> io::Result<Self> {
        let make = |name: &str| -> io::Result<PathBuf> {
            let path = folder.join(name);
            nix::unistd::mkfifo(
                &path,
                nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR,
            )?;
            Ok(path)
        };
        Ok(Self {
            stdin: stdin.then(|| make("stdin")).transpose()?,
            stdout: make("stdout")?,
            stderr: stderr.then(|| make("stderr")).transpose()?,
        })
    }

    /// Removes them, once both ends are done with them.
    pub(crate) fn remove(folder: &Path) {
        for name in ["stdin", "stdout", "stderr"] {
            // What is not there needs no removing.
            let _ = std::fs::remove_file(folder.join(name));
        }
    }
}

/// How copying an output ended.
#[derive(Debug)]
pub(crate) enum OutputEnd {
    /// The container's stream ended, and all of it was written.
    Complete,
    /// Our own output cannot be written to.
    Broken(io::Error),
}

/// The outputs that are being copied.
#[derive(Debug)]
pub(crate) struct Outputs {
    ends: mpsc::UnboundedReceiver<OutputEnd>,
    // Kept so that `ends` never reads as closed while an output may yet be added.
    sender: mpsc::UnboundedSender<OutputEnd>,
    open: usize,
    /// Since when each thread waits for the container, or [`BUSY`], or [`DONE`].
    waiting_since_ns: Vec<Arc<AtomicU64>>,
    first_byte_ns: Arc<AtomicU64>,
}

/// The thread is not waiting for the container, but writing.
const BUSY: u64 = u64::MAX;
/// The thread has ended.
const DONE: u64 = u64::MAX - 1;

impl Outputs {
    /// None yet.
    pub(crate) fn new() -> Self {
        let (sender, ends) = mpsc::unbounded_channel();
        Self {
            ends,
            sender,
            open: 0,
            waiting_since_ns: Vec::new(),
            first_byte_ns: Arc::new(AtomicU64::new(0)),
        }
    }

    /// Copies from `from` to `to` from now on.
    pub(crate) fn copy(&mut self, from: File, to: impl Sink, name: &str) -> io::Result<()> {
        let sender = self.sender.clone();
        let waiting = Arc::new(AtomicU64::new(monotonic_ns()));
        self.waiting_since_ns.push(Arc::clone(&waiting));
        let first = Arc::clone(&self.first_byte_ns);
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let result = copy_output(&from, to, &waiting, &first);
                waiting.store(DONE, Ordering::Relaxed);
                let broken = result.is_err();
                // The receiver may be gone with the run.
                let _ = sender.send(match result {
                    Ok(()) => OutputEnd::Complete,
                    Err(error) => OutputEnd::Broken(error),
                });
                if broken {
                    // Else what the container still writes would hold up its end.
                    discard(&from);
                }
            })?;
        self.open += 1;
        Ok(())
    }

    /// Whether some output has not ended.
    pub(crate) fn are_open(&self) -> bool {
        self.open > 0
    }

    /// Waits until one more has ended; forever if none is open. Cancelling this loses nothing.
    pub(crate) async fn next_end(&mut self) -> OutputEnd {
        let end = self.ends.recv().await;
        self.open = self.open.saturating_sub(1);
        // The sender above keeps the channel open.
        end.unwrap_or(OutputEnd::Complete)
    }

    /// For how long nothing has come from the container on any open output while we were ready to take it.
    pub(crate) fn idle(&self) -> Duration {
        let now = monotonic_ns();
        self.waiting_since_ns
            .iter()
            .filter_map(|since| match since.load(Ordering::Relaxed) {
                DONE => None,
                BUSY => Some(Duration::ZERO),
                since => Some(Duration::from_nanos(now.saturating_sub(since))),
            })
            .min()
            .unwrap_or_default()
    }

    /// When the first byte came, `CLOCK_MONOTONIC`.
    pub(crate) fn first_byte_ns(&self) -> Option<u64> {
        match self.first_byte_ns.load(Ordering::Relaxed) {
            0 => None,
            at => Some(at),
        }
    }
}

/// Where the fifos of a process are that was added to the container of this folder. None if that is no name of one.
pub(crate) fn exec_folder(container: &Path, exec: &str) -> Option<PathBuf> {
    let is_name = !exec.is_empty() && exec.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_name.then(|| container.join("exec").join(exec))
}

/// Reads an output to its end for nothing, on a thread of its own.
pub(crate) fn read_for_nobody(from: File) -> io::Result<()> {
    thread::Builder::new()
        .name("discard".to_owned())
        .spawn(move || discard(&from))
        .map(drop)
}

/// Reads to the end for nothing.
fn discard(from: &File) {
    let mut transfer = Transfer::new();
    while wait_for(from, PollFlags::IN).is_ok() {
        match transfer.read(from) {
            Ok(Some([])) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

/// Where an output goes. It is dropped when the output has ended, and only then.
pub(crate) trait Sink: Send + 'static {
    /// Takes some of what is in `from`, which [`Transfer::pass`] and [`Transfer::read`] do; what they answer is the answer.
    fn take(&mut self, from: &File, transfer: &mut Transfer) -> io::Result<Option<usize>>;
}

impl Sink for File {
    fn take(&mut self, from: &File, transfer: &mut Transfer) -> io::Result<Option<usize>> {
        transfer.pass(from, self)
    }
}

/// Opens a fifo for writing, without waiting for its reader.
pub(crate) fn open_input_fifo(path: &Path) -> io::Result<File> {
    // Read-write, because a fifo opened only for writing waits for its reader.
    File::options().read(true).write(true).open(path)
}

/// Opens a fifo for reading, without waiting for its writer.
pub(crate) fn open_fifo(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

fn copy_output(
    from: &File,
    mut to: impl Sink,
    waiting_since_ns: &AtomicU64,
    first_byte_ns: &AtomicU64,
) -> io::Result<()> {
    let mut transfer = Transfer::new();
    loop {
        waiting_since_ns.store(monotonic_ns(), Ordering::Relaxed);
        // Before the shim has opened its end there is neither data nor a hang-up, and this waits.
        wait_for(from, PollFlags::IN)?;
        waiting_since_ns.store(BUSY, Ordering::Relaxed);
        let first_ns = (first_byte_ns.load(Ordering::Relaxed) == 0).then(monotonic_ns);
        match to.take(from, &mut transfer)? {
            Some(0) => return Ok(()),
            Some(_) => {}
            None => continue,
        }
        if let Some(at) = first_ns {
            let _ = first_byte_ns.compare_exchange(0, at, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

fn is_again(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// Waits until `file` is ready, for good or ill.
fn wait_for(file: &File, flags: PollFlags) -> io::Result<()> {
    let mut watched = [PollFd::new(file, flags)];
    loop {
        match poll(&mut watched, None::<&Timespec>) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// An input that is being copied.
#[derive(Debug)]
pub(crate) struct Input {
    end: oneshot::Receiver<InputEnd>,
}

/// How copying an input ended.
#[derive(Debug)]
pub(crate) enum InputEnd {
    /// There is no more. Where it went comes along: it has to stay open until the other side knows.
    Complete(File),
    /// The keys were typed that mean to leave the container alone.
    Detached,
    /// It was a terminal, which is gone: not somebody's word that there is no more.
    Lost,
}

impl Input {
    /// Copies from `from` to `to` from now on, but for `keys`.
    pub(crate) fn copy(from: OwnedFd, to: File, keys: Option<DetachKeys>) -> io::Result<Self> {
        let (sender, end) = oneshot::channel();
        let from = File::from(from);
        // Before it can hang up unnoticed.
        let terminal = from.is_terminal();
        thread::Builder::new()
            .name("stdin".to_owned())
            .spawn(move || {
                let pumped = pump(&from, &to, keys);
                let _ = sender.send(match pumped {
                    Ok(true) => InputEnd::Detached,
                    // One that was hung up reads as ended or fails, and is no terminal any more.
                    _ if terminal && !from.is_terminal() => InputEnd::Lost,
                    Err(_) if terminal => InputEnd::Lost,
                    // However it ended: there will be no more.
                    _ => InputEnd::Complete(to),
                });
            })?;
        Ok(Self { end })
    }

    /// Waits for its end.
    pub(crate) async fn end(&mut self) -> Option<InputEnd> {
        (&mut self.end).await.ok()
    }
}

/// Copies until there is no more, or until the keys were typed; tells whether they were.
pub(crate) fn pump(from: &File, mut to: &File, mut keys: Option<DetachKeys>) -> io::Result<bool> {
    let mut transfer = Transfer::new();
    loop {
        let moved = match &mut keys {
            None => transfer.pass(from, to)?,
            Some(keys) => match transfer.read(from)? {
                None => None,
                Some(bytes) => {
                    let (passed, detached) = keys.filter(bytes);
                    to.write_all(&passed)?;
                    if detached {
                        return Ok(true);
                    }
                    Some(bytes.len())
                }
            },
        };
        match moved {
            Some(0) => return Ok(false),
            Some(_) => {}
            None => wait_for(from, PollFlags::IN)?,
        }
    }
}

/// A descriptor of our own for one of the process's standard streams.
pub(crate) fn duplicate(stream: impl AsFd) -> io::Result<OwnedFd> {
    stream.as_fd().try_clone_to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    }

    fn pipe() -> (File, OwnedFd) {
        let (reader, writer) = io::pipe().unwrap();
        (File::from(OwnedFd::from(reader)), OwnedFd::from(writer))
    }

    #[test]
    fn output_arrives_whole_and_ends_with_its_writer() {
        let folder = tempfile::tempdir().unwrap();
        let fifos = Fifos::create(folder.path(), false, false).unwrap();
        let (mut reader, writer) = pipe();
        let mut outputs = Outputs::new();
        let fifo = open_fifo(&fifos.stdout).unwrap();
        outputs.copy(fifo, File::from(writer), "stdout").unwrap();
        let collected = thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).unwrap();
            all
        });
        let mut shim = File::options().write(true).open(&fifos.stdout).unwrap();
        let sent: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        shim.write_all(&sent).unwrap();
        drop(shim);
        assert!(matches!(
            runtime().block_on(outputs.next_end()),
            OutputEnd::Complete
        ));
        assert!(outputs.first_byte_ns().is_some());
        assert_eq!(collected.join().unwrap(), sent);
    }

    #[test]
    fn output_without_writer_yet_does_not_end() {
        let folder = tempfile::tempdir().unwrap();
        let fifos = Fifos::create(folder.path(), false, true).unwrap();
        let (_reader, writer) = pipe();
        let mut outputs = Outputs::new();
        let fifo = open_fifo(&fifos.stdout).unwrap();
        outputs.copy(fifo, File::from(writer), "stdout").unwrap();
        let ended = runtime().block_on(async {
            tokio::time::timeout(Duration::from_millis(100), outputs.next_end()).await
        });
        assert!(ended.is_err());
    }

    #[test]
    fn output_to_closed_pipe_is_broken() {
        let folder = tempfile::tempdir().unwrap();
        let fifos = Fifos::create(folder.path(), false, false).unwrap();
        let (reader, writer) = pipe();
        drop(reader);
        let mut outputs = Outputs::new();
        let fifo = open_fifo(&fifos.stdout).unwrap();
        outputs.copy(fifo, File::from(writer), "stdout").unwrap();
        let mut shim = File::options().write(true).open(&fifos.stdout).unwrap();
        shim.write_all(b"x").unwrap();
        match runtime().block_on(outputs.next_end()) {
            OutputEnd::Broken(error) => assert_eq!(error.kind(), io::ErrorKind::BrokenPipe),
            OutputEnd::Complete => panic!("complete"),
        }
    }

    #[test]
    fn keys_that_detach_are_not_passed_on() {
        let (from, to) = pipe();
        let (mut reader, writer) = io::pipe().unwrap();
        let keys = DetachKeys::parse("ctrl-p,ctrl-q").unwrap();
        let mut input = Input::copy(
            OwnedFd::from(from),
            File::from(OwnedFd::from(writer)),
            Some(keys),
        );
        File::from(to).write_all(b"a\x10b\x10\x11c").unwrap();
        let end = runtime().block_on(input.as_mut().unwrap().end()).unwrap();
        assert!(matches!(end, InputEnd::Detached));
        let mut passed = Vec::new();
        reader.read_to_end(&mut passed).unwrap();
        assert_eq!(passed, b"a\x10b");
    }

    #[test]
    fn input_from_terminal_that_hangs_up_is_lost() {
        let terminal = nix::pty::openpty(None, None).unwrap();
        let (_reader, writer) = pipe();
        let mut input = Input::copy(terminal.slave, File::from(writer), None).unwrap();
        drop(terminal.master);
        let end = runtime().block_on(input.end()).unwrap();
        assert!(matches!(end, InputEnd::Lost), "{end:?}");
    }

    #[test]
    fn folder_of_an_added_process_stays_in_the_containers() {
        let folder = Path::new("/c");
        assert_eq!(exec_folder(folder, "ab12"), Some("/c/exec/ab12".into()));
        for wrong in ["", "..", "a/b", "detached-ab"] {
            assert_eq!(exec_folder(folder, wrong), None, "{wrong}");
        }
    }

    #[test]
    fn input_is_in_fifo_before_its_end_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let fifos = Fifos::create(folder.path(), true, false).unwrap();
        let path = fifos.stdin.unwrap();
        let (from, to) = pipe();
        let fifo = open_input_fifo(&path).unwrap();
        let mut input = Input::copy(OwnedFd::from(from), fifo, None).unwrap();
        File::from(to).write_all(b"hello").unwrap();
        let held = runtime().block_on(input.end()).unwrap();
        let mut shim = File::open(&path).unwrap();
        let mut read = [0; 5];
        shim.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"hello");
        drop(held);
    }
}
