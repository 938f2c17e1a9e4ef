//! Byte streams between the caller's fifos and the agent.
//!
//! A fifo is opened for both directions, whatever it is used for: opening then never waits for a peer, an output
//! fifo whose reader went away fills up instead of breaking, and the writer of an input fifo may go and come back. So
//! the end of input is only what `CloseIO` says; the end of output is told to the reader by closing the fifo, after
//! the last byte.

use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// Size of the buffer between a fifo and a stream, in bytes: what a pipe holds.
const BUFFER_BYTES: usize = 64 * 1024;

/// Why the caller's streams cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StdioError {
    /// A scheme that is not spoken.
    #[error("{stream} cannot be {uri:?}: only fifos are supported")]
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

fn fifo(stream: &'static str, uri: &str) -> Result<PathBuf, StdioError> {
    let path = match uri.split_once("://") {
        None => uri,
        Some(("fifo", path)) => path,
        Some(_) => {
            return Err(StdioError::Scheme {
                stream,
                uri: uri.to_owned(),
            });
        }
    };
    let path = PathBuf::from(path);
    let kind = std::fs::metadata(&path)
        .map_err(|source| StdioError::Open {
            stream,
            path: path.clone(),
            source,
        })?
        .file_type();
    if kind.is_fifo() {
        Ok(path)
    } else {
        Err(StdioError::NotFifo { stream, path })
    }
}

fn both_ways() -> pipe::OpenOptions {
    let mut options = pipe::OpenOptions::new();
    options.read_write(true);
    options
}

/// The caller's ends of the streams of one process, open.
pub(crate) struct OpenStdio {
    /// What the caller writes.
    pub(crate) stdin: Option<pipe::Receiver>,
    /// What the caller reads.
    pub(crate) stdout: Option<pipe::Sender>,
    /// What the caller reads, apart from a terminal's.
    pub(crate) stderr: Option<pipe::Sender>,
}

impl StdioPaths {
    /// Opens what is named.
    ///
    /// # Errors
    /// [`StdioError`] names the stream.
    pub(crate) fn open(&self) -> Result<OpenStdio, StdioError> {
        let sender = |stream, uri: &str| -> Result<Option<pipe::Sender>, StdioError> {
            if uri.is_empty() {
                return Ok(None);
            }
            let path = fifo(stream, uri)?;
            let opened = both_ways().open_sender(&path);
            opened.map(Some).map_err(|source| StdioError::Open {
                stream,
                path,
                source,
            })
        };
        let stdin = if self.stdin.is_empty() {
            None
        } else {
            let path = fifo("stdin", &self.stdin)?;
            let opened = both_ways().open_receiver(&path);
            Some(opened.map_err(|source| StdioError::Open {
                stream: "stdin",
                path,
                source,
            })?)
        };
        Ok(OpenStdio {
            stdin,
            stdout: sender("stdout", &self.stdout)?,
            stderr: if self.terminal {
                None
            } else {
                sender("stderr", &self.stderr)?
            },
        })
    }
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
        fifo: pipe::Sender,
        first: impl FnOnce() + Send + 'static,
    ) {
        self.outputs.push(tokio::spawn(async move {
            if let Err(error) = copy_output(stream, fifo, first).await {
                tracing::warn!("an output stream broke: {error}");
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

async fn copy_output(
    mut stream: UnixStream,
    mut fifo: pipe::Sender,
    first: impl FnOnce(),
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut first = Some(first);
    loop {
        let len = stream.read(&mut buffer).await?;
        if len == 0 {
            return Ok(());
        }
        if let Some(first) = first.take() {
            first();
        }
        if let Some(bytes) = buffer.get(..len) {
            fifo.write_all(bytes).await?;
        }
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
    // What was written before the close is in the fifo by now.
    loop {
        match fifo.try_read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => {
                if let Some(bytes) = buffer.get(..len) {
                    stream.write_all(bytes).await?;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use std::path::Path;

    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(future)
    }

    fn make_fifo(folder: &Path, name: &str) -> String {
        let path = folder.join(name);
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        path.to_str().unwrap().to_owned()
    }

    #[test]
    fn stream_that_is_no_fifo_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        for (uri, part) in [
            (file.to_str().unwrap(), "not a fifo"),
            ("binary:///bin/logger", "only fifos"),
            ("/no/such/path", "cannot open stdout"),
        ] {
            let paths = StdioPaths {
                stdout: uri.to_owned(),
                ..Default::default()
            };
            let error = paths.open().err().unwrap().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn input_before_close_arrives_whole_and_then_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = make_fifo(folder.path(), "in");
        block_on(async {
            let paths = StdioPaths {
                stdin: path.clone(),
                ..Default::default()
            };
            let stdin = paths.open().unwrap().stdin.unwrap();
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
        });
    }

    #[test]
    fn output_reaches_a_slow_reader_to_the_last_byte() {
        let folder = tempfile::tempdir().unwrap();
        let path = make_fifo(folder.path(), "out");
        block_on(async {
            let reader = std::thread::spawn({
                let path = path.clone();
                move || std::fs::read(path).unwrap()
            });
            let paths = StdioPaths {
                stdout: path,
                ..Default::default()
            };
            let stdout = paths.open().unwrap().stdout.unwrap();
            let (mut guest, host) = UnixStream::pair().unwrap();
            let mut copying = Copying::default();
            copying.output(host, stdout, || ());
            let sent: Vec<u8> = (0..1_000_000u32).map(|n| n.to_le_bytes()[0]).collect();
            guest.write_all(&sent).await.unwrap();
            drop(guest);
            drain(copying.take_outputs(), Duration::from_secs(30)).await;
            assert!(reader.join().unwrap() == sent);
        });
    }
}
