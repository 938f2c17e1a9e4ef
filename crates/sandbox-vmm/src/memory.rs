//! Guest memory: mapped lazily, in huge pages where the host has them.
//!
//! Private anonymous memory as a rule. Where a vhost-user back end must reach it too, one memory file, whose
//! ranges follow each other in the order of their addresses. Beside it, files that the guest only reads: [`window`]; and memory that it
//! may get later: [`later`].

mod fault;
pub mod later;
pub mod lost;
mod mapping;
pub(crate) mod reclaim;
pub mod unplugged;
pub mod window;

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use sandbox_types::MemMib;
use vm_memory::{
    Address as _, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionCollectionError, GuestRegionMmap, MmapRegion,
};

use self::later::Later;
pub(crate) use self::mapping::HUGE_PAGE_BYTES;
use self::mapping::Hold;
use self::window::{Window, WindowError};
use crate::arch::x86_64::layout::{self, RamRange};

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

/// Maps guest memory for a machine of that size, with `window` beside it, and with room for what comes `later`. Back ends that share
/// it get all but the window.
///
/// # Errors
/// [`MemoryError`].
pub fn create(
    memory: MemMib,
    sharing: Sharing,
    window: Option<&Window>,
    later: Option<Later>,
) -> Result<GuestMemoryMmap, MemoryError> {
    let room = later.map_or(0, |later| later.range().bytes);
    let ram = create_ram(memory, sharing, room)?;
    add(&ram, memory, window, later)
}

/// The first half of [`create`]: what the machine has from the start. Back ends that share it get it as a file, in which there is `room`
/// for what comes later, in bytes.
///
/// # Errors
/// [`MemoryError`].
pub(crate) fn create_ram(
    memory: MemMib,
    sharing: Sharing,
    room: u64,
) -> Result<GuestMemoryMmap, MemoryError> {
    let file = match sharing {
        Sharing::Private => None,
        Sharing::Shared => Some(Arc::new(memory_file(memory, room)?)),
    };
    let mut regions = Vec::new();
    let mut offset = 0;
    for range in layout::ram_ranges(memory) {
        let at = file
            .as_ref()
            .map(|file| FileOffset::from_arc(Arc::clone(file), offset));
        regions.push(map(memory, range, at, true)?);
        offset += range.bytes;
    }
    regions.sort_by_key(GuestMemoryRegion::start_addr);
    GuestMemoryMmap::from_regions(regions)
        .map_err(|source| MemoryError::Assemble { memory, source })
}

/// The second half of [`create`]: puts the rest beside `ram`.
///
/// # Errors
/// [`MemoryError`].
pub(crate) fn add(
    ram: &GuestMemoryMmap,
    memory: MemMib,
    window: Option<&Window>,
    later: Option<Later>,
) -> Result<GuestMemoryMmap, MemoryError> {
    let mut all = ram.clone();
    let mut insert = |region| -> Result<(), MemoryError> {
        let with = all.insert_region(Arc::new(region));
        all = with.map_err(|source| MemoryError::Assemble { memory, source })?;
        Ok(())
    };
    if let Some(window) = window {
        insert(window.region()?)?;
    }
    if let Some(later) = later {
        let file = ram.iter().find_map(GuestRegionMmap::file_offset);
        // Behind the rest.
        let at = file.map(|file| FileOffset::from_arc(Arc::clone(file.arc()), memory.bytes()));
        let region = map(memory, later.range(), at, false)?;
        let bytes = region.size();
        let action = "keep the guest from what it gets later,";
        mapping::set_accessible(&region, 0, bytes, false).map_err(|source| MemoryError::Host {
            action,
            memory,
            source,
        })?;
        insert(region)?;
    }
    Ok(all)
}

/// Maps a range of guest memory, of a file if there is one.
fn map(
    memory: MemMib,
    range: RamRange,
    file: Option<FileOffset>,
    at_once: bool,
) -> Result<GuestRegionMmap, MemoryError> {
    let too_large = || MemoryError::TooLarge { memory };
    let bytes = usize::try_from(range.bytes).map_err(|_| too_large())?;
    let region = match file {
        None => mapping::anonymous(bytes, at_once),
        Some(at) => MmapRegion::from_file(at, bytes),
    };
    let region = region.map_err(|source| MemoryError::Map { memory, source })?;
    let region = GuestRegionMmap::new(region, GuestAddress(range.start)).ok_or_else(too_large)?;
    mapping::advise(&region, 0, region.size(), Hold::Huge);
    Ok(region)
}

/// Whether the region is one that is not only read.
#[must_use]
pub(crate) fn is_ram(region: &GuestRegionMmap) -> bool {
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

/// A page of the host's on x86-64.
const PAGE_BYTES: u64 = 4096;

/// Why a range is not made of pages of guest memory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RangeError {
    /// It is empty, or begins or ends within a page.
    #[error("{bytes:#x} bytes from {start:#x} are not whole pages")]
    Pages {
        /// Its first address.
        start: u64,
        /// Its length.
        bytes: u64,
    },
    /// A part of it is not RAM.
    #[error("{bytes:#x} bytes from {start:#x} are not in guest memory")]
    Outside {
        /// Its first address.
        start: u64,
        /// Its length.
        bytes: u64,
    },
}

/// Whole pages of the host's that lie in one piece of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RamPages {
    start: GuestAddress,
    bytes: u64,
}

impl RamPages {
    /// `bytes` from `start` on, if they are that in `memory`.
    ///
    /// # Errors
    /// [`RangeError`].
    pub(crate) fn new(
        memory: &GuestMemoryMmap,
        start: GuestAddress,
        bytes: u64,
    ) -> Result<Self, RangeError> {
        let aligned = start.0.is_multiple_of(PAGE_BYTES) && bytes.is_multiple_of(PAGE_BYTES);
        let Some(last) = bytes.checked_sub(1).filter(|_| aligned) else {
            let start = start.0;
            return Err(RangeError::Pages { start, bytes });
        };
        let end = start.0.checked_add(last).map(GuestAddress);
        let region = memory.find_region(start).filter(|region| is_ram(region));
        if end.is_none_or(|end| region.is_none_or(|region| region.last_addr() < end)) {
            let start = start.0;
            return Err(RangeError::Outside { start, bytes });
        }
        Ok(Self { start, bytes })
    }

    /// Which region they are in, from which byte on, and how many bytes they are; not in another memory.
    fn within(self, memory: &GuestMemoryMmap) -> Option<(&GuestRegionMmap, usize, usize)> {
        let region = memory.find_region(self.start)?;
        let offset = usize::try_from(region.to_region_addr(self.start)?.0).ok()?;
        Some((region, offset, usize::try_from(self.bytes).ok()?))
    }
}

/// Gives pages back to the host. They read as zeroes until they are written to; the guest, the monitor and back ends may go on
/// using them at any time.
///
/// # Errors
/// What `madvise` says; they are kept then. Pages of another memory are refused.
pub(crate) fn discard(memory: &GuestMemoryMmap, pages: RamPages) -> io::Result<()> {
    let (region, offset, bytes) = pages.within(memory).ok_or(io::ErrorKind::InvalidInput)?;
    mapping::discard(region, offset, bytes)
}

/// As [`discard`], for all of it.
///
/// # Errors
/// As there.
pub(crate) fn discard_all(memory: &GuestMemoryMmap) -> io::Result<()> {
    memory
        .iter()
        .try_for_each(|region| mapping::discard(region, 0, region.size()))
}

/// Asks for pages not to be parts of huge ones, from now on. Only advice, and nothing where memory is a file: its huge pages are
/// its own, and it has a mapping in each process.
pub(crate) fn advise_small(memory: &GuestMemoryMmap, pages: RamPages) {
    advise(memory, pages, Hold::Small);
}

fn advise(memory: &GuestMemoryMmap, pages: RamPages, hold: Hold) {
    if let Some((region, offset, bytes)) = pages.within(memory)
        && region.file_offset().is_none()
    {
        mapping::advise(region, offset, bytes, hold);
    }
}

fn memory_file(memory: MemMib, room: u64) -> Result<File, MemoryError> {
    let host = |action| {
        move |source: rustix::io::Errno| MemoryError::Host {
            action,
            memory,
            source: source.into(),
        }
    };
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("guest-memory", flags).map_err(host("make a memory file"))?;
    let bytes = memory.bytes().saturating_add(room);
    ftruncate(&file, bytes).map_err(host("size a memory file"))?;
    // A back end has it too, and may be a guest's by now.
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    fcntl_add_seals(&file, seals).map_err(host("seal the size of a memory file"))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use vm_memory::Bytes;

    use super::*;

    const PIECE: u64 = 2 << 20;

    /// Fills three pieces from `start` on, gives the middle one back, says how much is held then, and looks at all.
    fn discard_and_look(
        memory: &GuestMemoryMmap,
        start: u64,
        held: impl Fn(&GuestMemoryMmap) -> u64,
    ) -> u64 {
        let pieces = [start, start + PIECE, start + 2 * PIECE].map(GuestAddress);
        let full = vec![0x5a_u8; usize::try_from(PIECE).unwrap()];
        for piece in pieces {
            memory.write_slice(&full, piece).unwrap();
        }
        let middle = RamPages::new(memory, pieces[1], PIECE).unwrap();
        discard(memory, middle).unwrap();
        // Looking at shared pages brings them back.
        let held = held(memory);
        for (piece, expected) in pieces.into_iter().zip([0x5a, 0, 0x5a]) {
            let mut now = full.clone();
            memory.read_slice(&mut now, piece).unwrap();
            assert!(now.iter().all(|byte| *byte == expected), "{piece:?}");
        }
        memory.write_obj(7_u32, pieces[1]).unwrap();
        assert_eq!(memory.read_obj::<u32>(pieces[1]).unwrap(), 7);
        held
    }

    /// A mapping of guest memory, by proc_pid_smaps(5).
    #[derive(Default)]
    pub(super) struct Mapping {
        /// Where it begins in its region.
        pub(super) offset: u64,
        pub(super) bytes: u64,
        /// How much of it is there.
        pub(super) resident: u64,
        pub(super) flags: String,
    }

    /// The mappings that the first region is in.
    pub(super) fn mappings(memory: &GuestMemoryMmap) -> Vec<Mapping> {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let region = memory.iter().next().unwrap();
        let start = region.as_ptr() as u64;
        let mut mappings: Vec<Mapping> = Vec::new();
        let mut ours = false;
        for line in smaps.lines() {
            let (first, rest) = line.split_once(' ').unwrap();
            if let Some((first, end)) = first.split_once('-') {
                let [first, end] = [first, end].map(|it| u64::from_str_radix(it, 16).unwrap());
                let offset = first.checked_sub(start).filter(|it| *it < region.len());
                ours = offset.is_some();
                mappings.extend(offset.map(|offset| Mapping {
                    offset,
                    bytes: end - first,
                    ..Mapping::default()
                }));
            }
            let Some(mapping) = mappings.last_mut().filter(|_| ours) else {
                continue;
            };
            match first {
                "Rss:" => {
                    let kib = rest.trim().strip_suffix(" kB").unwrap();
                    mapping.resident = kib.parse::<u64>().unwrap() << 10;
                }
                "VmFlags:" => mapping.flags = rest.trim().to_owned(),
                _ => {}
            }
        }
        mappings
    }

    /// How much of the first region is there.
    fn resident_bytes(memory: &GuestMemoryMmap) -> u64 {
        mappings(memory)
            .iter()
            .map(|mapping| mapping.resident)
            .sum()
    }

    #[test]
    fn private_pages_that_are_to_be_small_come_one_by_one_and_others_as_before() {
        let memory = create(MemMib::new(64).unwrap(), Sharing::Private, None, None).unwrap();
        let before = mappings(&memory);
        let start = 8 << 20;
        let pages = RamPages::new(&memory, GuestAddress(start), 2 * PIECE).unwrap();
        advise_small(&memory, pages);
        for address in [start, start + 2 * PIECE - 1] {
            memory.write_obj(1_u8, GuestAddress(address)).unwrap();
        }
        assert_eq!(resident_bytes(&memory), 2 * PAGE_BYTES);
        // Where the host knows no huge pages, it is one mapping still.
        for mapping in mappings(&memory) {
            if mapping.offset != start {
                assert_eq!(
                    mapping.flags, before[0].flags,
                    "from {:#x} on",
                    mapping.offset
                );
            }
        }
    }

    #[test]
    fn shared_pages_are_not_advised_and_those_of_another_memory_are_not_there() {
        let shared = create(MemMib::new(64).unwrap(), Sharing::Shared, None, None).unwrap();
        let pages = RamPages::new(&shared, GuestAddress(32 << 20), PIECE).unwrap();
        advise_small(&shared, pages);
        let other = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        advise_small(&other, pages);
        assert!(discard(&other, pages).is_err());
    }

    #[test]
    fn private_pages_that_are_discarded_are_zero_and_not_there() {
        let memory = create(MemMib::new(64).unwrap(), Sharing::Private, None, None).unwrap();
        assert_eq!(
            discard_and_look(&memory, 8 << 20, resident_bytes),
            2 * PIECE
        );
        let all = RamPages::new(&memory, GuestAddress(0), 64 << 20).unwrap();
        discard(&memory, all).unwrap();
        assert_eq!(resident_bytes(&memory), 0);
    }

    #[test]
    fn shared_pages_that_are_discarded_are_zero_and_a_hole_in_the_file() {
        let memory = create(MemMib::new(4096).unwrap(), Sharing::Shared, None, None).unwrap();
        let held = |memory: &GuestMemoryMmap| {
            let region = memory.iter().next().unwrap();
            let file = region.file_offset().unwrap().file().metadata().unwrap();
            file.blocks() * 512
        };
        // Below and above the hole, where the offset in the file is another.
        let below = layout::HOLE_START - 3 * PIECE;
        assert_eq!(discard_and_look(&memory, below, held), 2 * PIECE);
        let all = RamPages::new(&memory, GuestAddress(0), layout::HOLE_START).unwrap();
        discard(&memory, all).unwrap();
        assert_eq!(held(&memory), 0);
        let above = layout::HOLE_END + (8 << 20);
        assert_eq!(discard_and_look(&memory, above, held), 2 * PIECE);
    }

    #[test]
    fn ranges_that_are_no_pages_of_one_piece_of_memory_are_refused() {
        let memory = create(MemMib::new(4096).unwrap(), Sharing::Private, None, None).unwrap();
        let range = |start, bytes| RamPages::new(&memory, GuestAddress(start), bytes);
        for (start, bytes) in [(0, 0), (1, 4096), (0, 4095), (2048, 4096), (4096, 1)] {
            assert!(matches!(range(start, bytes), Err(RangeError::Pages { .. })));
        }
        let end = layout::HOLE_END + (4096 << 20) - layout::HOLE_START;
        for (start, bytes) in [
            (layout::HOLE_START, 4096),
            (layout::HOLE_START - 4096, 8192),
            (layout::HOLE_START - 4096, layout::HOLE_END),
            (layout::HOLE_END - 4096, 8192),
            (end, 4096),
            (end - 4096, 8192),
            (u64::MAX - 4095, 4096),
            (4096, u64::MAX - 4095),
            (0, u64::MAX - 4095),
        ] {
            assert!(matches!(
                range(start, bytes),
                Err(RangeError::Outside { .. })
            ));
        }
        assert!(range(0, layout::HOLE_START).is_ok());
        assert!(range(end - 4096, 4096).is_ok());
    }

    #[test]
    fn private_memory_is_aligned_to_huge_pages() {
        let memory = create(MemMib::new(64).unwrap(), Sharing::Private, None, None).unwrap();
        for region in memory.iter() {
            assert_eq!(region.as_ptr() as usize % (2 << 20), 0);
        }
        memory
            .write_obj(7_u32, GuestAddress(64 << 20 >> 1))
            .unwrap();
    }

    #[test]
    fn file_of_shared_memory_keeps_its_size_whoever_has_it() {
        let memory = create(MemMib::new(64).unwrap(), Sharing::Shared, None, None).unwrap();
        let region = memory.iter().next().unwrap();
        let file = region.file_offset().unwrap().file();
        for size in [0, 65 << 20] {
            let refused = file.set_len(size).unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
        }
    }

    #[test]
    fn shared_memory_over_the_hole_has_consecutive_offsets_in_one_file() {
        let memory = create(MemMib::new(4096).unwrap(), Sharing::Shared, None, None).unwrap();
        let offsets: Vec<_> = memory
            .iter()
            .map(|r| (r.start_addr().0, r.file_offset().unwrap().start()))
            .collect();
        assert_eq!(offsets, [(0, 0), (layout::HOLE_END, layout::HOLE_START)]);
    }
}
