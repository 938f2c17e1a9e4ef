//! Leads what a network namespace itself sends to one address and port to other ports of that address, by rules of nftables
//! (Linux: include/uapi/linux/netfilter/nf_tables.h, nfnetlink.h).
//!
//! ```text
//! table ip TABLE {
//!     chain output {
//!         type nat hook output priority dstnat;
//!         ip daddr ADDRESS udp dport PORT dnat to :UDP
//!         ip daddr ADDRESS tcp dport PORT dnat to :TCP
//!     }
//! }
//! ```
//!
//! What is sent back is changed back by the kernel, which keeps track of connections. All of it is one transaction.

use std::io;
use std::net::Ipv4Addr;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use crate::NetlinkError;

/// Where to lead what is sent to an address and port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Redirect<'a> {
    /// The name of the table, which is made anew.
    pub table: &'a str,
    /// The address, which stays.
    pub address: Ipv4Addr,
    /// The port.
    pub port: u16,
    /// The port in its place for UDP.
    pub udp: u16,
    /// The port in its place for TCP.
    pub tcp: u16,
}

/// `NLM_F_REQUEST`, `NLM_F_ACK`, `NLM_F_CREATE`, `NLM_F_APPEND`.
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
/// `NLMSG_ERROR`, which an acknowledgement is too.
const ERROR: u16 = 2;
/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `NFNL_SUBSYS_NFTABLES`.
const NFTABLES: u16 = 10;
/// `NFT_MSG_NEWTABLE`, `NFT_MSG_DELTABLE`, `NFT_MSG_NEWCHAIN`, `NFT_MSG_NEWRULE`.
const NEW_TABLE: u16 = NFTABLES << 8;
const DELETE_TABLE: u16 = (NFTABLES << 8) | 2;
const NEW_CHAIN: u16 = (NFTABLES << 8) | 3;
const NEW_RULE: u16 = (NFTABLES << 8) | 6;
/// `NFPROTO_UNSPEC`, `NFPROTO_IPV4`.
const UNSPEC: u8 = 0;
const IPV4: u8 = 2;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// `NF_INET_LOCAL_OUT`, `NF_IP_PRI_NAT_DST`.
const LOCAL_OUT: u32 = 3;
const DESTINATION_NAT: i32 = -100;
/// `NFT_REG_1`.
const REGISTER: u32 = 1;
/// `NFT_PAYLOAD_NETWORK_HEADER`, `NFT_PAYLOAD_TRANSPORT_HEADER`.
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
/// `NFT_NAT_DNAT`.
const DNAT: u32 = 1;
/// `IPPROTO_TCP`, `IPPROTO_UDP`.
const TCP: u8 = 6;
const UDP: u8 = 17;
const CHAIN: &str = "output";

/// Attributes (`struct nlattr`), one after the other.
#[derive(Debug, Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn add(mut self, kind: u16, value: &[u8]) -> Self {
        let len = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(len.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.add(kind, &bytes)
    }

    /// Numbers are in network byte order.
    fn number(self, kind: u16, value: u32) -> Self {
        self.add(kind, &value.to_be_bytes())
    }

    fn nested(self, kind: u16, inner: &Self) -> Self {
        self.add(kind | NESTED, &inner.0)
    }

    /// One expression of a rule (`NFTA_LIST_ELEM`, `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`).
    fn expression(self, name: &str, data: &Self) -> Self {
        self.nested(1, &Self::default().text(1, name).nested(2, data))
    }

    /// Goes on if these bytes of a header are `wanted` (`NFTA_PAYLOAD_*`, `NFTA_CMP_*`, `NFTA_DATA_VALUE`).
    fn matches(self, header: u32, offset: u32, wanted: &[u8]) -> Self {
        let len = u32::try_from(wanted.len()).unwrap_or(0);
        let load = Self::default()
            .number(1, REGISTER)
            .number(2, header)
            .number(3, offset)
            .number(4, len);
        let equal = 0;
        let compare = Self::default()
            .number(1, REGISTER)
            .number(2, equal)
            .nested(3, &Self::default().add(1, wanted));
        self.expression("payload", &load)
            .expression("cmp", &compare)
    }

    /// Another port in the place of the packet's (`NFTA_IMMEDIATE_*`, `NFTA_NAT_*`).
    fn with_port(self, port: u16) -> Self {
        let value = Self::default().add(1, &port.to_be_bytes());
        let load = Self::default().number(1, REGISTER).nested(2, &value);
        let nat = Self::default()
            .number(1, DNAT)
            .number(2, IPV4.into())
            .number(5, REGISTER);
        self.expression("immediate", &load).expression("nat", &nat)
    }
}

/// Messages (`struct nlmsghdr`, `struct nfgenmsg`) that are carried out together or not at all.
#[derive(Debug, Default)]
struct Batch {
    bytes: Vec<u8>,
    /// How many are acknowledged.
    acknowledged: usize,
    sequence: u32,
}

impl Batch {
    fn push(&mut self, kind: u16, flags: u16, (family, subsystem): (u8, u16), body: &Attributes) {
        if flags & ACK != 0 {
            self.acknowledged += 1;
        }
        let len = u32::try_from(16 + 4 + body.0.len()).unwrap_or(u32::MAX);
        self.bytes.extend(len.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((REQUEST | flags).to_ne_bytes());
        self.bytes.extend(self.sequence.to_ne_bytes());
        self.bytes.extend(0_u32.to_ne_bytes());
        // Of the version 0.
        self.bytes.extend([family, 0]);
        self.bytes.extend(subsystem.to_be_bytes());
        self.bytes.extend(&body.0);
        self.sequence += 1;
    }
}

impl Redirect<'_> {
    fn rule(&self, protocol: u8, to: u16) -> Attributes {
        // ip(7): the destination is at 16, the protocol at 9; the destination's port is at 2 of either header.
        let expressions = Attributes::default()
            .matches(NETWORK_HEADER, 16, &self.address.octets())
            .matches(NETWORK_HEADER, 9, &[protocol])
            .matches(TRANSPORT_HEADER, 2, &self.port.to_be_bytes())
            .with_port(to);
        Attributes::default()
            .text(1, self.table)
            .text(2, CHAIN)
            .nested(4, &expressions)
    }

    fn batch(&self) -> Batch {
        let mut batch = Batch::default();
        let frame = (UNSPEC, NFTABLES);
        let ours = (IPV4, 0);
        let table = Attributes::default().text(1, self.table);
        let hook = Attributes::default()
            .number(1, LOCAL_OUT)
            .number(2, DESTINATION_NAT.cast_unsigned());
        let chain = Attributes::default()
            .text(1, self.table)
            .text(3, CHAIN)
            .nested(4, &hook)
            .text(7, "nat");
        batch.push(BATCH_BEGIN, 0, frame, &Attributes::default());
        // One that is there already goes first; deleting one that is not would be an error.
        batch.push(NEW_TABLE, CREATE | ACK, ours, &table);
        batch.push(DELETE_TABLE, ACK, ours, &table);
        batch.push(NEW_TABLE, CREATE | ACK, ours, &table);
        batch.push(NEW_CHAIN, CREATE | ACK, ours, &chain);
        for (protocol, to) in [(UDP, self.udp), (TCP, self.tcp)] {
            let rule = self.rule(protocol, to);
            batch.push(NEW_RULE, CREATE | APPEND | ACK, ours, &rule);
        }
        batch.push(BATCH_END, 0, frame, &Attributes::default());
        batch
    }

    /// Makes the rules in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`NetlinkError`]; nothing is changed then.
    pub fn make(&self) -> Result<(), NetlinkError> {
        let what = || format!("redirect port {} of {}", self.port, self.address);
        let failed = |source| NetlinkError::Socket {
            what: what(),
            source,
        };
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(NetlinkError::Open)?;
        socket.bind_auto().map_err(NetlinkError::Open)?;
        let batch = self.batch();
        let kernel = SocketAddr::new(0, 0);
        socket.send_to(&batch.bytes, &kernel, 0).map_err(failed)?;
        let mut left = batch.acknowledged;
        while left > 0 {
            let (answer, _) = socket.recv_from_full().map_err(failed)?;
            for code in outcomes(&answer).map_err(|detail| NetlinkError::Malformed {
                what: what(),
                detail: detail.to_owned(),
            })? {
                if code != 0 {
                    return Err(NetlinkError::Refused {
                        what: what(),
                        source: io::Error::from_raw_os_error(code.saturating_neg()),
                    });
                }
                left = left.saturating_sub(1);
            }
        }
        Ok(())
    }
}

/// The codes of the acknowledgements and errors in what the kernel sent: zero, or the negative number of an error.
fn outcomes(mut bytes: &[u8]) -> Result<Vec<i32>, &'static str> {
    let mut codes = Vec::new();
    while !bytes.is_empty() {
        let word = |at: usize| {
            bytes
                .get(at..at + 4)?
                .try_into()
                .ok()
                .map(u32::from_ne_bytes)
        };
        let len = word(0).and_then(|len| usize::try_from(len).ok());
        let len = len.filter(|len| (16..=bytes.len()).contains(len));
        let len = len.ok_or("a message has no length")?;
        // The type is the first half of the second word.
        let kind = bytes.get(4..6).and_then(|kind| kind.try_into().ok());
        if kind.map(u16::from_ne_bytes) == Some(ERROR) {
            let code = word(16)
                .filter(|_| len >= 20)
                .ok_or("an error has no code")?;
            codes.push(code.cast_signed());
        }
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(codes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attribute_has_its_length_and_is_padded() {
        let attributes = Attributes::default().text(1, "ab").number(2, 3);
        let mut wanted = vec![7, 0, 1, 0, b'a', b'b', 0, 0];
        wanted.extend([8, 0, 2, 0, 0, 0, 0, 3]);
        assert_eq!(attributes.0, wanted);
    }

    #[test]
    fn outcomes_are_read_from_whole_messages_only() {
        let message = |code: i32| {
            let mut bytes = vec![36, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            bytes.extend(code.to_ne_bytes());
            bytes.extend([0; 16]);
            bytes
        };
        let both = [message(0), message(-17)].concat();
        assert_eq!(outcomes(&both), Ok(vec![0, -17]));
        assert!(outcomes(&both[..40]).is_err());
        assert!(outcomes(&[0; 16]).is_err());
    }
}
