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
    /// The guest asks for what is no command, or none of those that it was offered.
    #[error("{bytes} bytes of class {class} and command {command} are no control request")]
    Command {
        /// Its class.
        class: u8,
        /// Its command.
        command: u8,
        /// How long it is.
        bytes: u64,
    },
    /// The guest wants to use pairs that it has not set up, or none.
    #[error("{pairs} queue pairs are not among the {usable} that are set up")]
    Pairs {
        /// How many it wants.
        pairs: u16,
        /// How many there are.
        usable: usize,
    },
    /// More queues than a device has, or none.
    #[error(
        "a network device has 1 to {} queues of its tap, not {count}",
        super::MAX_PAIRS
    )]
    Queues {
        /// How many there are.
        count: usize,
    },
    /// A frame or a buffer is not in guest memory.
    #[error("a frame, or a buffer for one, is not in guest memory")]
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
    /// There is no timer, or it cannot be set.
    #[error("cannot wait until queues of the tap may be attached or detached")]
    Timer(#[source] io::Error),
}
