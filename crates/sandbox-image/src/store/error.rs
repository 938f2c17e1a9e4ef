//! What can go wrong with the store itself.

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::layer::erofs::ErofsError;
use crate::reference::ReferenceError;

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// No image has this name or ID.
    #[error(
        "there is no image {reference}; `sandboxctl image ls` shows those that there are, `sandboxctl image import` brings in another"
    )]
    NotFound {
        /// What was looked for.
        reference: String,
    },
    /// The beginning of an ID fits several images.
    #[error("{reference} is the beginning of several image IDs ({}); give more digits", matches.iter().map(Digest::to_string).collect::<Vec<_>>().join(", "))]
    Ambiguous {
        /// What was looked for.
        reference: String,
        /// The IDs that fit.
        matches: Vec<Digest>,
    },
    /// An ID was given where one name has to be chosen.
    #[error("image {id} has several names ({}); say which one to remove", names.join(", "))]
    SeveralNames {
        /// The image.
        id: Digest,
        /// Its names.
        names: Vec<String>,
    },
    /// An ID or a digest was given where a name is needed.
    #[error("{name} is not a name to give; names are of the form [REGISTRY/]REPOSITORY[:TAG]")]
    NotAName {
        /// What was given.
        name: String,
    },
    /// Containers use the image.
    #[error("image {name} is used by {} {}; remove {} first (`sandboxctl rm`)", if holders.len() == 1 { "container" } else { "containers" }, holders.join(", "), if holders.len() == 1 { "it" } else { "them" })]
    InUse {
        /// The image.
        name: String,
        /// The containers.
        holders: Vec<String>,
    },
    /// A layer of a known image is not there.
    #[error("layer {diff_id} of image {image} is not in the store; import the image again")]
    LayerMissing {
        /// The image.
        image: String,
        /// The layer.
        diff_id: Digest,
    },
    /// A layer was made before layers had hash trees.
    #[error(
        "layer {diff_id} of image {image} has no hash tree, because it was made by an older version; pull or import the image again, or run it without --verity"
    )]
    NoHashTree {
        /// The image.
        image: String,
        /// The layer.
        diff_id: Digest,
    },
    /// A layer file is not what was written.
    #[error(
        "layer {diff_id} of image {image} is damaged; delete {} and import the image again",
        path.display()
    )]
    LayerDamaged {
        /// The image.
        image: String,
        /// The layer.
        diff_id: Digest,
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<ErofsError>,
    },
    /// A manifest or configuration does not have its digest any more.
    #[error(
        "{} is damaged: it has digest {found}; import the image again",
        path.display()
    )]
    BlobDamaged {
        /// The blob's file.
        path: PathBuf,
        /// The digest of what is in it.
        found: Digest,
    },
    /// A manifest or configuration in the store cannot be read as one.
    #[error("image metadata {digest} in the store is malformed; import the image again")]
    BadMetadata {
        /// The blob.
        digest: Digest,
        /// Why.
        source: serde_json::Error,
    },
    /// A name in the index is none.
    #[error("the store's index holds the malformed name {name:?}")]
    BadName {
        /// The name.
        name: String,
        /// Why.
        source: ReferenceError,
    },
    /// The index or a lease cannot be read as one.
    #[error(
        "{} is damaged; if no image in this store matters, remove the store's folder and import again",
        path.display()
    )]
    BadRecord {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The index was written by a version with another format.
    #[error(
        "{} has format version {found}, this program knows version {known}; use the newer program or another --root",
        path.display()
    )]
    Version {
        /// The index.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
}

impl StoreError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }
}
