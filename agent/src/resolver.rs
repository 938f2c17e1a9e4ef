//! The guest's end of the resolver that Docker's engine has at `127.0.0.11` of the pod's network namespace on the host.
//!
//! ```text
//! container ── 127.0.0.11:53 ──> agent ── stream ──> shim ── socket in the namespace ──> engine
//! ```
//!
//! What is asked at that address and port, by UDP or TCP, is led to sockets of the agent's on other ports of the address, as the
//! engine does it on the host: port 53 itself stays free for a container that is a name server. Questions go to the host as
//! they are, and so do answers.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sandbox_netlink::{NetlinkError, Redirect};
use sandbox_protocol::agent::{ResolverAnswer, ResolverQuery};
use sandbox_protocol::frame::{FrameError, read_frame, write_frame};
use sandbox_protocol::limits::{MAX_RESOLVER_MESSAGE_BYTES, MAX_RESOLVER_QUERIES};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

use crate::stdio::Connection;

/// Where a container asks.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
const PORT: u16 = 53;
/// The name of the rules' table.
const TABLE: &str = "sandbox-resolver";
/// How many TCP connections there are at the same time.
const MAX_CONNECTIONS: usize = 64;
/// How long a TCP connection may say nothing (RFC 7766, 6.2.3).
const IDLE: Duration = Duration::from_secs(30);
/// How long to wait after a connection could not be accepted, which is for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Why the resolver cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResolverError {
    /// The kernel gives no sockets for it.
    #[error("cannot listen at {ADDRESS}")]
    Listen(#[from] io::Error),
    /// The kernel does not lead questions to them.
    #[error(transparent)]
    Redirect(#[from] NetlinkError),
}

/// Who waits for an answer.
#[derive(Debug)]
enum Asker {
    Udp(SocketAddr),
    Tcp(oneshot::Sender<Vec<u8>>),
}

/// Questions that have no answer yet, by their number.
#[derive(Debug, Clone, Default)]
struct Askers(Arc<Mutex<Open>>);

#[derive(Debug, Default)]
struct Open {
    askers: HashMap<u32, Asker>,
    next: u32,
}

impl Askers {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number for a question; none when there are too many.
    fn add(&self, asker: Asker) -> Option<u32> {
        let mut open = self.lock();
        if open.askers.len() >= MAX_RESOLVER_QUERIES {
            return None;
        }
        while open.askers.contains_key(&open.next) {
            open.next = open.next.wrapping_add(1);
        }
        let id = open.next;
        open.next = open.next.wrapping_add(1);
        open.askers.insert(id, asker);
        Some(id)
    }

    fn take(&self, id: u32) -> Option<Asker> {
        self.lock().askers.remove(&id)
    }
}

/// The sockets to which questions are led.
#[derive(Debug)]
pub(crate) struct Resolver {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Resolver {
    /// Makes them. From then on containers can ask.
    ///
    /// # Errors
    /// [`ResolverError`].
    pub(crate) async fn open() -> Result<Self, ResolverError> {
        let resolver = Self::listen().await?;
        Redirect {
            table: TABLE,
            address: ADDRESS,
            port: PORT,
            udp: resolver.udp.local_addr()?.port(),
            tcp: resolver.tcp.local_addr()?.port(),
        }
        .make()?;
        Ok(resolver)
    }

    async fn listen() -> io::Result<Self> {
        Ok(Self {
            udp: UdpSocket::bind((ADDRESS, 0)).await?,
            tcp: TcpListener::bind((ADDRESS, 0)).await?,
        })
    }

    /// Passes questions and answers on, until the host closes the connection.
    ///
    /// # Errors
    /// [`FrameError`] when the host says what is no answer.
    pub(crate) async fn serve(self, connection: impl Connection) -> Result<(), FrameError> {
        let (mut from_host, mut to_host) = tokio::io::split(connection);
        let askers = Askers::default();
        let (queries, mut queue) = mpsc::channel::<ResolverQuery>(MAX_RESOLVER_QUERIES);
        let Self { udp, tcp } = self;
        let send = async {
            while let Some(query) = queue.recv().await {
                write_frame(&mut to_host, &query).await?;
            }
            Ok(())
        };
        let answer = async {
            loop {
                let answer: ResolverAnswer = match read_frame(&mut from_host).await {
                    Err(FrameError::Closed) => return Ok(()),
                    other => other?,
                };
                match askers.take(answer.id) {
                    // Without an answer it asks again, or gives up, by itself.
                    Some(Asker::Udp(_)) if answer.message.is_empty() => {}
                    Some(Asker::Udp(peer)) => {
                        let _ = udp.send_to(&answer.message, peer).await;
                    }
                    Some(Asker::Tcp(asker)) => {
                        let _ = asker.send(answer.message);
                    }
                    None => {}
                }
            }
        };
        tokio::select! {
            ended = send => ended,
            ended = answer => ended,
            () = take_datagrams(&udp, &askers, &queries) => Ok(()),
            () = take_connections(&tcp, &askers, &queries) => Ok(()),
        }
    }
}

/// Takes questions by UDP. One that there is no room for is lost, as any datagram may be.
async fn take_datagrams(udp: &UdpSocket, askers: &Askers, queries: &mpsc::Sender<ResolverQuery>) {
    let mut buffer = vec![0; MAX_RESOLVER_MESSAGE_BYTES];
    loop {
        let (len, peer) = match udp.recv_from(&mut buffer).await {
            Ok(received) => received,
            // That an earlier answer reached nobody.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => {
                crate::log!("questions to the resolver are not received: {error}");
                return;
            }
        };
        let Some(id) = askers.add(Asker::Udp(peer)) else {
            continue;
        };
        let query = ResolverQuery {
            id,
            message: buffer.get(..len).unwrap_or_default().to_vec(),
            ..ResolverQuery::default()
        };
        if queries.send(query).await.is_err() {
            return;
        }
    }
}

async fn take_connections(
    tcp: &TcpListener,
    askers: &Askers,
    queries: &mpsc::Sender<ResolverQuery>,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let peer = match tcp.accept().await {
            Ok((peer, _)) => peer,
            Err(_) => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        // Dropped, it is closed.
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            continue;
        };
        let (askers, queries) = (askers.clone(), queries.clone());
        connections.spawn(async move {
            // Who breaks off gets no answer.
            let _ = converse(peer, &askers, &queries).await;
            drop(place);
        });
    }
}

/// Takes questions by TCP, one after the other: each message behind its length (RFC 1035, 4.2.2).
async fn converse(
    mut peer: TcpStream,
    askers: &Askers,
    queries: &mpsc::Sender<ResolverQuery>,
) -> io::Result<()> {
    loop {
        let len = tokio::time::timeout(IDLE, peer.read_u16()).await??;
        if usize::from(len) > MAX_RESOLVER_MESSAGE_BYTES {
            return Ok(());
        }
        let mut message = vec![0; len.into()];
        tokio::time::timeout(IDLE, peer.read_exact(&mut message)).await??;
        let (sender, answer) = oneshot::channel();
        let Some(id) = askers.add(Asker::Tcp(sender)) else {
            return Ok(());
        };
        let query = ResolverQuery {
            id,
            tcp: true,
            message,
            ..ResolverQuery::default()
        };
        if queries.send(query).await.is_err() {
            return Ok(());
        }
        let message = answer.await.unwrap_or_default();
        let Ok(len @ 1..) = u16::try_from(message.len()) else {
            return Ok(());
        };
        peer.write_u16(len).await?;
        peer.write_all(&message).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn questions_by_udp_and_tcp_get_their_own_answers() {
        let resolver = Resolver::listen().await.unwrap();
        let udp_address = resolver.udp.local_addr().unwrap();
        let tcp_address = resolver.tcp.local_addr().unwrap();
        let (ours, mut host) = tokio::io::duplex(4096);
        let serving = tokio::spawn(resolver.serve(ours));

        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        udp.connect(udp_address).await.unwrap();
        udp.send(b"by udp").await.unwrap();
        let first: ResolverQuery = read_frame(&mut host).await.unwrap();
        assert_eq!(
            (first.message.as_slice(), first.tcp),
            (&b"by udp"[..], false)
        );
        let mut tcp = TcpStream::connect(tcp_address).await.unwrap();
        tcp.write_all(b"\0\x06by tcp").await.unwrap();
        let second: ResolverQuery = read_frame(&mut host).await.unwrap();
        assert_eq!(
            (second.message.as_slice(), second.tcp),
            (&b"by tcp"[..], true)
        );
        assert_ne!(first.id, second.id);

        // In the other order, after one that nobody asked for.
        for (id, message) in [
            (77, "nobody's"),
            (second.id, "to tcp"),
            (first.id, "to udp"),
        ] {
            let answer = ResolverAnswer {
                id,
                message: message.as_bytes().to_vec(),
                ..ResolverAnswer::default()
            };
            write_frame(&mut host, &answer).await.unwrap();
        }
        let mut said = [0; 8];
        tcp.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"\0\x06to tcp");
        let len = udp.recv(&mut said).await.unwrap();
        assert_eq!(&said[..len], b"to udp");

        // A question that is not answered ends its connection.
        tcp.write_all(b"\0\x01?").await.unwrap();
        let third: ResolverQuery = read_frame(&mut host).await.unwrap();
        let answer = ResolverAnswer {
            id: third.id,
            ..ResolverAnswer::default()
        };
        write_frame(&mut host, &answer).await.unwrap();
        assert_eq!(tcp.read(&mut said).await.unwrap(), 0);
        drop(host);
        serving.await.unwrap().unwrap();
    }

    /// As libraries ask for a name's addresses of both kinds, and again where an answer is late.
    #[tokio::test]
    async fn questions_of_one_socket_are_answered_each_and_in_any_order() {
        let resolver = Resolver::listen().await.unwrap();
        let address = resolver.udp.local_addr().unwrap();
        let (ours, mut host) = tokio::io::duplex(4096);
        let serving = tokio::spawn(resolver.serve(ours));
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        udp.connect(address).await.unwrap();
        let asked: [&[u8]; 4] = [b"A", b"AAAA", b"A", b"lost"];
        for question in asked {
            udp.send(question).await.unwrap();
        }
        let mut queries = Vec::new();
        for _ in asked {
            let query: ResolverQuery = read_frame(&mut host).await.unwrap();
            queries.push(query);
        }
        let came: Vec<&[u8]> = queries
            .iter()
            .map(|query| query.message.as_slice())
            .collect();
        assert_eq!(came, asked);
        for query in queries.iter().rev() {
            let message = match query.message.as_slice() {
                b"lost" => Vec::new(),
                question => question.to_vec(),
            };
            let answer = ResolverAnswer {
                id: query.id,
                message,
                ..ResolverAnswer::default()
            };
            write_frame(&mut host, &answer).await.unwrap();
        }
        for wanted in [&b"A"[..], b"AAAA", b"A"] {
            let mut said = [0; 8];
            let len = udp.recv(&mut said).await.unwrap();
            assert_eq!(&said[..len], wanted);
        }
        drop(host);
        serving.await.unwrap().unwrap();
    }

    #[test]
    fn questions_without_answer_are_bounded() {
        let askers = Askers::default();
        let peer = (Ipv4Addr::LOCALHOST, 1).into();
        for _ in 0..MAX_RESOLVER_QUERIES {
            assert!(askers.add(Asker::Udp(peer)).is_some());
        }
        assert!(askers.add(Asker::Udp(peer)).is_none());
        assert!(askers.take(0).is_some());
        assert!(askers.add(Asker::Udp(peer)).is_some_and(|id| id != 0));
    }
}
