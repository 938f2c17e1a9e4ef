//! Descriptor chains as requests of a memory device (VirtIO 1.3, 5.15.6): a structure of 24 bytes, and one of 10 for the answer.

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use super::error::MemError;
use crate::virtio::chain::{ChainError, Segments};

/// Plug blocks.
pub(crate) const VIRTIO_MEM_REQ_PLUG: u16 = 0;
/// Unplug blocks.
pub(crate) const VIRTIO_MEM_REQ_UNPLUG: u16 = 1;
/// Unplug all blocks.
pub(crate) const VIRTIO_MEM_REQ_UNPLUG_ALL: u16 = 2;
/// Tell the state of blocks.
pub(crate) const VIRTIO_MEM_REQ_STATE: u16 = 3;

/// Bytes of `virtio_mem_resp`: the type, six of padding, and the state.
pub(crate) const RESPONSE_BYTES: u32 = 10;

/// What the device answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Response {
    /// `VIRTIO_MEM_RESP_ACK`: done.
    Ack,
    /// `VIRTIO_MEM_RESP_NACK`: not at the moment, by the size that the guest is to have.
    Nack,
    /// `VIRTIO_MEM_RESP_ERROR`: never, or not so.
    Error,
    /// An `ACK` with `VIRTIO_MEM_STATE_PLUGGED`, `…_UNPLUGGED` or `…_MIXED`.
    State(BlockState),
}

/// The state of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BlockState {
    /// The guest has all of them.
    Plugged,
    /// It has none of them.
    Unplugged,
    /// It has some.
    Mixed,
}

impl Response {
    fn bytes(self) -> [u8; RESPONSE_BYTES as usize] {
        let (kind, state) = match self {
            Self::Ack | Self::State(BlockState::Plugged) => (0, 0),
            Self::State(BlockState::Unplugged) => (0, 1),
            Self::State(BlockState::Mixed) => (0, 2),
            Self::Nack => (1, 0),
            Self::Error => (3, 0),
        };
        // Both are less than 256, and little-endian.
        [kind, 0, 0, 0, 0, 0, 0, 0, state, 0]
    }
}

/// A request with a place for its answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// What the driver wants.
    pub kind: u16,
    /// The first address of the blocks.
    pub address: u64,
    /// How many they are.
    pub count: u16,
    /// Where the answer goes, in one piece.
    pub(super) response: GuestAddress,
}

impl Request {
    /// Reads a request. Bytes beyond the two structures are passed over.
    ///
    /// # Errors
    /// [`MemError::Malformed`] without a whole request, or without room for the whole answer in one descriptor.
    pub(crate) fn parse(
        chain: DescriptorChain<&GuestMemoryMmap>,
        memory: &GuestMemoryMmap,
    ) -> Result<Self, MemError> {
        let mut segments = Segments::copy(chain)?;
        // `virtio_mem_req`: the type and six bytes of padding, the address, the number of blocks and six more.
        let mut words = [[0; 8]; 3];
        segments.take_readable(memory, words.as_flattened_mut())?;
        let [[k0, k1, ..], address, [n0, n1, ..]] = words;
        let response = segments
            .writable
            .front()
            .filter(|segment| segment.length >= RESPONSE_BYTES)
            .ok_or(ChainError::WritableTooShort)?;
        Ok(Self {
            kind: u16::from_le_bytes([k0, k1]),
            address: u64::from_le_bytes(address),
            count: u16::from_le_bytes([n0, n1]),
            response: response.address,
        })
    }

    /// Answers it, and says how many bytes were written.
    ///
    /// # Errors
    /// [`MemError::Memory`].
    pub(crate) fn answer(
        &self,
        memory: &GuestMemoryMmap,
        response: Response,
    ) -> Result<u32, MemError> {
        memory
            .write_slice(&response.bytes(), self.response)
            .map_err(MemError::Memory)?;
        Ok(RESPONSE_BYTES)
    }
}
