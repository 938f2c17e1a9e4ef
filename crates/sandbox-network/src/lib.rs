//! The pod's network on the host.
//!
//! A pod's network namespace is made and filled by whoever calls the runtime (CNI, Docker). The virtual machine takes the
//! place of the processes that would live in it: each interface is joined to a tap, and what the interface is (hardware
//! address, MTU, addresses, routes, neighbours) the guest's own device becomes.
//!
//! ```text
//! pod's network namespace                                    guest
//!   eth0 ── ingress ── redirect ──> sbtap0 ── queue ──> virtio-net: eth0
//!        <── redirect ── ingress ──
//! ```
//!
//! The namespace's own stack sees none of the frames any more. Redirecting is done by `u32` filters with the `mirred`
//! action (tc-u32(8), tc-mirred(8)), which every kernel with traffic control has. Where the rate is limited, both ends of
//! the way, `eth0` and the tap, have a token bucket filter (tc-tbf(8)) for what goes out through them.
//!
//! Nothing here knows of virtual machines. [`Joined`] is what a machine's start needs; what must be undone later, by
//! another process when need be, is in a [`JoinRecord`].

mod bpf;
pub mod cni;
mod join;
mod loopback;
mod namespace;
mod resolver;
mod tap;
mod tc;

use std::io;
use std::path::PathBuf;

pub use join::{Interface, JoinError, JoinRecord, Joined, Nic, NicOptions, undo};
pub use loopback::Loopback;
pub use namespace::Namespace;
pub use resolver::{RESOLVER, RESOLVER_PORT};
pub use sandbox_netlink::{Address, Neighbour, NetlinkError, Route};

/// Why a pod's network cannot be joined or left.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The namespace cannot be opened.
    #[error("cannot open the network namespace {}", path.display())]
    Open {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The path is something else.
    #[error("{} is not a network namespace", path.display())]
    NotANamespace {
        /// The path.
        path: PathBuf,
    },
    /// The namespace cannot be made, or not be removed.
    #[error("cannot {action} the network namespace {}", path.display())]
    Make {
        /// What was tried.
        action: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The namespace cannot be entered.
    #[error("cannot enter the network namespace {}", path.display())]
    Enter {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No tap.
    #[error("cannot {action}; is the tun module there?")]
    Tap {
        /// What was tried.
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The interface is used in another way.
    #[error(
        "interface {name} has an ingress queueing discipline already: another sandbox joined it, or it is shaped; give the pod an interface of its own"
    )]
    Occupied {
        /// Its name.
        name: String,
    },
    /// The interface is shaped in another way.
    #[error(
        "interface {name} has a root queueing discipline already, so that it cannot be limited; remove that, or `network_bytes_per_second`"
    )]
    Shaped {
        /// Its name.
        name: String,
    },
    /// The interface cannot be limited.
    #[error("an interface cannot be limited; has the kernel NET_SCH_TBF (the module sch_tbf)?")]
    Limit(#[source] NetlinkError),
    /// More interfaces than a machine gets.
    #[error(
        "the network namespace has {count} interfaces; a sandbox takes {}",
        join::MAX_INTERFACES
    )]
    TooManyInterfaces {
        /// How many.
        count: usize,
    },
    /// Connections to the namespace's loopback addresses cannot be taken over.
    #[error("cannot {action}; has the kernel BPF_SYSCALL, and is it 5.9 or later?")]
    Loopback {
        /// What was tried.
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What listens in it cannot be found out.
    #[error("cannot read what listens in the network namespace")]
    Sockets {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program in it cannot be spoken to.
    #[error("cannot speak to {to} in the network namespace")]
    Socket {
        /// Whom.
        to: std::net::SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No random numbers for a hardware address.
    #[error("cannot make a hardware address")]
    Random(#[source] io::Error),
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// The addresses of the calling thread's network namespace.
///
/// # Errors
/// [`NetlinkError`].
pub fn host_addresses() -> Result<Vec<Address>, NetlinkError> {
    let addresses = sandbox_netlink::Netlink::open()?.addresses()?;
    Ok(addresses.into_iter().map(|(_, address)| address).collect())
}

/// Removes a network device, such as a bridge, of the calling thread's network namespace; that there is none is no error.
///
/// # Errors
/// [`NetlinkError`].
pub fn remove_device(name: &str) -> Result<(), NetlinkError> {
    let mut netlink = sandbox_netlink::Netlink::open()?;
    if netlink.links()?.iter().all(|link| link.name != name) {
        return Ok(());
    }
    netlink.remove_link(name)
}
