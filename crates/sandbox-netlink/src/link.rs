//! Interfaces.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkHeader, LinkInfo,
    LinkLayerType, LinkMessage,
};
use sandbox_types::MacAddress;

use crate::{Netlink, NetlinkError};

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address, if it has one as Ethernet has them.
    pub mac: Option<MacAddress>,
    /// The largest packet, in bytes.
    pub mtu: u32,
    /// Its frames are Ethernet's.
    pub is_ethernet: bool,
    /// It is `lo`.
    pub is_loopback: bool,
    /// What made it ("veth", "macvlan", …); `None` for hardware and virtual hardware.
    pub kind: Option<String>,
}

/// What is to be different about an interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkChange {
    /// Its name; only while it is down.
    pub name: Option<String>,
    /// Its hardware address.
    pub mac: Option<MacAddress>,
    /// The largest packet, in bytes.
    pub mtu: Option<u32>,
    /// Whether it is in use.
    pub up: Option<bool>,
    /// It makes itself no IPv6 address.
    pub without_link_local: bool,
}

impl Link {
    fn from_message(message: LinkMessage) -> Option<Self> {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            is_ethernet: message.header.link_layer_type == LinkLayerType::Ether,
            is_loopback: message.header.flags.contains(LinkFlags::Loopback),
            kind: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Address(bytes) => link.mac = MacAddress::from_slice(&bytes),
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.into_iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.to_string()),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        (!link.name.is_empty()).then_some(link)
    }
}

impl Netlink {
    /// Every interface, by number.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let question = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.list("list the interfaces", question)?;
        let mut links: Vec<Link> = answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(message) => Link::from_message(message),
                _ => None,
            })
            .collect();
        links.sort_by_key(|link| link.index);
        Ok(links)
    }

    /// Changes an interface.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn change_link(&mut self, index: u32, change: &LinkChange) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header = LinkHeader {
            index,
            ..LinkHeader::default()
        };
        if let Some(up) = change.up {
            message.header.change_mask = LinkFlags::Up;
            if up {
                message.header.flags = LinkFlags::Up;
            }
        }
        let attributes = &mut message.attributes;
        attributes.extend(change.name.clone().map(LinkAttribute::IfName));
        attributes.extend(
            change
                .mac
                .map(|mac| LinkAttribute::Address(mac.bytes().to_vec())),
        );
        attributes.extend(change.mtu.map(LinkAttribute::Mtu));
        if change.without_link_local {
            let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
            attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(
                vec![mode],
            )]));
        }
        let what = format!("change interface {index} ({change:?})");
        self.change(&what, RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Removes a network device.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn remove_link(&mut self, name: &str) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        let what = format!("remove {name}");
        self.change(&what, RouteNetlinkMessage::DelLink(message), 0)
    }
}
