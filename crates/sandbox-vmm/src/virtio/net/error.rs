//! What can go wrong with a network device.

use std::io;

use crate::virtio::chain::ChainError;

/// Why a network device cannot be made, a frame is not passed on, or the device cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The descriptor is no tap, or one without the header.
    #[error("cannot {action} the tap")]
    Tap {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// An MTU that no interface has.
    #[error(
        "an MTU of {mtu} is below the {} that VirtIO 1.3, 5.1.4.1 asks for",
        super::MIN_MTU
    )]
    Mtu {
        /// It.
        mtu: u16,
    },
    /// The guest sends what is no frame.
    #[error(
        "{bytes} bytes are not a header and a frame ({} to {})",
        super::request::MIN_FRAME_BYTES,
        super::request::MAX_FRAME_BYTES
    )]
    FrameLength {
        /// How much.
        bytes: u64,
    },
    /// The data is not in guest memory.
    #[error("a receive buffer is not in guest memory")]
    Memory(#[source] vm_memory::GuestMemoryError),
    /// The chain is no frame and no buffer for one.
    #[error("malformed request")]
    Malformed(#[from] ChainError),
    /// The driver broke the ring; the device needs a reset.
    #[error("the driver broke the ring")]
    Ring(#[source] virtio_queue::Error),
    /// The driver cannot be interrupted.
    #[error("cannot interrupt the driver")]
    Interrupt(#[source] io::Error),
    /// The worker cannot wake itself up.
    #[error("cannot go on after a burst")]
    Again(#[source] io::Error),
}
