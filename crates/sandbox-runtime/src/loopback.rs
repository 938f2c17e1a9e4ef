//! The pod's loopback interface on the host: what connects to it there arrives in the guest
//! ([`sandbox_network::Loopback`]).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sandbox_network::{Loopback, Namespace, NetworkError};
use sandbox_types::WithCauses;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::vsock;

/// How many connections are there at most at the same time; another one is refused.
const MAX_CONNECTIONS: usize = 256;

/// How long to wait after a connection could not be accepted, which is for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Connections from the host to the pod's loopback interface, served until this is dropped.
#[derive(Debug)]
pub(crate) struct LoopbackService {
    /// Aborted when it is dropped, with the connections that are theirs.
    _listeners: JoinSet<()>,
    /// What leads the connections here.
    _link: std::os::fd::OwnedFd,
}

impl LoopbackService {
    /// Serves the loopback interface of a network namespace by the guest behind `vsock`.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub(crate) fn start(namespace: &Namespace, vsock: &Path) -> Result<Self, NetworkError> {
        let Loopback { listeners, link } = Loopback::take(namespace)?;
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut tasks = JoinSet::new();
        for listener in listeners {
            let listener =
                TcpListener::from_std(listener).map_err(|source| NetworkError::Loopback {
                    action: "wait for connections",
                    source,
                })?;
            tasks.spawn(serve(listener, Arc::clone(&places), vsock.to_owned()));
        }
        Ok(Self {
            _listeners: tasks,
            _link: link,
        })
    }
}

async fn serve(listener: TcpListener, places: Arc<Semaphore>, vsock: PathBuf) {
    let mut connections = JoinSet::new();
    loop {
        let peer = match listener.accept().await {
            Ok((peer, _)) => peer,
            Err(error) => {
                tracing::debug!(%error, "a connection to the pod's loopback interface is not accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // Those that have ended.
        while connections.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            refuse(&peer);
            continue;
        };
        let vsock = vsock.clone();
        connections.spawn(async move {
            if let Err(error) = forward(peer, &vsock).await {
                tracing::debug!(error = %crate::console::printable(WithCauses(&error).to_string().as_bytes(), 512), "a connection to the pod's loopback interface failed");
            }
            drop(place);
        });
    }
}

/// Carries bytes both ways, to the end of each.
async fn forward(mut peer: TcpStream, vsock: &Path) -> io::Result<()> {
    // The listener takes all ports; this is the one that was asked for.
    let address = peer.local_addr()?;
    let mut guest = match vsock::open_loopback(vsock, address).await {
        Ok(guest) => guest,
        Err(error) => {
            refuse(&peer);
            return Err(io::Error::other(error));
        }
    };
    tokio::io::copy_bidirectional(&mut peer, &mut guest).await?;
    Ok(())
}

/// Lets a connection end as one does at whose port nobody listens: it is reset.
fn refuse(peer: &TcpStream) {
    // Otherwise it ends in the ordinary way.
    let _ = nix::sys::socket::setsockopt(
        peer,
        nix::sys::socket::sockopt::Linger,
        &nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        },
    );
}
