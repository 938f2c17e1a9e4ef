//! The stream port: each connection names a stream of a process, a port of the loopback interface, or the resolver on the
//! host, and becomes it.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use sandbox_protocol::agent::{StreamKind, StreamOpen, StreamOpened};
use sandbox_protocol::frame::{FrameError, read_frame, write_frame};
use sandbox_types::{ContainerId, WithCauses};
use tokio::net::TcpStream;

use crate::containers::{ContainerError, Containers};
use crate::resolver::{Resolver, ResolverError};
use crate::service::exec_id;
use crate::stdio::Connection;

/// How long a connection may take to say which stream it is.
const OPEN_LIMIT: Duration = Duration::from_secs(10);

/// Why a stream is not opened.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error("the process has no {kind:?}")]
    NotWanted { kind: StreamKind },
    #[error(transparent)]
    Closed(#[from] crate::stdio::StdinClosed),
    #[error("the stream's kind {number} is not known")]
    Kind { number: i32 },
    #[error(transparent)]
    Resolver(#[from] ResolverError),
    #[error("{number} is no port")]
    Port { number: u32 },
    #[error("cannot connect to {address}")]
    Connect {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
}

/// Serves one connection to its end.
pub(crate) async fn serve(mut connection: impl Connection, containers: Arc<Containers>) {
    let open = match tokio::time::timeout(OPEN_LIMIT, read_frame(&mut connection)).await {
        Ok(Ok(open)) => open,
        Ok(Err(error)) => {
            crate::log!("a stream connection was not opened: {}", WithCauses(&error));
            return;
        }
        Err(_) => {
            crate::log!("a stream connection was not opened within {OPEN_LIMIT:?}");
            return;
        }
    };
    if let Err(error) = run(connection, &open, &containers).await {
        crate::log!("a stream connection failed: {}", WithCauses(&error));
    }
}

async fn run(
    mut connection: impl Connection,
    open: &StreamOpen,
    containers: &Containers,
) -> Result<(), FrameError> {
    if open.kind.enum_value() == Ok(StreamKind::STREAM_KIND_RESOLVER) {
        return match Resolver::open().await {
            Ok(resolver) => {
                write_frame(&mut connection, &StreamOpened::new()).await?;
                resolver.serve(connection).await
            }
            Err(error) => refuse(connection, &error.into()).await,
        };
    }
    if open.kind.enum_value() == Ok(StreamKind::STREAM_KIND_LOOPBACK) {
        return match connect(open).await {
            Ok(mut peer) => {
                write_frame(&mut connection, &StreamOpened::new()).await?;
                // Each side's end goes on to the other; what else goes wrong ends both.
                let _ = tokio::io::copy_bidirectional(&mut connection, &mut peer).await;
                Ok(())
            }
            Err(error) => refuse(connection, &error).await,
        };
    }
    match find(open, containers) {
        Ok(Stream::Input(input)) => match input.attach() {
            Ok(hold) => {
                write_frame(&mut connection, &StreamOpened::new()).await?;
                input.copy_from(connection, hold).await;
                Ok(())
            }
            Err(error) => refuse(connection, &error.into()).await,
        },
        Ok(Stream::Output(output)) => {
            let superseded = output.attach();
            write_frame(&mut connection, &StreamOpened::new()).await?;
            output.copy_to(connection, superseded).await;
            Ok(())
        }
        Err(error) => refuse(connection, &error).await,
    }
}

async fn refuse(mut connection: impl Connection, error: &StreamError) -> Result<(), FrameError> {
    let opened = StreamOpened {
        error: WithCauses(error).to_string(),
        ..StreamOpened::default()
    };
    write_frame(&mut connection, &opened).await
}

/// Connects to a port of the loopback interface. The agent is in the pod's network namespace.
async fn connect(open: &StreamOpen) -> Result<TcpStream, StreamError> {
    let number = open.port;
    let port = u16::try_from(number).map_err(|_| StreamError::Port { number })?;
    let address: SocketAddr = if open.ipv6 {
        (Ipv6Addr::LOCALHOST, port).into()
    } else {
        (Ipv4Addr::LOCALHOST, port).into()
    };
    let failed = |source| StreamError::Connect { address, source };
    match tokio::time::timeout(OPEN_LIMIT, TcpStream::connect(address)).await {
        Ok(connected) => connected.map_err(failed),
        Err(_) => Err(failed(io::ErrorKind::TimedOut.into())),
    }
}

enum Stream {
    Input(Arc<crate::stdio::Input>),
    Output(Arc<crate::stdio::Output>),
}

fn find(open: &StreamOpen, containers: &Containers) -> Result<Stream, StreamError> {
    let id = ContainerId::new(open.container_id.as_str()).map_err(ContainerError::from)?;
    let exec = exec_id(&open.exec_id).map_err(ContainerError::from)?;
    let process = containers.process(&id, exec.as_ref())?;
    let streams = &process.streams;
    let number = open.kind.value();
    let kind = open.kind.enum_value();
    let stream = match kind {
        Ok(StreamKind::STREAM_KIND_STDIN) => streams.stdin.clone().map(Stream::Input),
        Ok(StreamKind::STREAM_KIND_STDOUT) => streams.stdout.clone().map(Stream::Output),
        Ok(StreamKind::STREAM_KIND_STDERR) => streams.stderr.clone().map(Stream::Output),
        Ok(
            StreamKind::STREAM_KIND_UNSPECIFIED
            | StreamKind::STREAM_KIND_LOOPBACK
            | StreamKind::STREAM_KIND_RESOLVER,
        )
        | Err(_) => {
            return Err(StreamError::Kind { number });
        }
    };
    stream.ok_or_else(|| StreamError::NotWanted {
        kind: kind.unwrap_or_default(),
    })
}
