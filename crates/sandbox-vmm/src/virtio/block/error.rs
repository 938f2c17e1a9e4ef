//! What can go wrong with a block device.

use std::io;

use sandbox_types::monitor::MAX_DISK_QUEUES;

use crate::virtio::QueueError;
use crate::virtio::chain::ChainError;

/// Why a block device cannot be made, a request is not done, or the device cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The serial number is not one.
    #[error("the disk's serial {serial:?} must be at most 20 ASCII characters (VirtIO 1.3, 5.2.6)")]
    Serial {
        /// It.
        serial: String,
    },
    /// It cannot have so many queues.
    #[error("the disk must have from 1 to {MAX_DISK_QUEUES} queues, not {count}")]
    Queues {
        /// How many.
        count: usize,
    },
    /// The file has no size.
    #[error("cannot find out the size of the disk")]
    Size {
        /// What the kernel said.
        source: io::Error,
    },
    /// The guest asks for sectors behind the end.
    #[error("{bytes} bytes from sector {sector} are outside the disk of {sectors} sectors")]
    OutOfRange {
        /// The first.
        sector: u64,
        /// How much.
        bytes: u64,
        /// What there is.
        sectors: u64,
    },
    /// The guest asks for a part of a sector.
    #[error("{bytes} bytes are no whole number of sectors")]
    PartialSector {
        /// How much.
        bytes: u64,
    },
    /// The guest writes to a read-only disk.
    #[error("the disk is read-only")]
    ReadOnly,
    /// The data is not in guest memory.
    #[error("the data of the request is not in guest memory")]
    Memory(#[source] vm_memory::GuestMemoryError),
    /// The file failed.
    #[error("cannot {action} the disk")]
    Disk {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The request is one that this device, or its file, does not do.
    #[error("the request is not supported")]
    Unsupported,
    /// The chain is no block request.
    #[error("malformed request")]
    Malformed(#[from] ChainError),
    /// The queue cannot be served any more.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// There is no timer, or it cannot be set.
    #[error("cannot wait until the disk's limit lets a request pass")]
    Timer(#[source] io::Error),
    /// The kernel does not take requests that have to wait.
    #[error("the kernel does not take the disk's requests that have to wait (io_uring_enter)")]
    Ring(#[source] io::Error),
    /// The thread for requests that have to wait has ended.
    #[error("the disk's thread for requests that have to wait was lost")]
    Lost,
}

impl BlockError {
    /// The file cannot be read.
    pub(super) fn read(source: io::Error) -> Self {
        Self::Disk {
            action: "read",
            source,
        }
    }

    /// It cannot be written.
    pub(super) fn write(source: io::Error) -> Self {
        Self::Disk {
            action: "write",
            source,
        }
    }

    /// What was written cannot be made durable.
    pub(super) fn flush(source: io::Error) -> Self {
        Self::Disk {
            action: "flush",
            source,
        }
    }

    /// A range does not become a hole. A file that cannot have any is no failure.
    pub(super) fn hole(source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::ENOSYS) => Self::Unsupported,
            _ => Self::Disk {
                action: "punch a hole into",
                source,
            },
        }
    }
}
