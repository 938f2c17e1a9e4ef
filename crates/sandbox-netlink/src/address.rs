//! Addresses of interfaces.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::{Netlink, NetlinkError};

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// It.
    pub ip: IpAddr,
    /// How many bits of it are the network's.
    pub prefix: u8,
    /// The kernel routes that network to the interface.
    pub prefix_route: bool,
}

/// The family of an address.
pub(crate) fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

impl Address {
    /// The address, unless the kernel or a router gave it by itself: another kernel gets its own.
    fn from_message(message: AddressMessage) -> Option<(u32, Self)> {
        let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
        let (mut address, mut local) = (None, None);
        for attribute in message.attributes {
            match attribute {
                AddressAttribute::Address(ip) => address = Some(ip),
                // Of a point-to-point interface, whose `Address` is the peer's.
                AddressAttribute::Local(ip) => local = Some(ip),
                AddressAttribute::Flags(all) => flags = all,
                _ => {}
            }
        }
        let ip = local.or(address)?;
        let by_itself = ip.is_ipv6()
            && (message.header.scope == AddressScope::Link
                || !flags.contains(AddressFlags::Permanent));
        (!by_itself).then_some((
            message.header.index,
            Self {
                ip,
                prefix: message.header.prefix_len,
                prefix_route: !flags.contains(AddressFlags::Noprefixroute),
            },
        ))
    }
}

impl Netlink {
    /// Every address with the number of its interface, in the kernel's order. IPv6 addresses that the kernel made itself
    /// (link-local and autoconfigured ones) are left out.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn addresses(&mut self) -> Result<Vec<(u32, Address)>, NetlinkError> {
        let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.list("list the addresses", question)?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewAddress(message) => Address::from_message(message),
                _ => None,
            })
            .collect())
    }

    /// Gives an interface an address, which may have it already. It is in use at once, without looking for another
    /// holder of it: who gave it to us knows.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn add_address(&mut self, index: u32, address: Address) -> Result<(), NetlinkError> {
        let mut message = AddressMessage::default();
        message.header.family = family(address.ip);
        message.header.prefix_len = address.prefix;
        message.header.index = index;
        let mut flags = AddressFlags::Permanent;
        if address.ip.is_ipv6() {
            flags |= AddressFlags::Nodad;
        }
        if !address.prefix_route {
            flags |= AddressFlags::Noprefixroute;
        }
        message.attributes = vec![
            AddressAttribute::Address(address.ip),
            AddressAttribute::Local(address.ip),
            AddressAttribute::Flags(flags),
        ];
        if let IpAddr::V4(ip) = address.ip
            && address.prefix < 31
        {
            let hosts = u32::MAX.checked_shr(address.prefix.into()).unwrap_or(0);
            message
                .attributes
                .push(AddressAttribute::Broadcast((ip.to_bits() | hosts).into()));
        }
        let what = format!(
            "give interface {index} the address {}/{}",
            address.ip, address.prefix
        );
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.change(&what, RouteNetlinkMessage::NewAddress(message), flags)
    }
}
