//! The constants and the packet header of VirtIO 1.3, 5.10, in the specification's spelling.

use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

/// Host-to-guest packets (5.10.2).
pub(crate) const RX_QUEUE: usize = 0;
/// Guest-to-host packets.
pub(crate) const TX_QUEUE: usize = 1;
/// Receive, transmit and event queue.
pub(crate) const QUEUE_COUNT: usize = 3;
/// Entries in each queue, in their order. Linux fills the first with buffers of 4 KiB when it starts, half a megabyte of each guest,
/// and has at most eight in the last.
pub(crate) const QUEUE_SIZES: [u16; QUEUE_COUNT] = [128, 256, 16];
/// What the device offers. No `VIRTIO_VSOCK_F_*` bit means streams only (5.10.3.1).
pub(crate) const FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// The context identifier of the host (5.10.4).
pub(crate) const VMADDR_CID_HOST: u64 = 2;
/// `SOCK_STREAM` (5.10.6).
pub(crate) const VIRTIO_VSOCK_TYPE_STREAM: u16 = 1;
/// Flag of `VIRTIO_VSOCK_OP_SHUTDOWN`: the sender receives no more.
pub(crate) const VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE: u32 = 1;
/// Flag of `VIRTIO_VSOCK_OP_SHUTDOWN`: the sender sends no more.
pub(crate) const VIRTIO_VSOCK_SHUTDOWN_F_SEND: u32 = 2;
/// Both flags.
pub(crate) const SHUTDOWN_BOTH: u32 =
    VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE | VIRTIO_VSOCK_SHUTDOWN_F_SEND;

/// The most payload in one packet. The specification sets no limit; this is that of Linux
/// (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`).
pub(crate) const MAX_PKT_BUF_SIZE: u32 = 64 * 1024;

/// `virtio_vsock_hdr.op` (5.10.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Request,
    Response,
    Rst,
    Shutdown,
    Rw,
    CreditUpdate,
    CreditRequest,
    /// Not in the specification.
    Unknown(u16),
}

impl From<u16> for Op {
    fn from(op: u16) -> Self {
        match op {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Rst,
            4 => Self::Shutdown,
            5 => Self::Rw,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            other => Self::Unknown(other),
        }
    }
}

impl From<Op> for u16 {
    fn from(op: Op) -> Self {
        match op {
            Op::Request => 1,
            Op::Response => 2,
            Op::Rst => 3,
            Op::Shutdown => 4,
            Op::Rw => 5,
            Op::CreditUpdate => 6,
            Op::CreditRequest => 7,
            Op::Unknown(other) => other,
        }
    }
}

/// `struct virtio_vsock_hdr` (5.10.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) src_cid: u64,
    pub(crate) dst_cid: u64,
    pub(crate) src_port: u32,
    pub(crate) dst_port: u32,
    pub(crate) len: u32,
    pub(crate) socket_type: u16,
    pub(crate) op: Op,
    pub(crate) flags: u32,
    pub(crate) buf_alloc: u32,
    pub(crate) fwd_cnt: u32,
}

impl Header {
    /// Its size on the wire.
    pub(crate) const BYTES: usize = 44;
    /// The same, as the rings count.
    pub(crate) const WIRE_BYTES: u32 = 44;

    /// Decodes a header; every byte pattern is one.
    pub(crate) fn decode(bytes: &[u8; Self::BYTES]) -> Self {
        let mut rest = bytes.as_slice();
        Self {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            socket_type: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)).into(),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    /// Encodes the header.
    pub(crate) fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let mut rest = bytes.as_mut_slice();
        put(&mut rest, self.src_cid.to_le_bytes());
        put(&mut rest, self.dst_cid.to_le_bytes());
        put(&mut rest, self.src_port.to_le_bytes());
        put(&mut rest, self.dst_port.to_le_bytes());
        put(&mut rest, self.len.to_le_bytes());
        put(&mut rest, self.socket_type.to_le_bytes());
        put(&mut rest, u16::from(self.op).to_le_bytes());
        put(&mut rest, self.flags.to_le_bytes());
        put(&mut rest, self.buf_alloc.to_le_bytes());
        put(&mut rest, self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The answer that refuses this packet, whoever it was for.
    pub(crate) fn refusal(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            len: 0,
            socket_type: self.socket_type,
            op: Op::Rst,
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }
}

/// Takes the next `N` bytes; the fields of a header add up to its size, so there are always enough.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    match rest.split_first_chunk::<N>() {
        Some((head, tail)) => {
            *rest = tail;
            *head
        }
        None => [0; N],
    }
}

/// Writes the next `N` bytes.
fn put<const N: usize>(rest: &mut &mut [u8], value: [u8; N]) {
    if let Some((head, tail)) = std::mem::take(rest).split_first_chunk_mut::<N>() {
        *head = value;
        *rest = tail;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn header_any_bytes_survive_decode_and_encode(bytes in proptest::collection::vec(any::<u8>(), Header::BYTES)) {
            let bytes: [u8; Header::BYTES] = bytes.try_into().unwrap();
            prop_assert_eq!(Header::decode(&bytes).encode(), bytes);
        }
    }

    #[test]
    fn header_fields_have_the_offsets_of_the_specification() {
        let mut bytes = [0u8; Header::BYTES];
        bytes[16] = 7;
        bytes[24] = 9;
        bytes[30] = 5;
        bytes[40] = 3;
        let header = Header::decode(&bytes);
        assert_eq!(header.src_port, 7);
        assert_eq!(header.len, 9);
        assert_eq!(header.op, Op::Rw);
        assert_eq!(header.fwd_cnt, 3);
    }
}
