//! Interfaces, addresses, routes and neighbours, over rtnetlink(7): what both sides of the boundary need, the shim in the
//! pod's network namespace and the agent in the guest. And a redirection of ports ([`Redirect`]), over nfnetlink.
//!
//! Synchronous: each call is a few microseconds of the kernel's, and a [`Netlink`] belongs to the namespace of the thread
//! that opened it, for ever.

mod address;
mod link;
mod neighbour;
mod redirect;
mod route;

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

pub use address::Address;
pub use link::{Link, LinkChange};
pub use neighbour::Neighbour;
pub use netlink_packet_core as packet_core;
pub use netlink_packet_route as packet;
pub use redirect::Redirect;
pub use route::Route;

/// Why something could not be found out or changed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// There is no way to the kernel.
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
    /// The way to the kernel failed.
    #[error("cannot {what}: netlink failed")]
    Socket {
        /// What was tried.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel said no.
    #[error("cannot {what}")]
    Refused {
        /// What was tried.
        what: String,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// The kernel's answer cannot be read.
    #[error("cannot {what}: the kernel's answer cannot be read: {detail}")]
    Malformed {
        /// What was tried.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
}

impl NetlinkError {
    /// What the kernel refused with, if it did.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// A connection to the routing part of the kernel, for one network namespace.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens one for the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`NetlinkError::Open`].
    pub fn open() -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(NetlinkError::Open)?;
        socket.bind_auto().map_err(NetlinkError::Open)?;
        socket
            .connect(&SocketAddr::new(0, 0))
            .map_err(NetlinkError::Open)?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Has the kernel change something; `flags` beside `NLM_F_REQUEST` and `NLM_F_ACK`. `what` follows "cannot".
    ///
    /// # Errors
    /// [`NetlinkError`]; what the kernel refuses is not done.
    pub fn change(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), NetlinkError> {
        self.exchange(what, message, NLM_F_REQUEST | NLM_F_ACK | flags)
            .map(drop)
    }

    /// Has the kernel list something.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn list(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        self.exchange(what, message, NLM_F_REQUEST | NLM_F_DUMP)
    }

    fn exchange(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let socket = |source| NetlinkError::Socket {
            what: what.to_owned(),
            source,
        };
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map_err(socket)?;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full().map_err(socket)?;
            if self.read(what, &datagram, &mut answers)? {
                return Ok(answers);
            }
        }
    }

    /// Reads one datagram, and says whether the answer ends with it.
    fn read(
        &self,
        what: &str,
        datagram: &[u8],
        answers: &mut Vec<RouteNetlinkMessage>,
    ) -> Result<bool, NetlinkError> {
        let malformed = |detail: String| NetlinkError::Malformed {
            what: what.to_owned(),
            detail,
        };
        let mut rest = datagram;
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|error| malformed(error.to_string()))?;
            // Of a question that was given up.
            let ours = message.header.sequence_number == self.sequence;
            let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
            match message.payload {
                _ if !ours => {}
                NetlinkPayload::Done(_) => return Ok(true),
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(true),
                NetlinkPayload::Error(error) => {
                    return Err(NetlinkError::Refused {
                        what: what.to_owned(),
                        source: error.to_io(),
                    });
                }
                NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                NetlinkPayload::Overrun(_) => return Err(malformed("overrun".to_owned())),
                _ => {}
            }
            // Messages begin at multiples of four (netlink(7), NLMSG_ALIGN).
            let next = length.checked_next_multiple_of(4).unwrap_or(usize::MAX);
            match rest.get(next..) {
                Some(after) if next > 0 => rest = after,
                _ => break,
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_listed_with_its_mtu() {
        let mut netlink = Netlink::open().unwrap();
        let links = netlink.links().unwrap();
        let lo = links.iter().find(|link| link.name == "lo").unwrap();
        assert!(lo.is_loopback);
        assert!(lo.mtu > 0);
        assert_eq!(lo.mac, None);
    }

    #[test]
    fn refusal_says_what_was_tried() {
        let mut netlink = Netlink::open().unwrap();
        let change = LinkChange {
            up: Some(true),
            ..LinkChange::default()
        };
        let error = netlink
            .change_link(i32::MAX.unsigned_abs(), &change)
            .unwrap_err();
        assert!(error.errno().is_some(), "{error:?}");
        assert!(error.to_string().starts_with("cannot "), "{error}");
    }
}
