//! What CPUID answers in the guest: what KVM supports, without what no guest of ours needs, and with the
//! topology of this machine: one package of as many single-threaded cores as there are vCPUs.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use sandbox_types::VcpuCount;

/// Leaf 1, ECX.
const PDCM: u32 = 15;
const VMX: u32 = 5;
const TSC_DEADLINE: u32 = 24;
const HYPERVISOR: u32 = 31;
/// Leaf 1, EDX.
const HTT: u32 = 28;
/// Leaf 0x8000_0001, ECX.
const CMP_LEGACY: u32 = 1;
const SVM: u32 = 2;
const TOPOEXT: u32 = 22;
/// Level types of leaves 0xb and 0x1f.
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// How the vCPUs of a machine are numbered.
#[derive(Debug, Clone, Copy)]
pub struct Topology {
    /// How many there are.
    pub vcpus: VcpuCount,
    /// KVM's local APIC has the deadline timer.
    pub tsc_deadline: bool,
}

impl Topology {
    /// Bits of an APIC identifier that tell cores of one package apart.
    fn core_bits(self) -> u32 {
        u32::from(self.vcpus.get())
            .next_power_of_two()
            .trailing_zeros()
    }

    /// Turns what KVM supports into what the vCPU with that APIC identifier says.
    pub fn apply(self, cpuid: &mut CpuId, apic_id: u8) {
        for entry in cpuid.as_mut_slice() {
            self.apply_entry(entry, u32::from(apic_id));
        }
    }

    fn apply_entry(self, entry: &mut kvm_cpuid_entry2, apic_id: u32) {
        let vcpus = u32::from(self.vcpus.get());
        let several = vcpus > 1;
        match entry.function {
            0x1 => {
                entry.ebx = (entry.ebx & 0xffff) | (vcpus << 16) | (apic_id << 24);
                set(&mut entry.ecx, VMX, false);
                set(&mut entry.ecx, PDCM, false);
                set(&mut entry.ecx, HYPERVISOR, true);
                set(&mut entry.ecx, TSC_DEADLINE, self.tsc_deadline);
                set(&mut entry.edx, HTT, several);
            }
            // Deterministic cache parameters: the last level is shared by all, the others are private.
            0x4 | 0x8000_001d if entry.eax & 0x1f != 0 => {
                let level = (entry.eax >> 5) & 0x7;
                let sharing = if level >= 3 { vcpus - 1 } else { 0 };
                entry.eax = (entry.eax & !(0xfff << 14)) | (sharing << 14);
                if entry.function == 0x4 {
                    let cores = (1 << self.core_bits()) - 1;
                    entry.eax = (entry.eax & !(0x3f << 26)) | (cores << 26);
                }
            }
            // No performance counters: they are a side channel, and nothing here needs them.
            0xa => clear(entry),
            0xb | 0x1f => {
                let (shift, count, level) = match entry.index {
                    0 => (0, 1, LEVEL_SMT),
                    1 => (self.core_bits(), vcpus, LEVEL_CORE),
                    _ => (0, 0, 0),
                };
                entry.eax = shift;
                entry.ebx = count;
                entry.ecx = (entry.index & 0xff) | (level << 8);
                entry.edx = apic_id;
            }
            0x8000_0001 => {
                set(&mut entry.ecx, SVM, false);
                set(&mut entry.ecx, CMP_LEGACY, several);
                set(&mut entry.ecx, TOPOEXT, true);
            }
            0x8000_0008 => {
                entry.ecx = (entry.ecx & !0xf0ff) | (vcpus - 1) | (self.core_bits() << 12);
            }
            0x8000_000a => clear(entry),
            // AMD: extended APIC identifier, core and node.
            0x8000_001e => {
                entry.eax = apic_id;
                entry.ebx = apic_id;
                entry.ecx = 0;
            }
            _ => {}
        }
    }
}

fn set(register: &mut u32, bit: u32, on: bool) {
    let mask = 1_u32 << bit;
    *register = if on {
        *register | mask
    } else {
        *register & !mask
    };
}

fn clear(entry: &mut kvm_cpuid_entry2) {
    entry.eax = 0;
    entry.ebx = 0;
    entry.ecx = 0;
    entry.edx = 0;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        }
    }

    fn applied(vcpus: u64, apic_id: u8, function: u32, index: u32) -> kvm_cpuid_entry2 {
        let topology = Topology {
            vcpus: VcpuCount::new(vcpus).unwrap(),
            tsc_deadline: true,
        };
        let mut cpuid = CpuId::from_entries(&[entry(function, index)]).unwrap();
        topology.apply(&mut cpuid, apic_id);
        cpuid.as_slice()[0]
    }

    #[test]
    fn leaf_1_of_the_third_vcpu_has_its_apic_id_and_no_nested_virtualization() {
        let leaf = applied(4, 2, 1, 0);
        assert_eq!(leaf.ebx >> 24, 2);
        assert_eq!((leaf.ebx >> 16) & 0xff, 4);
        assert_eq!(leaf.ecx & (1 << VMX), 0);
        assert_ne!(leaf.ecx & (1 << HYPERVISOR), 0);
        assert_eq!(applied(4, 2, 0x8000_0001, 0).ecx & (1 << SVM), 0);
    }

    #[test]
    fn leaf_b_with_three_vcpus_rounds_the_core_bits_up() {
        let core = applied(3, 1, 0xb, 1);
        assert_eq!((core.eax, core.ebx, core.edx), (2, 3, 1));
        assert_eq!(core.ecx, 1 | (LEVEL_CORE << 8));
        let smt = applied(3, 1, 0xb, 0);
        assert_eq!((smt.eax, smt.ebx), (0, 1));
    }

    #[test]
    fn performance_counters_are_hidden() {
        let leaf = applied(1, 0, 0xa, 0);
        assert_eq!((leaf.eax, leaf.ebx, leaf.ecx, leaf.edx), (0, 0, 0, 0));
    }
}
