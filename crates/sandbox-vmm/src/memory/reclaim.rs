//! Taking pages back from a guest for good, also those that are parts of huge pages.
//!
//! Of a huge page that a guest gives back in part, the host keeps all until memory runs short: it is in one piece. So it is broken up here,
//! and stays small pages, or the host would put it together again in the background, with what was given back (Linux:
//! `Documentation/admin-guide/mm/transhuge.rst`, khugepaged). Once the guest gives all of it back, it may be huge again.

use std::collections::BTreeSet;
use std::io;

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::mapping::Hold;
use super::{HUGE_PAGE_BYTES, RamPages, advise, discard};

/// How many huge pages may be broken up at a time. What a guest leaves free between what stays is a few; each is a mapping or two of
/// the process, which may have 65,530 (`vm.max_map_count`).
const MAX_BROKEN: usize = 64;

/// What has been taken back of one guest's memory.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Reclaim {
    /// The huge pages that are broken up, by their guest addresses.
    broken: BTreeSet<u64>,
}

impl Reclaim {
    /// Gives pages back to the host, as [`discard`].
    ///
    /// # Errors
    /// As there.
    pub(crate) fn take(&mut self, memory: &GuestMemoryMmap, pages: RamPages) -> io::Result<()> {
        let start = pages.start.0;
        // Of memory: far from the largest number.
        let end = start + pages.bytes;
        let whole = start.next_multiple_of(HUGE_PAGE_BYTES)..start_of_huge(end);
        if !whole.is_empty() {
            for block in self.broken.extract_if(whole, |_| true) {
                if let Ok(block) = RamPages::new(memory, GuestAddress(block), HUGE_PAGE_BYTES) {
                    advise(memory, block, Hold::Huge);
                }
            }
        }
        discard(memory, pages)?;
        for border in [start, end] {
            if !border.is_multiple_of(HUGE_PAGE_BYTES) {
                self.break_up(memory, start_of_huge(border));
            }
        }
        Ok(())
    }

    fn break_up(&mut self, memory: &GuestMemoryMmap, block: u64) {
        if self.broken.len() >= MAX_BROKEN || self.broken.contains(&block) {
            return;
        }
        // What is at the end of memory may be no whole one.
        if let Ok(pages) = RamPages::new(memory, GuestAddress(block), HUGE_PAGE_BYTES) {
            advise(memory, pages, Hold::Small);
            advise(memory, pages, Hold::Cold);
            self.broken.insert(block);
        }
    }
}

/// Where the huge page begins that an address is in.
fn start_of_huge(address: u64) -> u64 {
    address - address % HUGE_PAGE_BYTES
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;

    use proptest::prelude::*;
    use sandbox_types::MemMib;
    use vm_memory::{Bytes as _, GuestMemoryBackend as _};

    use super::*;
    use crate::memory::mapping::HUGE_PAGE;
    use crate::memory::tests::mappings;
    use crate::memory::{Sharing, create};

    const PAGE: u64 = 4096;

    fn memory(sharing: Sharing) -> GuestMemoryMmap {
        create(MemMib::new(512).unwrap(), sharing, None, None).unwrap()
    }

    fn take(reclaim: &mut Reclaim, memory: &GuestMemoryMmap, start: u64, bytes: u64) {
        let pages = RamPages::new(memory, GuestAddress(start), bytes).unwrap();
        reclaim.take(memory, pages).unwrap();
    }

    /// The parts of the first region that are small: from where, and how much.
    fn small(memory: &GuestMemoryMmap) -> Vec<(u64, u64)> {
        let mappings = mappings(memory).into_iter();
        let small = mappings.filter(|mapping| mapping.flags.split(' ').any(|flag| flag == "nh"));
        small
            .map(|mapping| (mapping.offset, mapping.bytes))
            .collect()
    }

    /// Whether the host has the page there as a part of a huge one (Linux: `Documentation/admin-guide/mm/pagemap.rst`). Only root learns that.
    fn is_of_a_huge_page(memory: &GuestMemoryMmap, address: u64) -> Option<bool> {
        const FRAME: u64 = (1 << 55) - 1;
        const HUGE: u64 = 1 << 22;
        let number = |file: &str, index: u64| {
            let mut number = [0; 8];
            let file = File::open(file).ok()?;
            file.read_exact_at(&mut number, index * 8).ok()?;
            Some(u64::from_le_bytes(number))
        };
        let place = memory.get_host_address(GuestAddress(address)).ok()?;
        let frame = number("/proc/self/pagemap", place as u64 / PAGE)? & FRAME;
        let flags = number("/proc/kpageflags", frame)?;
        (frame != 0).then_some(flags & HUGE != 0)
    }

    #[test]
    fn huge_page_of_which_a_part_is_taken_is_broken_up_until_all_of_it_is() {
        let memory = memory(Sharing::Private);
        let mut reclaim = Reclaim::default();
        let block = 4 * HUGE_PAGE_BYTES;
        let full = vec![0x5a_u8; 2 * HUGE_PAGE];
        memory.write_slice(&full, GuestAddress(block)).unwrap();
        let was_huge = is_of_a_huge_page(&memory, block);
        take(&mut reclaim, &memory, block + 8 * PAGE, 8 * PAGE);
        let after = mappings(&memory);
        let resident: u64 = after.iter().map(|mapping| mapping.resident).sum();
        assert_eq!(resident, 2 * HUGE_PAGE_BYTES - 8 * PAGE);
        assert_eq!(small(&memory), [(block, HUGE_PAGE_BYTES)]);
        assert_eq!(is_of_a_huge_page(&memory, block), was_huge.map(|_| false));
        assert_eq!(
            is_of_a_huge_page(&memory, block + HUGE_PAGE_BYTES),
            was_huge
        );
        for (page, expected) in [(7, 0x5a), (8, 0), (15, 0), (16, 0x5a_u8)] {
            let at = GuestAddress(block + page * PAGE);
            assert_eq!(memory.read_obj::<u8>(at).unwrap(), expected, "page {page}");
        }
        // What goes beyond it on both sides.
        take(
            &mut reclaim,
            &memory,
            block - PAGE,
            HUGE_PAGE_BYTES + 2 * PAGE,
        );
        let around = [
            (block - HUGE_PAGE_BYTES, HUGE_PAGE_BYTES),
            (block + HUGE_PAGE_BYTES, HUGE_PAGE_BYTES),
        ];
        assert_eq!(small(&memory), around);
        take(
            &mut reclaim,
            &memory,
            block - HUGE_PAGE_BYTES,
            3 * HUGE_PAGE_BYTES,
        );
        assert_eq!(small(&memory), []);
    }

    #[test]
    fn no_more_huge_pages_are_broken_up_than_the_process_can_have_mappings_for() {
        let memory = memory(Sharing::Private);
        let mut reclaim = Reclaim::default();
        let blocks = 2 * MAX_BROKEN as u64;
        for block in 0..blocks {
            take(&mut reclaim, &memory, 2 * block * HUGE_PAGE_BYTES, PAGE);
        }
        assert_eq!(small(&memory).len(), MAX_BROKEN);
        take(&mut reclaim, &memory, 0, blocks * 2 * HUGE_PAGE_BYTES);
        assert_eq!(small(&memory), []);
    }

    #[test]
    fn huge_pages_of_a_file_are_left_alone() {
        let memory = memory(Sharing::Shared);
        take(&mut Reclaim::default(), &memory, PAGE, PAGE);
        assert_eq!(small(&memory), []);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn small_are_those_of_which_a_part_was_taken_last(
            ranges in proptest::collection::vec((0..4096_u64, 1..2048_u64), 1..12),
        ) {
            let memory = memory(Sharing::Private);
            let mut reclaim = Reclaim::default();
            let mut expected = BTreeSet::new();
            for (first, count) in ranges {
                take(&mut reclaim, &memory, first * PAGE, count * PAGE);
                let (start, end) = (first * PAGE, (first + count) * PAGE);
                for block in (0..16).map(|number| number * HUGE_PAGE_BYTES) {
                    let (from, to) = (start.max(block), end.min(block + HUGE_PAGE_BYTES));
                    match to.saturating_sub(from) {
                        0 => {}
                        HUGE_PAGE_BYTES => drop(expected.remove(&block)),
                        _ => drop(expected.insert(block)),
                    }
                }
            }
            prop_assert_eq!(reclaim.broken, expected);
        }
    }
}
