//! Which ports of the host's lead to a container.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};

use super::{Attached, Network, NetworkError};
use crate::names;
use crate::values::ports::Published;

/// How many free ports the kernel is asked for until one is not forwarded already: it does not know of those that are.
const ATTEMPTS: usize = 64;

/// Refuses a port of the host's that is to lead to two places.
pub(super) fn check(ports: &[Published]) -> Result<(), NetworkError> {
    for (n, port) in ports.iter().enumerate() {
        if ports.iter().take(n).any(|other| clash(port, other)) {
            return Err(NetworkError::PortTwice {
                port: port.to_string(),
            });
        }
    }
    Ok(())
}

/// Refuses a port at an address from which nothing would be forwarded to a container of `network`.
pub(super) fn check_addresses(ports: &[Published], network: &Network) -> Result<(), NetworkError> {
    let has_ipv6 = network
        .subnets
        .iter()
        .any(|subnet| subnet.gateway.is_ipv6());
    for port in ports {
        let Some(address) = port.address.filter(IpAddr::is_ipv6) else {
            continue;
        };
        // The kernel routes nothing from or to that one, unlike 127.0.0.1 (`route_localnet`).
        if address.is_loopback() {
            return Err(NetworkError::Ipv6Loopback {
                port: port.to_string(),
            });
        }
        if !has_ipv6 {
            return Err(NetworkError::NoIpv6 {
                port: port.to_string(),
                network: network.config.name.clone(),
            });
        }
    }
    Ok(())
}

/// Finds free ports where none was named, and refuses those that are taken. `others` must stay as they are until the ports
/// are written down.
pub(super) fn choose(
    ports: &mut [Published],
    others: &BTreeMap<String, Attached>,
) -> Result<(), NetworkError> {
    check(ports)?;
    let holder = |port: &Published| {
        others
            .iter()
            .find(|(_, attached)| attached.ports().iter().any(|other| clash(port, other)))
            .map(|(id, _)| names::short(id).to_owned())
    };
    // Named ones first, so that no free one is found that is named further on.
    for port in ports.iter().filter(|port| port.host.is_some()) {
        if let Some(container) = holder(port) {
            return Err(NetworkError::PortPublished {
                port: port.to_string(),
                container,
            });
        }
        bind(port)?;
    }
    for n in 0..ports.len() {
        let Some(port) = ports.get(n).filter(|port| port.host.is_none()) else {
            continue;
        };
        let free = find_free(port, |found| {
            ports.iter().any(|other| clash(found, other)) || holder(found).is_some()
        })?;
        if let Some(port) = ports.get_mut(n) {
            *port = free;
        }
    }
    Ok(())
}

fn find_free(
    port: &Published,
    is_taken: impl Fn(&Published) -> bool,
) -> Result<Published, NetworkError> {
    for _ in 0..ATTEMPTS {
        let found = Published {
            host: Some(bind(port)?),
            ..port.clone()
        };
        if !is_taken(&found) {
            return Ok(found);
        }
    }
    Err(NetworkError::PortTaken {
        port: port.to_string(),
        source: io::ErrorKind::AddrInUse.into(),
    })
}

/// Whether two mappings want the same port of the host's.
fn clash(one: &Published, other: &Published) -> bool {
    one.host.is_some()
        && one.host == other.host
        && one.protocol == other.protocol
        && (one.address == other.address || one.address.is_none() || other.address.is_none())
}

/// The port, or a free one, if no process of this host listens there.
fn bind(port: &Published) -> Result<u16, NetworkError> {
    let address = port.address.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
    let place = (address, port.host.unwrap_or(0));
    let bound = match port.protocol.as_str() {
        "udp" => UdpSocket::bind(place).and_then(|socket| socket.local_addr()),
        _ => TcpListener::bind(place).and_then(|socket| socket.local_addr()),
    };
    bound
        .map(|bound| bound.port())
        .map_err(|source| NetworkError::PortTaken {
            port: port.to_string(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::ports::publish;

    fn ports(texts: &[&str]) -> Vec<Published> {
        texts
            .iter()
            .flat_map(|text| publish(text).unwrap().0)
            .collect()
    }

    #[test]
    fn port_published_twice_is_refused_and_named() {
        for texts in [
            ["8080:80", "8080:81"],
            ["127.0.0.1:8080:80", "8080:81"],
            ["8000-8005:80-85", "8003:99"],
        ] {
            let error = check(&ports(&texts)).unwrap_err();
            assert!(matches!(error, NetworkError::PortTwice { .. }), "{error}");
        }
        let error = check(&ports(&["8080:80", "8080:81"])).unwrap_err();
        assert!(error.to_string().contains("0.0.0.0:8080"), "{error}");
    }

    #[test]
    fn ports_that_differ_in_protocol_or_address_are_taken() {
        check(&ports(&["53:53/tcp", "53:53/udp"])).unwrap();
        check(&ports(&["127.0.0.1:80:80", "127.0.0.2:80:80"])).unwrap();
        check(&ports(&["80", "80"])).unwrap();
    }

    #[test]
    fn free_ports_are_found_and_differ() {
        let mut wanted = ports(&["127.0.0.1::80", "127.0.0.1::81/udp", "127.0.0.1::80"]);
        choose(&mut wanted, &BTreeMap::new()).unwrap();
        assert!(wanted.iter().all(|port| port.host.is_some()), "{wanted:?}");
        check(&wanted).unwrap();
    }

    #[test]
    fn free_port_that_is_forwarded_already_is_passed_over() {
        let wanted = &ports(&["127.0.0.1::80"])[0];
        let passed_over = std::cell::RefCell::new(Vec::new());
        let found = find_free(wanted, |found| {
            let mut seen = passed_over.borrow_mut();
            seen.push(found.clone());
            seen.len() < 3
        });
        assert_eq!(found.unwrap(), passed_over.borrow()[2]);
        let none = find_free(wanted, |_| true);
        assert!(matches!(none, Err(NetworkError::PortTaken { .. })));
    }

    #[test]
    fn port_that_a_process_has_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut wanted = ports(&[&format!("127.0.0.1:{port}:80")]);
        let error = choose(&mut wanted, &BTreeMap::new()).unwrap_err();
        assert!(matches!(error, NetworkError::PortTaken { .. }), "{error}");
        assert!(error.to_string().contains(&port.to_string()), "{error}");
    }
}
