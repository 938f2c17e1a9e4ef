//! A container's own namespace, attached to its network while it runs.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use sandbox_network::Namespace;
use sandbox_network::cni::{Attachment, CniError, NetworkConfig, Outcome, PortMapping};
use sandbox_types::MacAddress;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{DEFAULT, NetworkError, Networks, REMEDY, failed, ports};
use crate::app::App;
use crate::state_file;
use crate::values::network::HOST_GATEWAY;
use crate::values::ports::Published;

/// Its name in the container's folder.
const FILE: &str = "network.json";
/// What the interface is called in the container.
const INTERFACE: &str = "eth0";

/// How a container is to be attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NetworkPlan {
    /// The network's name.
    pub(crate) name: String,
    /// Where its namespace will be.
    pub(crate) namespace: PathBuf,
    pub(crate) ports: Vec<Published>,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) mac: Option<MacAddress>,
}

/// What a container is attached to. Written before anything is made, so that it can be taken away.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Attached {
    plan: NetworkPlan,
    config: NetworkConfig,
    result: Value,
}

/// Makes the container's namespace and attaches it to the network. What the last time left is taken away first: its record is the only
/// one that there is of it. Blocks.
///
/// On failure, what was made is to be taken away with [`detach`].
pub(crate) fn attach(
    app: &App,
    folder: &Path,
    id: &str,
    plan: &NetworkPlan,
) -> Result<(), NetworkError> {
    detach(folder, id)?;
    let mut attached = reserve(app, folder, id, plan)?;
    if let Some(parent) = attached.plan.namespace.parent() {
        fs::create_dir_all(parent).map_err(failed("create", parent))?;
    }
    Namespace::make(&attached.plan.namespace)?;
    attached.result = attached.with(id, |config, attachment| config.attach(attachment))?;
    attached.save(folder)?;
    name_in_hosts(folder, &attached)
}

/// Chooses the container's ports and writes them down, and clears leases that nobody has: each of which another container that starts
/// at the same time must see wholly or not at all.
///
/// The lock is let go before the plugins run: by then the container is among those whose leases and ports stay, and two
/// addresses asked for at once are told apart by host-local's own lock.
fn reserve(
    app: &App,
    folder: &Path,
    id: &str,
    plan: &NetworkPlan,
) -> Result<Attached, NetworkError> {
    let networks = Networks::open(app)?;
    // Which makes the default network, under the same lock.
    networks.get(&plan.name)?;
    let _lock = networks.lock()?;
    // As it is now: it may have been removed meanwhile.
    let network = networks
        .load(&plan.name)?
        .ok_or_else(|| NetworkError::NotFound {
            name: plan.name.clone(),
        })?;
    ports::check_addresses(&plan.ports, &network)?;
    let others = others(app, id)?;
    networks.forget_leases(&plan.name, &others)?;
    let mut plan = plan.clone();
    ports::choose(&mut plan.ports, &others)?;
    let attached = Attached {
        plan,
        config: network.config,
        result: Value::Null,
    };
    attached.save(folder)?;
    Ok(attached)
}

/// Takes away what [`attach`] made, wholly or in part, and whether or not it is there. What a plugin does not take away stays on record,
/// so that this can be called again. Blocks.
pub(crate) fn detach(folder: &Path, id: &str) -> Result<(), NetworkError> {
    leave(folder, |attached| {
        attached.with(id, |config, attachment| {
            config.detach(attachment, &attached.result)
        })
    })
}

fn leave(
    folder: &Path,
    detach: impl FnOnce(&Attached) -> Result<(), CniError>,
) -> Result<(), NetworkError> {
    let Some(attached) = Attached::load(folder)? else {
        return Ok(());
    };
    let detached = detach(&attached);
    let removed = Namespace::remove(&attached.plan.namespace);
    if let Some(parent) = attached.plan.namespace.parent() {
        // Others may be in it.
        let _ = fs::remove_dir(parent);
    }
    detached?;
    removed?;
    let path = folder.join(FILE);
    fs::remove_file(&path).map_err(failed("remove", &path))
}

/// Whether something of [`attach`] is still to be taken away.
pub(crate) fn is_attached(folder: &Path) -> bool {
    folder.join(FILE).exists()
}

/// Gives up what [`detach`] did not take away.
pub(crate) fn forget(folder: &Path) {
    // What is not there needs no removing.
    let _ = fs::remove_file(folder.join(FILE));
}

/// The other containers that are attached, with what to.
fn others(app: &App, id: &str) -> Result<BTreeMap<String, Attached>, NetworkError> {
    let containers = app
        .containers()?
        .holders()
        .map_err(crate::app::AppError::from)?;
    let mut others = BTreeMap::new();
    for container in containers {
        if container.record.id.as_str() != id
            && let Some(attached) = Attached::load(&container.folder)?
        {
            others.insert(container.record.id.to_string(), attached);
        }
    }
    Ok(others)
}

impl Networks {
    /// Removes leases of containers that are not attached any more: a machine that was switched off took nothing away.
    fn forget_leases(
        &self,
        name: &str,
        attached: &BTreeMap<String, Attached>,
    ) -> Result<(), NetworkError> {
        let folder = self.leases().join(name);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed("read", &folder)(error)),
        };
        for entry in entries.flatten() {
            // A file is called by its address, and names its holder in the first line (host-local `backend/disk`).
            let is_lease = entry
                .file_name()
                .to_str()
                .is_some_and(|name| name.parse::<IpAddr>().is_ok());
            if !is_lease {
                continue;
            }
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            let holder = text.lines().next().unwrap_or_default();
            if !attached.contains_key(holder) {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(())
    }
}

/// Puts the addresses that the container was given into its hosts file.
fn name_in_hosts(folder: &Path, attached: &Attached) -> Result<(), NetworkError> {
    let path = folder.join("hosts");
    let text = fs::read_to_string(&path).map_err(failed("read", &path))?;
    let given = attached.addresses()?;
    fs::write(&path, with_addresses(&text, &given)).map_err(failed("write", &path))
}

/// A hosts file in which the container's own name, in the last line, stands for its first address, and what was to stand for the
/// host for the gateways. A network keeps its gateways, so these lines are right also when the container is started again.
fn with_addresses(text: &str, given: &[Given]) -> String {
    let gateways = given.iter().filter_map(|one| one.gateway);
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        match line.split_once('\t') {
            Some((HOST_GATEWAY, name)) if !given.is_empty() => {
                lines.extend(gateways.clone().map(|ip| format!("{ip}\t{name}")));
            }
            _ => lines.push(line.to_owned()),
        }
    }
    if let (Some(own), Some(first)) = (lines.last_mut(), given.first()) {
        let names = own.split_once('\t').map_or("", |(_, names)| names);
        *own = format!("{}\t{names}", first.ip);
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// An address that the network gave.
pub(crate) struct Given {
    pub(crate) ip: IpAddr,
    pub(crate) prefix: u8,
    pub(crate) gateway: Option<IpAddr>,
}

impl Attached {
    /// What the container is attached to, if it is.
    pub(crate) fn load(folder: &Path) -> Result<Option<Self>, NetworkError> {
        Ok(state_file::read_if_there(&folder.join(FILE), REMEDY)?)
    }

    fn save(&self, folder: &Path) -> Result<(), NetworkError> {
        let text = serde_json::to_vec(self);
        Ok(state_file::write(&folder.join(FILE), text)?)
    }

    fn with<T, E>(
        &self,
        id: &str,
        work: impl FnOnce(&NetworkConfig, &Attachment<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let ports: Vec<PortMapping> = self
            .plan
            .ports
            .iter()
            .filter_map(|port| {
                Some(PortMapping {
                    host_port: port.host?,
                    container_port: port.container,
                    protocol: port.protocol.clone(),
                    host_ip: port.address.map(|ip| ip.to_string()).unwrap_or_default(),
                })
            })
            .collect();
        let attachment = Attachment {
            container: id,
            namespace: &self.plan.namespace,
            interface: INTERFACE,
            ports: &ports,
            addresses: &self.plan.addresses,
            mac: self.plan.mac,
        };
        work(&self.config, &attachment)
    }

    /// The network's name.
    pub(crate) fn network(&self) -> &str {
        &self.plan.name
    }

    /// The ports that lead to the container.
    pub(crate) fn ports(&self) -> &[Published] {
        &self.plan.ports
    }

    /// Its addresses.
    pub(crate) fn addresses(&self) -> Result<Vec<Given>, NetworkError> {
        if self.result.is_null() {
            return Ok(Vec::new());
        }
        let outcome = Outcome::read(&self.result)?;
        let given = outcome.ips.iter().filter_map(|given| {
            let (ip, prefix) = given.address.split_once('/')?;
            Some(Given {
                ip: ip.parse().ok()?,
                prefix: prefix.parse().ok()?,
                gateway: given.gateway,
            })
        });
        Ok(given.collect())
    }

    /// Its hardware address.
    fn mac(&self) -> String {
        Outcome::read(&self.result)
            .unwrap_or_default()
            .interfaces
            .into_iter()
            .find(|interface| !interface.sandbox.is_empty())
            .map(|interface| interface.mac)
            .unwrap_or_default()
    }
}

/// docker's `Ports`: by port of the container, where it leads from.
pub(crate) fn port_bindings(ports: &[Published]) -> BTreeMap<String, Value> {
    let mut bindings: BTreeMap<String, Value> = BTreeMap::new();
    for port in ports {
        let key = format!("{}/{}", port.container, port.protocol);
        let binding = json!({
            "HostIp": port.address.map(|ip| ip.to_string()).unwrap_or_default(),
            "HostPort": port.host.map(|host| host.to_string()).unwrap_or_default(),
        });
        if let Value::Array(list) = bindings.entry(key).or_insert_with(|| json!([])) {
            list.push(binding);
        }
    }
    bindings
}

/// docker's `NetworkSettings` of a container: what it has while it runs, and else what it would have.
pub(crate) fn settings(attached: Option<&Attached>, mode: &str) -> Value {
    let mut network = json!({"IPAddress": "", "IPPrefixLen": 0, "Gateway": "", "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0, "IPv6Gateway": "", "MacAddress": ""});
    let mut ports = json!({});
    if let Some(attached) = attached {
        for given in attached.addresses().unwrap_or_default() {
            let (ip, prefix, gateway) = match given.ip {
                IpAddr::V4(_) => ("IPAddress", "IPPrefixLen", "Gateway"),
                IpAddr::V6(_) => ("GlobalIPv6Address", "GlobalIPv6PrefixLen", "IPv6Gateway"),
            };
            network[ip] = json!(given.ip);
            network[prefix] = json!(given.prefix);
            network[gateway] = json!(given.gateway.map(|ip| ip.to_string()).unwrap_or_default());
        }
        network["MacAddress"] = json!(attached.mac());
        ports = json!(port_bindings(attached.ports()));
    }
    let mut settings = if mode == DEFAULT {
        network.clone()
    } else {
        json!({"IPAddress": "", "Gateway": "", "MacAddress": ""})
    };
    settings["Ports"] = ports;
    settings["SandboxKey"] = json!(
        attached
            .map(|attached| attached.plan.namespace.display().to_string())
            .unwrap_or_default()
    );
    let mut networks = serde_json::Map::new();
    networks.insert(mode.to_owned(), network);
    settings["Networks"] = Value::Object(networks);
    settings
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::container::Attended;
    use crate::container::tests::made;
    use crate::names;
    use crate::values::ports::publish;

    fn reserved(app: &App, container: &Attended, ports: &str) -> Result<Attached, NetworkError> {
        let id = container.container.record.id.as_str();
        let plan = NetworkPlan {
            name: DEFAULT.to_owned(),
            namespace: app.root().join("netns").join(names::short(id)),
            ports: publish(ports).unwrap().0,
            addresses: Vec::new(),
            mac: None,
        };
        reserve(app, container.folder(), id, &plan)
    }

    #[test]
    fn what_a_plugin_did_not_take_away_stays_on_record() {
        let root = tempfile::tempdir().unwrap();
        let app = App::new(root.path(), None).unwrap();
        let container = made(&app.containers().unwrap());
        let attached = reserved(&app, &container, "80").unwrap();
        let folder = container.folder();
        let fails = |_: &Attached| {
            Err(CniError::TimedOut {
                name: "portmap".to_owned(),
            })
        };
        assert!(leave(folder, fails).is_err());
        assert!(is_attached(folder));
        let mut again = None;
        let succeeds = |attached: &Attached| {
            again = Some(attached.clone());
            Ok(())
        };
        leave(folder, succeeds).unwrap();
        assert_eq!(again, Some(attached));
        assert!(!is_attached(folder));
    }

    #[test]
    fn hosts_file_gets_the_containers_address_and_the_gateways() {
        let text = "127.0.0.1\tlocalhost\nhost-gateway\thost.docker.internal\n127.0.0.1\tweb\n";
        assert_eq!(with_addresses(text, &[]), text);
        let given = |ip: &str, gateway: &str| Given {
            ip: ip.parse().unwrap(),
            prefix: 24,
            gateway: Some(gateway.parse().unwrap()),
        };
        let addressed = with_addresses(
            text,
            &[
                given("10.232.0.2", "10.232.0.1"),
                given("fd00::2", "fd00::1"),
            ],
        );
        assert_eq!(
            addressed,
            "127.0.0.1\tlocalhost\n10.232.0.1\thost.docker.internal\nfd00::1\thost.docker.internal\n10.232.0.2\tweb\n"
        );
        // Started again, with another address.
        let again = with_addresses(&addressed, &[given("10.232.0.3", "10.232.0.1")]);
        assert!(
            again.contains("10.232.0.1\thost.docker.internal\n"),
            "{again}"
        );
        assert!(again.ends_with("10.232.0.3\tweb\n"), "{again}");
    }

    #[test]
    fn port_that_containers_want_at_once_goes_to_one_of_them() {
        let root = tempfile::tempdir().unwrap();
        let app = App::new(root.path(), None).unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let ports = format!("127.0.0.1:{}:80", free.local_addr().unwrap().port());
        drop(free);
        let all = app.containers().unwrap();
        let containers: Vec<Attended> = (0..8).map(|_| made(&all)).collect();
        let (app, ports) = (&app, ports.as_str());
        let results: Vec<Result<Attached, NetworkError>> = std::thread::scope(|scope| {
            let all: Vec<_> = containers
                .iter()
                .map(|container| scope.spawn(move || reserved(app, container, ports)))
                .collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        let (got, refused): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        assert_eq!(got.len(), 1);
        for error in refused.into_iter().filter_map(Result::err) {
            assert!(
                matches!(error, NetworkError::PortPublished { .. }),
                "{error}"
            );
        }
    }

    #[test]
    fn port_at_an_address_that_leads_nowhere_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let app = App::new(root.path(), None).unwrap();
        let container = made(&app.containers().unwrap());
        let refused = |ports: &str| reserved(&app, &container, ports).unwrap_err();
        let error = refused("[::]::80");
        assert!(
            matches!(&error, NetworkError::NoIpv6 { network, .. } if network == DEFAULT),
            "{error}"
        );
        let error = refused("[::1]:8080:80");
        assert!(
            matches!(error, NetworkError::Ipv6Loopback { .. }),
            "{error}"
        );
        assert!(Attached::load(container.folder()).unwrap().is_none());
    }

    #[test]
    fn lease_stays_from_when_its_container_has_reserved_until_it_has_not() {
        let root = tempfile::tempdir().unwrap();
        let app = App::new(root.path(), None).unwrap();
        let containers = app.containers().unwrap();
        let (one, other) = (made(&containers), made(&containers));
        reserved(&app, &one, "80").unwrap();
        // As host-local writes it.
        let leases = root.path().join("networks/leases").join(DEFAULT);
        fs::create_dir_all(&leases).unwrap();
        let lease = leases.join("10.232.0.2");
        let holder = one.container.record.id.as_str();
        fs::write(&lease, format!("{holder}\r\neth0")).unwrap();
        reserved(&app, &other, "80").unwrap();
        assert!(lease.exists());
        fs::remove_file(one.folder().join(FILE)).unwrap();
        reserved(&app, &other, "80").unwrap();
        assert!(!lease.exists());
    }
}
