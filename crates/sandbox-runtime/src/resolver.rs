//! The host's end of the resolver that Docker's engine has in the pod's network namespace ([`sandbox_network::RESOLVER`]):
//! what the guest asks is asked there, by sockets of the namespace.
//!
//! The guest chooses bytes, and whether they go by UDP or TCP; never to whom.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sandbox_network::{Namespace, NetworkError, RESOLVER, RESOLVER_PORT};
use sandbox_protocol::agent::{ResolverAnswer, ResolverQuery};
use sandbox_protocol::frame::{FrameError, read_frame, write_frame};
use sandbox_protocol::limits::{MAX_RESOLVER_MESSAGE_BYTES, MAX_RESOLVER_QUERIES};
use sandbox_types::WithCauses;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};

use crate::vsock::{self, StreamError};

/// How long an answer may take: longer than those who ask wait (resolv.conf(5)), and the engine for other servers.
const LIMIT: Duration = Duration::from_secs(30);

/// The resolver, for the guest, until this is dropped.
#[derive(Debug)]
pub(crate) struct ResolverService {
    task: JoinHandle<()>,
}

impl Drop for ResolverService {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ResolverService {
    /// Offers the namespace's resolver to the guest behind `vsock`.
    ///
    /// # Errors
    /// [`StreamError`] when the agent cannot have it.
    pub(crate) async fn start(namespace: Namespace, vsock: &Path) -> Result<Self, StreamError> {
        let stream = vsock::open_resolver(vsock).await?;
        let task = tokio::spawn(async move {
            let (reader, writer) = stream.into_split();
            match serve(reader, writer, namespace.into()).await {
                Ok(()) | Err(FrameError::Closed) => {}
                Err(error) => {
                    tracing::warn!(error = %WithCauses(&error), "the guest has no resolver any more");
                }
            }
        });
        Ok(Self { task })
    }
}

/// Answers questions until the guest closes the connection.
async fn serve(
    mut questions: impl AsyncRead + Unpin,
    mut answers: impl AsyncWrite + Unpin,
    namespace: Arc<Namespace>,
) -> Result<(), FrameError> {
    let (sender, mut done) = mpsc::channel::<ResolverAnswer>(MAX_RESOLVER_QUERIES);
    let places = Arc::new(Semaphore::new(MAX_RESOLVER_QUERIES));
    let ask = async {
        let mut asking = JoinSet::new();
        loop {
            let query: ResolverQuery = read_frame(&mut questions).await?;
            while asking.try_join_next().is_some() {}
            // A guest that asks for more than it may waits.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return Ok(());
            };
            let (namespace, sender) = (Arc::clone(&namespace), sender.clone());
            asking.spawn(async move {
                let id = query.id;
                let asked = tokio::time::timeout(LIMIT, put(query, namespace)).await;
                let message = match asked {
                    Ok(Ok(message)) => message,
                    Ok(Err(error)) => {
                        tracing::debug!("the resolver does not answer: {}", WithCauses(&error));
                        Vec::new()
                    }
                    Err(_) => Vec::new(),
                };
                let answer = ResolverAnswer {
                    id,
                    message,
                    ..ResolverAnswer::default()
                };
                let _ = sender.send(answer).await;
                drop(place);
            });
        }
    };
    let tell = async {
        while let Some(answer) = done.recv().await {
            write_frame(&mut answers, &answer).await?;
        }
        Ok(())
    };
    tokio::select! {
        ended = ask => ended,
        ended = tell => ended,
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum PutError {
    #[error(
        "the question or answer has {0} bytes, which is more than {MAX_RESOLVER_MESSAGE_BYTES}"
    )]
    TooLong(usize),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error("the socket failed")]
    Socket(#[from] io::Error),
}

/// Puts a question to the resolver.
async fn put(query: ResolverQuery, namespace: Arc<Namespace>) -> Result<Vec<u8>, PutError> {
    let ResolverQuery { message, tcp, .. } = query;
    if message.len() > MAX_RESOLVER_MESSAGE_BYTES {
        return Err(PutError::TooLong(message.len()));
    }
    let to = (RESOLVER, RESOLVER_PORT).into();
    // Entering a namespace takes a thread of its own.
    if tcp {
        let stream = tokio::task::spawn_blocking(move || namespace.tcp_connection(to)).await;
        let stream = TcpStream::from_std(stream.map_err(io::Error::other)??)?;
        return by_tcp(stream, &message).await;
    }
    let socket = tokio::task::spawn_blocking(move || namespace.udp_socket(to)).await;
    let socket = UdpSocket::from_std(socket.map_err(io::Error::other)??)?;
    socket.send(&message).await?;
    let mut answer = vec![0; MAX_RESOLVER_MESSAGE_BYTES];
    let len = socket.recv(&mut answer).await?;
    answer.truncate(len);
    Ok(answer)
}

/// RFC 1035, 4.2.2: a message is behind its length.
async fn by_tcp(mut stream: TcpStream, message: &[u8]) -> Result<Vec<u8>, PutError> {
    let too_long = |_| PutError::TooLong(message.len());
    stream
        .write_u16(u16::try_from(message.len()).map_err(too_long)?)
        .await?;
    stream.write_all(message).await?;
    let len = usize::from(stream.read_u16().await?);
    if len > MAX_RESOLVER_MESSAGE_BYTES {
        return Err(PutError::TooLong(len));
    }
    let mut answer = vec![0; len];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A resolver that answers what it is asked, in a namespace of its own where port 53 is free to be had.
    fn resolver() -> Arc<Namespace> {
        let namespace = Arc::new(Namespace::make_unnamed().unwrap());
        let mut sockets = None;
        namespace
            .enter(|| {
                let at = (RESOLVER, RESOLVER_PORT);
                let udp = std::net::UdpSocket::bind(at).unwrap();
                sockets = Some((udp, std::net::TcpListener::bind(at).unwrap()));
                Ok(())
            })
            .unwrap();
        let (udp, tcp) = sockets.unwrap();
        std::thread::spawn(move || {
            let mut question = [0; 64];
            let (len, from) = udp.recv_from(&mut question).unwrap();
            let answer = [b"udp:", &question[..len]].concat();
            udp.send_to(&answer, from).unwrap();
        });
        std::thread::spawn(move || {
            use std::io::{Read as _, Write as _};
            let (mut peer, _) = tcp.accept().unwrap();
            let mut question = [0; 4];
            peer.read_exact(&mut question).unwrap();
            assert_eq!(&question, b"\0\x02ab");
            peer.write_all(b"\0\x06tcp:ab").unwrap();
        });
        namespace
    }

    #[tokio::test]
    async fn questions_are_put_to_the_resolver_as_they_came() {
        let (ours, guest) = tokio::io::duplex(4096);
        let (reader, writer) = tokio::io::split(ours);
        let serving = tokio::spawn(serve(reader, writer, resolver()));
        let (mut from_host, mut to_host) = tokio::io::split(guest);
        for (id, tcp, wanted) in [(7, false, "udp:ab"), (8, true, "tcp:ab")] {
            let query = ResolverQuery {
                id,
                tcp,
                message: b"ab".to_vec(),
                ..ResolverQuery::default()
            };
            write_frame(&mut to_host, &query).await.unwrap();
            let answer: ResolverAnswer = read_frame(&mut from_host).await.unwrap();
            assert_eq!(
                (answer.id, answer.message.as_slice()),
                (id, wanted.as_bytes())
            );
        }
        // Nobody listens for TCP any more: that is an answer too.
        let query = ResolverQuery {
            id: 9,
            tcp: true,
            ..ResolverQuery::default()
        };
        write_frame(&mut to_host, &query).await.unwrap();
        let answer: ResolverAnswer = read_frame(&mut from_host).await.unwrap();
        assert_eq!((answer.id, answer.message.len()), (9, 0));
        drop((from_host, to_host));
        assert!(matches!(serving.await.unwrap(), Err(FrameError::Closed)));
    }

    #[tokio::test]
    async fn question_that_is_never_answered_holds_up_no_other() {
        let namespace = Arc::new(Namespace::make_unnamed().unwrap());
        let mut socket = None;
        namespace
            .enter(|| {
                socket = Some(std::net::UdpSocket::bind((RESOLVER, RESOLVER_PORT)).unwrap());
                Ok(())
            })
            .unwrap();
        let udp = socket.unwrap();
        std::thread::spawn(move || {
            let mut question = [0; 8];
            for _ in 0..3 {
                let (len, from) = udp.recv_from(&mut question).unwrap();
                if question[..len] != *b"lost" {
                    udp.send_to(&question[..len], from).unwrap();
                }
            }
        });
        let (ours, guest) = tokio::io::duplex(4096);
        let (reader, writer) = tokio::io::split(ours);
        let serving = tokio::spawn(serve(reader, writer, namespace));
        let (mut from_host, mut to_host) = tokio::io::split(guest);
        for (id, message) in [(1, "lost"), (2, "A"), (3, "AAAA")] {
            let query = ResolverQuery {
                id,
                message: message.into(),
                ..ResolverQuery::default()
            };
            write_frame(&mut to_host, &query).await.unwrap();
        }
        let mut answers = Vec::new();
        for _ in 0..2 {
            let answer: ResolverAnswer = read_frame(&mut from_host).await.unwrap();
            answers.push((answer.id, answer.message));
        }
        answers.sort();
        assert_eq!(answers, [(2, b"A".to_vec()), (3, b"AAAA".to_vec())]);
        serving.abort();
    }

    #[tokio::test]
    async fn question_that_is_too_long_is_not_put() {
        let namespace = Arc::new(Namespace::make_unnamed().unwrap());
        let query = ResolverQuery {
            message: vec![0; MAX_RESOLVER_MESSAGE_BYTES + 1],
            ..ResolverQuery::default()
        };
        assert!(matches!(
            put(query, namespace).await,
            Err(PutError::TooLong(_))
        ));
    }
}
