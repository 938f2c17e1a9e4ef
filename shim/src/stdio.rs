//! Byte streams between the caller's fifos, files and logging programs, and the agent.
//!
//! A fifo is opened for both directions, whatever it is used for: opening then never waits for a peer, an output
//! fifo whose reader went away fills up instead of breaking, and the writer of an input fifo may go and come back. So
//! the end of input is only what `CloseIO` says; the end of output is told to the reader by closing the fifo, after
//! the last byte.

pub(crate) mod logger;
mod uri;

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::process::Child;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use logger::{Identity, Logger, LoggerError};
use uri::Target;

/// Size of the buffer between a fifo and a stream, in bytes: what a pipe holds.
const BUFFER_BYTES: usize = 64 * 1024;

/// Why the caller's streams cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StdioError {
    /// A scheme that is not spoken.
    #[error("{stream} cannot be {uri:?}: {} are supported", schemes(stream))]
    Scheme {
        /// Which stream.
        stream: &'static str,
        /// What was given.
        uri: String,
    },
    /// Not a fifo.
    #[error("{stream} {} is not a fifo", path.display())]
    NotFifo {
        /// Which stream.
        stream: &'static str,
        /// What was given.
        path: PathBuf,
    },
    /// The program that is to take the output does not run.
    #[error(transparent)]
    Logger(#[from] LoggerError),
    /// The system refused.
    #[error("cannot open {stream} {}", path.display())]
    Open {
        /// Which stream.
        stream: &'static str,
        /// What was given.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The streams of one process, as the caller named them; empty means none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct StdioPaths {
    /// Standard input.
    pub(crate) stdin: String,
    /// Standard output.
    pub(crate) stdout: String,
    /// Standard error.
    pub(crate) stderr: String,
    /// One terminal for all three.
    pub(crate) terminal: bool,
}

fn schemes(stream: &str) -> &'static str {
    if stream == "stdin" {
        "only fifos"
    } else {
        "fifos, file:// and binary:// with absolute paths"
    }
}

fn must_be_fifo(stream: &'static str, path: &Path) -> Result<(), StdioError> {
    let kind = std::fs::metadata(path)
        .map_err(|source| StdioError::Open {
            stream,
            path: path.to_owned(),
            source,
        })?
        .file_type();
    if kind.is_fifo() {
        Ok(())
    } else {
        Err(StdioError::NotFifo {
            stream,
            path: path.to_owned(),
        })
    }
}

fn both_ways() -> pipe::OpenOptions {
    let mut options = pipe::OpenOptions::new();
    options.read_write(true);
    options
}

/// Where output goes.
pub(crate) type Sink = Box<dyn AsyncWrite + Send + Unpin>;

/// The caller's ends of the streams of one process, open.
#[derive(Default)]
pub(crate) struct OpenStdio {
    /// What the caller writes.
    pub(crate) stdin: Option<pipe::Receiver>,
    /// What the caller reads.
    pub(crate) stdout: Option<Sink>,
    /// What the caller reads, apart from a terminal's.
    pub(crate) stderr: Option<Sink>,
    /// The programs that take the output.
    pub(crate) loggers: Vec<Child>,
}

/// Opens what takes output, unless that is a program.
async fn open_sink(stream: &'static str, uri: &str, target: &Target) -> Result<Sink, StdioError> {
    let open = |path: &Path, source| StdioError::Open {
        stream,
        path: path.to_owned(),
        source,
    };
    match target {
        Target::Fifo(path) => {
            must_be_fifo(stream, path)?;
            let opened = both_ways().open_sender(path);
            Ok(Box::new(opened.map_err(|source| open(path, source))?))
        }
        Target::File(path) => {
            let opened = async {
                if let Some(parent) = path.parent() {
                    tokio::fs::create_dir_all(parent).await?;
                }
                tokio::fs::OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(path)
                    .await
            };
            Ok(Box::new(opened.await.map_err(|source| open(path, source))?))
        }
        Target::Binary { .. } => Err(StdioError::Scheme {
            stream,
            uri: uri.to_owned(),
        }),
    }
}

impl StdioPaths {
    /// Opens what is named, and starts the programs that are.
    ///
    /// # Errors
    /// [`StdioError`] names the stream.
    pub(crate) async fn open(&self, identity: &Identity) -> Result<OpenStdio, StdioError> {
        let mut open = OpenStdio::default();
        if !self.stdin.is_empty() {
            open.stdin = Some(self.open_stdin()?);
        }
        let mut program_stderr = None;
        if !self.stdout.is_empty() {
            match parse("stdout", &self.stdout)? {
                Target::Binary { program, arguments } => {
                    let Logger {
                        child,
                        stdout,
                        stderr,
                    } = logger::start(&program, &arguments, identity).await?;
                    open.loggers.push(child);
                    open.stdout = Some(Box::new(stdout));
                    program_stderr = Some(stderr);
                }
                other => open.stdout = Some(open_sink("stdout", &self.stdout, &other).await?),
            }
        }
        if self.terminal || self.stderr.is_empty() {
            return Ok(open);
        }
        open.stderr = Some(match (parse("stderr", &self.stderr)?, program_stderr) {
            // One program takes both.
            (Target::Binary { .. }, Some(pipe)) if self.stderr == self.stdout => Box::new(pipe),
            (Target::Binary { program, arguments }, _) => {
                let logger = logger::start(&program, &arguments, identity).await?;
                open.loggers.push(logger.child);
                Box::new(logger.stderr)
            }
            (other, _) => open_sink("stderr", &self.stderr, &other).await?,
        });
        Ok(open)
    }

    fn open_stdin(&self) -> Result<pipe::Receiver, StdioError> {
        let Target::Fifo(path) = parse("stdin", &self.stdin)? else {
            return Err(StdioError::Scheme {
                stream: "stdin",
                uri: self.stdin.clone(),
            });
        };
        must_be_fifo("stdin", &path)?;
        both_ways()
            .open_receiver(&path)
            .map_err(|source| StdioError::Open {
                stream: "stdin",
                path,
                source,
            })
    }
}

fn parse(stream: &'static str, uri: &str) -> Result<Target, StdioError> {
    Target::parse(uri).ok_or_else(|| StdioError::Scheme {
        stream,
        uri: uri.to_owned(),
    })
}

/// The copying of one process's streams. Dropped, it stops.
#[derive(Debug, Default)]
pub(crate) struct Copying {
    outputs: Vec<JoinHandle<()>>,
    input: Option<JoinHandle<()>>,
    close_stdin: Arc<Notify>,
}

impl Copying {
    /// Copies what the process writes; `first` is called at its first byte.
    pub(crate) fn output(
        &mut self,
        stream: UnixStream,
        sink: Sink,
        first: impl FnOnce() + Send + 'static,
    ) {
        self.outputs.push(tokio::spawn(async move {
            if let Err(error) = copy_output(stream, sink, first).await {
                tracing::warn!("an output stream broke: {error}");
            }
        }));
    }

    /// Keeps a program that takes output, until it has ended.
    pub(crate) fn logger(&mut self, mut program: Child) {
        self.outputs.push(tokio::spawn(async move {
            match program.wait().await {
                Ok(status) if !status.success() => {
                    tracing::warn!("a logging program ended with {status}");
                }
                Ok(_) => {}
                Err(error) => tracing::warn!("waiting for a logging program: {error}"),
            }
        }));
    }

    /// Copies what the caller writes, until [`Self::close_stdin`].
    pub(crate) fn input(&mut self, stream: UnixStream, fifo: pipe::Receiver) {
        let close = Arc::clone(&self.close_stdin);
        self.input = Some(tokio::spawn(async move {
            if let Err(error) = copy_input(stream, fifo, &close).await {
                // The process need not read its input to the end.
                tracing::debug!("the input stream broke: {error}");
            }
        }));
    }

    /// The caller has written everything: forwards what is still in the fifo, then ends the stream. Returns when that
    /// is done.
    pub(crate) fn close_stdin(&mut self) -> Option<JoinHandle<()>> {
        self.close_stdin.notify_one();
        self.input.take()
    }

    /// Takes the copying of outputs, to wait for its end.
    pub(crate) fn take_outputs(&mut self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut self.outputs)
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        for task in self.outputs.drain(..).chain(self.input.take()) {
            task.abort();
        }
    }
}

/// Waits until all outputs have reached their fifos, at most `limit`; then the rest is given up.
pub(crate) async fn drain(outputs: Vec<JoinHandle<()>>, limit: Duration) {
    let deadline = tokio::time::Instant::now() + limit;
    for mut task in outputs {
        if tokio::time::timeout_at(deadline, &mut task).await.is_err() {
            tracing::warn!(
                "nobody read the last output within {} s; it is lost",
                limit.as_secs()
            );
            task.abort();
        }
    }
}

async fn copy_output(mut stream: UnixStream, sink: Sink, first: impl FnOnce()) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut first = Some(first);
    let mut sink = Some(sink);
    loop {
        let len = stream.read(&mut buffer).await?;
        if len == 0 {
            break;
        }
        if let Some(first) = first.take() {
            first();
        }
        if let (Some(bytes), Some(open)) = (buffer.get(..len), sink.as_mut())
            && let Err(error) = open.write_all(bytes).await
        {
            // The process goes on, as it would with its output in the null device.
            tracing::warn!("output is lost, nothing takes it: {error}");
            sink = None;
        }
    }
    match sink.as_mut() {
        Some(sink) => sink.flush().await,
        None => Ok(()),
    }
}

async fn copy_input(
    mut stream: UnixStream,
    mut fifo: pipe::Receiver,
    close: &Notify,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let len = tokio::select! {
            biased;
            read = fifo.read(&mut buffer) => read?,
            () = close.notified() => break,
        };
        if let Some(bytes) = buffer.get(..len) {
            stream.write_all(bytes).await?;
        }
    }
    // What was written before the close is in the fifo by now. Asked is the kernel, not the event loop, which may not have
    // heard of it yet.
    loop {
        match nix::unistd::read(fifo.as_fd(), &mut buffer) {
            Ok(0) | Err(Errno::EAGAIN) => break,
            Ok(len) => {
                if let Some(bytes) = buffer.get(..len) {
                    stream.write_all(bytes).await?;
                }
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use std::path::Path;

    fn identity() -> Identity {
        Identity {
            id: "c1".to_owned(),
            namespace: "ns".to_owned(),
        }
    }

    fn make_fifo(folder: &Path, name: &str) -> String {
        let path = folder.join(name);
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        path.to_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn stream_that_is_no_fifo_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        for (uri, part) in [
            (file.to_str().unwrap(), "not a fifo"),
            ("npipe:///bin/logger", "fifos, file:// and binary://"),
            (
                "binary:///no/such/logger",
                "/no/such/logger cannot be started",
            ),
            ("/no/such/path", "cannot open stdout"),
        ] {
            let paths = StdioPaths {
                stdout: uri.to_owned(),
                ..Default::default()
            };
            let error = paths.open(&identity()).await.err().unwrap().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[tokio::test]
    async fn input_before_close_arrives_whole_and_then_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = make_fifo(folder.path(), "in");
        let paths = StdioPaths {
            stdin: path.clone(),
            ..Default::default()
        };
        let stdin = paths.open(&identity()).await.unwrap().stdin.unwrap();
        let (mut guest, host) = UnixStream::pair().unwrap();
        let mut copying = Copying::default();
        copying.input(host, stdin);
        // A writer that comes, goes, and comes back: no end of file between.
        for part in ["one ", "two"] {
            let mut writer = tokio::fs::OpenOptions::new()
                .write(true)
                .open(&path)
                .await
                .unwrap();
            writer.write_all(part.as_bytes()).await.unwrap();
            writer.flush().await.unwrap();
        }
        let done = copying.close_stdin().unwrap();
        let mut got = String::new();
        guest.read_to_string(&mut got).await.unwrap();
        done.await.unwrap();
        assert_eq!(got, "one two");
    }

    #[tokio::test]
    async fn input_written_just_before_the_close_is_not_lost() {
        use std::io::Write as _;
        let folder = tempfile::tempdir().unwrap();
        let path = make_fifo(folder.path(), "in");
        let paths = StdioPaths {
            stdin: path.clone(),
            ..Default::default()
        };
        let stdin = paths.open(&identity()).await.unwrap().stdin.unwrap();
        let (mut guest, host) = UnixStream::pair().unwrap();
        let mut copying = Copying::default();
        copying.input(host, stdin);
        // It waits for input by now; the event loop learns of none before the close.
        tokio::task::yield_now().await;
        let mut writer = std::fs::File::options().write(true).open(&path).unwrap();
        writer.write_all(b"late").unwrap();
        let done = copying.close_stdin().unwrap();
        let mut got = String::new();
        guest.read_to_string(&mut got).await.unwrap();
        done.await.unwrap();
        assert_eq!(got, "late");
    }

    #[tokio::test]
    async fn output_reaches_a_slow_reader_to_the_last_byte() {
        let folder = tempfile::tempdir().unwrap();
        let path = make_fifo(folder.path(), "out");
        let reader = std::thread::spawn({
            let path = path.clone();
            move || std::fs::read(path).unwrap()
        });
        let paths = StdioPaths {
            stdout: path,
            ..Default::default()
        };
        let stdout = paths.open(&identity()).await.unwrap().stdout.unwrap();
        let (mut guest, host) = UnixStream::pair().unwrap();
        let mut copying = Copying::default();
        copying.output(host, stdout, || ());
        let sent: Vec<u8> = (0..1_000_000u32).map(|n| n.to_le_bytes()[0]).collect();
        guest.write_all(&sent).await.unwrap();
        drop(guest);
        drain(copying.take_outputs(), Duration::from_secs(120)).await;
        assert!(reader.join().unwrap() == sent);
    }

    /// Sends `out` and `err` through the process's streams to what `uri` names.
    async fn send(uri: &str) {
        let paths = StdioPaths {
            stdout: uri.to_owned(),
            stderr: uri.to_owned(),
            ..Default::default()
        };
        let open = paths.open(&identity()).await.unwrap();
        let mut copying = Copying::default();
        for program in open.loggers {
            copying.logger(program);
        }
        for (sink, text) in [(open.stdout, "out"), (open.stderr, "err")] {
            let (mut guest, host) = UnixStream::pair().unwrap();
            copying.output(host, sink.unwrap(), || ());
            guest.write_all(text.as_bytes()).await.unwrap();
        }
        drain(copying.take_outputs(), Duration::from_secs(120)).await;
    }

    #[tokio::test]
    async fn file_is_made_and_appended_to() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("new/log");
        let uri = format!("file://{}", file.display());
        send(&uri).await;
        send(&uri).await;
        let mut parts = std::fs::read_to_string(&file).unwrap();
        for part in ["out", "err"] {
            assert_eq!(parts.matches(part).count(), 2, "{parts}");
            parts = parts.replace(part, "");
        }
        assert_eq!(parts, "");
    }

    #[tokio::test]
    async fn program_gets_the_streams_its_arguments_and_the_container() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let (written, program) = (folder.path().join("written"), folder.path().join("logger"));
        let result = folder.path().join("result");
        let script = "#!/bin/sh\nexec 5>&-\n\
            echo \"$* $CONTAINER_NAMESPACE/$CONTAINER_ID $(cat <&3) $(cat <&4)\" > \"$2\"\n";
        std::fs::write(&written, script).unwrap();
        // Another process makes the program: what we have open for writing, a child that another test is just starting has open
        // as well, and it could not be run (ETXTBSY).
        let mut copy = std::process::Command::new("cp");
        assert!(copy.args([&written, &program]).status().unwrap().success());
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let uri = format!("binary://{}?to={}", program.display(), result.display());
        send(&uri).await;
        assert_eq!(
            std::fs::read_to_string(&result).unwrap(),
            format!("to {} ns/c1 out err\n", result.display())
        );
    }
}
