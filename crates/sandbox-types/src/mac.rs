//! Hardware addresses of network interfaces.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Text that is no hardware address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not the hardware address of an interface: six bytes in hexadecimal with colons, like 02:42:ac:11:00:02, of one interface and not of a group"
)]
pub struct MacError {
    /// What was given.
    pub text: String,
}

/// An Ethernet address of one interface (IEEE 802: 48 bits, not a group's and not zero).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// The address of these bytes; `None` for one of a group (bit 0 of the first byte) and for zero.
    #[must_use]
    pub fn new(bytes: [u8; 6]) -> Option<Self> {
        let [first, ..] = bytes;
        (first & 1 == 0 && bytes != [0; 6]).then_some(Self(bytes))
    }

    /// The address of a slice, as netlink has it.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        Self::new(bytes.try_into().ok()?)
    }

    /// A locally administered address of these bytes, of which only the bits that say so are changed.
    #[must_use]
    pub fn local(bytes: [u8; 6]) -> Self {
        let [first, rest @ ..] = bytes;
        let [b, c, d, e, f] = rest;
        Self([(first & !1) | 2, b, c, d, e, f])
    }

    /// Its bytes, in the order of transmission.
    #[must_use]
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = MacError;
    fn from_str(text: &str) -> Result<Self, MacError> {
        let parse = || {
            let mut bytes = [0; 6];
            let mut parts = text.split(':');
            for byte in &mut bytes {
                let part = parts.next()?;
                if part.len() != 2 || part.starts_with('+') {
                    return None;
                }
                *byte = u8::from_str_radix(part, 16).ok()?;
            }
            match parts.next() {
                None => Self::new(bytes),
                Some(_) => None,
            }
        };
        parse().ok_or_else(|| MacError {
            text: text.to_owned(),
        })
    }
}

impl TryFrom<String> for MacAddress {
    type Error = MacError;
    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(address: MacAddress) -> String {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        let address: MacAddress = "02:42:AC:11:00:02".parse().unwrap();
        assert_eq!(address.bytes(), [2, 0x42, 0xac, 0x11, 0, 2]);
        assert_eq!(address.to_string(), "02:42:ac:11:00:02");
        for text in [
            "",
            "02:42:ac:11:00",
            "02:42:ac:11:00:02:03",
            "2:42:ac:11:00:02",
            "+2:42:ac:11:00:02",
            "03:42:ac:11:00:02",
            "00:00:00:00:00:00",
            "02-42-ac-11-00-02",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn local_address_is_of_one_interface() {
        let address = MacAddress::local([0xff; 6]);
        assert_eq!(MacAddress::new(address.bytes()), Some(address));
        assert_eq!(address.bytes()[0], 0xfe);
    }
}
