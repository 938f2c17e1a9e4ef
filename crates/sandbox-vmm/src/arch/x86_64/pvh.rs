//! Loading an ELF kernel, and what it finds at its PVH entry point (Xen `docs/misc/pvh.pandoc`,
//! `public/arch-x86/hvm/start_info.h`).

use std::fs::File;
use std::ops::Range;

use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use sandbox_types::{MemMib, VcpuCount};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::image;
use super::layout::{self, MapKind};
use super::mptable;
use crate::memory::{self, HUGE_PAGE_BYTES, RamPages};

/// `XEN_HVM_START_MAGIC_VALUE`.
const START_MAGIC: u32 = 0x336e_c578;
/// Version 1 has the memory map.
const START_VERSION: u32 = 1;
/// `XEN_HVM_MEMMAP_TYPE_*`, which are those of E820.
const MEMMAP_TYPE_RAM: u32 = 1;
const MEMMAP_TYPE_RESERVED: u32 = 2;

/// Why a kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// It is no ELF kernel, or does not fit.
    #[error("cannot load the guest kernel into {memory} of memory")]
    Load {
        /// Guest memory.
        memory: MemMib,
        /// What the loader said.
        source: linux_loader::loader::Error,
    },
    /// No `XEN_ELFNOTE_PHYS32_ENTRY`.
    #[error(
        "the guest kernel has no PVH entry point; it must be an uncompressed vmlinux built with CONFIG_PVH"
    )]
    NoPvhEntry,
    /// Its uninitialized data ends behind the end of memory.
    #[error("the guest kernel ends at {end:#x}, which is outside {memory} of memory")]
    TooLarge {
        /// The first address behind it.
        end: u64,
        /// Guest memory.
        memory: MemMib,
    },
    /// The command line is too long.
    #[error(
        "the kernel command line has {length} bytes with the devices'; the kernel takes {} at most",
        layout::COMMAND_LINE_BYTES - 1
    )]
    CommandLineTooLong {
        /// Its length.
        length: usize,
    },
    /// The command line is not text for the kernel.
    #[error("the kernel command line contains a zero byte")]
    CommandLineZero,
    /// Guest memory did not take a boot structure.
    #[error("cannot write {what} to guest memory")]
    Write {
        /// Which.
        what: &'static str,
        /// Why.
        source: vm_memory::GuestMemoryError,
    },
}

/// Loads `kernel` and returns its PVH entry point. Memory that its image leaves mostly empty is no longer to be huge pages.
///
/// # Errors
/// [`BootError`].
pub fn load_kernel(
    memory: &GuestMemoryMmap,
    size: MemMib,
    kernel: &mut File,
) -> Result<GuestAddress, BootError> {
    let below_hole = size.bytes().min(layout::HOLE_START);
    // Before anything is written there.
    let segments = image::segments(kernel).unwrap_or_default();
    let blocks = image::sparse(&segments, below_hole);
    for block in blocks.into_iter().chain(boot_data(&segments)) {
        let bytes = block.end.saturating_sub(block.start);
        if let Ok(pages) = RamPages::new(memory, GuestAddress(block.start), bytes) {
            memory::advise_small(memory, pages);
        }
    }
    let start = GuestAddress(layout::HIGH_RAM_START);
    let loaded =
        Elf::load(memory, None, kernel, Some(start)).map_err(|source| BootError::Load {
            memory: size,
            source,
        })?;
    if loaded.kernel_end > below_hole {
        return Err(BootError::TooLarge {
            end: loaded.kernel_end,
            memory: size,
        });
    }
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => Ok(entry),
        PvhBootCapability::PvhEntryNotPresent | PvhBootCapability::PvhEntryIgnored => {
            Err(BootError::NoPvhEntry)
        }
    }
}

/// The block of memory that [`write_boot_data`] writes a few pages of, if no segment is in it.
fn boot_data(segments: &[Range<u64>]) -> Option<Range<u64>> {
    let is_free = |segment: &Range<u64>| segment.start >= HUGE_PAGE_BYTES;
    (segments.iter().all(is_free) && !segments.is_empty()).then_some(0..HUGE_PAGE_BYTES)
}

/// Writes what the kernel looks for: start of day information, memory map, command line and MP table.
///
/// # Errors
/// [`BootError`].
pub(crate) fn write_boot_data(
    memory: &GuestMemoryMmap,
    size: MemMib,
    vcpus: VcpuCount,
    command_line: &str,
) -> Result<(), BootError> {
    if command_line.len() >= layout::COMMAND_LINE_BYTES {
        return Err(BootError::CommandLineTooLong {
            length: command_line.len(),
        });
    }
    if command_line.contains('\0') {
        return Err(BootError::CommandLineZero);
    }
    let put = |what, bytes: &[u8], address| {
        memory
            .write_slice(bytes, address)
            .map_err(|source| BootError::Write { what, source })
    };
    let mut text = command_line.as_bytes().to_vec();
    text.push(0);
    put("the command line", &text, layout::COMMAND_LINE)?;
    let (map, entries) = memory_map(size);
    put("the memory map", &map, layout::MEMORY_MAP)?;
    put(
        "the start information",
        &start_info(entries),
        layout::START_INFO,
    )?;
    // The table lies below 1 MiB.
    let address = u32::try_from(layout::MP_TABLE.0).unwrap_or(0);
    put(
        "the MP table",
        &mptable::build(vcpus, address),
        layout::MP_TABLE,
    )
}

/// `hvm_start_info`, version 1: no modules, no RSDP.
fn start_info(map_entries: u32) -> Vec<u8> {
    let mut info = Vec::with_capacity(56);
    // magic, version, flags, nr_modules
    for word in [START_MAGIC, START_VERSION, 0, 0] {
        info.extend(word.to_le_bytes());
    }
    // modlist_paddr, cmdline_paddr, rsdp_paddr, memmap_paddr
    for address in [0, layout::COMMAND_LINE.0, 0, layout::MEMORY_MAP.0] {
        info.extend(address.to_le_bytes());
    }
    // memmap_entries, reserved
    for word in [map_entries, 0] {
        info.extend(word.to_le_bytes());
    }
    info
}

/// An array of `hvm_memmap_table_entry`, and how many.
fn memory_map(size: MemMib) -> (Vec<u8>, u32) {
    let mut map = Vec::new();
    let mut entries = 0;
    for entry in layout::memory_map(size) {
        let kind = match entry.kind {
            MapKind::Ram => MEMMAP_TYPE_RAM,
            MapKind::Reserved => MEMMAP_TYPE_RESERVED,
        };
        map.extend(entry.start.to_le_bytes());
        map.extend(entry.bytes.to_le_bytes());
        map.extend(kind.to_le_bytes());
        map.extend(0_u32.to_le_bytes());
        entries += 1;
    }
    (map, entries)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr, PT_LOAD};
    use vm_memory::ByteValued as _;

    use super::*;

    fn memory() -> (GuestMemoryMmap, MemMib) {
        let size = MemMib::new(64).unwrap();
        let ranges = [(GuestAddress(0), 64 << 20)];
        (GuestMemoryMmap::from_ranges(&ranges).unwrap(), size)
    }

    #[test]
    fn boot_data_for_a_small_machine_points_to_its_command_line_and_map() {
        let (memory, size) = memory();
        write_boot_data(&memory, size, VcpuCount::ONE, "quiet").unwrap();
        let mut info = [0_u8; 56];
        memory.read_slice(&mut info, layout::START_INFO).unwrap();
        assert_eq!(info[..4], START_MAGIC.to_le_bytes());
        assert_eq!(info[24..32], layout::COMMAND_LINE.0.to_le_bytes());
        assert_eq!(info[40..48], layout::MEMORY_MAP.0.to_le_bytes());
        assert_eq!(info[48..52], 3_u32.to_le_bytes());
        let mut text = [0_u8; 6];
        memory.read_slice(&mut text, layout::COMMAND_LINE).unwrap();
        assert_eq!(&text, b"quiet\0");
    }

    #[test]
    fn command_line_over_the_kernels_limit_is_refused() {
        let (memory, size) = memory();
        let line = "x".repeat(layout::COMMAND_LINE_BYTES);
        let error = write_boot_data(&memory, size, VcpuCount::ONE, &line).unwrap_err();
        assert!(matches!(
            error,
            BootError::CommandLineTooLong { length: 2048 }
        ));
    }

    #[test]
    fn block_of_the_boot_data_is_nobody_elses() {
        let kernel = (16 << 20)..(30 << 20);
        assert_eq!(boot_data(std::slice::from_ref(&kernel)), Some(0..2 << 20));
        assert_eq!(boot_data(&[kernel, (1 << 20)..(3 << 20)]), None);
        assert_eq!(boot_data(&[]), None);
    }

    #[test]
    fn kernel_that_is_no_elf_file_is_refused() {
        let (memory, size) = memory();
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &[0x4d; 4096]).unwrap();
        let error = load_kernel(&memory, size, &mut file).unwrap_err();
        assert!(matches!(error, BootError::Load { .. }));
    }

    #[test]
    fn kernel_in_pieces_is_loaded_with_zeroes_in_between() {
        let (memory, size) = memory();
        let mut header = Elf64_Ehdr {
            e_entry: 0x100_0000,
            e_phoff: 64,
            e_phentsize: 56,
            e_phnum: 2,
            ..Elf64_Ehdr::default()
        };
        header.e_ident[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let mut file = tempfile::tempfile().unwrap();
        file.write_all_at(header.as_slice(), 0).unwrap();
        let pieces = [(64, 0x1000, 0x100_0000), (64 + 56, 0x2000, 0x180_0000)];
        for (position, p_offset, p_paddr) in pieces {
            let entry = Elf64_Phdr {
                p_type: PT_LOAD,
                p_offset,
                p_paddr,
                p_filesz: 4096,
                p_memsz: 4096,
                ..Elf64_Phdr::default()
            };
            file.write_all_at(entry.as_slice(), position).unwrap();
            file.write_all_at(&[0x5a; 4096], p_offset).unwrap();
        }
        let error = load_kernel(&memory, size, &mut file).unwrap_err();
        assert!(matches!(error, BootError::NoPvhEntry));
        let bytes = [0x100_0fff, 0x100_1000, 0x17f_ffff, 0x180_0000]
            .map(|address| memory.read_obj::<u8>(GuestAddress(address)).unwrap());
        assert_eq!(bytes, [0x5a, 0, 0, 0x5a]);
    }
}
