//! Where the kernel's image leaves guest memory empty, by its program headers (System V ABI, "Program Header").
//!
//! Guest memory is touched in huge pages. Where the image has less than half of one, the other half and more would be memory
//! for nothing: nobody uses what lies between the parts of the kernel, and what is behind it only some day. Small pages hold what there is.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr, PT_LOAD};
use vm_memory::ByteValued;

use crate::memory::HUGE_PAGE_BYTES;

/// Program headers beyond which nothing is made of them. A kernel has about seven.
const MAX_HEADERS: u16 = 64;

/// The guest addresses that the segments of a kernel take up, with their data that begins as zeroes. `None` where the file does not
/// say so; why it does not is for the loader to find. The file's position stays.
pub(super) fn segments(kernel: &File) -> Option<Vec<Range<u64>>> {
    let mut header = Elf64_Ehdr::default();
    kernel.read_exact_at(header.as_mut_slice(), 0).ok()?;
    if header.e_phnum > MAX_HEADERS {
        return None;
    }
    let mut segments = Vec::new();
    let mut position = header.e_phoff;
    for _ in 0..header.e_phnum {
        let mut entry = Elf64_Phdr::default();
        kernel.read_exact_at(entry.as_mut_slice(), position).ok()?;
        position = position.checked_add(size_of::<Elf64_Phdr>() as u64)?;
        if entry.p_type == PT_LOAD {
            segments.push(entry.p_paddr..entry.p_paddr.checked_add(entry.p_memsz)?);
        }
    }
    Some(segments)
}

/// The blocks of 2 MiB, one or more in a row, of which segments take up less than half, among those from the first segment's start
/// to that in which the last one ends. What is around is the kernel's memory as any other. Nothing is looked at from `end` on, where
/// memory ends.
pub(super) fn sparse(segments: &[Range<u64>], end: u64) -> Vec<Range<u64>> {
    let mut taken: Vec<Range<u64>> = segments
        .iter()
        .map(|segment| segment.start..segment.end.min(end))
        .filter(|segment| !segment.is_empty())
        .collect();
    taken.sort_by_key(|segment| segment.start);
    // What two segments take up counts once.
    let mut before = 0;
    for segment in &mut taken {
        segment.start = segment.start.max(before);
        before = before.max(segment.end);
    }
    let first = taken.first().map_or(before, |segment| segment.start);
    let blocks = first.div_ceil(HUGE_PAGE_BYTES)..before.div_ceil(HUGE_PAGE_BYTES);

    let mut sparse: Vec<Range<u64>> = Vec::new();
    for block in blocks {
        let start = block.saturating_mul(HUGE_PAGE_BYTES);
        let block = start..start.saturating_add(HUGE_PAGE_BYTES);
        let bytes = taken.iter().fold(0_u64, |sum, segment| {
            let part = segment.start.max(block.start)..segment.end.min(block.end);
            sum.saturating_add(part.end.saturating_sub(part.start))
        });
        if bytes >= HUGE_PAGE_BYTES / 2 {
            continue;
        }
        match sparse.last_mut().filter(|last| last.end == block.start) {
            Some(last) => last.end = block.end,
            None => sparse.push(block),
        }
    }
    sparse
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, Write as _};

    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// A file of headers alone: of what type, from what address, how long in memory.
    fn file(entries: &[(u32, u64, u64)]) -> File {
        let count = u16::try_from(entries.len()).unwrap();
        let header = Elf64_Ehdr {
            e_phoff: size_of::<Elf64_Ehdr>() as u64,
            e_phnum: count,
            ..Elf64_Ehdr::default()
        };
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(header.as_slice()).unwrap();
        for &(p_type, p_paddr, p_memsz) in entries {
            let entry = Elf64_Phdr {
                p_type,
                p_paddr,
                p_memsz,
                ..Elf64_Phdr::default()
            };
            file.write_all(entry.as_slice()).unwrap();
        }
        file
    }

    #[test]
    fn segments_of_a_kernel_are_those_that_are_loaded() {
        let mut file = file(&[(PT_LOAD, 16 * MIB, 5), (4, 7, 8), (PT_LOAD, 0, 0)]);
        file.seek(std::io::SeekFrom::Start(3)).unwrap();
        assert_eq!(segments(&file), Some(vec![16 * MIB..16 * MIB + 5, 0..0]));
        assert_eq!(file.stream_position().unwrap(), 3);
    }

    #[test]
    fn file_whose_segments_are_cut_short_or_too_many_or_endless_has_none() {
        let short = file(&[(PT_LOAD, 0, 1), (PT_LOAD, 0, 1)]);
        short.set_len(64 + 56 + 55).unwrap();
        assert_eq!(segments(&short), None);
        short.set_len(63).unwrap();
        assert_eq!(segments(&short), None);
        let many = vec![(PT_LOAD, 0, 1); usize::from(MAX_HEADERS) + 1];
        assert_eq!(segments(&file(&many)), None);
        assert_eq!(segments(&file(&[(PT_LOAD, u64::MAX, 1)])), None);
    }

    /// [`sparse`], in terms of where each begins and ends.
    fn sparse_of(segments: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let segments: Vec<_> = segments.iter().map(|(start, end)| *start..*end).collect();
        let found = sparse(&segments, 64 * MIB);
        found.iter().map(|block| (block.start, block.end)).collect()
    }

    #[test]
    fn blocks_around_entry_code_and_at_the_end_are_sparse_and_those_with_code_and_data_are_not() {
        // A kernel of today's, its padding left out.
        let mut segments = [
            (0x100_0000, 0x166_a000),
            (0x17f_f000, 0x180_2000),
            (0x19f_f000, 0x1b6_95ac),
            (0x1c0_0000, 0x1c9_4000),
            (0x1c9_4000, 0x1cb_8c58),
            (0x1cb_9000, 0x1e1_8000),
        ];
        let end = (0x1e0_0000, 0x200_0000);
        assert_eq!(sparse_of(&segments), [(0x160_0000, 0x1a0_0000), end]);
        // With its padding.
        segments[0].1 = segments[1].0;
        segments[1].1 = segments[2].0;
        assert_eq!(sparse_of(&segments), [end]);
    }

    #[test]
    fn blocks_before_the_first_segment_and_behind_the_last_are_left_alone() {
        let ends = [(3 * MIB, 3 * MIB + 1), (9 * MIB, 9 * MIB + 1)];
        assert_eq!(sparse_of(&ends), [(4 * MIB, 10 * MIB)]);
        assert!(sparse_of(&ends[..1]).is_empty());
        assert!(sparse_of(&[]).is_empty());
    }

    #[test]
    fn half_of_a_block_is_enough_however_it_lies_and_counts_once() {
        let around = |middle: &[(u64, u64)]| {
            let mut segments = vec![(0, 2 * MIB), (4 * MIB, 6 * MIB)];
            segments.extend_from_slice(middle);
            sparse_of(&segments)
        };
        let block = [(2 * MIB, 4 * MIB)];
        assert!(around(&[(2 * MIB, 3 * MIB)]).is_empty());
        assert_eq!(around(&[(2 * MIB, 3 * MIB - 1)]), block);
        let half = (2 * MIB, 2 * MIB + MIB / 2);
        assert!(around(&[half, (4 * MIB - MIB / 2, 4 * MIB)]).is_empty());
        assert_eq!(around(&[half, half]), block);
    }

    #[test]
    fn segments_that_no_memory_can_hold_are_looked_at_up_to_its_end() {
        let beginning = (16 * MIB, 17 * MIB);
        assert!(sparse_of(&[beginning, (u64::MAX - 5, u64::MAX)]).is_empty());
        assert!(sparse_of(&[beginning, (18 * MIB, u64::MAX)]).is_empty());
    }

    proptest! {
        #[test]
        fn sparse_blocks_are_those_with_less_than_half_their_pages(
            places in proptest::collection::vec((0..2000_usize, 0..800_usize), 0..6),
        ) {
            const BLOCK: usize = 512;
            let page = |index: usize| index as u64 * 4096;
            let mut pages = vec![false; 4096];
            for (start, count) in &places {
                pages[*start..start + count].fill(true);
            }
            let segments: Vec<_> = places.iter().map(|(start, count)| page(*start)..page(start + count)).collect();
            let first = pages.iter().position(|taken| *taken).unwrap_or(0);
            let end = pages.iter().rposition(|taken| *taken).map_or(0, |last| last + 1);

            let found = sparse(&segments, page(4096));
            for pair in found.windows(2) {
                prop_assert!(pair[0].end < pair[1].start);
            }
            for (index, block) in pages.chunks(BLOCK).enumerate() {
                let (start, behind) = (index * BLOCK, (index + 1) * BLOCK);
                let taken = block.iter().filter(|taken| **taken).count();
                let expected = first <= start && start < end && taken < BLOCK / 2;
                let is = found.iter().any(|range| range.start <= page(start) && page(behind) <= range.end);
                prop_assert_eq!(is, expected);
            }
        }
    }
}
