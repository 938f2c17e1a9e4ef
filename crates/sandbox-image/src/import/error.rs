//! Why an image was not imported.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::digest::{Digest, DigestError};
use crate::layer::LayerError;
use crate::reference::ReferenceError;
use crate::registry::RegistryError;
use crate::store::StoreError;

/// A part of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// An index: a list of manifests.
    Index,
    /// A manifest.
    Manifest,
    /// A configuration.
    Config,
    /// A layer.
    Layer,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Index => "index",
            Self::Manifest => "manifest",
            Self::Config => "configuration",
            Self::Layer => "layer",
        })
    }
}

/// Why an image was not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The path cannot be read.
    #[error("cannot {action} {}", path.display())]
    Read {
        /// What was tried, as a verb.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The path holds no image.
    #[error(
        "{} is not an image: {reason}. Expected an OCI layout (folder or tar) or a docker archive (`docker save`)",
        path.display()
    )]
    NotAnImage {
        /// The path.
        path: PathBuf,
        /// What is there instead.
        reason: String,
    },
    /// A part is named but not there.
    #[error("the image is incomplete: its {part} {} is missing", name.escape_debug())]
    Missing {
        /// Which part.
        part: Part,
        /// Its digest or file name.
        name: String,
    },
    /// A part does not have its digest.
    #[error("the image is corrupt: its {part} {expected} has digest {found}; get it again")]
    DigestMismatch {
        /// Which part.
        part: Part,
        /// What it should be.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// A part does not have its size.
    #[error(
        "the image is corrupt: its {part} {digest} has {found} bytes where {expected} are declared; get it again"
    )]
    SizeMismatch {
        /// Which part.
        part: Part,
        /// Its digest.
        digest: Digest,
        /// The declared size.
        expected: u64,
        /// The real size.
        found: u64,
    },
    /// A part is too large to be what it is said to be.
    #[error("the image's {part} {} is larger than {limit} bytes", name.escape_debug())]
    TooLarge {
        /// Which part.
        part: Part,
        /// Its digest or file name.
        name: String,
        /// The bound.
        limit: u64,
    },
    /// A part is not the JSON that it should be.
    #[error("the image is corrupt: its {part} {} is malformed", name.escape_debug())]
    Malformed {
        /// Which part.
        part: Part,
        /// Its digest or file name.
        name: String,
        /// Why.
        source: serde_json::Error,
    },
    /// A digest in the image is not one that can be used.
    #[error("the image's {part} is named by an unusable digest")]
    Digest {
        /// Which part.
        part: Part,
        /// Why.
        source: DigestError,
    },
    /// Nothing in the image is for this platform.
    #[error("the image has nothing for {wanted}; it is for {}", offered.join(", ").escape_debug())]
    Platform {
        /// The platform that was asked for.
        wanted: String,
        /// The platforms that it has.
        offered: Vec<String>,
    },
    /// A part is of a kind that is not known.
    #[error("the image's {part} {name} has the unsupported media type {media_type:?}")]
    MediaType {
        /// Which part.
        part: Part,
        /// Its digest.
        name: String,
        /// Its type.
        media_type: String,
    },
    /// The index leads to further indexes without end.
    #[error("the image's indexes are nested more than {limit} deep")]
    Nesting {
        /// The bound.
        limit: usize,
    },
    /// The index leads to more than is read for one image.
    #[error("the image's indexes lead to more than {limit} manifests and indexes")]
    TooManyManifests {
        /// The bound.
        limit: usize,
    },
    /// The manifest and the configuration disagree.
    #[error("the image is corrupt: its manifest has {layers} layers, its configuration {diff_ids}")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// There are too many layers to overlay.
    #[error("the image has {found} layers, at most {limit} are supported")]
    TooManyLayers {
        /// How many.
        found: usize,
        /// The bound.
        limit: usize,
    },
    /// A layer cannot be used.
    #[error("cannot use the image's layer {digest}")]
    Layer {
        /// The blob's digest, or the `diff_id` where blobs have none.
        digest: Digest,
        /// Why.
        source: Box<LayerError>,
    },
    /// The image carries no name, and none was given.
    #[error("{} does not say what the image is called; give it a name with --name", path.display())]
    NoName {
        /// The path.
        path: PathBuf,
    },
    /// The image carries a name that is none.
    #[error(
        "the image carries a name that cannot be used; give it another with `sandboxctl image import --name NAME`"
    )]
    BadName(#[source] ReferenceError),
    /// The name has a digest, and it is another one.
    #[error("{name} names another image: this one has digest {found}")]
    NameDigest {
        /// The name that was given.
        name: String,
        /// The image's ID.
        found: Digest,
    },
    /// There are several images.
    #[error("there are several images ({}); say which one with --name", names.join(", ").escape_debug())]
    SeveralImages {
        /// Their names.
        names: Vec<String>,
    },
    /// Unpacking keeps owners and devices, which only root can.
    #[error(
        "importing an image needs root, to keep the owners and devices in its layers; run it as root"
    )]
    NotRoot,
    /// A registry did not give it.
    #[error(transparent)]
    Registry(Box<RegistryError>),
    /// The store failed.
    #[error(transparent)]
    Store(Box<StoreError>),
}

impl ImportError {
    /// Given up because another part of the image failed.
    pub(super) fn cancelled() -> Self {
        RegistryError::Cancelled.into()
    }

    pub(super) fn is_cancelled(&self) -> bool {
        matches!(self, Self::Registry(error) if matches!(**error, RegistryError::Cancelled))
    }
}

impl From<RegistryError> for ImportError {
    fn from(error: RegistryError) -> Self {
        Self::Registry(Box::new(error))
    }
}

impl From<StoreError> for ImportError {
    fn from(error: StoreError) -> Self {
        Self::Store(Box::new(error))
    }
}
