//! The physical address space.
//!
//! ```text
//! 0x0000_0000  RAM: start of day structures and the command line, see the constants
//! 0x000a_0000  reserved (what PCs have video memory and firmware in); the MP table at 0xf0000
//! 0x0010_0000  RAM: the kernel
//! 0xd000_0000  the hole: virtio-mmio devices, in memory that is only read and not, then KVM's own pages, IO-APIC and local APIC
//! 0x1_0000_0000  the rest of RAM; behind it, files that the guest only reads; behind those, RAM that comes later
//! ```

use sandbox_types::MemMib;
use sandbox_types::monitor::MAX_DEVICES;
use vm_memory::GuestAddress;

use crate::virtio::registers::WINDOW_BYTES;

/// `hvm_start_info`.
pub(crate) const START_INFO: GuestAddress = GuestAddress(0x6000);
/// The memory map that `hvm_start_info` points to.
pub(crate) const MEMORY_MAP: GuestAddress = GuestAddress(0x7000);
/// The kernel's command line.
pub const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);
/// The longest command line with its terminating zero: `COMMAND_LINE_SIZE` of Linux on x86.
pub(crate) const COMMAND_LINE_BYTES: usize = 2048;
/// End of the RAM below 1 MiB.
pub(crate) const LOW_RAM_END: u64 = 0xa_0000;
/// The MP floating pointer, in the range where the kernel looks for it (Intel MP specification 1.4, 4).
pub(crate) const MP_TABLE: GuestAddress = GuestAddress(0xf_0000);
/// The most the MP table may take: up to 1 MiB.
#[cfg(test)]
pub(crate) const MP_TABLE_BYTES: usize = 0x1_0000;
/// Where kernels are loaded, and no lower.
pub(crate) const HIGH_RAM_START: u64 = 0x10_0000;
/// Start of the hole below 4 GiB.
pub(crate) const HOLE_START: u64 = 0xd000_0000;
/// End of the hole.
pub(crate) const HOLE_END: u64 = 1 << 32;
/// The windows of virtio-mmio devices, in pages that the guest reads by itself.
pub(crate) const VIRTIO_MMIO_START: u64 = HOLE_START;
/// The same for devices that have to see each read: in pages that are no memory.
pub(crate) const VIRTIO_MMIO_SEEN_START: u64 = HOLE_START + 0x1_0000;
/// Bytes of address space for each device.
pub(crate) const VIRTIO_MMIO_BYTES: u64 = WINDOW_BYTES as u64;
/// Interrupt of the first virtio-mmio device. Lower ones are of the keyboard, serial ports and the cascade.
pub(crate) const FIRST_VIRTIO_GSI: u32 = 5;
/// The last interrupt line: KVM's IO-APIC has 24.
pub(crate) const LAST_GSI: u32 = 23;
// Who makes the devices counts on a line for each.
const _: () = assert!((LAST_GSI - FIRST_VIRTIO_GSI + 1) as usize == MAX_DEVICES);
/// Interrupt of the first serial port.
pub(crate) const SERIAL_GSI: u32 = 4;
/// A page for KVM's identity map (Intel processors without unrestricted guests).
pub(crate) const IDENTITY_MAP: u64 = 0xfeff_c000;
/// Three pages for KVM's task state segment (likewise).
pub(crate) const KVM_TSS: u64 = 0xfeff_d000;
/// The IO-APIC.
pub(crate) const IO_APIC: u32 = 0xfec0_0000;
/// The local APICs.
pub(crate) const LOCAL_APIC: u32 = 0xfee0_0000;

/// A piece of RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamRange {
    /// Its first address.
    pub start: u64,
    /// Its size in bytes, never 0.
    pub bytes: u64,
}

/// The RAM of a machine of that size: one piece, or two around the hole.
#[must_use]
pub(crate) fn ram_ranges(memory: MemMib) -> Vec<RamRange> {
    let bytes = memory.bytes();
    let below = bytes.min(HOLE_START);
    let mut ranges = vec![RamRange {
        start: 0,
        bytes: below,
    }];
    if bytes > below {
        ranges.push(RamRange {
            start: HOLE_END,
            bytes: bytes - below,
        });
    }
    ranges
}

/// What the address of the files that the guest only reads is a multiple of: what the kernel maps with one entry of its page tables.
const WINDOW_ALIGNMENT: u64 = 1 << 30;

/// Where the files begin that the guest only reads, in a machine with that much memory. The memory map does not tell of them: their
/// device does.
#[must_use]
pub(crate) fn window_start(memory: MemMib) -> u64 {
    let ram_end = ram_ranges(memory)
        .last()
        .map_or(0, |range| range.start + range.bytes);
    ram_end.max(HOLE_END).next_multiple_of(WINDOW_ALIGNMENT)
}

/// Where memory begins that a machine may get later: behind everything, in a machine with that much memory from the start and a window of
/// `window` bytes. A multiple of what Linux adds memory in (128 MiB; 2 GiB at most, in machines of 64 GiB and more).
#[must_use]
pub(crate) fn later_start(memory: MemMib, window: u64) -> u64 {
    (window_start(memory) + window).next_multiple_of(LATER_ALIGNMENT)
}

/// Linux: `MAX_BLOCK_SIZE` in `arch/x86/mm/init_64.c`.
const LATER_ALIGNMENT: u64 = 2 << 30;

/// What a part of the address space is, in the words of the PVH memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MapKind {
    /// Usable.
    Ram,
    /// Not to be used.
    Reserved,
}

/// One entry of the memory map that the kernel gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MapEntry {
    /// Its first address.
    pub start: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// What it is.
    pub kind: MapKind,
}

/// The memory map of a machine of that size, in order, without overlaps.
#[must_use]
pub(crate) fn memory_map(memory: MemMib) -> Vec<MapEntry> {
    let entry = |start, end: u64, kind| MapEntry {
        start,
        bytes: end - start,
        kind,
    };
    let mut map = vec![
        entry(0, LOW_RAM_END, MapKind::Ram),
        entry(LOW_RAM_END, HIGH_RAM_START, MapKind::Reserved),
    ];
    for range in ram_ranges(memory) {
        let start = range.start.max(HIGH_RAM_START);
        map.push(entry(start, range.start + range.bytes, MapKind::Ram));
    }
    map
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ram_of_any_size_is_whole_and_outside_the_hole(mib in 64_u64..=512 * 1024) {
            let memory = MemMib::new(mib).unwrap();
            let ranges = ram_ranges(memory);
            prop_assert_eq!(ranges.iter().map(|r| r.bytes).sum::<u64>(), mib << 20);
            for range in &ranges {
                prop_assert!(range.bytes > 0);
                prop_assert_eq!(range.start % (2 << 20), 0);
                let end = range.start + range.bytes;
                prop_assert!(end <= HOLE_START || range.start >= HOLE_END);
            }
        }

        #[test]
        fn window_is_behind_ram_and_the_hole_and_within_40_bits(mib in 64_u64..=512 * 1024) {
            let memory = MemMib::new(mib).unwrap();
            let start = window_start(memory);
            prop_assert!(start >= HOLE_END && start.is_multiple_of(2 << 20));
            for range in ram_ranges(memory) {
                prop_assert!(range.start + range.bytes <= start);
            }
            let window = crate::memory::window::MAX_BYTES;
            prop_assert!(start + window <= 1 << 40);
            let later = later_start(memory, window);
            prop_assert!(later >= start + window && later.is_multiple_of(128 << 20));
            prop_assert!(later + (MemMib::MAX.bytes() - memory.bytes()) <= 1 << 40);
        }

        #[test]
        fn memory_map_of_any_size_is_ordered_and_within_ram(mib in 64_u64..=512 * 1024) {
            let memory = MemMib::new(mib).unwrap();
            let map = memory_map(memory);
            for pair in map.windows(2) {
                prop_assert!(pair[0].start + pair[0].bytes <= pair[1].start);
            }
            let hidden = HIGH_RAM_START - LOW_RAM_END;
            let usable: u64 = map.iter().filter(|e| e.kind == MapKind::Ram).map(|e| e.bytes).sum();
            prop_assert_eq!(usable, (mib << 20) - hidden);
        }
    }

    /// Boot structures lie in low RAM without overlap, each with the room it has at most.
    const _: () = {
        assert!(START_INFO.0 + 0x1000 <= MEMORY_MAP.0 && MEMORY_MAP.0 + 0x1000 <= COMMAND_LINE.0);
        assert!(COMMAND_LINE.0 + COMMAND_LINE_BYTES as u64 <= LOW_RAM_END);
        assert!(LOW_RAM_END <= MP_TABLE.0 && MP_TABLE.0 + MP_TABLE_BYTES as u64 <= HIGH_RAM_START);
    };

    #[test]
    fn every_device_has_a_place_in_the_hole() {
        let bytes = MAX_DEVICES as u64 * VIRTIO_MMIO_BYTES;
        assert!(VIRTIO_MMIO_START + bytes.next_multiple_of(0x1000) <= VIRTIO_MMIO_SEEN_START);
        assert!(VIRTIO_MMIO_SEEN_START + bytes <= u64::from(IO_APIC));
    }
}
