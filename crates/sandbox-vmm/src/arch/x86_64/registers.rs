//! The state in which a vCPU begins: 32-bit protected mode with flat segments and no paging, as the PVH entry
//! point wants it (Xen `docs/misc/pvh.pandoc`). Only the first vCPU needs it; the others wait for the kernel
//! to start them.

use kvm_bindings::{Msrs, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::GuestAddress;

use super::layout;

/// `CR0.PE`.
const CR0_PE: u64 = 1;
/// The bit of RFLAGS that is always set.
const RFLAGS_RESERVED: u64 = 2;
const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
/// Fast string operations.
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs enabled, memory is write-back by default.
const MTRR_ENABLE_WRITE_BACK: u64 = 1 << 11 | 6;
/// Offsets of the local vector table in the local APIC (Intel SDM 3, 11.5.1).
const APIC_LVT0: usize = 0x350;
const APIC_LVT1: usize = 0x360;
/// Delivery modes, at bit 8.
const DELIVERY_NMI: u32 = 0x4;
const DELIVERY_EXT_INT: u32 = 0x7;

/// Why a vCPU did not take its state.
#[derive(Debug, thiserror::Error)]
#[error("KVM refused to {action} of vCPU {vcpu}")]
pub(crate) struct RegisterError {
    /// What was tried.
    pub action: &'static str,
    /// For which.
    pub vcpu: u8,
    /// What KVM said.
    pub source: kvm_ioctls::Error,
}

/// Sets up the vCPU that enters the kernel at `entry`.
///
/// # Errors
/// [`RegisterError`].
pub(crate) fn set_boot_state(
    vcpu: &VcpuFd,
    id: u8,
    entry: GuestAddress,
) -> Result<(), RegisterError> {
    let failed = |action| {
        move |source| RegisterError {
            action,
            vcpu: id,
            source,
        }
    };
    let mut special = vcpu.get_sregs().map_err(failed("read the segments"))?;
    let data = flat_segment(0x18, 0x3);
    special.cs = flat_segment(0x10, 0xb);
    special.ds = data;
    special.es = data;
    special.fs = data;
    special.gs = data;
    special.ss = data;
    special.tr = kvm_segment {
        limit: 0x67,
        selector: 0x20,
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
    special.cr0 = CR0_PE;
    special.cr4 = 0;
    special.efer = 0;
    vcpu.set_sregs(&special)
        .map_err(failed("set the segments"))?;
    let general = kvm_regs {
        rflags: RFLAGS_RESERVED,
        rip: entry.0,
        rbx: layout::START_INFO.0,
        ..Default::default()
    };
    vcpu.set_regs(&general).map_err(failed("set the registers"))
}

/// Sets what every vCPU needs: its MSRs and the local interrupt pins.
///
/// # Errors
/// [`RegisterError`].
pub(crate) fn set_common_state(vcpu: &VcpuFd, id: u8) -> Result<(), RegisterError> {
    let failed = |action| {
        move |source| RegisterError {
            action,
            vcpu: id,
            source,
        }
    };
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    for msr in [
        entry(MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        entry(MSR_MTRR_DEF_TYPE, MTRR_ENABLE_WRITE_BACK),
    ] {
        // One at a time: KVM stops at the first that this processor does not have, and none is essential.
        if let Ok(msrs) = Msrs::from_entries(&[msr]) {
            vcpu.set_msrs(&msrs).map_err(failed("set the MSRs"))?;
        }
    }
    let mut lapic = vcpu.get_lapic().map_err(failed("read the local APIC"))?;
    set_delivery(&mut lapic, APIC_LVT0, DELIVERY_EXT_INT);
    set_delivery(&mut lapic, APIC_LVT1, DELIVERY_NMI);
    vcpu.set_lapic(&lapic).map_err(failed("set the local APIC"))
}

fn flat_segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}

fn set_delivery(lapic: &mut kvm_lapic_state, register: usize, mode: u32) {
    let Some(bytes) = lapic.regs.get_mut(register..register + 4) else {
        return;
    };
    let mut word = [0_u8; 4];
    for (to, from) in word.iter_mut().zip(bytes.iter()) {
        *to = from.to_ne_bytes()[0];
    }
    let value = (u32::from_le_bytes(word) & !0x700) | (mode << 8);
    for (to, from) in bytes.iter_mut().zip(value.to_le_bytes()) {
        *to = from.cast_signed();
    }
}
