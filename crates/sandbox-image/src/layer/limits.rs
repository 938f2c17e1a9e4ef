//! Bounds on what a layer may hold. All are far beyond what images have; they stop bombs, not users.

use std::fmt;

/// The most that one layer may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Entries of the tar.
    pub entries: u64,
    /// Bytes of the uncompressed tar, and, apart from that, of all files' contents with holes filled.
    pub bytes: u64,
    /// Bytes of one path. Below `PATH_MAX`, because the path is also used below the store's own.
    pub path_bytes: usize,
    /// Bytes of one component of a path (`NAME_MAX`).
    pub name_bytes: usize,
    /// Device nodes, whiteouts not counted.
    pub devices: u64,
    /// Bytes of all extended attributes of one entry, names included.
    pub xattr_bytes: usize,
    /// Bytes of the headers of one entry: long names, PAX records, sparse maps.
    pub header_bytes: u64,
    /// Layers of one image: as many as a container's root can be put together of (`sandbox_runtime::rootfs::MAX_MOUNTS`, with
    /// one for the writable layer and one for the overlay).
    pub layers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 2_000_000,
            bytes: 64 << 30,
            path_bytes: 3584,
            name_bytes: 255,
            devices: 4096,
            xattr_bytes: 64 << 10,
            header_bytes: 1 << 20,
            layers: 126,
        }
    }
}

/// Which bound was exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// [`Limits::entries`]
    Entries(u64),
    /// [`Limits::bytes`]
    Bytes(u64),
    /// [`Limits::path_bytes`]
    PathBytes(usize),
    /// [`Limits::name_bytes`]
    NameBytes(usize),
    /// [`Limits::devices`]
    Devices(u64),
    /// [`Limits::xattr_bytes`]
    XattrBytes(usize),
    /// [`Limits::header_bytes`]
    HeaderBytes(u64),
    /// Folders inside one another; not configurable.
    Depth(usize),
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entries(limit) => write!(f, "more than {limit} entries"),
            Self::Bytes(limit) => write!(f, "more than {limit} uncompressed bytes"),
            Self::PathBytes(limit) => write!(f, "a path longer than {limit} bytes"),
            Self::NameBytes(limit) => write!(f, "a file name longer than {limit} bytes"),
            Self::Devices(limit) => write!(f, "more than {limit} device nodes"),
            Self::XattrBytes(limit) => {
                write!(
                    f,
                    "an entry with more than {limit} bytes of extended attributes"
                )
            }
            Self::Depth(limit) => write!(f, "folders more than {limit} deep"),
            Self::HeaderBytes(limit) => {
                write!(f, "an entry with more than {limit} bytes of headers")
            }
        }
    }
}
