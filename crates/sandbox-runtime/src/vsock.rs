//! Connections between host and guest through the user-space vsock device.
//!
//! To the guest: connect to the device's socket, say `CONNECT <port>\n`, read `OK <number>\n`, then bytes. From the
//! guest to host port `p`: arrives at `<ports>_<p>`, in a folder in which nothing else is: of the sandbox's it is the only one that the
//! device's process can reach.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sandbox_protocol::agent::{StreamKind, StreamOpen, StreamOpened};
use sandbox_protocol::frame::{FrameError, read_frame, write_frame};
use sandbox_protocol::{EVENT_PORT, STREAM_PORT};
use sandbox_types::{ContainerId, ExecId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::console::printable;

/// How long a connection into the guest may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// `OK 4294967295\n`, and no more.
const MAX_ANSWER_BYTES: usize = 32;
/// The most of the agent's words in a refusal.
const MAX_MESSAGE_BYTES: usize = 4096;

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The socket could not be reached, or broke.
    #[error("cannot connect to guest port {port}")]
    Connect {
        /// Which.
        port: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody listens on that port of the guest, or the device answered nonsense.
    #[error("nothing answers on guest port {port}")]
    NoListener {
        /// Which.
        port: u32,
    },
    /// The exchange took too long.
    #[error("guest port {port} did not answer within {} s", after.as_secs())]
    TimedOut {
        /// Which.
        port: u32,
        /// The limit.
        after: Duration,
    },
    /// The stream's header could not be exchanged.
    #[error("the stream's header could not be exchanged with the agent")]
    Frame(#[from] FrameError),
    /// The agent said no.
    #[error("the agent refused the stream: {message}")]
    Refused {
        /// Its words, cut and made printable.
        message: String,
    },
}

/// The prefix of the sockets of the guest's ports, for the sandbox in the folder `dir`.
pub(crate) fn ports(dir: &Path) -> PathBuf {
    dir.join("ports/v")
}

/// Where connections that the agent opens to [`EVENT_PORT`] arrive.
pub(crate) fn event_socket(ports: &Path) -> PathBuf {
    let mut name = ports.as_os_str().to_owned();
    name.push(format!("_{EVENT_PORT}"));
    PathBuf::from(name)
}

/// Connects to a port of the guest.
pub(crate) async fn connect(vsock: &Path, port: u32) -> Result<UnixStream, StreamError> {
    match tokio::time::timeout(CONNECT_TIMEOUT, handshake(vsock, port)).await {
        Ok(result) => result,
        Err(_elapsed) => Err(StreamError::TimedOut {
            port,
            after: CONNECT_TIMEOUT,
        }),
    }
}

async fn handshake(vsock: &Path, port: u32) -> Result<UnixStream, StreamError> {
    let broken = |source| StreamError::Connect { port, source };
    let stream = UnixStream::connect(vsock).await.map_err(broken)?;
    exchange(stream, port).await
}

/// Says to the device where to connect, and reads its answer.
pub(crate) async fn exchange(mut stream: UnixStream, port: u32) -> Result<UnixStream, StreamError> {
    let broken = |source| StreamError::Connect { port, source };
    stream
        .write_all(format!("CONNECT {port}\n").as_bytes())
        .await
        .map_err(broken)?;
    // Byte by byte: what follows the line belongs to the caller.
    let mut answer = Vec::with_capacity(MAX_ANSWER_BYTES);
    while answer.len() < MAX_ANSWER_BYTES {
        match stream.read_u8().await {
            Ok(b'\n') => break,
            Ok(byte) => answer.push(byte),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(StreamError::NoListener { port });
            }
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {
                return Err(StreamError::NoListener { port });
            }
            Err(e) => return Err(broken(e)),
        }
    }
    if answer.starts_with(b"OK ") && answer.len() < MAX_ANSWER_BYTES {
        Ok(stream)
    } else {
        Err(StreamError::NoListener { port })
    }
}

/// Opens one byte stream of a process.
pub(crate) async fn open_stream(
    vsock: &Path,
    container: &ContainerId,
    exec: Option<&ExecId>,
    kind: StreamKind,
) -> Result<UnixStream, StreamError> {
    let open = StreamOpen {
        container_id: container.to_string(),
        exec_id: exec.map(ExecId::to_string).unwrap_or_default(),
        kind: kind.into(),
        ..Default::default()
    };
    ask_for(vsock, &open).await
}

/// Opens a connection to a port of the pod's loopback interface.
pub(crate) async fn open_loopback(
    vsock: &Path,
    address: SocketAddr,
) -> Result<UnixStream, StreamError> {
    let open = StreamOpen {
        kind: StreamKind::STREAM_KIND_LOOPBACK.into(),
        port: address.port().into(),
        ipv6: address.is_ipv6(),
        ..Default::default()
    };
    ask_for(vsock, &open).await
}

/// Opens the stream of the resolver that is on the host.
pub(crate) async fn open_resolver(vsock: &Path) -> Result<UnixStream, StreamError> {
    let open = StreamOpen {
        kind: StreamKind::STREAM_KIND_RESOLVER.into(),
        ..Default::default()
    };
    ask_for(vsock, &open).await
}

/// Opens what `open` names, and waits for the agent's word.
async fn ask_for(vsock: &Path, open: &StreamOpen) -> Result<UnixStream, StreamError> {
    let mut stream = connect(vsock, STREAM_PORT).await?;
    let exchange = async {
        write_frame(&mut stream, open).await?;
        read_frame::<StreamOpened>(&mut stream).await
    };
    let opened = tokio::time::timeout(CONNECT_TIMEOUT, exchange)
        .await
        .map_err(|_elapsed| StreamError::TimedOut {
            port: STREAM_PORT,
            after: CONNECT_TIMEOUT,
        })??;
    if opened.error.is_empty() {
        Ok(stream)
    } else {
        Err(StreamError::Refused {
            message: printable(opened.error.as_bytes(), MAX_MESSAGE_BYTES),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    async fn answered(answer: &'static [u8]) -> Result<UnixStream, StreamError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let (mut peer, _) = listener.accept().await.unwrap();
            let mut said = [0u8; 13];
            peer.read_exact(&mut said).await.unwrap();
            assert_eq!(&said, b"CONNECT 1024\n");
            peer.write_all(answer).await.unwrap();
        });
        let result = connect(&path, 1024).await;
        server.await.unwrap();
        result
    }

    #[tokio::test]
    async fn handshake_leaves_later_bytes_to_the_caller() {
        let mut stream = answered(b"OK 1073741824\nhello").await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"hello");
    }

    #[tokio::test]
    async fn handshake_refused_or_cut_off_is_no_listener() {
        for answer in [b"".as_slice(), b"OK", b"NO 1\n", &[b'O'; 200]] {
            assert!(matches!(
                answered(answer).await,
                Err(StreamError::NoListener { port: 1024 })
            ));
        }
    }

    #[tokio::test]
    async fn connect_without_device_says_which_port() {
        let error = connect(Path::new("/nonexistent/v"), 1025)
            .await
            .unwrap_err();
        assert!(matches!(error, StreamError::Connect { port: 1025, .. }));
    }
}
