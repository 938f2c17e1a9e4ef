//! Static entries of the neighbour tables (ARP, and its like for IPv6).

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use sandbox_types::MacAddress;

use crate::address::family;
use crate::{Netlink, NetlinkError};

/// Somebody on an interface's network whose hardware address is known for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// The address.
    pub ip: IpAddr,
    /// The hardware address.
    pub mac: MacAddress,
}

impl Neighbour {
    fn from_message(message: NeighbourMessage) -> Option<(u32, Self)> {
        if message.header.state != NeighbourState::Permanent {
            return None;
        }
        let (mut ip, mut mac) = (None, None);
        for attribute in message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some(v4.into()),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                    ip = Some(v6.into());
                }
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = MacAddress::from_slice(&bytes),
                _ => {}
            }
        }
        Some((message.header.ifindex, Self { ip: ip?, mac: mac? }))
    }
}

impl Netlink {
    /// Every static neighbour with the number of its interface.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn neighbours(&mut self) -> Result<Vec<(u32, Neighbour)>, NetlinkError> {
        let question = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        let answers = self.list("list the neighbours", question)?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewNeighbour(message) => Neighbour::from_message(message),
                _ => None,
            })
            .collect())
    }

    /// Adds a static neighbour, or changes it.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn add_neighbour(&mut self, index: u32, neighbour: Neighbour) -> Result<(), NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(neighbour.ip);
        message.header.ifindex = index;
        message.header.state = NeighbourState::Permanent;
        let destination = match neighbour.ip {
            IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
            IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
        };
        message.attributes = vec![
            NeighbourAttribute::Destination(destination),
            NeighbourAttribute::LinkLayerAddress(neighbour.mac.bytes().to_vec()),
        ];
        let what = format!("make {} the neighbour {}", neighbour.mac, neighbour.ip);
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.change(&what, RouteNetlinkMessage::NewNeighbour(message), flags)
    }
}
