//! The guest's network devices: what each is to be comes from the host (`ConfigureNetwork`), and is made so over netlink.

use std::net::IpAddr;

use sandbox_netlink::{Address, Link, LinkChange, Neighbour, Netlink, NetlinkError, Route};
use sandbox_protocol::agent::{ConfigureNetworkRequest, NetworkInterface};
use sandbox_types::MacAddress;

/// The longest name of an interface (`IFNAMSIZ`, without the end).
const MAX_NAME_BYTES: usize = 15;

/// Why the network could not be configured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    /// The request makes no sense.
    #[error("interface {name:?}: {what} is not valid")]
    Invalid { name: String, what: &'static str },
    /// There is no such device.
    #[error("interface {name:?}: the machine has no network device {mac}")]
    NoDevice { name: String, mac: MacAddress },
    /// A device cannot be taken away.
    #[error("the network device {mac} is not needed, and cannot be taken away")]
    Remove {
        mac: MacAddress,
        #[source]
        source: std::io::Error,
    },
    /// The kernel refused.
    #[error("interface {name:?}")]
    Kernel {
        name: String,
        #[source]
        source: NetlinkError,
    },
}

/// An interface as it is asked for, checked.
struct Wanted {
    device: MacAddress,
    name: String,
    mac: MacAddress,
    mtu: u32,
    addresses: Vec<Address>,
    routes: Vec<Route>,
    neighbours: Vec<Neighbour>,
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Some(bytes.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(Into::into)
}

fn optional_ip(bytes: &[u8]) -> Option<Option<IpAddr>> {
    match bytes {
        [] => Some(None),
        bytes => ip(bytes).map(Some),
    }
}

/// A number of a route, which is 0 where it is not set.
fn set(number: u32) -> Option<u32> {
    (number > 0).then_some(number)
}

fn prefix(ip: IpAddr, bits: u32) -> Option<u8> {
    let most = if ip.is_ipv4() { 32 } else { 128 };
    u8::try_from(bits).ok().filter(|bits| *bits <= most)
}

impl Wanted {
    fn new(interface: &NetworkInterface) -> Result<Self, NetworkError> {
        let invalid = |what| NetworkError::Invalid {
            name: interface.name.clone(),
            what,
        };
        let mac = |bytes: &[u8], what| MacAddress::from_slice(bytes).ok_or_else(|| invalid(what));
        let name = &interface.name;
        let is_name = (1..=MAX_NAME_BYTES).contains(&name.len())
            && name != "."
            && name != ".."
            && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c == '\0');
        if !is_name {
            return Err(invalid("the name"));
        }
        let addresses = interface.addresses.iter().map(|address| {
            let ip = ip(&address.ip)?;
            Some(Address {
                ip,
                prefix: prefix(ip, address.prefix)?,
                prefix_route: !address.no_prefix_route,
            })
        });
        let routes = interface.routes.iter().map(|route| {
            let destination = ip(&route.destination)?;
            Some(Route {
                destination,
                prefix: prefix(destination, route.prefix)?,
                gateway: optional_ip(&route.gateway)?,
                source: optional_ip(&route.source)?,
                metric: set(route.metric),
                on_link: route.on_link,
                mtu: set(route.mtu),
                advertised_segment: set(route.advertised_segment),
            })
        });
        let neighbours = interface.neighbours.iter().map(|neighbour| {
            Some(Neighbour {
                ip: ip(&neighbour.ip)?,
                mac: MacAddress::from_slice(&neighbour.mac)?,
            })
        });
        Ok(Self {
            device: mac(&interface.device_mac, "the device's hardware address")?,
            name: name.clone(),
            mac: mac(&interface.mac, "the hardware address")?,
            mtu: interface.mtu,
            addresses: addresses
                .collect::<Option<_>>()
                .ok_or_else(|| invalid("an address"))?,
            routes: routes
                .collect::<Option<_>>()
                .ok_or_else(|| invalid("a route"))?,
            neighbours: neighbours
                .collect::<Option<_>>()
                .ok_or_else(|| invalid("a neighbour"))?,
        })
    }

    /// The device, as it was made or as an earlier call left it.
    fn find<'a>(&self, links: &'a [Link]) -> Option<&'a Link> {
        let is = |mac: MacAddress| move |link: &&Link| link.mac == Some(mac) && !link.is_loopback;
        links
            .iter()
            .find(is(self.device))
            .or_else(|| links.iter().find(is(self.mac)))
    }

    fn apply(&self, netlink: &mut Netlink, link: &Link) -> Result<(), NetlinkError> {
        let index = link.index;
        netlink.change_link(
            index,
            &LinkChange {
                name: (link.name != self.name).then(|| self.name.clone()),
                mac: (link.mac != Some(self.mac)).then_some(self.mac),
                mtu: Some(self.mtu),
                ..LinkChange::default()
            },
        )?;
        let up = LinkChange {
            up: Some(true),
            ..LinkChange::default()
        };
        netlink.change_link(index, &up)?;
        for address in &self.addresses {
            netlink.add_address(index, *address)?;
        }
        for neighbour in &self.neighbours {
            netlink.add_neighbour(index, *neighbour)?;
        }
        for route in &self.routes {
            netlink.add_route(index, *route)?;
        }
        Ok(())
    }
}

/// Where sysfs has the network devices, and the driver of the machine's (Documentation/ABI/testing/sysfs-bus-pci, whose
/// `unbind` every bus has).
const DEVICES: &str = "/sys/class/net";
const UNBIND: &str = "/sys/bus/virtio/drivers/virtio_net/unbind";

/// Takes a device away that is not needed. That there is none is no error.
fn remove(links: &[Link], mac: MacAddress) -> Result<(), NetworkError> {
    let Some(link) = links
        .iter()
        .find(|link| link.mac == Some(mac) && !link.is_loopback)
    else {
        return Ok(());
    };
    let device = std::fs::read_link(format!("{DEVICES}/{}/device", link.name));
    device
        .and_then(|device| {
            let name = device.file_name().unwrap_or_default();
            std::fs::write(UNBIND, name.as_encoded_bytes())
        })
        .map_err(|source| NetworkError::Remove { mac, source })
}

/// Makes the devices what the request says.
pub(crate) fn configure(request: &ConfigureNetworkRequest) -> Result<(), NetworkError> {
    let wanted: Vec<Wanted> = request
        .interfaces
        .iter()
        .map(Wanted::new)
        .collect::<Result<_, _>>()?;
    let kernel = |name: &str| {
        let name = name.to_owned();
        move |source| NetworkError::Kernel { name, source }
    };
    let mut netlink = Netlink::open().map_err(kernel("*"))?;
    let links = netlink.links().map_err(kernel("*"))?;
    for mac in &request.unused_devices {
        let mac = MacAddress::from_slice(mac).ok_or(NetworkError::Invalid {
            name: "*".to_owned(),
            what: "the hardware address of an unused device",
        })?;
        remove(&links, mac)?;
    }
    let mut devices = Vec::new();
    for interface in &wanted {
        let link = interface.find(&links).ok_or(NetworkError::NoDevice {
            name: interface.name.clone(),
            mac: interface.device,
        })?;
        devices.push((interface, link.clone()));
    }
    // The kernel numbers them in its own order: a name may still be another's.
    for (number, (interface, link)) in devices.iter_mut().enumerate() {
        let taken = links
            .iter()
            .any(|other| other.name == interface.name && other.index != link.index);
        if taken {
            let name = format!("sbnic{number}");
            let change = LinkChange {
                name: Some(name.clone()),
                ..LinkChange::default()
            };
            netlink
                .change_link(link.index, &change)
                .map_err(kernel(&interface.name))?;
            link.name = name;
        }
    }
    for (interface, link) in &devices {
        interface
            .apply(&mut netlink, link)
            .map_err(kernel(&interface.name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_protocol::agent::{NetworkAddress, NetworkRoute};

    fn interface() -> NetworkInterface {
        NetworkInterface {
            device_mac: vec![2, 0, 0, 0, 0, 1],
            name: "eth0".to_owned(),
            mac: vec![2, 0, 0, 0, 0, 2],
            mtu: 1500,
            addresses: vec![NetworkAddress {
                ip: vec![10, 0, 0, 2],
                prefix: 24,
                ..NetworkAddress::default()
            }],
            routes: vec![NetworkRoute {
                destination: vec![0; 16],
                gateway: vec![1; 16],
                mtu: 1300,
                ..NetworkRoute::default()
            }],
            ..NetworkInterface::default()
        }
    }

    #[test]
    fn interface_is_read() {
        let wanted = Wanted::new(&interface()).unwrap();
        assert_eq!(wanted.addresses[0].ip, IpAddr::from([10, 0, 0, 2]));
        assert!(wanted.addresses[0].prefix_route);
        assert_eq!(wanted.routes[0].gateway, Some(IpAddr::from([1; 16])));
        assert_eq!(wanted.routes[0].metric, None);
        assert_eq!(wanted.routes[0].mtu, Some(1300));
        assert_eq!(wanted.routes[0].advertised_segment, None);
    }

    #[test]
    fn interface_that_makes_no_sense_is_refused_by_what_is_wrong() {
        let refused = |change: fn(&mut NetworkInterface), what: &str| {
            let mut interface = interface();
            change(&mut interface);
            let error = Wanted::new(&interface).err().unwrap();
            assert!(error.to_string().contains(what), "{error}");
        };
        refused(|it| it.name = "a/b".to_owned(), "name");
        refused(|it| it.name = "a-name-of-16-byt".to_owned(), "name");
        refused(|it| it.name.clear(), "name");
        refused(|it| it.mac = vec![1, 0, 0, 0, 0, 2], "hardware address");
        refused(|it| it.device_mac.clear(), "device's hardware address");
        refused(|it| it.addresses[0].prefix = 33, "address");
        refused(|it| it.addresses[0].ip = vec![1], "address");
        refused(|it| it.routes[0].gateway = vec![1], "route");
    }
}
