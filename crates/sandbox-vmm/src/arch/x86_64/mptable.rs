//! The MP table (Intel MultiProcessor Specification 1.4): how a kernel without ACPI learns of its processors
//! and of the IO-APIC's lines.
//!
//! The floating pointer comes first, the configuration table right behind it: header, one entry for each
//! processor, one ISA bus, one IO-APIC, a line for each of its pins, and the local interrupts.

use sandbox_types::VcpuCount;

use super::layout;

/// Bytes of the floating pointer (4.1), of the table's header (4.2), of a processor entry (4.3.1) and of any
/// other.
const POINTER_BYTES: usize = 16;
const HEADER_BYTES: usize = 44;
const PROCESSOR_BYTES: usize = 20;
#[cfg(test)]
const ENTRY_BYTES: usize = 8;

/// Version 1.4, in both structures.
const SPEC_REVISION: u8 = 4;
/// Version of the APICs.
const APIC_VERSION: u8 = 0x14;
/// Entry types (4.3).
const MP_PROCESSOR: u8 = 0;
const MP_BUS: u8 = 1;
const MP_IOAPIC: u8 = 2;
const MP_INTSRC: u8 = 3;
const MP_LINTSRC: u8 = 4;
/// Flags of a processor.
const CPU_ENABLED: u8 = 1;
const CPU_BOOTPROCESSOR: u8 = 2;
/// Processor feature flags: an on-chip APIC and floating point unit.
const CPU_FEATURES: u32 = 0x200 | 0x001;
const CPU_STEPPING: u32 = 0x600;
/// Interrupt types (4.3.4).
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
/// The only bus.
const ISA_BUS: u8 = 0;
/// All local APICs.
const ALL_APICS: u8 = 0xff;

/// The whole table for that many processors, to be put at `address`.
#[must_use]
pub(crate) fn build(vcpus: VcpuCount, address: u32) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut count: u16 = 0;
    let mut add = |entry: &[u8]| {
        entries.extend_from_slice(entry);
        count += 1;
    };
    for id in 0..vcpus.get() {
        add(&processor(id));
    }
    add(&[MP_BUS, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' ']);
    let io_apic_id = vcpus.get();
    let [a, b, c, d] = layout::IO_APIC.to_le_bytes();
    add(&[MP_IOAPIC, io_apic_id, APIC_VERSION, 1, a, b, c, d]);
    let last_pin = u8::try_from(layout::LAST_GSI).unwrap_or(u8::MAX);
    for pin in 0..=last_pin {
        add(&[MP_INTSRC, INT, 0, 0, ISA_BUS, pin, io_apic_id, pin]);
    }
    add(&[MP_LINTSRC, EXT_INT, 0, 0, ISA_BUS, 0, 0, 0]);
    add(&[MP_LINTSRC, NMI, 0, 0, ISA_BUS, 0, ALL_APICS, 1]);

    let mut table = floating_pointer(address);
    table.extend(header(&entries, count));
    table.extend(entries);
    table
}

fn processor(id: u8) -> [u8; PROCESSOR_BYTES] {
    let boot = if id == 0 { CPU_BOOTPROCESSOR } else { 0 };
    let mut entry = [0; PROCESSOR_BYTES];
    entry[..4].copy_from_slice(&[MP_PROCESSOR, id, APIC_VERSION, CPU_ENABLED | boot]);
    entry[4..8].copy_from_slice(&CPU_STEPPING.to_le_bytes());
    entry[8..12].copy_from_slice(&CPU_FEATURES.to_le_bytes());
    entry
}

fn floating_pointer(address: u32) -> Vec<u8> {
    let table = address + u32::try_from(POINTER_BYTES).unwrap_or(0);
    let mut pointer = Vec::with_capacity(POINTER_BYTES + HEADER_BYTES);
    pointer.extend(b"_MP_");
    pointer.extend(table.to_le_bytes());
    // Length in units of 16 bytes, revision, checksum, and the five feature bytes.
    pointer.extend([1, SPEC_REVISION, 0, 0, 0, 0, 0, 0]);
    pointer[10] = checksum(&pointer);
    pointer
}

fn header(entries: &[u8], count: u16) -> Vec<u8> {
    let length = u16::try_from(HEADER_BYTES + entries.len()).unwrap_or(u16::MAX);
    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.extend(b"PCMP");
    header.extend(length.to_le_bytes());
    header.extend([SPEC_REVISION, 0]);
    header.extend(b"SANDBOX ");
    header.extend(b"MICROVM     ");
    // No OEM table.
    header.extend([0; 6]);
    header.extend(count.to_le_bytes());
    header.extend(layout::LOCAL_APIC.to_le_bytes());
    // No extended table.
    header.extend([0; 4]);
    header[7] = checksum(&header).wrapping_add(checksum(entries));
    header
}

/// What makes the bytes add up to zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn table_for_any_count_has_both_checksums_and_its_own_length() {
        for vcpus in 1..=u64::from(VcpuCount::MAX.get()) {
            let table = build(VcpuCount::new(vcpus).unwrap(), 0xf_0000);
            let (pointer, rest) = table.split_at(POINTER_BYTES);
            assert_eq!(&pointer[..4], b"_MP_");
            assert_eq!(sum(pointer), 0);
            assert_eq!(
                u32::from_le_bytes(pointer[4..8].try_into().unwrap()),
                0xf_0010
            );
            assert_eq!(&rest[..4], b"PCMP");
            assert_eq!(
                usize::from(u16::from_le_bytes([rest[4], rest[5]])),
                rest.len()
            );
            assert_eq!(sum(rest), 0);
            assert!(table.len() <= layout::MP_TABLE_BYTES);
        }
    }

    #[test]
    fn table_for_two_has_two_processors_one_of_them_for_boot() {
        let table = build(VcpuCount::new(2).unwrap(), 0xf_0000);
        let entries = &table[POINTER_BYTES + HEADER_BYTES..];
        assert_eq!(
            entries[..4],
            [
                MP_PROCESSOR,
                0,
                APIC_VERSION,
                CPU_ENABLED | CPU_BOOTPROCESSOR
            ]
        );
        assert_eq!(
            entries[PROCESSOR_BYTES..][..4],
            [MP_PROCESSOR, 1, APIC_VERSION, CPU_ENABLED]
        );
        let count = u16::from_le_bytes([table[POINTER_BYTES + 34], table[POINTER_BYTES + 35]]);
        assert_eq!(
            usize::from(count),
            2 + (entries.len() - 2 * PROCESSOR_BYTES) / ENTRY_BYTES
        );
    }
}
