//! OCI images: a reference, verified layers, and a content-addressed store of EROFS images.
//!
//! An image comes in through [`Store::import`] from an OCI layout (a directory or a tar) or a docker archive, or through
//! [`Store::pull`] from a registry, and goes out through [`Store::push`] and [`Store::save`].
//! Its manifest, configuration and layer blobs are checked against their digests, each layer's tar is
//! unpacked by a hardened extractor and packed again as one read-only EROFS image, named by the digest of
//! the uncompressed tar. [`Store::resolve`] then gives an [`Image`]: its configuration and its layer files,
//! lowest first, ready to be overlaid in a guest. [`scratch`] makes and clones the writable layer.
//!
//! The store's files, locks and their order are described in [`store`], what becomes of a layer in
//! [`layer`], the client of registries in [`registry`]. Where blobs come from is behind small traits in [`import`]: what happens
//! after is the same for all.
//!
//! Not here: mounting, and anything that speaks to a guest.

pub mod digest;
mod extent;
pub mod give;
pub mod image;
pub mod import;
pub mod layer;
pub mod reference;
pub mod registry;
pub mod scratch;
pub mod store;

pub use digest::{Digest, DigestError};
pub use give::{ArchiveFormat, GiveError};
pub use image::{DamagedImage, Image, ImportedImage, Layer, Listing, PulledImage, Removed};
pub use import::{ImportError, Platform, PlatformError, Pull};
pub use layer::{HashTree, LayerError, Limits};
pub use reference::{Reference, ReferenceError};
pub use registry::{Client, CredentialStore, Credentials, CredentialsError, RegistryError};
pub use store::{Store, StoreError};
