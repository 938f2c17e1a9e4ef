//! Joining a pod's interfaces to taps, and undoing it.

#[cfg(test)]
mod tests;

use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::rand::{GetRandomFlags, getrandom};
use sandbox_netlink::{Address, Link, LinkChange, Neighbour, Netlink, Route};
use sandbox_types::MacAddress;
use serde::{Deserialize, Serialize};

use crate::namespace::NamespaceId;
use crate::{Namespace, NetworkError, tap, tc};

/// The most interfaces of one pod.
pub(crate) const MAX_INTERFACES: usize = 8;
/// Kinds of interfaces that are a pod's even without an address.
const KINDS: [&str; 5] = ["veth", "macvlan", "ipvlan", "vlan", "netkit"];

/// What an interface of the pod is, and the guest's is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address.
    pub mac: MacAddress,
    /// The largest packet, in bytes.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: Vec<Address>,
    /// Its routes; those that others need first.
    pub routes: Vec<Route>,
    /// Its static neighbours.
    pub neighbours: Vec<Neighbour>,
}

/// A network device for the machine.
#[derive(Debug)]
pub struct Nic {
    /// The tap's queues.
    pub queues: Vec<OwnedFd>,
    /// The hardware address that the device has at first; the guest knows it by this.
    pub mac: MacAddress,
    /// The largest MTU that it may have.
    pub max_mtu: u16,
    /// What it is joined to; `None` while the namespace is empty.
    pub interface: Option<Interface>,
    tap: String,
}

/// What the network devices of a machine are to be like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NicOptions {
    /// Queues of each tap; 1 or more.
    pub queues: usize,
    /// What each may receive, and what it may send, in a second.
    pub bytes_per_second: Option<NonZeroU64>,
}

/// What was done to a namespace, so that it can be undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRecord {
    path: PathBuf,
    id: NamespaceId,
    interfaces: Vec<String>,
    /// Whether what goes out through them is limited.
    #[serde(default)]
    limited: bool,
}

/// A pod's network, joined.
#[derive(Debug)]
pub struct Joined {
    namespace: Namespace,
    nics: Vec<Nic>,
    options: NicOptions,
    record: JoinRecord,
}

/// An interface with the rest of what the kernel says of it.
struct Found {
    link: Link,
    interface: Interface,
}

impl Joined {
    /// Makes a tap for each interface of the namespace and joins them. One that has no interface yet gets a tap that waits
    /// for one ([`Self::look_again`]). `record` is told of each interface as soon as something of it is to be undone.
    ///
    /// # Errors
    /// [`NetworkError`]; what was done is undone.
    pub fn join<E>(
        namespace: Namespace,
        options: NicOptions,
        mut record: impl FnMut(&JoinRecord) -> Result<(), E> + Send,
    ) -> Result<Self, JoinError<E>>
    where
        E: Send,
    {
        let id = namespace.id()?;
        let mut joined = Self {
            record: JoinRecord {
                path: namespace.path().to_owned(),
                id,
                interfaces: Vec::new(),
                limited: options.bytes_per_second.is_some(),
            },
            options,
            namespace,
            nics: Vec::new(),
        };
        match joined.join_all(&mut record) {
            Ok(()) => Ok(joined),
            Err(error) => {
                // The first error says more than that of the clean-up, which `undo` does again.
                let _ = undo(&joined.record);
                Err(error)
            }
        }
    }

    fn join_all<E: Send>(
        &mut self,
        record: &mut (impl FnMut(&JoinRecord) -> Result<(), E> + Send),
    ) -> Result<(), JoinError<E>> {
        let Self {
            namespace,
            nics,
            options,
            record: done,
        } = self;
        let mut refused = None;
        let result = namespace.enter(|| {
            let mut netlink = Netlink::open()?;
            let found = look(&mut netlink)?;
            if found.is_empty() {
                nics.push(reserve(options.queues)?);
                return Ok(());
            }
            for Found { link, interface } in found {
                let (queues, tap) = tap::make(options.queues)?;
                refused = connect(&mut netlink, &link, (&tap, options), done, record)?;
                if refused.is_some() {
                    return Ok(());
                }
                nics.push(Nic {
                    queues,
                    mac: interface.mac,
                    max_mtu: u16::try_from(interface.mtu).unwrap_or(u16::MAX),
                    interface: Some(interface),
                    tap,
                });
            }
            Ok(())
        });
        match refused {
            Some(error) => Err(JoinError::Record(error)),
            None => Ok(result?),
        }
    }

    /// Joins what has appeared in a namespace that was empty. Says whether anything did.
    ///
    /// # Errors
    /// [`NetworkError`]; what was done is undone.
    pub fn look_again<E: Send>(
        &mut self,
        mut record: impl FnMut(&JoinRecord) -> Result<(), E> + Send,
    ) -> Result<bool, JoinError<E>> {
        let Self {
            namespace,
            nics,
            options,
            record: done,
        } = self;
        let [nic] = nics.as_mut_slice() else {
            return Ok(false);
        };
        if nic.interface.is_some() {
            return Ok(false);
        }
        let mut refused = None;
        let result = namespace.enter(|| {
            let mut netlink = Netlink::open()?;
            let mut found = look(&mut netlink)?;
            let count = found.len();
            let Some(Found { link, interface }) = found.pop() else {
                return Ok(false);
            };
            if count > 1 {
                // There is one device for them, and none can be added.
                return Err(NetworkError::TooManyInterfaces { count });
            }
            let tap = (nic.tap.as_str(), &*options);
            refused = connect(&mut netlink, &link, tap, done, &mut record)?;
            if refused.is_some() {
                return Ok(false);
            }
            nic.interface = Some(interface);
            Ok(true)
        });
        if let Some(error) = refused {
            return Err(JoinError::Record(error));
        }
        if result.is_err() {
            let _ = undo(done);
            done.interfaces.clear();
        }
        Ok(result?)
    }

    /// The devices for the machine.
    #[must_use]
    pub fn nics(&self) -> &[Nic] {
        &self.nics
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Whether nothing is in the namespace yet, so that the one device waits for it.
    #[must_use]
    pub fn waits(&self) -> bool {
        matches!(self.nics.as_slice(), [nic] if nic.interface.is_none())
    }

    /// Undoes everything.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn leave(self) -> Result<(), NetworkError> {
        let Self { nics, record, .. } = self;
        drop(nics);
        undo(&record)
    }
}

/// Why a pod's network was not joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError<E> {
    /// It cannot be.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// What is to be done could not be recorded.
    #[error("what is done to the network namespace cannot be recorded")]
    Record(E),
}

impl Namespace {
    /// How many network devices a machine needs for it: one for each interface, and one for an interface that may
    /// yet come.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn devices(&self) -> Result<usize, NetworkError> {
        let found = self.enter(|| look(&mut Netlink::open()?))?;
        Ok(found.len().max(1))
    }
}

/// The interfaces that are the pod's.
fn look(netlink: &mut Netlink) -> Result<Vec<Found>, NetworkError> {
    let addresses = netlink.addresses()?;
    let routes = netlink.routes()?;
    let neighbours = netlink.neighbours()?;
    let mut found = Vec::new();
    for link in netlink.links()? {
        let of = |index: u32| index == link.index;
        let addresses: Vec<Address> = addresses
            .iter()
            .filter(|(index, _)| of(*index))
            .map(|(_, address)| *address)
            .collect();
        let is_the_pods = link.is_ethernet
            && !link.is_loopback
            && !link.name.starts_with(tap::PREFIX)
            && (!addresses.is_empty()
                || link
                    .kind
                    .as_deref()
                    .is_some_and(|kind| KINDS.contains(&kind)));
        let Some(mac) = link.mac.filter(|_| is_the_pods) else {
            continue;
        };
        let interface = Interface {
            name: link.name.clone(),
            mac,
            mtu: link.mtu,
            addresses,
            routes: routes
                .iter()
                .filter(|(index, _)| of(*index))
                .map(|(_, route)| *route)
                .collect(),
            neighbours: neighbours
                .iter()
                .filter(|(index, _)| of(*index))
                .map(|(_, neighbour)| *neighbour)
                .collect(),
        };
        found.push(Found { link, interface });
    }
    if found.len() > MAX_INTERFACES {
        return Err(NetworkError::TooManyInterfaces { count: found.len() });
    }
    Ok(found)
}

/// A tap that is joined to nothing.
fn reserve(queues: usize) -> Result<Nic, NetworkError> {
    let (queues, tap) = tap::make(queues)?;
    let mut bytes = [0; 6];
    getrandom(&mut bytes, GetRandomFlags::empty())
        .map_err(|errno| NetworkError::Random(errno.into()))?;
    Ok(Nic {
        queues,
        mac: MacAddress::local(bytes),
        max_mtu: u16::MAX,
        interface: None,
        tap,
    })
}

/// Joins an interface and a tap. The interface is put on record, of which `record` is told, when its ingress discipline is ours and before
/// anything else of it is changed: on record before, another's would be undone where there is one. So who is killed in between leaves
/// an empty one. What `record` said if it refused; then the interface is as it was.
fn connect<E>(
    netlink: &mut Netlink,
    link: &Link,
    (tap, options): (&str, &NicOptions),
    done: &mut JoinRecord,
    record: &mut impl FnMut(&JoinRecord) -> Result<(), E>,
) -> Result<Option<E>, NetworkError> {
    let tap = find(netlink, tap)?;
    // Before it is up: then it gets what is the kernel's default.
    match options.bytes_per_second {
        Some(rate) => tc::limit(netlink, &tap, rate)?,
        // A kernel that refuses it has more to remember, and nothing else.
        None if options.queues > 1 => drop(tc::without_queue(netlink, &tap)),
        None => {}
    }
    let change = LinkChange {
        mtu: Some(link.mtu),
        up: Some(true),
        // It is no place of the namespace's own, and says nothing by itself.
        without_link_local: true,
        ..LinkChange::default()
    };
    netlink.change_link(tap.index, &change)?;
    tc::add_ingress(netlink, link)?;
    done.interfaces.push(link.name.clone());
    if let Err(error) = record(done) {
        done.interfaces.pop();
        tc::remove_ingress(netlink, link)?;
        return Ok(Some(error));
    }
    tc::add_ingress(netlink, &tap)?;
    tc::redirect(netlink, link, &tap)?;
    tc::redirect(netlink, &tap, link)?;
    if let Some(rate) = options.bytes_per_second {
        tc::limit(netlink, link, rate)?;
    }
    Ok(None)
}

fn find(netlink: &mut Netlink, name: &str) -> Result<Link, NetworkError> {
    let links = netlink.links()?;
    links
        .into_iter()
        .find(|link| link.name == name)
        .ok_or_else(|| NetworkError::Tap {
            action: "find the tap that was made",
            source: std::io::ErrorKind::NotFound.into(),
        })
}

/// Undoes what is on record: in another process, too, and when it was done in part or is undone already. A namespace that
/// is gone needs no undoing.
///
/// # Errors
/// [`NetworkError`] is the first; everything else is undone all the same.
pub fn undo(record: &JoinRecord) -> Result<(), NetworkError> {
    let Some(namespace) = still_there(&record.path, record.id) else {
        return Ok(());
    };
    namespace.enter(|| {
        let mut netlink = Netlink::open()?;
        let mut first = None;
        for link in netlink.links()? {
            // A tap goes with its last descriptor, and its filter with it.
            if !record.interfaces.contains(&link.name) {
                continue;
            }
            let mut steps = vec![tc::remove_ingress(&mut netlink, &link)];
            if record.limited {
                steps.push(tc::remove_limit(&mut netlink, &link));
            }
            for error in steps.into_iter().filter_map(Result::err) {
                first.get_or_insert(error);
            }
        }
        first.map_or(Ok(()), |error| Err(error.into()))
    })
}

fn still_there(path: &Path, id: NamespaceId) -> Option<Namespace> {
    let namespace = Namespace::open(path).ok()?;
    (namespace.id().ok()? == id).then_some(namespace)
}
