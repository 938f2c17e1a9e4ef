//! The address ranges of networks.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use sandbox_network::{Address, host_addresses};
use serde::{Deserialize, Serialize};

/// Of `10.232.0.0/16`, networks get 256 addresses each.
const FIRST: u32 = 0x0ae8_0000;
const COUNT: u32 = 256;

/// Why a range cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SubnetError {
    #[error(
        "{value:?} is no address range; write one like 10.9.0.0/24 or fd00:9::/64, with room for a router and a container"
    )]
    Grammar { value: String },
    #[error(
        "{subnet} overlaps {other}, which this host or another network has; choose another range"
    )]
    Overlap { subnet: String, other: String },
    #[error("no free range was found in 10.232.0.0/16; give one with --subnet")]
    None,
    #[error("no free range of IPv6 was found; give one with --subnet")]
    NoIpv6,
    #[error("the gateway {gateway} is in none of the network's ranges")]
    Gateway { gateway: IpAddr },
    #[error("a network has one range of IPv4 and one of IPv6 at most")]
    Twice,
    #[error("this host's addresses cannot be listed: {detail}")]
    Host { detail: String },
}

/// A range and the router's address in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Subnet {
    address: IpAddr,
    prefix: u8,
    pub(crate) gateway: IpAddr,
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

fn mask(ip: IpAddr, prefix: u8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let host = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
            Ipv4Addr::from_bits(ip.to_bits() & !host).into()
        }
        IpAddr::V6(ip) => {
            let host = u128::MAX.checked_shr(prefix.into()).unwrap_or(0);
            Ipv6Addr::from_bits(ip.to_bits() & !host).into()
        }
    }
}

fn next(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits().wrapping_add(1)).into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits().wrapping_add(1)).into(),
    }
}

impl Subnet {
    fn new(address: IpAddr, prefix: u8) -> Self {
        let address = mask(address, prefix);
        Self {
            address,
            prefix,
            gateway: next(address),
        }
    }

    fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.address.is_ipv4() && mask(ip, self.prefix) == self.address
    }

    fn overlaps(&self, ip: IpAddr, prefix: u8) -> bool {
        let prefix = prefix.min(self.prefix);
        ip.is_ipv4() == self.address.is_ipv4() && mask(ip, prefix) == mask(self.address, prefix)
    }

    /// The range with another router.
    pub(crate) fn with_gateway(subnets: &mut [Self], gateway: IpAddr) -> Result<(), SubnetError> {
        let subnet = subnets
            .iter_mut()
            .find(|subnet| subnet.contains(gateway))
            .ok_or(SubnetError::Gateway { gateway })?;
        subnet.gateway = gateway;
        Ok(())
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;
    fn from_str(value: &str) -> Result<Self, SubnetError> {
        let parse = || {
            let (address, prefix) = value.split_once('/')?;
            let address: IpAddr = address.parse().ok()?;
            let prefix: u8 = prefix.parse().ok()?;
            let most = if address.is_ipv4() { 30 } else { 126 };
            (8..=most)
                .contains(&prefix)
                .then(|| Self::new(address, prefix))
        };
        parse().ok_or_else(|| SubnetError::Grammar {
            value: value.to_owned(),
        })
    }
}

/// The argument of `--subnet`.
pub(crate) fn subnet(value: &str) -> Result<Subnet, SubnetError> {
    value.parse()
}

/// The ranges of a new network: those asked for, and free ones where none was.
pub(super) fn choose(
    asked: Vec<Subnet>,
    ipv6: bool,
    used: &[Subnet],
) -> Result<Vec<Subnet>, SubnetError> {
    let host = host_addresses().map_err(|error| SubnetError::Host {
        detail: error.to_string(),
    })?;
    choose_beside(asked, ipv6, used, &host)
}

fn choose_beside(
    asked: Vec<Subnet>,
    ipv6: bool,
    used: &[Subnet],
    host: &[Address],
) -> Result<Vec<Subnet>, SubnetError> {
    let other = |subnet: &Subnet| {
        let network = used
            .iter()
            .find(|other| subnet.overlaps(other.address, other.prefix))
            .map(ToString::to_string);
        network.or_else(|| {
            host.iter()
                .find(|address| subnet.overlaps(address.ip, address.prefix))
                .map(|address| format!("{}/{}", address.ip, address.prefix))
        })
    };
    for (index, subnet) in asked.iter().enumerate() {
        if let Some(other) = other(subnet) {
            return Err(SubnetError::Overlap {
                subnet: subnet.to_string(),
                other,
            });
        }
        let family = subnet.address.is_ipv4();
        if asked
            .iter()
            .skip(index + 1)
            .any(|next| next.address.is_ipv4() == family)
        {
            return Err(SubnetError::Twice);
        }
    }
    let mut subnets = asked;
    let has = |subnets: &[Subnet], ipv4| subnets.iter().any(|one| one.address.is_ipv4() == ipv4);
    if !has(&subnets, true) {
        let free = (0..COUNT)
            .map(|number| Subnet::new(Ipv4Addr::from_bits(FIRST + (number << 8)).into(), 24))
            .find(|subnet| other(subnet).is_none());
        subnets.insert(0, free.ok_or(SubnetError::None)?);
    }
    if ipv6 && !has(&subnets, false) {
        // The number of the IPv4 range makes one of its own (RFC 4193: fd, then 40 bits), with eight bits in front of it for
        // ranges that are within the same 256 addresses.
        let number = match subnets.first().map(|subnet| subnet.address) {
            Some(IpAddr::V4(ip)) => u128::from(ip.to_bits() >> 8),
            _ => 0,
        };
        let free = (0..256_u128)
            .map(|n| (0xfd5b << 112) | (n << 104) | (number << 80))
            .map(|bits| Subnet::new(Ipv6Addr::from_bits(bits).into(), 64))
            .find(|subnet| other(subnet).is_none());
        subnets.push(free.ok_or(SubnetError::NoIpv6)?);
    }
    Ok(subnets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str, prefix: u8) -> Address {
        Address {
            ip: text.parse().unwrap(),
            prefix,
            prefix_route: true,
        }
    }

    #[test]
    fn range_is_read_with_its_first_address_as_router() {
        let range: Subnet = "10.9.0.77/24".parse().unwrap();
        assert_eq!(range.to_string(), "10.9.0.0/24");
        assert_eq!(range.gateway.to_string(), "10.9.0.1");
        for text in [
            "10.9.0.0",
            "10.9.0.0/31",
            "10.0.0.0/7",
            "x/24",
            "fd00::/127",
        ] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
    }

    #[test]
    fn free_range_is_chosen_beside_networks_and_host() {
        let used = ["10.232.0.0/24".parse().unwrap()];
        let addresses = [host("10.232.1.9", 24), host("127.0.0.1", 8)];
        let chosen = choose_beside(Vec::new(), true, &used, &addresses).unwrap();
        let shown: Vec<String> = chosen.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["10.232.2.0/24", "fd5b:a:e802::/64"]);
        let everything = [host("10.0.0.1", 8)];
        assert_eq!(
            choose_beside(Vec::new(), false, &[], &everything),
            Err(SubnetError::None)
        );
    }

    #[test]
    fn ranges_of_ipv6_differ_also_beside_each_other() {
        let asked = |text: &str| vec![text.parse().unwrap()];
        let one = choose_beside(asked("10.9.0.0/25"), true, &[], &[]).unwrap();
        assert_eq!(one[1].to_string(), "fd5b:a:900::/64");
        let other = choose_beside(asked("10.9.0.128/25"), true, &one, &[]).unwrap();
        assert_eq!(other[1].to_string(), "fd5b:10a:900::/64");
    }

    #[test]
    fn range_that_overlaps_or_comes_twice_is_refused() {
        let asked = |text: &str| vec![text.parse().unwrap()];
        let addresses = [host("10.9.0.5", 16)];
        assert!(matches!(
            choose_beside(asked("10.9.1.0/24"), false, &[], &addresses),
            Err(SubnetError::Overlap { .. })
        ));
        let two = vec![
            "10.1.0.0/24".parse().unwrap(),
            "10.2.0.0/24".parse().unwrap(),
        ];
        assert_eq!(choose_beside(two, false, &[], &[]), Err(SubnetError::Twice));
    }
}
