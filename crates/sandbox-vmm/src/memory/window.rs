//! Files of the host in guest memory, to be read only: what a virtio-pmem device hands to its driver.
//!
//! ```text
//! start            + offset of file 0   + offset of file 1            + bytes
//!   | zeroes         | file 0     | zeroes | file 1            | zeroes |
//! ```
//!
//! One range of the guest's addresses above its RAM, and one memory slot of KVM, which is read-only. Every guest that has a file in its
//! window reads the same pages of the host's page cache. What is between the files is the host's page of zeroes.
//!
//! A guest that writes there leaves KVM as for a device at that address ([`ReadOnly`]). A device whose driver wants it to write there
//! refuses ([`super::is_writable`]). Where a file has become shorter than it was, a vCPU that reads fails with `EFAULT` and
//! [`Window::lost`] says why; a device that reads gets a signal ([`super::lost`]).

use std::fs::File;
use std::io;

use sandbox_types::MemMib;
use sandbox_types::monitor::{PMEM_ALIGNMENT, PMEM_HEADER_BYTES};
use vm_memory::mmap::MmapRegionError;
use vm_memory::{GuestAddress, GuestRegionMmap, MmapRegion};

use super::mapping::{PAGE_BYTES, Reservation};
use crate::arch::x86_64::layout;
use crate::bus::{BusDevice, BusRange};
use crate::log;

/// The largest window: the most files of a sandbox ([`MAX_FILES`]) at half a gigabyte each, and what 40 bits of address leave beside
/// [`MemMib::MAX`].
pub const MAX_BYTES: u64 = 64 << 30;
/// The most files: more than a container has layers.
pub(crate) const MAX_FILES: usize = 128;

/// A file for a window.
#[derive(Debug)]
pub struct WindowFile {
    /// It, opened for reading.
    pub file: File,
    /// Where in the window it begins.
    pub offset: u64,
    /// How many bytes of it.
    pub bytes: u64,
}

/// Why there is no window.
#[derive(Debug, thiserror::Error)]
pub enum WindowError {
    /// Its size is none.
    #[error(
        "a window of {bytes} bytes is not a multiple of {PMEM_ALIGNMENT} up to {MAX_BYTES} bytes"
    )]
    Size {
        /// What was asked for.
        bytes: u64,
    },
    /// Too many files.
    #[error("{count} files are more than the {MAX_FILES} that a window holds")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// A file's place is none.
    #[error(
        "file {index} cannot be at {offset} with {bytes} bytes: files are in whole pages, behind the first {PMEM_HEADER_BYTES} \
         bytes, one behind the other and within the window"
    )]
    Place {
        /// Which.
        index: usize,
        /// Where it was to be.
        offset: u64,
        /// How long.
        bytes: u64,
    },
    /// A file is shorter than it should be.
    #[error(
        "file {index} has {bytes} bytes and not {expected}; it changed while the sandbox started"
    )]
    Short {
        /// Which.
        index: usize,
        /// What it has.
        bytes: u64,
        /// What it should have.
        expected: u64,
    },
    /// The host refused.
    #[error("cannot {action} file {index} of a window")]
    File {
        /// What was tried.
        action: &'static str,
        /// Which.
        index: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// No room in the address space.
    #[error("cannot reserve {bytes} bytes for a window")]
    Reserve {
        /// How many.
        bytes: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is no memory region.
    #[error("cannot make memory of a window of {bytes} bytes")]
    Region {
        /// How many.
        bytes: u64,
        /// Why; nothing if it would end behind the last address.
        source: Option<MmapRegionError>,
    },
}

/// Files, mapped. The mapping stays until the process ends.
#[derive(Debug)]
pub struct Window {
    start: u64,
    bytes: u64,
    mapping: Reservation,
    /// With how many bytes each should have.
    files: Vec<(File, u64)>,
}

impl Window {
    /// Maps `files` into a window of `bytes` bytes for a machine with that much memory.
    ///
    /// # Errors
    /// [`WindowError`].
    pub fn map(memory: MemMib, bytes: u64, files: Vec<WindowFile>) -> Result<Self, WindowError> {
        if bytes == 0 || bytes > MAX_BYTES || !bytes.is_multiple_of(PMEM_ALIGNMENT) {
            return Err(WindowError::Size { bytes });
        }
        if files.len() > MAX_FILES {
            return Err(WindowError::TooMany { count: files.len() });
        }
        let reserve = |source| WindowError::Reserve { bytes, source };
        let length =
            usize::try_from(bytes).map_err(|_| reserve(io::ErrorKind::OutOfMemory.into()))?;
        let mapping = Reservation::new(length).map_err(reserve)?;
        let mut taken = PMEM_HEADER_BYTES;
        let mut kept = Vec::with_capacity(files.len());
        for (index, file) in files.into_iter().enumerate() {
            taken = place(index, &file, taken, bytes)?;
            let of_file = |action| {
                move |source| WindowError::File {
                    action,
                    index,
                    source,
                }
            };
            let has = size(&file.file).map_err(of_file("find out the size of"))?;
            if has < file.bytes {
                return Err(WindowError::Short {
                    index,
                    bytes: has,
                    expected: file.bytes,
                });
            }
            mapping
                .put(&file.file, file.offset, file.bytes)
                .map_err(of_file("map"))?;
            kept.push((file.file, file.bytes));
        }
        Ok(Self {
            start: layout::window_start(memory),
            bytes,
            mapping,
            files: kept,
        })
    }

    /// Its addresses in the guest.
    #[must_use]
    pub fn range(&self) -> BusRange {
        BusRange {
            start: self.start,
            length: self.bytes,
        }
    }

    /// Its addresses in this process.
    #[must_use]
    pub fn host_range(&self) -> std::ops::Range<usize> {
        self.mapping.range()
    }

    /// It as memory of the guest's.
    ///
    /// # Errors
    /// [`WindowError::Region`].
    pub fn region(&self) -> Result<GuestRegionMmap, WindowError> {
        let failed = |source| WindowError::Region {
            bytes: self.bytes,
            source,
        };
        let region: MmapRegion = self.mapping.region().map_err(|error| failed(Some(error)))?;
        GuestRegionMmap::new(region, GuestAddress(self.start)).ok_or_else(|| failed(None))
    }

    /// The first file that has become shorter than it should be.
    #[must_use]
    pub(crate) fn lost(&self) -> Option<LostFile> {
        let mut indices = 0_u64..;
        self.files.iter().find_map(|(file, expected)| {
            let index = indices.next()?;
            // A file that cannot be looked at is not known to be lost.
            let bytes = size(file).ok()?;
            (bytes < *expected).then_some(LostFile {
                index,
                bytes,
                expected: *expected,
            })
        })
    }
}

/// A file that has become shorter than it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LostFile {
    /// Its place among the window's.
    pub index: u64,
    /// How long it is now.
    pub bytes: u64,
    /// How long it should be.
    pub expected: u64,
}

/// Checks a file's place behind `taken`, and says where it ends.
fn place(index: usize, file: &WindowFile, taken: u64, window: u64) -> Result<u64, WindowError> {
    let whole_pages = file.offset.is_multiple_of(PAGE_BYTES);
    file.offset
        .checked_add(file.bytes)
        .and_then(|end| end.checked_next_multiple_of(PAGE_BYTES))
        .filter(|end| whole_pages && file.bytes > 0 && file.offset >= taken && *end <= window)
        .ok_or(WindowError::Place {
            index,
            offset: file.offset,
            bytes: file.bytes,
        })
}

/// By `fstat`, which a vCPU's thread may make.
fn size(file: &File) -> io::Result<u64> {
    Ok(u64::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(0))
}

/// What a guest finds that writes to its window: nothing happens, and the log says so now and then.
#[derive(Debug, Default)]
pub(crate) struct ReadOnly {
    writes: u64,
}

impl ReadOnly {
    /// For a window to which nobody has written.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self::default()
    }
}

impl BusDevice for ReadOnly {
    /// A page that KVM cannot read reads as what nobody answers.
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.writes = self.writes.saturating_add(1);
        log::guest(format_args!(
            "the guest wrote {} bytes at {offset:#x} of its read-only persistent memory, which is ignored (number {})",
            data.len(),
            self.writes
        ));
    }
}

#[cfg(test)]
mod tests;
