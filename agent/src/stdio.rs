//! The standard streams of a container's processes, between a pipe or terminal and the host's stream
//! connections.
//!
//! Output stays in the pipe until a connection takes it, so a process that nobody reads blocks, as it would
//! on any pipe, and nothing is lost when it exits. A connection may break off and another be opened; what was read
//! from the pipe and not sent is kept for the next.

mod stdin;

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{oneshot, watch};

pub(crate) use self::stdin::StdinClosed;
use self::stdin::{Attachment, StdinState};

/// How much is copied at a time, in bytes: what a pipe holds.
const CHUNK_BYTES: usize = 64 * 1024;
/// How long an ended stream's connection is kept for the host to read the rest and close its side.
const LINGER: Duration = Duration::from_secs(30);

/// A connection of the host's.
pub(crate) trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

/// Our end of a pipe, or a terminal's master.
pub(crate) type Descriptor = Arc<AsyncFd<OwnedFd>>;

/// What a stream copies from or to. The terminal of an added process exists only once that is started.
#[derive(Debug, Clone)]
enum End {
    Pending,
    Ready(Descriptor),
    Gone,
}

/// Makes `fd` ready for the event loop.
pub(crate) fn descriptor(fd: OwnedFd) -> io::Result<Descriptor> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
    Ok(Arc::new(crate::sys::watched(fd)?))
}

async fn ready(end: &watch::Sender<End>) -> Option<Descriptor> {
    let mut end = end.subscribe();
    let end = end.wait_for(|end| !matches!(end, End::Pending)).await;
    match end.as_deref() {
        Ok(End::Ready(descriptor)) => Some(descriptor.clone()),
        _ => None,
    }
}

/// How far an output's reader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    Absent,
    Attached,
    /// It has had everything, the end included.
    Done,
}

/// Bytes that were taken from the pipe and not yet sent.
#[derive(Debug, Default)]
struct Unsent {
    bytes: Vec<u8>,
    start: usize,
}

/// stdout or stderr.
#[derive(Debug)]
pub(crate) struct Output {
    source: watch::Sender<End>,
    unsent: tokio::sync::Mutex<Unsent>,
    reader: watch::Sender<Reader>,
    /// Dropped to make the connection that now holds the stream give it up.
    holder: Mutex<Option<oneshot::Sender<()>>>,
}

impl Output {
    fn new(source: End) -> Arc<Self> {
        Arc::new(Self {
            source: watch::Sender::new(source),
            unsent: tokio::sync::Mutex::default(),
            reader: watch::Sender::new(Reader::Absent),
            holder: Mutex::new(None),
        })
    }

    /// Makes the caller the one reader, in the place of any other. The result is for [`Self::copy_to`].
    pub(crate) fn attach(&self) -> oneshot::Receiver<()> {
        let (sender, superseded) = oneshot::channel();
        *self.holder.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        self.reader.send_replace(Reader::Attached);
        superseded
    }

    /// Sends everything to `connection`, up to and with the end.
    pub(crate) async fn copy_to(
        &self,
        mut connection: impl Connection,
        mut superseded: oneshot::Receiver<()>,
    ) {
        let finished = tokio::select! {
            biased;
            _ = &mut superseded => return,
            result = self.copy(&mut connection) => result.is_ok(),
        };
        if superseded.try_recv() == Err(oneshot::error::TryRecvError::Closed) {
            return;
        }
        self.reader.send_replace(if finished {
            Reader::Done
        } else {
            Reader::Absent
        });
        if finished {
            let mut rest = [0u8; 16];
            let closed = async { while connection.read(&mut rest).await.is_ok_and(|n| n > 0) {} };
            let _ = tokio::time::timeout(LINGER, closed).await;
        }
    }

    async fn copy(&self, connection: &mut impl Connection) -> io::Result<()> {
        let mut unsent = self.unsent.lock().await;
        let source = ready(&self.source).await;
        loop {
            while unsent.start < unsent.bytes.len() {
                let rest = unsent.bytes.get(unsent.start..).unwrap_or_default();
                match connection.write(rest).await? {
                    0 => return Err(io::ErrorKind::WriteZero.into()),
                    sent => unsent.start = unsent.start.saturating_add(sent),
                }
            }
            unsent.start = 0;
            unsent.bytes.clear();
            let Some(source) = &source else { break };
            unsent.bytes.resize(CHUNK_BYTES, 0);
            let read = read(source, &mut unsent.bytes).await;
            unsent.bytes.truncate(*read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => break,
                Ok(_) => {}
                // A terminal whose other side nobody has open.
                Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => break,
                Err(error) => return Err(error),
            }
        }
        connection.shutdown().await
    }

    /// Until the connection that is attached, if any, has had everything or has gone.
    pub(crate) async fn drained(&self) {
        let mut reader = self.reader.subscribe();
        let _ = reader.wait_for(|reader| *reader != Reader::Attached).await;
    }
}

/// Reads what there is; cancelled, it has read nothing.
async fn read(source: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut guard = source.readable().await?;
        match guard.try_io(|fd| Ok(rustix::io::read(fd.get_ref().as_fd(), &mut *buffer)?)) {
            Ok(result) => return result,
            Err(_would_block) => {}
        }
    }
}

/// stdin.
#[derive(Debug)]
pub(crate) struct Input {
    sink: watch::Sender<End>,
    state: Mutex<StdinState>,
    /// As in [`Output`].
    holder: Mutex<Option<oneshot::Sender<()>>>,
}

impl Input {
    fn new(sink: End) -> Arc<Self> {
        Arc::new(Self {
            sink: watch::Sender::new(sink),
            state: Mutex::default(),
            holder: Mutex::new(None),
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, StdinState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the caller the one writer. The result is for [`Self::copy_from`].
    pub(crate) fn attach(&self) -> Result<(Attachment, oneshot::Receiver<()>), StdinClosed> {
        let attachment = self.state().attach()?;
        let (sender, superseded) = oneshot::channel();
        *self.holder.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        Ok((attachment, superseded))
    }

    /// Gives the process everything that `connection` carries.
    pub(crate) async fn copy_from(
        &self,
        mut connection: impl Connection,
        (attachment, superseded): (Attachment, oneshot::Receiver<()>),
    ) {
        tokio::select! {
            biased;
            _ = superseded => {}
            () = self.copy(&mut connection) => {}
        }
        if self.state().ended(attachment) {
            self.sink.send_replace(End::Gone);
        }
    }

    async fn copy(&self, connection: &mut impl Connection) {
        let mut sink = ready(&self.sink).await;
        let mut buffer = vec![0u8; CHUNK_BYTES];
        while let Ok(length) = connection.read(&mut buffer).await {
            let Some(bytes) = buffer.get(..length).filter(|bytes| !bytes.is_empty()) else {
                break;
            };
            // A process that closed its stdin still leaves the host a stream that takes everything.
            if let Some(open) = &sink
                && write_all(open, bytes).await.is_err()
            {
                sink = None;
            }
        }
    }

    /// The process reads end-of-file after what the attached connection, if any, still carries.
    pub(crate) fn close(&self) {
        if self.state().close() {
            self.sink.send_replace(End::Gone);
        }
    }
}

async fn write_all(sink: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut guard = sink.writable().await?;
        match guard.try_io(|fd| Ok(rustix::io::write(fd.get_ref().as_fd(), bytes)?)) {
            Ok(written) => bytes = bytes.get(written?..).unwrap_or_default(),
            Err(_would_block) => {}
        }
    }
    Ok(())
}

/// Which streams the host wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) terminal: bool,
}

/// Our side of a process's streams.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    pub(crate) stdin: Option<Arc<Input>>,
    pub(crate) stdout: Option<Arc<Output>>,
    pub(crate) stderr: Option<Arc<Output>>,
}

/// The process's side: what it gets as descriptors 0, 1 and 2.
pub(crate) type Inherited = [OwnedFd; 3];

impl Streams {
    /// Pipes and `/dev/null`, or the two sides of a terminal that is yet to come.
    pub(crate) fn new(wanted: Wanted) -> io::Result<(Self, Option<Inherited>)> {
        if wanted.terminal {
            let streams = Self {
                stdin: wanted.stdin.then(|| Input::new(End::Pending)),
                stdout: wanted.stdout.then(|| Output::new(End::Pending)),
                stderr: None,
            };
            return Ok((streams, None));
        }
        let mut streams = Self::default();
        let stdin = if wanted.stdin {
            let (read, write) = pipe()?;
            streams.stdin = Some(Input::new(End::Ready(descriptor(write)?)));
            read
        } else {
            null()?
        };
        let output = |wanted: bool| -> io::Result<(Option<Arc<Output>>, OwnedFd)> {
            if !wanted {
                return Ok((None, null()?));
            }
            let (read, write) = pipe()?;
            Ok((Some(Output::new(End::Ready(descriptor(read)?))), write))
        };
        let (stdout, stdout_end) = output(wanted.stdout)?;
        let (stderr, stderr_end) = output(wanted.stderr)?;
        streams.stdout = stdout;
        streams.stderr = stderr;
        Ok((streams, Some([stdin, stdout_end, stderr_end])))
    }

    /// The terminal is there, or will never be.
    pub(crate) fn connect_terminal(&self, terminal: Option<&Descriptor>) {
        let end = || match terminal {
            Some(terminal) => End::Ready(terminal.clone()),
            None => End::Gone,
        };
        let pending = |now: &mut End| {
            let pending = matches!(now, End::Pending);
            if pending {
                *now = end();
            }
            pending
        };
        if let Some(stdin) = &self.stdin {
            stdin.sink.send_if_modified(pending);
        }
        if let Some(stdout) = &self.stdout {
            stdout.source.send_if_modified(pending);
        }
    }

    /// Makes every connection give its stream up.
    pub(crate) fn abandon(&self) {
        let holders = [
            self.stdin.as_ref().map(|stdin| &stdin.holder),
            self.stdout.as_ref().map(|stdout| &stdout.holder),
            self.stderr.as_ref().map(|stderr| &stderr.holder),
        ];
        for holder in holders.into_iter().flatten() {
            holder.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }

    /// Until the attached connections have had everything; at most `limit`.
    pub(crate) async fn drain(&self, limit: Duration) {
        let drained = async {
            for output in [&self.stdout, &self.stderr].into_iter().flatten() {
                output.drained().await;
            }
        };
        if tokio::time::timeout(limit, drained).await.is_err() {
            crate::log!("an output stream was not read to its end within {limit:?}");
        }
    }
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?)
}

fn null() -> io::Result<OwnedFd> {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    Ok(file.into())
}

#[cfg(test)]
mod tests;
