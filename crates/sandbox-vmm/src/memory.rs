//! Guest memory: mapped lazily, in huge pages where the host has them.
//!
//! Private anonymous memory as a rule. Where a vhost-user back end must reach it too, one memory file, whose
//! ranges follow each other in the order of their addresses. Beside it, files that the guest only reads: [`window`].

pub mod lost;
mod mapping;
pub mod window;

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use sandbox_types::MemMib;
use vm_memory::{
    Address as _, FileOffset, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap,
    GuestMemoryRegion as _, GuestRegionCollectionError, GuestRegionMmap, MmapRegion,
};

use self::window::{Window, WindowError};
use crate::arch::x86_64::layout;

/// Who reaches guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// The monitor and the guest.
    Private,
    /// Also vhost-user back ends.
    Shared,
}

/// Why there is no guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host gave none.
    #[error("cannot {action} for {memory} of guest memory")]
    Host {
        /// What was tried.
        action: &'static str,
        /// How much it was to be.
        memory: MemMib,
        /// What the kernel said.
        source: io::Error,
    },
    /// It could not be mapped.
    #[error("cannot map {memory} of guest memory")]
    Map {
        /// How much it was to be.
        memory: MemMib,
        /// Why.
        source: vm_memory::mmap::MmapRegionError,
    },
    /// The ranges do not go together.
    #[error("cannot put {memory} of guest memory together")]
    Assemble {
        /// How much it was to be.
        memory: MemMib,
        /// Why.
        source: GuestRegionCollectionError,
    },
    /// The files that it only reads.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// More than this machine can address.
    #[error("{memory} of guest memory are more than this host can address")]
    TooLarge {
        /// How much it was to be.
        memory: MemMib,
    },
}

/// Maps guest memory for a machine of that size, with `window` beside it. Back ends that share it get all but that.
///
/// # Errors
/// [`MemoryError`].
pub fn create(
    memory: MemMib,
    sharing: Sharing,
    window: Option<&Window>,
) -> Result<GuestMemoryMmap, MemoryError> {
    let file = match sharing {
        Sharing::Private => None,
        Sharing::Shared => Some(Arc::new(memory_file(memory)?)),
    };
    let mut regions = Vec::new();
    let mut offset = 0;
    for range in layout::ram_ranges(memory) {
        let too_large = || MemoryError::TooLarge { memory };
        let bytes = usize::try_from(range.bytes).map_err(|_| too_large())?;
        let region = match &file {
            None => {
                mapping::anonymous(bytes).map_err(|source| MemoryError::Map { memory, source })?
            }
            Some(file) => {
                let at = FileOffset::from_arc(Arc::clone(file), offset);
                MmapRegion::from_file(at, bytes)
                    .map_err(|source| MemoryError::Map { memory, source })?
            }
        };
        mapping::advise_huge(&region);
        offset += range.bytes;
        let start = GuestAddress(range.start);
        regions.push(GuestRegionMmap::new(region, start).ok_or_else(too_large)?);
    }
    if let Some(window) = window {
        regions.push(window.region()?);
    }
    GuestMemoryMmap::from_regions(regions)
        .map_err(|source| MemoryError::Assemble { memory, source })
}

/// Whether the region is one that is not only read.
#[must_use]
pub fn is_ram(region: &GuestRegionMmap) -> bool {
    region.prot() & libc::PROT_WRITE != 0
}

/// Whether writing there is harmless: none of these bytes is memory that is only read. It need not be memory at all.
#[must_use]
pub fn is_writable(memory: &GuestMemoryMmap, address: GuestAddress, bytes: u32) -> bool {
    let last = address
        .raw_value()
        .saturating_add(u64::from(bytes.saturating_sub(1)));
    memory
        .iter()
        .filter(|region| !is_ram(region))
        .all(|region| last < region.start_addr().0 || address > region.last_addr())
}

fn memory_file(memory: MemMib) -> Result<File, MemoryError> {
    let host = |action| {
        move |source: rustix::io::Errno| MemoryError::Host {
            action,
            memory,
            source: source.into(),
        }
    };
    let file =
        memfd_create("guest-memory", MemfdFlags::CLOEXEC).map_err(host("make a memory file"))?;
    ftruncate(&file, memory.bytes()).map_err(host("size a memory file"))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes as _;

    use super::*;

    #[test]
    fn private_memory_is_aligned_to_huge_pages() {
        let memory = create(MemMib::new(64).unwrap(), Sharing::Private, None).unwrap();
        for region in memory.iter() {
            assert_eq!(region.as_ptr() as usize % (2 << 20), 0);
        }
        memory
            .write_obj(7_u32, GuestAddress(64 << 20 >> 1))
            .unwrap();
    }

    #[test]
    fn shared_memory_over_the_hole_has_consecutive_offsets_in_one_file() {
        let memory = create(MemMib::new(4096).unwrap(), Sharing::Shared, None).unwrap();
        let offsets: Vec<_> = memory
            .iter()
            .map(|r| (r.start_addr().0, r.file_offset().unwrap().start()))
            .collect();
        assert_eq!(offsets, [(0, 0), (layout::HOLE_END, layout::HOLE_START)]);
    }
}
