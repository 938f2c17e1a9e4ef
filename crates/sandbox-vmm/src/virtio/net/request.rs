//! Descriptor chains as frames to be sent and as buffers for frames (VirtIO 1.3, 5.1.6): a `virtio_net_hdr` of 12 bytes,
//! which the tap understands as it is, and an Ethernet frame.

use std::collections::VecDeque;

use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemoryBackend as _, GuestMemoryMmap};

use super::error::NetError;
use crate::virtio::chain::{ChainError, Segment, Segments, total};
use crate::virtio::vectors::Vectors;

/// `virtio_net_hdr` with `num_buffers` (5.1.6): what every device that offers `VIRTIO_F_VERSION_1` has.
pub const HEADER_BYTES: usize = 12;
/// Where `num_buffers` is in it.
const NUM_BUFFERS: std::ops::Range<usize> = 10..12;
/// Header and Ethernet header.
pub(crate) const MIN_FRAME_BYTES: usize = HEADER_BYTES + 14;
/// Header, Ethernet header with a tag, and the largest packet that segmentation offload takes (5.1.6.2: 65550 with an
/// Ethernet header without a tag).
pub(crate) const MAX_FRAME_BYTES: usize = HEADER_BYTES + 18 + 65_536;

/// Where the frame of a transmit chain is.
///
/// # Errors
/// [`NetError::FrameLength`], [`NetError::Memory`] or [`NetError::Malformed`].
pub(crate) fn frame_of<'a>(
    chain: DescriptorChain<&GuestMemoryMmap>,
    memory: &'a GuestMemoryMmap,
) -> Result<Vectors<'a>, NetError> {
    let segments = Segments::copy(chain)?.readable;
    let bytes = total(&segments);
    let possible = MIN_FRAME_BYTES..=MAX_FRAME_BYTES;
    if !usize::try_from(bytes).is_ok_and(|length| possible.contains(&length)) {
        return Err(NetError::FrameLength { bytes });
    }
    let mut frame = Vectors::with_capacity(segments.len());
    for segment in segments {
        frame.add_guest(memory, segment).map_err(NetError::Memory)?;
    }
    Ok(frame)
}

/// A chain that waits for a frame, or for a part of one. All of it is in guest memory.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Buffer {
    /// The chain's head, for the used ring.
    pub head: u16,
    segments: VecDeque<Segment>,
    bytes: u64,
}

impl Buffer {
    /// Reads a receive chain.
    ///
    /// # Errors
    /// [`NetError::Malformed`] without room for `least` bytes; [`NetError::Memory`].
    pub(crate) fn parse(
        chain: DescriptorChain<&GuestMemoryMmap>,
        memory: &GuestMemoryMmap,
        least: u64,
    ) -> Result<Self, NetError> {
        let head = chain.head_index();
        let segments = Segments::copy(chain)?.writable;
        let bytes = total(&segments);
        if bytes < least {
            return Err(ChainError::WritableTooShort.into());
        }
        for segment in &segments {
            let length = usize::try_from(segment.length).unwrap_or(usize::MAX);
            memory
                .get_slice(segment.address, length)
                .map_err(NetError::Memory)?;
        }
        Ok(Self {
            head,
            segments,
            bytes,
        })
    }

    /// How many bytes fit.
    #[must_use]
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where they go.
    pub(crate) fn segments(&self) -> impl Iterator<Item = Segment> {
        self.segments.iter().copied()
    }
}

/// Says in a frame's header in how many buffers it is.
pub(crate) fn set_num_buffers(header: &mut [u8; HEADER_BYTES], count: u16) {
    if let Some(field) = header.get_mut(NUM_BUFFERS) {
        field.copy_from_slice(&count.to_le_bytes());
    }
}
