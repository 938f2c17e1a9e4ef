//! Networks: what containers are attached to, made with the standard CNI plugins (`sandbox_network::cni`).
//!
//! ```text
//! <root>/networks/lock               flock: a network comes or goes, or a container is about to be attached
//! <root>/networks/<name>.json        a network: its CNI configuration, and what it was made with
//! <root>/networks/leases/<name>/     the addresses that are given, kept by the plugin host-local
//! <root>/containers/<id>/network.json   what a running container was attached to ([`attach`])
//! <run-dir>/netns/<short id>         its network namespace, while it runs
//! ```
//!
//! The network `bridge` is made when it is first used, as docker's is always there.
//!
//! What one network's bridge sends to another one's is dropped, as docker has it ([`INGRESS_POLICY`]), in the kernel's FORWARD
//! hook: a container reaches its own network, this host and what is beyond, and not the containers of other networks, by
//! a published port neither.

pub(crate) mod attach;
mod ports;
mod subnets;
mod verbs;

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use sandbox_network::cni::{self, CniError, NetworkConfig};
use sandbox_network::{NetlinkError, NetworkError as NamespaceError};
use sandbox_runtime::config::Config as RuntimeConfig;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::app::{App, AppError};
use crate::cli::ContainerOptions;
use crate::container::now;
use crate::names;
use crate::report;
use crate::state_file::{self, StateFileError};
use crate::template::TemplateError;
use crate::values::namespaces::NetworkMode;
use crate::values::network::HostAddress;
use crate::values::ports::Published;
pub(crate) use attach::{Attached, NetworkPlan};
pub(crate) use subnets::{Subnet, SubnetError, subnet};
pub(crate) use verbs::network;

/// The network of containers that name none.
pub(crate) const DEFAULT: &str = "bridge";
/// What the plugins of our networks are.
const PLUGINS: [&str; 4] = ["bridge", "host-local", "portmap", "firewall"];
/// The plugin that keeps networks apart, and the member of its configuration that says so. Versions before 1.1.0 of the plugins
/// do not know it and keep none apart.
const FIREWALL: &str = "firewall";
const INGRESS_POLICY: &str = "ingressPolicy";
/// Only what comes from the same bridge gets in from a bridge.
const SAME_BRIDGE: &str = "same-bridge";
/// What those plugins need.
const IPTABLES: &str = "iptables";
/// What to do about a damaged file.
const REMEDY: &str = "remove it";

/// Why a network cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error(transparent)]
    App(#[from] AppError),
    #[error(transparent)]
    Cni(#[from] CniError),
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Subnet(#[from] SubnetError),
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(transparent)]
    File(#[from] StateFileError),
    /// No such network.
    #[error(
        "there is no network {name:?}; see `sandboxctl network ls`, or make one with `sandboxctl network create {name}`"
    )]
    NotFound { name: String },
    /// One of that name is there.
    #[error("there is a network {name:?} already; see `sandboxctl network inspect {name}`")]
    Exists { name: String },
    /// Names that mean something else.
    #[error(
        "{name:?} is no name for a network: letters, digits, '_', '.' and '-', and not none, host or bridge"
    )]
    Name { name: String },
    /// Containers need it.
    #[error("network {name:?} is used by {}; remove them first", users.join(", "))]
    InUse { name: String, users: Vec<String> },
    /// The default one stays.
    #[error("the network {DEFAULT:?} is the default one and stays")]
    Default,
    /// The plugins need a program.
    #[error(
        "the CNI plugins need {IPTABLES}, which is not on PATH; install it, or use --network none"
    )]
    NoIptables,
    /// Somebody listens there.
    #[error("port {port} of this host is in use; publish another")]
    PortTaken { port: String, source: io::Error },
    /// A port that another container has.
    #[error("port {port} of this host leads to container {container} already; publish another")]
    PortPublished { port: String, container: String },
    /// A port that is to lead to two places.
    #[error("port {port} of this host is published twice; publish another")]
    PortTwice { port: String },
    /// A port at an address of a family that the network does not have.
    #[error(
        "nothing is forwarded from {port} to the network {network:?}, which has no IPv6; publish at an address of IPv4, or make a network with `sandboxctl network create --ipv6 NAME`"
    )]
    NoIpv6 { port: String, network: String },
    /// A port at an address that the kernel forwards nothing from.
    #[error("nothing can be forwarded from {port}; publish at 127.0.0.1 instead")]
    Ipv6Loopback { port: String },
    /// More than one network.
    #[error("a container has one network here; give --network once")]
    OneOnly,
    /// An option that needs a network.
    #[error("{option} needs a network, and there is none with --network none")]
    NeedsNetwork { option: &'static str },
    #[error("cannot print as --format says")]
    Format(#[from] TemplateError),
    #[error(transparent)]
    Several(#[from] report::Several),
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> NetworkError + 'a {
    move |source| NetworkError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// A network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Network {
    /// Seconds since the epoch.
    pub(crate) created: u64,
    /// The bridge's device.
    pub(crate) device: String,
    pub(crate) subnets: Vec<Subnet>,
    pub(crate) labels: std::collections::BTreeMap<String, String>,
    pub(crate) config: NetworkConfig,
}

/// What a new network is to be.
#[derive(Debug, Default)]
struct NewNetwork<'a> {
    name: &'a str,
    subnets: Vec<Subnet>,
    ipv6: bool,
    mtu: Option<u32>,
    labels: Vec<(String, String)>,
}

/// The networks of one `--root`.
pub(crate) struct Networks {
    folder: PathBuf,
}

impl Networks {
    pub(crate) fn open(app: &App) -> Result<Self, NetworkError> {
        // Which makes the root.
        app.containers()?;
        let folder = app.root().join("networks");
        fs::create_dir_all(&folder).map_err(failed("create", &folder))?;
        Ok(Self { folder })
    }

    fn lock(&self) -> Result<File, NetworkError> {
        let path = self.folder.join("lock");
        let file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(failed("open", &path))?;
        file.lock().map_err(failed("lock", &path))?;
        Ok(file)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.json"))
    }

    fn leases(&self) -> PathBuf {
        self.folder.join("leases")
    }

    fn load(&self, name: &str) -> Result<Option<Network>, NetworkError> {
        let mut network: Option<Network> = state_file::read_if_there(&self.file(name), REMEDY)?;
        if let Some(network) = &mut network {
            keep_apart(&mut network.config);
        }
        Ok(network)
    }

    /// The network of that name; the default one is made when it is not there.
    pub(crate) fn get(&self, name: &str) -> Result<Network, NetworkError> {
        if let Some(network) = self.load(name)? {
            return Ok(network);
        }
        if name != DEFAULT {
            return Err(NetworkError::NotFound {
                name: name.to_owned(),
            });
        }
        match self.create(NewNetwork {
            name,
            ..NewNetwork::default()
        }) {
            // Somebody else was faster.
            Err(NetworkError::Exists { .. }) => self.load(name)?.ok_or(NetworkError::NotFound {
                name: name.to_owned(),
            }),
            other => other,
        }
    }

    /// Every network, by name.
    fn list(&self) -> Result<Vec<Network>, NetworkError> {
        let mut networks = Vec::new();
        let entries = fs::read_dir(&self.folder).map_err(failed("read", &self.folder))?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_str().and_then(|name| name.strip_suffix(".json"));
            networks.extend(name.map(|name| self.load(name)).transpose()?.flatten());
        }
        networks.sort_by(|a, b| a.config.name.cmp(&b.config.name));
        Ok(networks)
    }

    fn create(&self, new: NewNetwork<'_>) -> Result<Network, NetworkError> {
        let _lock = self.lock()?;
        let path = self.file(new.name);
        if path.exists() {
            return Err(NetworkError::Exists {
                name: new.name.to_owned(),
            });
        }
        let others = self.list()?;
        let used: Vec<Subnet> = others
            .iter()
            .flat_map(|network| network.subnets.clone())
            .collect();
        let subnets = subnets::choose(new.subnets, new.ipv6, &used)?;
        // A name of at most 15 bytes, which two roots do not share.
        let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
        let device = format!("sb-{}", hex(digest.get(..5).unwrap_or_default()));
        let network = Network {
            created: now(),
            config: self.config(new.name, &device, &subnets, new.mtu),
            device,
            subnets,
            labels: new.labels.into_iter().collect(),
        };
        state_file::write(&path, serde_json::to_vec_pretty(&network))?;
        Ok(network)
    }

    fn config(
        &self,
        name: &str,
        device: &str,
        subnets: &[Subnet],
        mtu: Option<u32>,
    ) -> NetworkConfig {
        let ranges: Vec<Value> = subnets
            .iter()
            .map(|subnet| json!([{"subnet": subnet.to_string(), "gateway": subnet.gateway}]))
            .collect();
        let routes: Vec<Value> = subnets
            .iter()
            .map(|subnet| match subnet.gateway {
                IpAddr::V4(_) => json!({"dst": "0.0.0.0/0"}),
                IpAddr::V6(_) => json!({"dst": "::/0"}),
            })
            .collect();
        let mut bridge = json!({
            "type": "bridge",
            "bridge": device,
            "isGateway": true,
            "ipMasq": true,
            "hairpinMode": true,
            "capabilities": {"mac": true, "ips": true},
            "ipam": {
                "type": "host-local",
                "dataDir": self.leases(),
                "ranges": ranges,
                "routes": routes,
            },
        });
        if let Some(mtu) = mtu {
            bridge["mtu"] = mtu.into();
        }
        NetworkConfig {
            version: cni::VERSION.to_owned(),
            name: name.to_owned(),
            plugins: vec![
                bridge,
                json!({"type": "portmap", "capabilities": {"portMappings": true}}),
                json!({"type": FIREWALL, INGRESS_POLICY: SAME_BRIDGE}),
            ],
        }
    }

    /// Removes a network that nobody uses, with its bridge.
    fn remove(&self, name: &str, users: Vec<String>) -> Result<(), NetworkError> {
        let _lock = self.lock()?;
        if name == DEFAULT {
            return Err(NetworkError::Default);
        }
        let network = self.load(name)?.ok_or_else(|| NetworkError::NotFound {
            name: name.to_owned(),
        })?;
        if !users.is_empty() {
            return Err(NetworkError::InUse {
                name: name.to_owned(),
                users,
            });
        }
        sandbox_network::remove_device(&network.device)?;
        let leases = self.leases().join(name);
        match fs::remove_dir_all(&leases) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &leases)(error));
            }
            _ => {}
        }
        let path = self.file(name);
        fs::remove_file(&path).map_err(failed("remove", &path))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Keeps a network that was made before networks were kept apart from the others too.
fn keep_apart(config: &mut NetworkConfig) {
    for plugin in &mut config.plugins {
        if plugin.get("type").and_then(Value::as_str) == Some(FIREWALL)
            && let Some(members) = plugin.as_object_mut()
        {
            members
                .entry(INGRESS_POLICY)
                .or_insert_with(|| SAME_BRIDGE.into());
        }
    }
}

/// Whether the plugin that is there keeps networks apart. It is its program that tells: packages leave its version out.
pub(crate) fn are_kept_apart() -> bool {
    cni::program(FIREWALL).is_ok_and(|program| {
        fs::read(program).is_ok_and(|bytes| {
            let name = INGRESS_POLICY.as_bytes();
            bytes.windows(name.len()).any(|part| part == name)
        })
    })
}

/// Whether what our networks need is there.
pub(crate) fn available() -> Result<(), NetworkError> {
    for plugin in PLUGINS {
        cni::program(plugin)?;
    }
    // What plugins are run with: their own search path is ours.
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|folder| folder.join(IPTABLES).is_file()) {
        Ok(())
    } else {
        Err(NetworkError::NoIptables)
    }
}

/// How a container with these options is attached; `None` without a network. Nothing is made.
pub(crate) fn plan(
    config: &RuntimeConfig,
    id: &str,
    options: &ContainerOptions,
) -> Result<Option<NetworkPlan>, NetworkError> {
    let wants_gateway = options
        .add_host
        .iter()
        .any(|entry| entry.address == HostAddress::Gateway);
    let name = match options.network.as_slice() {
        [NetworkMode::None] => None,
        [NetworkMode::Named(name)] => {
            available()?;
            Some(name.clone())
        }
        [_, _, ..] => return Err(NetworkError::OneOnly),
        [] => match available() {
            Ok(()) => Some(DEFAULT.to_owned()),
            // These say that a network is meant.
            Err(error) if wants_gateway || !options.publish.is_empty() => return Err(error),
            Err(error) => {
                eprintln!(
                    "sandboxctl: the container has no network: {error}; --network none does without this line"
                );
                None
            }
        },
    };
    let Some(name) = name else {
        let asked = [
            ("-p", !options.publish.is_empty()),
            ("--ip", options.ip.is_some()),
            ("--ip6", options.ip6.is_some()),
            ("--mac-address", options.mac_address.is_some()),
            ("--add-host NAME:host-gateway", wants_gateway),
        ];
        return match asked.into_iter().find(|(_, asked)| *asked) {
            Some((option, _)) => Err(NetworkError::NeedsNetwork { option }),
            None => Ok(None),
        };
    };
    let mut addresses: Vec<IpAddr> = Vec::new();
    addresses.extend(options.ip.map(IpAddr::from));
    addresses.extend(options.ip6.map(IpAddr::from));
    let published: Vec<Published> = options
        .publish
        .iter()
        .flat_map(|ports| ports.0.clone())
        .collect();
    ports::check(&published)?;
    Ok(Some(NetworkPlan {
        name,
        namespace: config.run_dir.join("netns").join(names::short(id)),
        ports: published,
        addresses,
        mac: options.mac_address,
    }))
}

/// This host's `resolv.conf`; that behind systemd's own resolver, which only answers on this host (docker does so too).
pub(crate) fn resolver() -> String {
    const BEHIND_RESOLVED: &str = "/run/systemd/resolve/resolv.conf";
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    if text.contains("127.0.0.53") {
        fs::read_to_string(BEHIND_RESOLVED).unwrap_or(text)
    } else {
        text
    }
}

/// A name that a network may have.
fn check_name(name: &str) -> Result<(), NetworkError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let good = (1..=64).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(allowed)
        && !matches!(
            name,
            "none" | "host" | "default" | DEFAULT | "leases" | "lock"
        );
    if good {
        Ok(())
    } else {
        Err(NetworkError::Name {
            name: name.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_network_is_refused() {
        let config = RuntimeConfig::default();
        for networks in [
            vec![NetworkMode::None, NetworkMode::None],
            vec![NetworkMode::Named("blue".to_owned()), NetworkMode::None],
        ] {
            let options = ContainerOptions {
                network: networks,
                ..ContainerOptions::default()
            };
            let refused = plan(&config, &"a".repeat(64), &options);
            assert!(matches!(refused, Err(NetworkError::OneOnly)));
        }
    }

    #[test]
    fn network_from_before_they_were_kept_apart_is_kept_apart_too() {
        let root = tempfile::tempdir().unwrap();
        let app = App::new(root.path(), None).unwrap();
        let networks = Networks::open(&app).unwrap();
        let new = NewNetwork {
            name: "blue",
            ..NewNetwork::default()
        };
        let mut network = networks.create(new).unwrap();
        let policy = |network: &Network| network.config.plugins[2][INGRESS_POLICY].clone();
        assert_eq!(policy(&network), SAME_BRIDGE);
        // As it was written before.
        network.config.plugins[2] = json!({"type": FIREWALL});
        fs::write(networks.file("blue"), serde_json::to_vec(&network).unwrap()).unwrap();
        let loaded = networks.load("blue").unwrap().unwrap();
        assert_eq!(policy(&loaded), SAME_BRIDGE);
        // What somebody has written into it stays.
        network.config.plugins[2][INGRESS_POLICY] = "open".into();
        fs::write(networks.file("blue"), serde_json::to_vec(&network).unwrap()).unwrap();
        assert_eq!(policy(&networks.load("blue").unwrap().unwrap()), "open");
    }
}
