//! Routes of the main table.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
    RouteProtocol, RouteScope, RouteType,
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
    /// The largest packet that goes this way, in bytes, if not the interface's: of a tunnel further on, as a rule.
    pub mtu: Option<u32>,
    /// The largest segment that TCP asks the other side for, in bytes.
    pub advertised_segment: Option<u32>,
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
            mtu: None,
            advertised_segment: None,
        };
        let mut interface = None;
        for attribute in message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => route.destination = ip(address)?,
                RouteAttribute::Gateway(address) => route.gateway = Some(ip(address)?),
                RouteAttribute::PrefSource(address) => route.source = ip(address),
                RouteAttribute::Priority(metric) => route.metric = Some(metric),
                RouteAttribute::Oif(index) => interface = Some(index),
                RouteAttribute::Metrics(metrics) => route.take_metrics(&metrics),
                _ => {}
            }
        }
        // One of several ways has no interface of its own.
        Some((interface?, route))
    }

    fn take_metrics(&mut self, metrics: &[RouteMetric]) {
        for metric in metrics {
            match *metric {
                RouteMetric::Mtu(bytes) => self.mtu = Some(bytes),
                RouteMetric::Advmss(bytes) => self.advertised_segment = Some(bytes),
                _ => {}
            }
        }
    }

    /// The route of the main table, through the interface with this number.
    fn to_message(self, index: u32) -> RouteMessage {
        let mut message = RouteMessage::default();
        let header = &mut message.header;
        header.address_family = family(self.destination);
        header.destination_prefix_length = self.prefix;
        header.table = RouteHeader::RT_TABLE_MAIN;
        header.protocol = RouteProtocol::Boot;
        header.kind = RouteType::Unicast;
        header.scope = match (self.gateway, self.destination) {
            (None, IpAddr::V4(_)) => RouteScope::Link,
            _ => RouteScope::Universe,
        };
        if self.on_link {
            header.flags = RouteFlags::Onlink;
        }
        let attributes = &mut message.attributes;
        attributes.push(RouteAttribute::Oif(index));
        if self.prefix > 0 {
            attributes.push(RouteAttribute::Destination(self.destination.into()));
        }
        attributes.extend(self.gateway.map(|ip| RouteAttribute::Gateway(ip.into())));
        attributes.extend(self.source.map(|ip| RouteAttribute::PrefSource(ip.into())));
        attributes.extend(self.metric.map(RouteAttribute::Priority));
        let metrics: Vec<_> = [
            self.mtu.map(RouteMetric::Mtu),
            self.advertised_segment.map(RouteMetric::Advmss),
        ]
        .into_iter()
        .flatten()
        .collect();
        if !metrics.is_empty() {
            attributes.push(RouteAttribute::Metrics(metrics));
        }
        message
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
        let message = route.to_message(index);
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

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::{Emitable as _, Parseable as _};
    use netlink_packet_route::route::RouteMessageBuffer;

    #[test]
    fn route_comes_back_from_the_wire_as_it_was() {
        let plain = Route {
            destination: [10, 1, 0, 0].into(),
            prefix: 16,
            gateway: Some([10, 0, 0, 1].into()),
            source: None,
            metric: None,
            on_link: false,
            mtu: None,
            advertised_segment: None,
        };
        let tunnelled = Route {
            metric: Some(7),
            on_link: true,
            mtu: Some(1300),
            advertised_segment: Some(1260),
            ..plain
        };
        for route in [plain, tunnelled] {
            let message = route.to_message(3);
            let mut bytes = vec![0; message.buffer_len()];
            message.emit(&mut bytes);
            let buffer = RouteMessageBuffer::new_checked(&bytes).unwrap();
            let read = RouteMessage::parse(&buffer).unwrap();
            assert_eq!(Route::from_message(read), Some((3, route)));
        }
    }
}
