//! The pod's network, between the namespace on the host and the agent in the guest.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use sandbox_network::NetworkError;
use sandbox_network::{Interface, JoinError, Joined, Namespace, Nic, NicOptions};
use sandbox_protocol::agent::{
    ConfigureNetworkRequest, NetworkAddress, NetworkInterface, NetworkNeighbour, NetworkRoute,
};

use crate::cleanup::{CleanupError, Record};

/// The network namespace of a pod on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodNetwork {
    /// Its caller has made it, at this path.
    At(PathBuf),
    /// One is to be made. The process that runs the guest is in it, by which the caller finds it, to fill it before the
    /// container is started.
    New,
}

impl PodNetwork {
    /// How many network devices a machine needs for it; none when it is the caller's own, which is not the pod's to take.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn devices(&self) -> Result<usize, NetworkError> {
        let Self::At(path) = self else {
            // For what will come.
            return Ok(1);
        };
        let namespace = Namespace::open(path)?;
        if namespace.is_ours()? {
            return Ok(0);
        }
        namespace.devices()
    }

    fn open(&self) -> Result<Namespace, NetworkError> {
        match self {
            Self::At(path) => Namespace::open(path),
            Self::New => Namespace::make_unnamed(),
        }
    }
}

/// The joined network of a sandbox, if it has one; shared by its handle and its supervisor.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharedNetwork {
    joined: Arc<Mutex<Option<Joined>>>,
}

impl SharedNetwork {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Option<Joined>> {
        self.joined.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins a pod's namespace, with such devices for its interfaces. What will have to be undone is on record in the sandbox's
    /// folder `dir` first.
    pub(crate) fn join(
        &self,
        network: &PodNetwork,
        options: NicOptions,
        dir: &Path,
    ) -> Result<(), JoinError<CleanupError>> {
        let namespace = network.open()?;
        let joined = Joined::join(namespace, options, |record| {
            Record::set_network(dir, record)
        })?;
        *self.lock() = Some(joined);
        Ok(())
    }

    /// What the agent is to do, if anything.
    pub(crate) fn configuration(&self) -> Option<ConfigureNetworkRequest> {
        self.lock().as_ref().and_then(configuration)
    }

    /// As [`Self::configuration`], when something has appeared in a namespace that was empty. When nothing has in one that
    /// was `made` for the sandbox, the device that waited for it is not needed.
    pub(crate) fn look_again(
        &self,
        dir: &Path,
        made: bool,
    ) -> Result<Option<ConfigureNetworkRequest>, JoinError<CleanupError>> {
        let mut network = self.lock();
        let Some(joined) = network.as_mut() else {
            return Ok(None);
        };
        if !joined.waits() {
            return Ok(None);
        }
        let changed = joined.look_again(|record| Record::set_network(dir, record))?;
        Ok(match (changed, made) {
            (true, _) => configuration(joined),
            (false, true) => Some(ConfigureNetworkRequest {
                unused_devices: joined.nics().iter().map(device).collect(),
                ..Default::default()
            }),
            (false, false) => None,
        })
    }

    /// One more descriptor of the namespace, if there is one.
    pub(crate) fn namespace(&self) -> Result<Option<Namespace>, NetworkError> {
        let network = self.lock();
        let joined = network.as_ref();
        joined.map(|it| it.namespace().try_clone()).transpose()
    }
}

/// By what the guest knows a device.
fn device(nic: &Nic) -> Vec<u8> {
    nic.mac.bytes().to_vec()
}

fn configuration(joined: &Joined) -> Option<ConfigureNetworkRequest> {
    let interfaces: Vec<NetworkInterface> = joined
        .nics()
        .iter()
        .filter_map(|nic| Some(interface(nic, nic.interface.as_ref()?)))
        .collect();
    (!interfaces.is_empty()).then(|| ConfigureNetworkRequest {
        interfaces,
        ..Default::default()
    })
}

fn interface(nic: &Nic, interface: &Interface) -> NetworkInterface {
    NetworkInterface {
        device_mac: device(nic),
        name: interface.name.clone(),
        mac: interface.mac.bytes().to_vec(),
        mtu: interface.mtu,
        addresses: interface
            .addresses
            .iter()
            .map(|address| NetworkAddress {
                ip: bytes(address.ip),
                prefix: address.prefix.into(),
                no_prefix_route: !address.prefix_route,
                ..Default::default()
            })
            .collect(),
        routes: interface
            .routes
            .iter()
            .map(|route| NetworkRoute {
                destination: bytes(route.destination),
                prefix: route.prefix.into(),
                gateway: route.gateway.map(bytes).unwrap_or_default(),
                source: route.source.map(bytes).unwrap_or_default(),
                metric: route.metric.unwrap_or(0),
                on_link: route.on_link,
                mtu: route.mtu.unwrap_or(0),
                advertised_segment: route.advertised_segment.unwrap_or(0),
                ..Default::default()
            })
            .collect(),
        neighbours: interface
            .neighbours
            .iter()
            .map(|neighbour| NetworkNeighbour {
                ip: bytes(neighbour.ip),
                mac: neighbour.mac.bytes().to_vec(),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }
}

fn bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
