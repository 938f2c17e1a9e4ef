//! The agent's life: listeners first, then the announcement, then service until the host wants the machine off.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt as _};
use sandbox_protocol::{AGENT_PORT, EVENT_PORT, STREAM_PORT, agent_ttrpc};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc};
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use crate::boot::{self, BootError};
use crate::containers::Containers;
use crate::events::Events;
use crate::guest;
use crate::page_reports;
use crate::reaper::Reaper;
use crate::service::AgentService;
use crate::stdio::Connection;
use crate::streams;

/// How long the last replies may take to leave.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Why the agent cannot serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// The guest did not come up.
    #[error("the guest cannot come up")]
    Boot(#[from] BootError),
    /// The event loop, a listener or the event connection.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: String,
        #[source]
        source: io::Error,
    },
    /// The ttrpc server.
    #[error("cannot serve ttrpc")]
    Ttrpc(#[from] ttrpc::Error),
    /// The machine goes on although it was to end.
    #[error("cannot power off")]
    PowerOff(#[source] io::Error),
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> ServeError {
    let what = what.into();
    move |source| ServeError::Io { what, source }
}

/// Serves until the host wants the machine off. With a folder, on Unix sockets and without a machine.
pub(crate) fn run(folder: Option<PathBuf>, started_ns: u64) -> Result<(), ServeError> {
    match &folder {
        None => boot::boot()?,
        Some(_) => boot::prepare_outside_guest()?,
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed("start the event loop"))?;
    let sockets = match &folder {
        None => Sockets::Vsock,
        Some(folder) => Sockets::Unix(folder.clone()),
    };
    runtime.block_on(serve(sockets, started_ns))?;
    match folder {
        None => Err(ServeError::PowerOff(guest::power_off())),
        Some(_) => Ok(()),
    }
}

async fn serve(sockets: Sockets, started_ns: u64) -> Result<(), ServeError> {
    let reaper = Reaper::start().map_err(failed("reap processes"))?;
    let calls = sockets.ttrpc_listener(AGENT_PORT)?;
    let mut connections = sockets.connections(STREAM_PORT)?;
    let host = sockets
        .connect(EVENT_PORT)
        .await
        .map_err(failed("connect to the host"))?;
    let (shutdown, mut shutdown_wanted) = mpsc::channel(1);
    let (events, queue) = Events::new();
    let containers = Arc::new(Containers::new(reaper, events));
    let starts = Arc::new(Notify::new());
    let service = AgentService {
        containers: containers.clone(),
        starts: Arc::clone(&starts),
        shutdown,
    };
    let mut server = Server::new()
        .add_listener(calls)
        .register_service(agent_ttrpc::create_agent(Arc::new(service)));
    server.start().await?;
    queue.announce(host, started_ns);
    // Without a machine the kernel is the host's.
    if sockets.is_of_guest() {
        tokio::spawn(async move { page_reports::follow(&starts).await });
    }
    loop {
        tokio::select! {
            connection = connections.next() => match connection {
                Some(Ok(connection)) => {
                    tokio::spawn(streams::serve(connection, containers.clone()));
                }
                Some(Err(error)) => crate::log!("a stream connection failed: {error}"),
                None => return Ok(()),
            },
            _ = shutdown_wanted.recv() => break,
        }
    }
    // Ends when every reply is written.
    if tokio::time::timeout(LAST_WORDS, server.shutdown())
        .await
        .is_err()
    {
        crate::log!("the last replies were not sent within {LAST_WORDS:?}");
    }
    Ok(())
}

/// Where the ports are.
#[derive(Debug)]
enum Sockets {
    Vsock,
    /// `<folder>/<port>`
    Unix(PathBuf),
}

fn at(folder: &Path, port: u32) -> PathBuf {
    folder.join(port.to_string())
}

impl Sockets {
    fn is_of_guest(&self) -> bool {
        matches!(self, Self::Vsock)
    }

    fn vsock_listener(port: u32) -> Result<VsockListener, ServeError> {
        VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))
            .map_err(failed(format!("listen on vsock port {port}")))
    }

    fn unix_listener(folder: &Path, port: u32) -> Result<UnixListener, ServeError> {
        let path = at(folder, port);
        UnixListener::bind(&path).map_err(failed(format!("listen on {}", path.display())))
    }

    fn ttrpc_listener(&self, port: u32) -> Result<Listener, ServeError> {
        Ok(match self {
            Self::Vsock => Listener::from(Self::vsock_listener(port)?),
            Self::Unix(folder) => Listener::from(Self::unix_listener(folder, port)?),
        })
    }

    fn connections(
        &self,
        port: u32,
    ) -> Result<BoxStream<'static, io::Result<Box<dyn Connection>>>, ServeError> {
        fn boxed<C: Connection + 'static>(connection: C) -> Box<dyn Connection> {
            Box::new(connection)
        }
        Ok(match self {
            Self::Vsock => futures::stream::unfold(Self::vsock_listener(port)?, async |listener| {
                let accepted = listener.accept().await;
                Some((accepted.map(|(connection, _)| boxed(connection)), listener))
            })
            .boxed(),
            Self::Unix(folder) => {
                futures::stream::unfold(Self::unix_listener(folder, port)?, async |listener| {
                    let accepted = listener.accept().await;
                    Some((accepted.map(|(connection, _)| boxed(connection)), listener))
                })
                .boxed()
            }
        })
    }

    async fn connect(&self, port: u32) -> io::Result<Box<dyn Connection>> {
        Ok(match self {
            Self::Vsock => {
                Box::new(VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, port)).await?)
            }
            Self::Unix(folder) => Box::new(UnixStream::connect(at(folder, port)).await?),
        })
    }
}
