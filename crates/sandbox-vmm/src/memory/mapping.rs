//! Mappings that begin on a huge page.
#![expect(
    unsafe_code,
    reason = "mmap with an alignment, and madvise, on addresses that no Rust object lives at"
)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::ptr;

use rustix::fs::FallocateFlags;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{GuestMemoryRegion as _, GuestRegionMmap, MmapRegion};

/// A huge page of the first level.
pub(super) const HUGE_PAGE: usize = 2 << 20;
/// The same, in a guest's addresses.
pub(crate) const HUGE_PAGE_BYTES: u64 = HUGE_PAGE as u64;
const PROTECTION: i32 = libc::PROT_READ | libc::PROT_WRITE;
/// Not reserved: an idle guest touches little of what it has.
const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Maps `bytes` of zeroes at a multiple of [`HUGE_PAGE`]. Never unmapped: guest memory lives as long as the
/// process. Where it is not `accessible` at first, the host does not count it as promised memory either (`vm.overcommit_memory`).
pub(super) fn anonymous(bytes: usize, accessible: bool) -> Result<MmapRegion, MmapRegionError> {
    let protection = match accessible {
        true => PROTECTION,
        false => libc::PROT_NONE,
    };
    let too_long = || MmapRegionError::Mmap(io::ErrorKind::OutOfMemory.into());
    let reserved = bytes.checked_add(HUGE_PAGE).ok_or_else(too_long)?;
    // SAFETY: without MAP_FIXED no existing mapping is touched.
    let start = unsafe { libc::mmap(ptr::null_mut(), reserved, protection, FLAGS, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(MmapRegionError::Mmap(io::Error::last_os_error()));
    }
    let start = start.cast::<u8>();
    let head = start.align_offset(HUGE_PAGE);
    let aligned = start.wrapping_add(head);
    unmap(start, head);
    unmap(aligned.wrapping_add(bytes), HUGE_PAGE - head);
    // SAFETY: `head` is at most HUGE_PAGE, so the whole range lies in what was mapped above; it stays mapped.
    unsafe { MmapRegion::build_raw(aligned, bytes, PROTECTION, FLAGS) }
}

/// Lets the guest, and everyone in this process, reach a part of a region, or keeps them away from it.
///
/// Who is kept away meets what [`super::unplugged`] says.
pub(super) fn set_accessible(
    region: &GuestRegionMmap,
    offset: usize,
    bytes: usize,
    accessible: bool,
) -> io::Result<()> {
    let end = offset.checked_add(bytes);
    if end.is_none_or(|end| end > region.size()) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let protection = match accessible {
        true => PROTECTION,
        false => libc::PROT_NONE,
    };
    let start = region.as_ptr().wrapping_add(offset);
    // SAFETY: the range lies in a mapping of guest memory, in which no Rust object lives. Whoever copies from or to it while it is not
    // accessible gets a signal, which ends the process.
    match unsafe { libc::mprotect(start.cast(), bytes, protection) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// As [`discard`], for a part that is not accessible: `madvise` does not make holes in such.
pub(super) fn discard_inaccessible(
    region: &GuestRegionMmap,
    offset: usize,
    bytes: usize,
) -> io::Result<()> {
    let Some(file) = region.file_offset() else {
        return discard(region, offset, bytes);
    };
    let (at, bytes) = (offset as u64, bytes as u64);
    let end = at.checked_add(bytes);
    if end.is_none_or(|end| end > region.len()) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(rustix::fs::fallocate(
        file.file(),
        hole,
        file.start() + at,
        bytes,
    )?)
}

/// How the host is to hold pages (madvise(2)). Only advice: without it the guest is slower, or larger.
#[derive(Debug, Clone, Copy)]
pub(super) enum Hold {
    /// As parts of huge ones, from now on.
    Huge,
    /// Not as parts of huge ones, from now on. What is around keeps its advice: both ends are to be multiples of [`HUGE_PAGE`], or a
    /// huge page is lost at each.
    Small,
    /// As what is not needed soon. Of a huge page of which a part is gone, what is left becomes small pages, so that the host has the rest.
    Cold,
}

impl Hold {
    fn advice(self) -> i32 {
        match self {
            Self::Huge => libc::MADV_HUGEPAGE,
            Self::Small => libc::MADV_NOHUGEPAGE,
            Self::Cold => libc::MADV_COLD,
        }
    }
}

/// Advises the host on a part of a region.
pub(super) fn advise(region: &GuestRegionMmap, offset: usize, bytes: usize, hold: Hold) {
    let end = offset.checked_add(bytes);
    if end.is_none_or(|end| end > region.size()) {
        return;
    }
    let start = region.as_ptr().wrapping_add(offset);
    // SAFETY: the range lies in a mapping of guest memory; this advice does not change what is in it.
    unsafe { libc::madvise(start.cast(), bytes, hold.advice()) };
}

/// Gives the pages of a part of a region back to the host. They read as zeroes until something is written to them, for everyone who
/// has mapped them.
pub(super) fn discard(region: &GuestRegionMmap, offset: usize, bytes: usize) -> io::Result<()> {
    let end = offset.checked_add(bytes);
    if end.is_none_or(|end| end > region.size()) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // Without a file the pages are this mapping's alone; a file keeps them until they are made a hole (madvise(2)).
    let advice = match region.file_offset() {
        None => libc::MADV_DONTNEED,
        Some(_) => libc::MADV_REMOVE,
    };
    let start = region.as_ptr().wrapping_add(offset);
    // SAFETY: the range lies in a mapping of guest memory, in which no Rust object lives and which is only ever copied from and
    // to, so that what is in it may change at any time, as when the guest writes.
    match unsafe { libc::madvise(start.cast(), bytes, advice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives back a part of a fresh mapping. Failure would only waste address space.
fn unmap(start: *mut u8, bytes: usize) {
    if bytes > 0 {
        // SAFETY: the range is a part of a mapping made just now, and nothing points into it.
        unsafe { libc::munmap(start.cast(), bytes) };
    }
}

/// Bytes of a page on x86-64.
pub(super) const PAGE_BYTES: u64 = 4096;

/// Address space that reads as zeroes, and into which files are mapped. It is never unmapped.
#[derive(Debug)]
pub(super) struct Reservation {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: the pointer is only an address: nothing is read or written through it here.
unsafe impl Send for Reservation {}
// SAFETY: as above.
unsafe impl Sync for Reservation {}

impl Reservation {
    const READ: i32 = libc::PROT_READ;

    /// `bytes` of zeroes at a multiple of [`HUGE_PAGE`], so that huge pages of files can be mapped as such.
    pub(super) fn new(bytes: usize) -> io::Result<Self> {
        let reserved = bytes
            .checked_add(HUGE_PAGE)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: without MAP_FIXED no existing mapping is touched.
        let start = unsafe { libc::mmap(ptr::null_mut(), reserved, Self::READ, FLAGS, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = start.cast::<u8>();
        let head = start.align_offset(HUGE_PAGE);
        let aligned = start.wrapping_add(head);
        unmap(start, head);
        unmap(aligned.wrapping_add(bytes), HUGE_PAGE - head);
        Ok(Self {
            start: aligned,
            bytes,
        })
    }

    /// Maps the first `bytes` bytes of `file` at `offset`, which the caller has checked to be whole pages within this.
    pub(super) fn put(&self, file: &File, offset: u64, bytes: u64) -> io::Result<()> {
        let outside = || io::Error::from(io::ErrorKind::InvalidInput);
        let offset = usize::try_from(offset).map_err(|_| outside())?;
        let bytes = usize::try_from(bytes).map_err(|_| outside())?;
        let end = offset.checked_add(bytes).ok_or_else(outside)?;
        if end > self.bytes {
            return Err(outside());
        }
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        let place = self.start.wrapping_add(offset).cast();
        // SAFETY: the range lies in this reservation, in which nothing but this has been mapped, and to which no reference exists.
        let mapped = unsafe { libc::mmap(place, bytes, Self::READ, flags, file.as_raw_fd(), 0) };
        match mapped {
            libc::MAP_FAILED => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    pub(super) fn range(&self) -> Range<usize> {
        let start = self.start.addr();
        start..start.saturating_add(self.bytes)
    }

    /// It as memory that is not written to.
    pub(super) fn region(&self) -> Result<MmapRegion, MmapRegionError> {
        // SAFETY: the whole range was mapped when this was made, and stays mapped.
        unsafe { MmapRegion::build_raw(self.start, self.bytes, Self::READ, libc::MAP_SHARED) }
    }
}
