//! One layer: from a tar stream to an EROFS image.
//!
//! ```text
//! blob -> decompress -> hash (diff_id) -> tar entries -> tree in <store>/tmp -> mkfs.erofs -> hash tree -> layers/<diff_id>.erofs
//! ```
//!
//! **What is kept:** numeric owners, modes with setuid, setgid and sticky bits, modification times to the nanosecond,
//! hard links, symbolic links as they are, FIFOs, device nodes, and the extended attributes `user.*`, `trusted.*`,
//! `security.capability` and POSIX ACLs (PAX `SCHILY.xattr.*`). Whiteouts (OCI image spec, "Layers") become what
//! overlayfs reads: `.wh.x` a character device 0:0 named `x`, `.wh..wh..opq` the attribute
//! `trusted.overlay.opaque=y`. They hide lower layers only, never an entry of their own layer.
//!
//! **What is dropped:** `trusted.overlay.*` attributes, by which an image could steer the guest's overlayfs; security labels
//! that only mean something on the machine that set them (`security.selinux`, `security.ima`, …); access and
//! change times.
//!
//! **What is refused, each with its own error:** `..` in a name, hard links out of the layer or to a folder,
//! a file where a folder is needed, unknown kinds of entries, and anything over the [`Limits`]. An absolute name is taken
//! as relative to the layer's root. A symbolic link in the middle of a path is followed as a chroot would, never
//! further out than the layer's root. Of several entries with one name the last wins.
//!
//! **Parent folders without an entry** get owner 0:0, time 0 and mode 0755 (`tmp` and `var/tmp` 1777, `root` 0700): a layer is
//! made without looking at those below it, so it cannot take the folder's owner and mode from there.
//!
//! The result depends on the tar and the version of erofs-utils alone, with one exception: several extended attributes of
//! one file are stored in the order in which the store's file system lists them.

mod compression;
pub mod erofs;
mod error;
mod limits;
mod meter;
mod tree;
mod unpack;
pub(crate) mod verity;
mod walk;

pub(crate) use compression::{Compression, Decompressed, sniff};
pub use error::LayerError;
pub use limits::{Limit, Limits};
pub(crate) use meter::{Meter, Metered};
pub use unpack::{unpack, unpack_blob};
pub use verity::HashTree;
