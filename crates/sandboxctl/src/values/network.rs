//! What is written into `/etc/hosts` and `/etc/resolv.conf`.

use std::fmt;
use std::net::IpAddr;

/// docker's word for the host, as a container reaches it.
pub(crate) const HOST_GATEWAY: &str = "host-gateway";

/// Why a name or an address was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NameError {
    /// Not an entry of the hosts file.
    #[error(
        "{value:?} is not an entry of the hosts file; write NAME:ADDRESS, such as db:10.0.0.5, or NAME:{HOST_GATEWAY}"
    )]
    Host { value: String },
    /// Not a name that a machine can have.
    #[error(
        "{value:?} is not a host name; write letters, digits, '-', '_' and '.', at most 64 of them"
    )]
    Hostname { value: String },
    /// Something that would be read as several words.
    #[error("{value:?} is not one word")]
    Word { value: String },
}

/// A line of the hosts file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostEntry {
    pub(crate) name: String,
    pub(crate) address: HostAddress,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostAddress {
    Ip(IpAddr),
    /// This host: the gateway of the container's network, which is known once it is attached ([`crate::network::attach`]).
    Gateway,
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Gateway => f.write_str(HOST_GATEWAY),
        }
    }
}

/// `NAME:ADDRESS`, or `NAME=ADDRESS`, or `host-gateway` for the address; an IPv6 address may stand in brackets (docker).
pub(crate) fn add_host(value: &str) -> Result<HostEntry, NameError> {
    let wrong = || NameError::Host {
        value: value.to_owned(),
    };
    let at = value.find(['=', ':']).ok_or_else(wrong)?;
    let (name, address) = (&value[..at], &value[at + 1..]);
    let bare = address
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(address);
    let address = match address {
        HOST_GATEWAY => HostAddress::Gateway,
        _ => HostAddress::Ip(bare.parse().map_err(|_| wrong())?),
    };
    if name.is_empty() || !is_word(name) {
        return Err(wrong());
    }
    Ok(HostEntry {
        name: name.to_owned(),
        address,
    })
}

fn is_word(text: &str) -> bool {
    !text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#')
}

/// A word of `resolv.conf`: a search domain or an option.
pub(crate) fn word(value: &str) -> Result<String, NameError> {
    if is_word(value) {
        Ok(value.to_owned())
    } else {
        Err(NameError::Word {
            value: value.to_owned(),
        })
    }
}

/// A host name (Linux takes up to 64 bytes; docker checks the characters).
pub(crate) fn hostname(value: &str) -> Result<String, NameError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if value.len() <= 64
        && value.chars().all(allowed)
        && edge(value.chars().next())
        && edge(value.chars().last())
    {
        Ok(value.to_owned())
    } else {
        Err(NameError::Hostname {
            value: value.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_entry_is_a_name_and_an_address() {
        for (text, name, address) in [
            ("db:10.0.0.5", "db", "10.0.0.5"),
            ("db=10.0.0.5", "db", "10.0.0.5"),
            ("six:::1", "six", "::1"),
            ("six:[fe80::2]", "six", "fe80::2"),
        ] {
            let entry = add_host(text).unwrap();
            assert_eq!(entry.name, name);
            assert_eq!(entry.address, HostAddress::Ip(address.parse().unwrap()));
        }
        for text in [
            "db",
            "db:",
            ":10.0.0.5",
            "db:x",
            "a b:10.0.0.5",
            "a\n:::1",
            ":host-gateway",
            "db:[host-gateway]",
        ] {
            assert!(
                matches!(add_host(text), Err(NameError::Host { .. })),
                "{text}"
            );
        }
        let entry = add_host("h:host-gateway").unwrap();
        assert_eq!(
            (entry.name.as_str(), entry.address),
            ("h", HostAddress::Gateway)
        );
    }

    #[test]
    fn hostname_is_one_the_kernel_takes() {
        for good in ["a", "web-1", "web.example.org", &"a".repeat(64)] {
            assert!(hostname(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "a b", "a/b", "ü", &"a".repeat(65)] {
            assert!(hostname(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn word_cannot_bring_another_line() {
        assert!(word("example.org").is_ok());
        assert!(word("a\nnameserver 1.1.1.1").is_err());
        assert!(word("a b").is_err());
    }
}
