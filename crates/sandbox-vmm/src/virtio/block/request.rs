//! Descriptor chains as block requests (VirtIO 1.3, 5.2.6): a header of 16 bytes, data, and a status byte.

use std::collections::VecDeque;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_queue::DescriptorChain;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::error::BlockError;
use crate::virtio::chain::{ChainError, Segment, Segments, total};

/// `virtio_blk_discard_write_zeroes` entries in a request: `max_discard_seg` and `max_write_zeroes_seg`.
pub(crate) const MAX_RANGES: usize = 16;
/// `VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP`, the only flag of a range, and not one of a discard (5.2.6.2).
pub(crate) const FLAG_UNMAP: u32 = 1;
/// Bytes of one of them.
const RANGE_BYTES: usize = 16;
/// Bytes of the header.
const HEADER_BYTES: usize = 16;

/// A range of a discard or write-zeroes request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first sector.
    pub sector: u64,
    /// How many.
    pub sectors: u32,
    /// Bit 0: the range may be unmapped.
    pub flags: u32,
}

/// What the driver wants.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Read into the guest.
    In {
        /// From here.
        sector: u64,
        /// To there.
        data: VecDeque<Segment>,
    },
    /// Write from the guest.
    Out {
        /// To here.
        sector: u64,
        /// From there.
        data: VecDeque<Segment>,
    },
    /// Make earlier writes durable.
    Flush,
    /// The serial number.
    GetId {
        /// To there.
        data: VecDeque<Segment>,
    },
    /// The content of these is no longer needed.
    Discard {
        /// None is empty.
        ranges: Vec<Range>,
    },
    /// The content of these becomes zero.
    WriteZeroes {
        /// None is empty.
        ranges: Vec<Range>,
    },
    /// A type that this device does not have.
    Unsupported {
        /// It.
        kind: u32,
    },
}

impl Operation {
    /// How much is read or written; what only changes where the disk has holes is nothing.
    #[must_use]
    pub(crate) fn data_bytes(&self) -> u64 {
        match self {
            Self::In { data, .. } | Self::Out { data, .. } => total(data),
            Self::Flush
            | Self::GetId { .. }
            | Self::Discard { .. }
            | Self::WriteZeroes { .. }
            | Self::Unsupported { .. } => 0,
        }
    }
}

/// A request with a place for its status.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// What to do.
    pub operation: Operation,
    /// Where the status goes.
    pub status: GuestAddress,
}

impl Request {
    /// Reads a request, each byte of it once.
    ///
    /// # Errors
    /// [`BlockError::Malformed`].
    pub(crate) fn parse(
        chain: DescriptorChain<&GuestMemoryMmap>,
        memory: &GuestMemoryMmap,
    ) -> Result<Self, BlockError> {
        let mut segments = Segments::copy(chain)?;
        let mut header = [0; HEADER_BYTES];
        segments.take_readable(memory, &mut header)?;
        let status = segments.take_last_writable()?;
        let [a, b, c, d, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7] = header;
        let kind = u32::from_le_bytes([a, b, c, d]);
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let operation = match kind {
            VIRTIO_BLK_T_IN => Operation::In {
                sector,
                data: segments.writable,
            },
            VIRTIO_BLK_T_OUT => Operation::Out {
                sector,
                data: segments.readable,
            },
            VIRTIO_BLK_T_FLUSH => Operation::Flush,
            VIRTIO_BLK_T_GET_ID => Operation::GetId {
                data: segments.writable,
            },
            VIRTIO_BLK_T_DISCARD => Operation::Discard {
                ranges: ranges(&mut segments, memory)?,
            },
            VIRTIO_BLK_T_WRITE_ZEROES => Operation::WriteZeroes {
                ranges: ranges(&mut segments, memory)?,
            },
            kind => Operation::Unsupported { kind },
        };
        Ok(Self { operation, status })
    }
}

fn ranges(segments: &mut Segments, memory: &GuestMemoryMmap) -> Result<Vec<Range>, ChainError> {
    let bytes = usize::try_from(total(&segments.readable)).unwrap_or(usize::MAX);
    if bytes > MAX_RANGES * RANGE_BYTES {
        return Err(ChainError::TooLong);
    }
    let mut ranges = Vec::with_capacity(MAX_RANGES);
    while !segments.readable.is_empty() {
        let mut entry = [0; RANGE_BYTES];
        segments.take_readable(memory, &mut entry)?;
        let [
            s0,
            s1,
            s2,
            s3,
            s4,
            s5,
            s6,
            s7,
            n0,
            n1,
            n2,
            n3,
            f0,
            f1,
            f2,
            f3,
        ] = entry;
        let range = Range {
            sector: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
            sectors: u32::from_le_bytes([n0, n1, n2, n3]),
            flags: u32::from_le_bytes([f0, f1, f2, f3]),
        };
        if range.sectors > 0 {
            ranges.push(range);
        }
    }
    Ok(ranges)
}
