//! Routes of the main table.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::address::family;
use crate::{Netlink, NetlinkError};

/// A way to a network through an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The network.
    pub destination: IpAddr,
    /// How many bits of that count; 0 is everything.
    pub prefix: u8,
    /// The next router; `None` when the network is the interface's own.
    pub gateway: Option<IpAddr>,
    /// The address to send from.
    pub source: Option<IpAddr>,
    /// Less is preferred.
    pub metric: Option<u32>,
    /// The router is on the interface's network whatever its addresses say.
    pub on_link: bool,
}

fn ip(address: RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(ip.into()),
        RouteAddress::Inet6(ip) => Some(ip.into()),
        _ => None,
    }
}

impl Route {
    /// The route, if somebody set it: what the kernel or a router made another kernel makes itself.
    fn from_message(message: RouteMessage) -> Option<(u32, Self)> {
        let header = message.header;
        let set = !matches!(
            header.protocol,
            RouteProtocol::Kernel | RouteProtocol::Ra | RouteProtocol::IcmpRedirect
        );
        if !set || header.table != RouteHeader::RT_TABLE_MAIN || header.kind != RouteType::Unicast {
            return None;
        }
        let everything = match header.address_family {
            AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            _ => return None,
        };
        let mut route = Self {
            destination: everything,
            prefix: header.destination_prefix_length,
            gateway: None,
            source: None,
            metric: None,
            on_link: header.flags.contains(RouteFlags::Onlink),
        };
        let mut interface = None;
        for attribute in message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => route.destination = ip(address)?,
                RouteAttribute::Gateway(address) => route.gateway = Some(ip(address)?),
                RouteAttribute::PrefSource(address) => route.source = ip(address),
                RouteAttribute::Priority(metric) => route.metric = Some(metric),
                RouteAttribute::Oif(index) => interface = Some(index),
                _ => {}
            }
        }
        // One of several ways has no interface of its own.
        Some((interface?, route))
    }
}

impl Netlink {
    /// The routes of the main table that somebody set, each with the number of its interface; those without a router
    /// first, because the router of another may be behind them. Routes with several ways are left out.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn routes(&mut self) -> Result<Vec<(u32, Route)>, NetlinkError> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut question = RouteMessage::default();
            question.header.address_family = family;
            let answers = self.list("list the routes", RouteNetlinkMessage::GetRoute(question))?;
            routes.extend(answers.into_iter().filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(message) => Route::from_message(message),
                _ => None,
            }));
        }
        routes.sort_by_key(|(_, route)| route.gateway.is_some());
        Ok(routes)
    }

    /// Adds a route of the main table, which may be there already.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn add_route(&mut self, index: u32, route: Route) -> Result<(), NetlinkError> {
        let mut message = RouteMessage::default();
        let header = &mut message.header;
        header.address_family = family(route.destination);
        header.destination_prefix_length = route.prefix;
        header.table = RouteHeader::RT_TABLE_MAIN;
        header.protocol = RouteProtocol::Boot;
        header.kind = RouteType::Unicast;
        header.scope = match (route.gateway, route.destination) {
            (None, IpAddr::V4(_)) => RouteScope::Link,
            _ => RouteScope::Universe,
        };
        if route.on_link {
            header.flags = RouteFlags::Onlink;
        }
        let attributes = &mut message.attributes;
        attributes.push(RouteAttribute::Oif(index));
        if route.prefix > 0 {
            attributes.push(RouteAttribute::Destination(route.destination.into()));
        }
        attributes.extend(route.gateway.map(|ip| RouteAttribute::Gateway(ip.into())));
        attributes.extend(route.source.map(|ip| RouteAttribute::PrefSource(ip.into())));
        attributes.extend(route.metric.map(RouteAttribute::Priority));
        let way = match route.gateway {
            Some(gateway) => format!(" through {gateway}"),
            None => String::new(),
        };
        let what = format!(
            "route {}/{}{way} to interface {index}",
            route.destination, route.prefix
        );
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.change(&what, RouteNetlinkMessage::NewRoute(message), flags)
    }
}
