//! What the store knows about one image.

use std::path::PathBuf;
use std::time::SystemTime;

use oci_spec::image::ImageConfiguration;

use crate::digest::Digest;
use crate::reference::Reference;
use crate::store::StoreError;

/// An image whose manifest and configuration were verified and whose layers are all in the store.
#[derive(Debug, Clone)]
pub struct Image {
    /// The name it was found by, in full; of several names, for a lookup by ID, the first; its ID if it has none.
    pub name: Reference,
    /// The digest of its manifest: the image's ID.
    pub digest: Digest,
    /// Its configuration (OCI image spec, "Image Configuration").
    pub config: ImageConfiguration,
    /// Its layers, lowest first.
    pub layers: Vec<Layer>,
    /// When it was made, as its configuration says (RFC 3339).
    pub created: Option<String>,
    /// When this name was given to it here.
    pub imported: SystemTime,
    /// The bytes of all its layer files, each counted once.
    pub size: u64,
}

/// What [`crate::Store::list`] found.
#[derive(Debug, Default)]
pub struct Listing {
    /// Every name whose image is whole, in alphabetical order.
    pub images: Vec<Image>,
    /// The names of which something is damaged or missing.
    pub damaged: Vec<DamagedImage>,
}

/// A name whose image is not whole.
#[derive(Debug, thiserror::Error)]
#[error("image {name} cannot be used until it is pulled or loaded again, or removed")]
pub struct DamagedImage {
    /// The name, as people write it.
    pub name: String,
    /// What is wrong.
    pub source: StoreError,
}

/// One layer: a read-only EROFS image in the store.
///
/// Whiteouts are character devices 0:0 and opaque directories carry `trusted.overlay.opaque=y`, so the file
/// system is ready to be an overlayfs lower layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The digest of the layer's uncompressed tar.
    pub diff_id: Digest,
    /// The EROFS image.
    pub erofs_path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
}

/// What an import brought.
#[derive(Debug, Clone)]
pub struct ImportedImage {
    /// The image, by its first name.
    pub image: Image,
    /// Every name it has now been given; none if it carried none.
    pub names: Vec<Reference>,
    /// How many of its layers were not in the store before.
    pub new_layers: usize,
}

/// What a pull brought.
#[derive(Debug, Clone)]
pub struct PulledImage {
    /// The image, by the name that was asked for.
    pub image: Image,
    /// What the name stands for in its registry: the digest of an index or of the image's manifest.
    pub digest: Digest,
    /// How many of its layers were not in the store before.
    pub new_layers: usize,
    /// Whether the name stood for something else before, or for nothing.
    pub changed: bool,
}

/// What [`crate::Store::remove`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// The names that no longer exist.
    pub untagged: Vec<Reference>,
    /// The layers that nothing used any more and that were deleted.
    pub deleted_layers: Vec<Digest>,
    /// The bytes of the deleted layers.
    pub freed_bytes: u64,
}
