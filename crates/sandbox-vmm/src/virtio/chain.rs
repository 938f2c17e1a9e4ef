//! A descriptor chain as two lists of memory segments, read once and bounded.
//!
//! Device-readable segments come first, device-writable ones after them (VirtIO 1.3, 2.7.4.2). The parsers
//! of the devices' requests work on these copies; the guest may rewrite its descriptors as it likes.

use std::collections::VecDeque;

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::memory;

/// The most descriptors in one chain, indirect ones included: 2.7.5.3.1 allows no more than the queue has,
/// and no queue here has more.
pub(crate) const MAX_DESCRIPTORS: usize = 256;

/// Why a chain is no request.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// More descriptors than a queue has.
    #[error("the chain has more than {MAX_DESCRIPTORS} descriptors")]
    TooLong,
    /// A device-readable descriptor follows a device-writable one.
    #[error("a device-readable descriptor follows a device-writable one")]
    Order,
    /// The device-readable part is shorter than the request says.
    #[error("the device-readable part ends {missing} bytes early")]
    ReadableTooShort {
        /// How many bytes are not there.
        missing: usize,
    },
    /// The device-writable part has no room for the answer.
    #[error("the device-writable part has no room for the answer")]
    WritableTooShort,
    /// The device is to write to memory that is only read.
    #[error("the device is to write to memory that is only read")]
    ReadOnly,
    /// A segment is not in guest memory.
    #[error("a segment is not in guest memory")]
    Memory(#[source] GuestMemoryError),
}

/// A piece of guest memory, not yet checked to be there. If the device is to write to it, it is not in memory that is only read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Its first address.
    pub address: GuestAddress,
    /// Its length in bytes.
    pub length: u32,
}

/// A chain's segments, empty ones left out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Segments {
    /// What the device reads.
    pub readable: VecDeque<Segment>,
    /// What the device writes.
    pub writable: VecDeque<Segment>,
}

impl Segments {
    /// Copies the descriptors of `chain`.
    ///
    /// # Errors
    /// [`ChainError::TooLong`], [`ChainError::Order`] or [`ChainError::ReadOnly`].
    pub(crate) fn copy(mut chain: DescriptorChain<&GuestMemoryMmap>) -> Result<Self, ChainError> {
        let mut segments = Self::default();
        let mut count = 0;
        while let Some(descriptor) = chain.next() {
            if count == MAX_DESCRIPTORS {
                return Err(ChainError::TooLong);
            }
            count += 1;
            let segment = Segment {
                address: descriptor.addr(),
                length: descriptor.len(),
            };
            let writable = descriptor.is_write_only();
            if !writable && !segments.writable.is_empty() {
                return Err(ChainError::Order);
            }
            if segment.length == 0 {
                continue;
            }
            if writable {
                if !memory::is_writable(chain.memory(), segment.address, segment.length) {
                    return Err(ChainError::ReadOnly);
                }
                segments.writable.push_back(segment);
            } else {
                segments.readable.push_back(segment);
            }
        }
        Ok(segments)
    }

    /// Copies the next bytes of the device-readable part, however they are cut into descriptors, and removes
    /// them from it.
    ///
    /// # Errors
    /// [`ChainError::ReadableTooShort`] or [`ChainError::Memory`].
    pub(crate) fn take_readable(
        &mut self,
        memory: &GuestMemoryMmap,
        bytes: &mut [u8],
    ) -> Result<(), ChainError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let missing = rest.len();
            let Some(segment) = self.readable.front_mut() else {
                return Err(ChainError::ReadableTooShort { missing });
            };
            let available = usize::try_from(segment.length).unwrap_or(usize::MAX);
            let count = available.min(missing);
            let Some((part, after)) = rest.split_at_mut_checked(count) else {
                return Err(ChainError::ReadableTooShort { missing });
            };
            memory
                .read_slice(part, segment.address)
                .map_err(ChainError::Memory)?;
            rest = after;
            // `count` is at most the segment's length.
            let taken = u32::try_from(count).unwrap_or(segment.length);
            segment.length = segment.length.saturating_sub(taken);
            segment.address = GuestAddress(segment.address.0.wrapping_add(taken.into()));
            if segment.length == 0 {
                self.readable.pop_front();
            }
        }
        Ok(())
    }

    /// Removes the last byte of the device-writable part and says where it is.
    ///
    /// # Errors
    /// [`ChainError::WritableTooShort`].
    pub(crate) fn take_last_writable(&mut self) -> Result<GuestAddress, ChainError> {
        let segment = self
            .writable
            .back_mut()
            .ok_or(ChainError::WritableTooShort)?;
        segment.length = segment
            .length
            .checked_sub(1)
            .ok_or(ChainError::WritableTooShort)?;
        let address = GuestAddress(segment.address.0.wrapping_add(segment.length.into()));
        if segment.length == 0 {
            self.writable.pop_back();
        }
        Ok(address)
    }
}

/// Their bytes together; at most [`MAX_DESCRIPTORS`] times 4 GiB.
#[must_use]
pub fn total(segments: &VecDeque<Segment>) -> u64 {
    segments
        .iter()
        .map(|segment| u64::from(segment.length))
        .sum()
}

/// What is left of the segments without their first `bytes` bytes.
pub fn skip(
    segments: impl IntoIterator<Item = Segment>,
    mut bytes: u64,
) -> impl Iterator<Item = Segment> {
    segments.into_iter().filter_map(move |segment| {
        let passed = bytes.min(segment.length.into());
        bytes = bytes.saturating_sub(passed);
        // At most the segment's length.
        let length = segment.length.saturating_sub(u32::try_from(passed).ok()?);
        (length > 0).then(|| Segment {
            address: GuestAddress(segment.address.0.wrapping_add(passed)),
            length,
        })
    })
}

/// Writes as much of `bytes` as fits over the segments, and says how much that was.
///
/// # Errors
/// A segment is not in guest memory; those before it may have been written.
pub(crate) fn write_over(
    memory: &GuestMemoryMmap,
    segments: impl IntoIterator<Item = Segment>,
    bytes: &[u8],
) -> Result<usize, GuestMemoryError> {
    let mut rest = bytes;
    for segment in segments {
        let room = usize::try_from(segment.length).unwrap_or(usize::MAX);
        let (part, after) = rest.split_at(room.min(rest.len()));
        memory.write_slice(part, segment.address)?;
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    Ok(bytes.len().saturating_sub(rest.len()))
}
