//! Memory that a guest may get later: what a virtio-mem device hands to its driver, block by block.
//!
//! One range of the guest's addresses behind everything else, and one memory slot of KVM, from the start. What the guest does not have
//! of it is not accessible in this process, and so not in the guest either (KVM maps what this process may reach): a vCPU that reaches
//! for it leaves with `EFAULT`, and a device of which a driver wants it ends the process ([`super::unplugged`]).

use std::io;

use sandbox_types::MemMib;
use vm_memory::{
    GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap, GuestMemoryRegion as _, GuestRegionMmap,
};

use super::mapping;
use crate::arch::x86_64::layout::{self, RamRange};

/// What Linux adds memory in on x86 (`MIN_MEMORY_BLOCK_SIZE`, `arch/x86/mm/init_64.c`); a part of it at the end would be of no use.
const ALIGNMENT: u64 = 128 << 20;
/// The smallest block: a huge page.
const MIN_BLOCK: u64 = 2 << 20;
/// The most blocks. Each may be a mapping of its own, of which a process has 65,530 (`vm.max_map_count`).
const MAX_BLOCKS: u64 = 16 * 1024;

/// Where that memory is, and what it is cut into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Later {
    start: u64,
    bytes: u64,
    block: u64,
}

impl Later {
    /// For a machine that has `memory` from the start, a window of `window` bytes, and may have `max` in all. `None` if that is no more.
    #[must_use]
    pub fn new(memory: MemMib, max: MemMib, window: u64) -> Option<Self> {
        let more = max.bytes().checked_sub(memory.bytes())?;
        let bytes = more.next_multiple_of(ALIGNMENT);
        let block = bytes.div_ceil(MAX_BLOCKS).next_power_of_two();
        (more > 0).then_some(Self {
            start: layout::later_start(memory, window),
            bytes,
            block: block.max(MIN_BLOCK),
        })
    }

    /// Its addresses in the guest.
    #[must_use]
    pub fn range(self) -> RamRange {
        RamRange {
            start: self.start,
            bytes: self.bytes,
        }
    }

    /// Bytes of a block: a power of two.
    #[must_use]
    pub fn block(self) -> u64 {
        self.block
    }

    /// How many blocks there are.
    #[must_use]
    pub fn blocks(self) -> usize {
        usize::try_from(self.bytes / self.block).unwrap_or(0)
    }

    /// Its addresses in this process, where `memory` has it.
    #[must_use]
    pub fn host_range(self, memory: &GuestMemoryMmap) -> Option<std::ops::Range<usize>> {
        let region = self.region(memory)?;
        let start = region.as_ptr().addr();
        Some(start..start.saturating_add(region.size()))
    }

    /// Lets the guest have `bytes` from `offset` on. They are zeroes if they have been taken before.
    ///
    /// # Errors
    /// What the kernel says. The guest may reach a part of it then: the process has no more mappings, and some were changed before that.
    pub fn give(self, memory: &GuestMemoryMmap, offset: u64, bytes: u64) -> io::Result<()> {
        let (region, offset, bytes) = self.part(memory, offset, bytes)?;
        mapping::set_accessible(region, offset, bytes, true)
    }

    /// Takes them from the guest.
    ///
    /// # Errors
    /// What the kernel says, as with [`Self::give`]: the guest may reach a part of it yet, or all.
    pub fn close(self, memory: &GuestMemoryMmap, offset: u64, bytes: u64) -> io::Result<()> {
        let (region, offset, bytes) = self.part(memory, offset, bytes)?;
        mapping::set_accessible(region, offset, bytes, false)
    }

    /// Gives back to the host what was taken. Nobody reaches it, so that no page can come back.
    ///
    /// # Errors
    /// What the kernel says: the host keeps pages that nobody has.
    pub fn discard(self, memory: &GuestMemoryMmap, offset: u64, bytes: u64) -> io::Result<()> {
        let (region, offset, bytes) = self.part(memory, offset, bytes)?;
        mapping::discard_inaccessible(region, offset, bytes)
    }

    fn region(self, memory: &GuestMemoryMmap) -> Option<&GuestRegionMmap> {
        let region = memory.find_region(GuestAddress(self.start))?;
        let is_it = region.start_addr().0 == self.start && region.len() == self.bytes;
        is_it.then_some(region)
    }

    fn part(
        self,
        memory: &GuestMemoryMmap,
        offset: u64,
        bytes: u64,
    ) -> io::Result<(&GuestRegionMmap, usize, usize)> {
        let outside = || io::Error::from(io::ErrorKind::InvalidInput);
        let region = self.region(memory).ok_or_else(outside)?;
        let offset = usize::try_from(offset).map_err(|_| outside())?;
        let bytes = usize::try_from(bytes).map_err(|_| outside())?;
        Ok((region, offset, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mib(size: u64) -> MemMib {
        MemMib::new(size).unwrap()
    }

    #[test]
    fn blocks_are_few_and_whole_for_any_size() {
        assert_eq!(Later::new(mib(512), mib(512), 0), None);
        assert_eq!(Later::new(mib(512), mib(256), 0), None);
        for (max, bytes, block) in [
            (513, 128 << 20, 2 << 20),
            (512 + 1024, 1 << 30, 2 << 20),
            (512 * 1024, (512 << 30) - (512 << 20), 32 << 20),
        ] {
            let later = Later::new(mib(512), mib(max), 0).unwrap();
            assert_eq!((later.range().bytes, later.block()), (bytes, block));
            assert_eq!(later.blocks() as u64 * block, bytes);
            assert!(later.blocks() as u64 <= MAX_BLOCKS);
        }
    }
}
