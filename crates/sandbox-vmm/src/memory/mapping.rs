//! Anonymous mappings that begin on a huge page.
#![expect(
    unsafe_code,
    reason = "mmap with an alignment, and madvise, on addresses that no Rust object lives at"
)]

use std::io;
use std::ptr;

use vm_memory::MmapRegion;
use vm_memory::mmap::MmapRegionError;

/// A huge page of the first level.
const HUGE_PAGE: usize = 2 << 20;
const PROTECTION: i32 = libc::PROT_READ | libc::PROT_WRITE;
/// Not reserved: an idle guest touches little of what it has.
const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Maps `bytes` of zeroes at a multiple of [`HUGE_PAGE`]. Never unmapped: guest memory lives as long as the
/// process.
pub(super) fn anonymous(bytes: usize) -> Result<MmapRegion, MmapRegionError> {
    let too_long = || MmapRegionError::Mmap(io::ErrorKind::OutOfMemory.into());
    let reserved = bytes.checked_add(HUGE_PAGE).ok_or_else(too_long)?;
    // SAFETY: without MAP_FIXED no existing mapping is touched.
    let start = unsafe { libc::mmap(ptr::null_mut(), reserved, PROTECTION, FLAGS, -1, 0) };
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

/// Asks for huge pages. Only advice: without them the guest is slower.
pub(super) fn advise_huge(region: &MmapRegion) {
    // SAFETY: the range is a mapping of ours; this advice does not change what is in it.
    unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_HUGEPAGE) };
}

/// Gives back a part of a fresh mapping. Failure would only waste address space.
fn unmap(start: *mut u8, bytes: usize) {
    if bytes > 0 {
        // SAFETY: the range is a part of a mapping made just now, and nothing points into it.
        unsafe { libc::munmap(start.cast(), bytes) };
    }
}
