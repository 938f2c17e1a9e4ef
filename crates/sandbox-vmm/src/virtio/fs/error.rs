//! Why a file system device cannot be made.

use crate::virtio::vhost_user::FrontEndError;

/// Why a file system device cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FsError {
    /// The tag does not fit the configuration space.
    #[error(
        "a share's tag has between 1 and {} bytes and no zero byte, unlike {tag:?}",
        super::TAG_BYTES
    )]
    Tag {
        /// What was asked for.
        tag: String,
    },
    /// The back end cannot serve it.
    #[error("the back end cannot serve a file system device")]
    Backend(#[from] FrontEndError),
}
