//! Descriptor chains as frames to be sent and as buffers for frames (VirtIO 1.3, 5.1.6): a `virtio_net_hdr` of 12 bytes,
//! which the tap understands as it is, and an Ethernet frame.

use std::collections::VecDeque;

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::error::NetError;
use crate::virtio::chain::{ChainError, Segment, Segments, total};

/// `virtio_net_hdr` with `num_buffers` (5.1.6): what every device that offers `VIRTIO_F_VERSION_1` has.
pub const HEADER_BYTES: usize = 12;
/// Where `num_buffers` is in it.
const NUM_BUFFERS: std::ops::Range<usize> = 10..12;
/// Header and Ethernet header.
pub const MIN_FRAME_BYTES: usize = HEADER_BYTES + 14;
/// Header, Ethernet header with a tag, and the largest packet that segmentation offload takes (5.1.6.2: 65550 with an
/// Ethernet header without a tag).
pub const MAX_FRAME_BYTES: usize = HEADER_BYTES + 18 + 65_536;

/// Copies the frame of a transmit chain into `frame`, and says how long it is.
///
/// # Errors
/// [`NetError::FrameLength`] or [`NetError::Malformed`].
pub fn copy_frame(
    chain: DescriptorChain<&GuestMemoryMmap>,
    memory: &GuestMemoryMmap,
    frame: &mut [u8; MAX_FRAME_BYTES],
) -> Result<usize, NetError> {
    let mut segments = Segments::copy(chain)?;
    let bytes = total(&segments.readable);
    let length = usize::try_from(bytes)
        .ok()
        .filter(|length| *length >= MIN_FRAME_BYTES)
        .ok_or(NetError::FrameLength { bytes })?;
    let part = frame
        .get_mut(..length)
        .ok_or(NetError::FrameLength { bytes })?;
    segments.take_readable(memory, part)?;
    Ok(length)
}

/// A chain that waits for a frame, or for a part of one.
#[derive(Debug, PartialEq, Eq)]
pub struct Buffer {
    /// The chain's head, for the used ring.
    pub head: u16,
    segments: VecDeque<Segment>,
    bytes: u64,
}

impl Buffer {
    /// Reads a receive chain.
    ///
    /// # Errors
    /// [`NetError::Malformed`] without room for anything.
    pub fn parse(chain: DescriptorChain<&GuestMemoryMmap>) -> Result<Self, NetError> {
        let head = chain.head_index();
        let segments = Segments::copy(chain)?.writable;
        let bytes = total(&segments);
        if bytes == 0 {
            return Err(ChainError::WritableTooShort.into());
        }
        Ok(Self {
            head,
            segments,
            bytes,
        })
    }

    /// How many bytes fit.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes as much of `data` as fits, and says how much that was.
    ///
    /// # Errors
    /// [`NetError::Memory`].
    pub fn fill(&self, memory: &GuestMemoryMmap, data: &[u8]) -> Result<usize, NetError> {
        let mut rest = data;
        for segment in &self.segments {
            let length = usize::try_from(segment.length).unwrap_or(usize::MAX);
            let (part, after) = rest.split_at(length.min(rest.len()));
            memory
                .write_slice(part, GuestAddress(segment.address.0))
                .map_err(NetError::Memory)?;
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        Ok(data.len().saturating_sub(rest.len()))
    }
}

/// Says in a frame's header in how many buffers it is.
pub fn set_num_buffers(frame: &mut [u8], count: u16) {
    if let Some(field) = frame.get_mut(NUM_BUFFERS) {
        field.copy_from_slice(&count.to_le_bytes());
    }
}
