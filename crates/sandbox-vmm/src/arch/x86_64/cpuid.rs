//! What CPUID answers in the guest: what KVM supports, without what no guest of ours needs, and with the
//! topology of this machine: one package of as many single-threaded cores as there are vCPUs.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
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
/// Leaves that describe the topology.
const EXTENDED_TOPOLOGY: u32 = 0xb;
const EXTENDED_TOPOLOGY_V2: u32 = 0x1f;
/// Level types in them.
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// More answers than KVM takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("CPUID would have {count} answers, more than KVM takes")]
pub(crate) struct CpuidError {
    /// How many.
    pub count: usize,
}

/// How the vCPUs of a machine are numbered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Topology {
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

    /// What the vCPU with that APIC identifier says, from what KVM supports.
    ///
    /// # Errors
    /// [`CpuidError`].
    pub(crate) fn of_vcpu(
        self,
        supported: &[kvm_cpuid_entry2],
        apic_id: u8,
    ) -> Result<CpuId, CpuidError> {
        let apic_id = u32::from(apic_id);
        // KVM describes the host's topology in these, or none.
        let mut entries: Vec<_> = supported
            .iter()
            .filter(|entry| ![EXTENDED_TOPOLOGY, EXTENDED_TOPOLOGY_V2].contains(&entry.function))
            .copied()
            .collect();
        for entry in &mut entries {
            self.apply_entry(entry, apic_id);
        }
        entries.extend(self.extended_topology(apic_id));
        let count = entries.len();
        CpuId::from_entries(&entries).map_err(|_| CpuidError { count })
    }

    /// The two levels, threads of a core and cores of the package (Intel SDM 2A, leaf 0xb).
    fn extended_topology(self, apic_id: u32) -> [kvm_cpuid_entry2; 2] {
        let level = |index, shift, count, kind: u32| kvm_cpuid_entry2 {
            function: EXTENDED_TOPOLOGY,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: count,
            ecx: index | (kind << 8),
            edx: apic_id,
            ..Default::default()
        };
        [
            level(0, 0, 1, LEVEL_SMT),
            level(1, self.core_bits(), self.vcpus.get().into(), LEVEL_CORE),
        ]
    }

    fn apply_entry(self, entry: &mut kvm_cpuid_entry2, apic_id: u32) {
        let vcpus = u32::from(self.vcpus.get());
        let several = vcpus > 1;
        match entry.function {
            // The highest leaf.
            0x0 => entry.eax = entry.eax.max(EXTENDED_TOPOLOGY),
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
        let cpuid = topology
            .of_vcpu(&[entry(function, index)], apic_id)
            .unwrap();
        *cpuid
            .as_slice()
            .iter()
            .find(|found| (found.function, found.index) == (function, index))
            .unwrap()
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
