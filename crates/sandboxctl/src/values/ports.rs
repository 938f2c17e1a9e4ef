//! `-p`: ports of the host's that lead to the container (docker `opts/port.go`).

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Why a port was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PortError {
    /// Not the grammar.
    #[error(
        "{value:?} is no port to publish; write [[ADDRESS:]HOST-PORT:]CONTAINER-PORT[/tcp|/udp], where ports may be ranges such as 8000-8010"
    )]
    Grammar { value: String },
    /// Two ranges of different length.
    #[error(
        "{value:?} has as many ports on the host as in the container, or it has one range only"
    )]
    Ranges { value: String },
    /// A protocol that is not forwarded.
    #[error("{value:?}: there is tcp, udp and sctp")]
    Protocol { value: String },
}

/// A port that is to be published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Published {
    /// The host's address; `None` for all.
    pub(crate) address: Option<IpAddr>,
    /// On the host; `None` for any that is free.
    pub(crate) host: Option<u16>,
    /// In the container.
    pub(crate) container: u16,
    /// `tcp`, `udp` or `sctp`.
    pub(crate) protocol: String,
}

/// What one `-p` publishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ports(pub(crate) Vec<Published>);

impl fmt::Display for Published {
    /// As docker shows it: `0.0.0.0:8080->80/tcp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(host) = self.host {
            match self.address {
                Some(IpAddr::V6(address)) => write!(f, "[{address}]:{host}->")?,
                Some(address) => write!(f, "{address}:{host}->")?,
                None => write!(f, "0.0.0.0:{host}->")?,
            }
        }
        write!(f, "{}/{}", self.container, self.protocol)
    }
}

fn range(text: &str) -> Option<(u16, u16)> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    match text.split_once('-') {
        Some((first, last)) => {
            let (first, last) = (port(first)?, port(last)?);
            (first <= last).then_some((first, last))
        }
        None => port(text).map(|port| (port, port)),
    }
}

/// The argument of `-p`.
pub(crate) fn publish(value: &str) -> Result<Ports, PortError> {
    let wrong = || PortError::Grammar {
        value: value.to_owned(),
    };
    let (ports, protocol) = value.rsplit_once('/').unwrap_or((value, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(PortError::Protocol {
            value: value.to_owned(),
        });
    }
    let (rest, container) = match ports.rsplit_once(':') {
        Some((rest, container)) => (Some(rest), container),
        None => (None, ports),
    };
    // An IPv6 address has colons of its own, and brackets around them.
    let (address, host) = match rest {
        None => (None, ""),
        Some(rest) => match rest.rsplit_once(':') {
            None => (None, rest),
            Some((address, host)) => (Some(address), host),
        },
    };
    let address = match address {
        None | Some("") => None,
        Some(text) => {
            let bare = text
                .strip_prefix('[')
                .and_then(|text| text.strip_suffix(']'))
                .unwrap_or(text);
            Some(bare.parse().map_err(|_| wrong())?)
        }
    };
    let (first, last) = range(container).ok_or_else(wrong)?;
    let host = match host {
        "" => None,
        text => Some(range(text).ok_or_else(wrong)?),
    };
    if host.is_some_and(|(low, high)| high - low != last - first) {
        return Err(PortError::Ranges {
            value: value.to_owned(),
        });
    }
    let published = (first..=last)
        .zip(0_u16..)
        .map(|(container, offset)| Published {
            address,
            host: host.map(|(low, _)| low.saturating_add(offset)),
            container,
            protocol: protocol.clone(),
        });
    Ok(Ports(published.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(value: &str) -> Vec<String> {
        publish(value)
            .unwrap()
            .0
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn ports_are_read_as_docker_reads_them() {
        assert_eq!(shown("8080:80"), ["0.0.0.0:8080->80/tcp"]);
        assert_eq!(shown("127.0.0.1:53:53/udp"), ["127.0.0.1:53->53/udp"]);
        assert_eq!(shown("[::1]:8080:80"), ["[::1]:8080->80/tcp"]);
        assert_eq!(shown("80"), ["80/tcp"]);
        assert_eq!(shown("127.0.0.1::80"), ["80/tcp"]);
        assert_eq!(
            shown("7000-7001:8000-8001/UDP"),
            ["0.0.0.0:7000->8000/udp", "0.0.0.0:7001->8001/udp"]
        );
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for value in ["", "0:80", "65536", "a:80", "x:1:2", "9-8:9-8", "1.2.3:1:2"] {
            assert!(
                matches!(publish(value), Err(PortError::Grammar { .. })),
                "{value}"
            );
        }
        assert!(matches!(publish("1-2:80"), Err(PortError::Ranges { .. })));
        assert!(matches!(
            publish("80/icmp"),
            Err(PortError::Protocol { .. })
        ));
    }
}
