//! Why a layer was refused.

use std::io;

use super::compression::Compression;
use super::erofs::ErofsError;
use super::limits::Limit;
use crate::digest::Digest;

/// Why a layer could not be made into an EROFS image. Paths are those in the tar, made printable.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The compressed stream is broken.
    #[error("cannot decompress it as {compression}")]
    Decompress {
        /// How it is compressed.
        compression: Compression,
        /// Why.
        source: io::Error,
    },
    /// The tar is broken.
    #[error("its tar is malformed after {entries} entries")]
    Tar {
        /// How many entries were fine.
        entries: u64,
        /// Why.
        source: io::Error,
    },
    /// The uncompressed tar does not have its digest.
    #[error(
        "its uncompressed contents have digest {found} where the configuration says {expected}"
    )]
    DiffId {
        /// What the configuration says.
        expected: Digest,
        /// What was computed.
        found: Digest,
    },
    /// A bound was exceeded.
    #[error("it has {limit}, which is over the limit ({path:?})")]
    Limit {
        /// Which bound.
        limit: Limit,
        /// The entry, cut to a readable length.
        path: String,
    },
    /// A name or link target points upwards.
    #[error("entry {path:?} uses '..', which could lead out of the image")]
    Upwards {
        /// The name or target.
        path: String,
    },
    /// An entry has no usable name.
    #[error("entry {path:?} has a name that no file can have")]
    BadName {
        /// The name.
        path: String,
    },
    /// Something that is not a folder is where the path needs one.
    #[error("entry {path:?} lies below {parent:?}, which is not a folder")]
    ParentNotFolder {
        /// The entry.
        path: String,
        /// What is in the way.
        parent: String,
    },
    /// A path goes through too many symbolic links.
    #[error("entry {path:?} goes through more than {limit} symbolic links")]
    LinkLoop {
        /// The entry.
        path: String,
        /// The bound.
        limit: u32,
    },
    /// A hard link's target is not in the layer.
    #[error("hard link {path:?} points to {target:?}, which is not in the layer before it")]
    LinkTarget {
        /// The entry.
        path: String,
        /// What it points to.
        target: String,
    },
    /// A hard link's target cannot have a second name.
    #[error("hard link {path:?} points to {target:?}, which is a folder")]
    LinkToFolder {
        /// The entry.
        path: String,
        /// What it points to.
        target: String,
    },
    /// A symbolic link's target is empty or too long.
    #[error("symbolic link {path:?} has a target of {len} bytes, possible are 1 to 4095")]
    LinkLength {
        /// The entry.
        path: String,
        /// The target's length.
        len: usize,
    },
    /// An entry of a kind that has no place in an image.
    #[error("entry {path:?} is of the unsupported kind {kind:?}")]
    UnsupportedEntry {
        /// The entry.
        path: String,
        /// The tar's type character.
        kind: char,
    },
    /// A sparse file in the PAX form.
    #[error(
        "entry {path:?} is a sparse file in the PAX format, which is not supported; make the layer with `tar --format=gnu` or without --sparse"
    )]
    PaxSparse {
        /// The entry.
        path: String,
    },
    /// An owner or device number that the kernel does not have.
    #[error("entry {path:?} has the impossible {what} {value}")]
    Number {
        /// The entry.
        path: String,
        /// Which number.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// An attribute could not be set.
    #[error("cannot set extended attribute {name:?} of {path:?} in the image store")]
    Xattr {
        /// The entry.
        path: String,
        /// The attribute.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The tree could not be written.
    #[error("cannot {action} {path:?} in the image store")]
    Write {
        /// What was tried, as a verb.
        action: &'static str,
        /// The entry.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The EROFS image could not be made.
    #[error(transparent)]
    Erofs(#[from] ErofsError),
}
