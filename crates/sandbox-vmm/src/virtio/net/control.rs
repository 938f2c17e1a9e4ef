//! Control requests (VirtIO 1.3, 5.1.6.5): a class, a command and its data, which the device reads, and a byte for its
//! answer. There is one command, how many queue pairs the driver uses (5.1.6.5.5).

use virtio_bindings::virtio_net::{VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET};
use virtio_queue::DescriptorChain;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::error::NetError;
use crate::virtio::chain::{ChainError, Segments, total};

/// Class, command and a number of pairs.
const REQUEST_BYTES: usize = 4;

/// What the driver asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// `VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET`: from now on it uses as many pairs.
    SetPairs(u16),
}

/// A request with a place for the answer.
#[derive(Debug)]
pub(crate) struct ControlRequest {
    /// Where `ack` is: the first byte that the device writes.
    pub ack: GuestAddress,
    /// The command, or what is wrong with it: then the answer is `VIRTIO_NET_ERR`.
    pub command: Result<Command, NetError>,
}

impl ControlRequest {
    /// Reads a chain.
    ///
    /// # Errors
    /// [`NetError::Malformed`] when there is no place for an answer.
    pub(crate) fn parse(
        chain: DescriptorChain<&GuestMemoryMmap>,
        memory: &GuestMemoryMmap,
    ) -> Result<Self, NetError> {
        let mut segments = Segments::copy(chain)?;
        let ack = segments
            .writable
            .front()
            .ok_or(ChainError::WritableTooShort)?
            .address;
        Ok(Self {
            ack,
            command: command(&mut segments, memory),
        })
    }
}

fn command(segments: &mut Segments, memory: &GuestMemoryMmap) -> Result<Command, NetError> {
    let bytes = total(&segments.readable);
    let mut request = [0; REQUEST_BYTES];
    segments.take_readable(memory, &mut request)?;
    let [class, command, low, high] = request;
    let known = u32::from(class) == VIRTIO_NET_CTRL_MQ
        && u32::from(command) == VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET
        && bytes == u64::try_from(REQUEST_BYTES).unwrap_or(u64::MAX);
    if !known {
        return Err(NetError::Command {
            class,
            command,
            bytes,
        });
    }
    Ok(Command::SetPairs(u16::from_le_bytes([low, high])))
}
