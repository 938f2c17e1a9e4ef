//! Descriptor chains as vsock packets.
//!
//! A header is copied out once and only the copy is looked at. Payload stays in guest memory: it moves
//! between there and a socket in one system call for each piece. A packet may lie in any number of
//! descriptors up to [`MAX_DESCRIPTORS`]: Linux uses one for header and payload, before 6.2 used two, and
//! from 6.17 on, and for `MSG_ZEROCOPY`, scatters the payload over many, which the `virtio-vsock` crate's
//! parser refuses; that is why this one exists.

use std::io;

use virtio_queue::DescriptorChain;
use vm_memory::{
    Bytes, GuestMemory, GuestMemoryMmap, Permissions, ReadVolatile, VolatileMemoryError,
    VolatileSlice, WriteVolatile,
};

use super::protocol::{Header, MAX_PKT_BUF_SIZE};
use crate::memory;

/// The most descriptors of one packet: the header, 17 fragments of a Linux socket buffer
/// (`MAX_SKB_FRAGS`) and its linear part, with room to spare.
const MAX_DESCRIPTORS: usize = 32;

/// Header and largest payload.
const MAX_PACKET_BYTES: usize = Header::BYTES + MAX_PKT_BUF_SIZE as usize;

/// Why a descriptor chain is no packet. The chain is handed back unused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MalformedPacket {
    /// More than [`MAX_DESCRIPTORS`].
    #[error("a packet in more than {MAX_DESCRIPTORS} descriptors")]
    TooManyDescriptors,
    /// A buffer to be read in the receive queue, or one to be written in the transmit queue.
    #[error("a buffer of the wrong direction")]
    WrongDirection,
    /// A buffer to be written in memory that is only read.
    #[error("a buffer to be written in memory that is only read")]
    ReadOnly,
    /// A buffer that is not in guest memory.
    #[error("a buffer outside of guest memory")]
    OutsideMemory,
    /// No room for a header, and in the receive queue for at least a byte of payload.
    #[error("a buffer of {bytes} bytes is too small")]
    TooSmall {
        /// The size of the whole chain.
        bytes: usize,
    },
    /// `len` is more than the chain holds or than [`MAX_PKT_BUF_SIZE`].
    #[error("a header that announces {len} bytes over a buffer of {available}")]
    LengthMismatch {
        /// `virtio_vsock_hdr.len`.
        len: u32,
        /// The bytes after the header.
        available: usize,
    },
}

/// The pieces of guest memory that make up a packet, in order.
#[derive(Debug)]
struct Pieces<'m>(Vec<VolatileSlice<'m>>);

impl<'m> Pieces<'m> {
    fn collect(
        mem: &'m GuestMemoryMmap,
        chain: DescriptorChain<&GuestMemoryMmap>,
        access: Permissions,
    ) -> Result<Self, MalformedPacket> {
        let mut pieces = Vec::with_capacity(2);
        let mut room = MAX_PACKET_BYTES;
        for (index, descriptor) in chain.enumerate() {
            if index >= MAX_DESCRIPTORS {
                return Err(MalformedPacket::TooManyDescriptors);
            }
            if descriptor.is_write_only() != (access == Permissions::Write) {
                return Err(MalformedPacket::WrongDirection);
            }
            let length = room.min(usize::try_from(descriptor.len()).unwrap_or(usize::MAX));
            if length == 0 {
                continue;
            }
            if access == Permissions::Write
                && !memory::is_writable(mem, descriptor.addr(), descriptor.len())
            {
                return Err(MalformedPacket::ReadOnly);
            }
            for piece in mem
                .get_slices(descriptor.addr(), length, access)
                .map_err(|_| MalformedPacket::OutsideMemory)?
            {
                pieces.push(piece.map_err(|_| MalformedPacket::OutsideMemory)?);
            }
            room = room.saturating_sub(length);
        }
        Ok(Self(pieces))
    }

    fn len(&self) -> usize {
        self.0.iter().map(VolatileSlice::len).sum()
    }

    /// Splits the first `at` bytes off.
    fn split_front(self, at: usize) -> (Self, Self) {
        let mut front = Vec::with_capacity(1);
        let mut back = Vec::with_capacity(self.0.len());
        let mut missing = at;
        for piece in self.0 {
            let here = missing.min(piece.len());
            missing = missing.saturating_sub(here);
            match piece.split_at(here) {
                Ok((head, tail)) => {
                    front.extend((!head.is_empty()).then_some(head));
                    back.extend((!tail.is_empty()).then_some(tail));
                }
                // `here` is at most the piece's length.
                Err(_) => back.push(piece),
            }
        }
        (Self(front), Self(back))
    }

    fn copy_out(&self, mut to: &mut [u8]) {
        for piece in &self.0 {
            let done = piece.read(to, 0).unwrap_or(0);
            to = to.get_mut(done..).unwrap_or_default();
        }
    }

    fn copy_in(&self, mut from: &[u8]) {
        for piece in &self.0 {
            let done = piece.write(from, 0).unwrap_or(0);
            from = from.get(done..).unwrap_or_default();
        }
    }
}

/// A packet of the guest's.
#[derive(Debug)]
pub(crate) struct TxPacket<'m> {
    /// The copy of its header that all decisions are made on.
    pub(crate) header: Header,
    payload: Pieces<'m>,
}

impl<'m> TxPacket<'m> {
    /// Reads the header; the payload is exactly `header.len` bytes.
    pub(crate) fn parse(
        mem: &'m GuestMemoryMmap,
        chain: DescriptorChain<&GuestMemoryMmap>,
    ) -> Result<Self, MalformedPacket> {
        let pieces = Pieces::collect(mem, chain, Permissions::Read)?;
        let bytes = pieces.len();
        let available = bytes
            .checked_sub(Header::BYTES)
            .ok_or(MalformedPacket::TooSmall { bytes })?;
        let (front, back) = pieces.split_front(Header::BYTES);
        let mut raw = [0; Header::BYTES];
        front.copy_out(&mut raw);
        let header = Header::decode(&raw);
        let len = usize::try_from(header.len).unwrap_or(usize::MAX);
        if header.len > MAX_PKT_BUF_SIZE || len > available {
            return Err(MalformedPacket::LengthMismatch {
                len: header.len,
                available,
            });
        }
        let (payload, _) = back.split_front(len);
        Ok(Self { header, payload })
    }

    /// Writes the payload to `socket` until it is all gone or the socket takes no more; says how much went.
    ///
    /// # Errors
    /// What the kernel said, `WouldBlock` included, if nothing went at all.
    pub(crate) fn write_to<W: WriteVolatile>(&self, socket: &mut W) -> io::Result<usize> {
        let mut done: usize = 0;
        for piece in &self.payload.0 {
            match retry(|| socket.write_volatile(piece)) {
                Ok(count) => {
                    done = done.saturating_add(count);
                    if count < piece.len() {
                        break;
                    }
                }
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Hands the payload from byte `skip` on to `sink`, in pieces of at most `CHUNK` bytes.
    pub(crate) fn copy_from(&self, skip: usize, mut sink: impl FnMut(&[u8])) {
        const CHUNK: usize = 4096;
        let mut chunk = [0; CHUNK];
        let mut skip = skip;
        for piece in &self.payload.0 {
            let mut at = skip.min(piece.len());
            skip = skip.saturating_sub(at);
            while at < piece.len() {
                match piece.read(&mut chunk, at) {
                    Ok(count) if count > 0 => {
                        sink(chunk.get(..count).unwrap_or_default());
                        at = at.saturating_add(count);
                    }
                    _ => return,
                }
            }
        }
    }
}

/// A buffer of the guest's for one packet.
#[derive(Debug)]
pub(crate) struct RxPacket<'m> {
    header: Pieces<'m>,
    payload: Pieces<'m>,
}

impl<'m> RxPacket<'m> {
    /// Checks that the chain has room for a header and some payload.
    pub(crate) fn parse(
        mem: &'m GuestMemoryMmap,
        chain: DescriptorChain<&GuestMemoryMmap>,
    ) -> Result<Self, MalformedPacket> {
        let pieces = Pieces::collect(mem, chain, Permissions::Write)?;
        let bytes = pieces.len();
        if bytes <= Header::BYTES {
            return Err(MalformedPacket::TooSmall { bytes });
        }
        let (header, payload) = pieces.split_front(Header::BYTES);
        Ok(Self { header, payload })
    }

    /// Reads at most `max` bytes of payload from `socket`; 0 is its end.
    ///
    /// # Errors
    /// What the kernel said, `WouldBlock` included, if nothing came at all.
    pub(crate) fn read_from<R: ReadVolatile>(&self, socket: &mut R, max: u32) -> io::Result<usize> {
        let mut room = usize::try_from(max).unwrap_or(usize::MAX);
        let mut done: usize = 0;
        for piece in &self.payload.0 {
            let Ok(mut piece) = piece.subslice(0, room.min(piece.len())) else {
                break;
            };
            if piece.is_empty() {
                break;
            }
            match retry(|| socket.read_volatile(&mut piece)) {
                Ok(count) => {
                    done = done.saturating_add(count);
                    room = room.saturating_sub(count);
                    if count < piece.len() {
                        break;
                    }
                }
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Writes the header and returns the bytes used of the buffer.
    pub(crate) fn finish(&self, header: &Header) -> u32 {
        self.header.copy_in(&header.encode());
        header.len.saturating_add(Header::WIRE_BYTES)
    }
}

/// Retries an interrupted call, and brings its error into the usual form.
fn retry(mut call: impl FnMut() -> Result<usize, VolatileMemoryError>) -> io::Result<usize> {
    loop {
        match call() {
            Ok(count) => return Ok(count),
            Err(VolatileMemoryError::IOError(error)) => {
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}
