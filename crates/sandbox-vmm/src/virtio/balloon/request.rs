//! Descriptor chains as lists of pages that the guest does not use.
//!
//! Whole pages of RAM or nothing: a request with one range that is none is refused before anything is done.

use virtio_queue::DescriptorChain;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::error::BalloonError;
use crate::memory::RamPages;
use crate::virtio::chain::{ChainError, Segments, total};

/// The unit of page numbers (VirtIO 1.3, 5.5.6: "`VIRTIO_BALLOON_PFN_SHIFT` 12"), whatever pages the guest has.
pub const PAGE_BYTES: u64 = 1 << 12;
/// The most page numbers in one request to inflate: four times what Linux sends (`VIRTIO_BALLOON_ARRAY_PFNS_MAX`).
pub(crate) const MAX_PAGE_NUMBERS: usize = 1024;

/// Bytes of a page number.
const NUMBER_BYTES: usize = 4;

/// Reads a report of free pages (VirtIO 1.3, 5.5.6.7): each device-writable buffer is a range of them. There are at most
/// [`MAX_DESCRIPTORS`](crate::virtio::chain::MAX_DESCRIPTORS), and at least one.
///
/// # Errors
/// [`BalloonError::Malformed`] or [`BalloonError::Range`].
pub(crate) fn parse_report(
    chain: DescriptorChain<&GuestMemoryMmap>,
    memory: &GuestMemoryMmap,
) -> Result<Vec<RamPages>, BalloonError> {
    let segments = Segments::copy(chain)?;
    if segments.writable.is_empty() {
        return Err(ChainError::WritableTooShort.into());
    }
    let pages = segments
        .writable
        .iter()
        .map(|range| RamPages::new(memory, range.address, range.length.into()));
    Ok(pages.collect::<Result<_, _>>()?)
}

/// Reads a request to inflate (VirtIO 1.3, 5.5.6): little-endian numbers of pages of [`PAGE_BYTES`], in device-readable buffers. Pages
/// that follow each other come back as one range.
///
/// # Errors
/// [`BalloonError::Malformed`], [`BalloonError::TooMany`] or [`BalloonError::Range`].
pub(crate) fn parse_inflate(
    chain: DescriptorChain<&GuestMemoryMmap>,
    memory: &GuestMemoryMmap,
) -> Result<Vec<RamPages>, BalloonError> {
    let mut segments = Segments::copy(chain)?;
    let bytes = total(&segments.readable);
    let mut numbers = [0; MAX_PAGE_NUMBERS * NUMBER_BYTES];
    let list = usize::try_from(bytes)
        .ok()
        .and_then(|length| numbers.get_mut(..length))
        .ok_or(BalloonError::TooMany { bytes })?;
    segments.take_readable(memory, list)?;
    let (numbers, rest) = list.as_chunks::<NUMBER_BYTES>();
    if !rest.is_empty() {
        let missing = NUMBER_BYTES - rest.len();
        return Err(ChainError::ReadableTooShort { missing }.into());
    }
    let mut numbers: Vec<u32> = numbers.iter().copied().map(u32::from_le_bytes).collect();
    // The kernel hands out pages from the top down.
    numbers.sort_unstable();
    numbers.dedup();
    numbers
        .chunk_by(|this, next| this.checked_add(1) == Some(*next))
        .map(|run| {
            let first = run.first().copied().map_or(0, u64::from);
            // At most MAX_PAGE_NUMBERS.
            let count = u64::try_from(run.len()).unwrap_or(u64::MAX);
            let start = GuestAddress(first.saturating_mul(PAGE_BYTES));
            RamPages::new(memory, start, count.saturating_mul(PAGE_BYTES)).map_err(Into::into)
        })
        .collect()
}
