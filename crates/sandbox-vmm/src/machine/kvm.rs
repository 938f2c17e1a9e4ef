//! The calls to KVM that need care.
#![expect(
    unsafe_code,
    reason = "KVM is handed a descriptor by number, and maps memory by address"
)]

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VmFd};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MmapRegion};

use super::{MachineError, refused};
use crate::arch::x86_64::layout;
use crate::memory;
use crate::virtio::registers::RegisterPages;

/// KVM by an open `/dev/kvm`.
#[must_use]
pub(crate) fn from_fd(fd: OwnedFd) -> Kvm {
    // SAFETY: the descriptor is open and its ownership passes on. If it is not KVM's, its calls fail.
    unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) }
}

/// Makes `memory` the memory of the VM. The guest cannot write to what is only read.
pub(super) fn add_memory(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<(), MachineError> {
    for (slot, region) in (0_u32..).zip(memory.iter()) {
        let flags = match memory::is_ram(region) {
            true => 0,
            false => KVM_MEM_READONLY,
        };
        set_slot(vm, slot, flags, region.start_addr(), region)
            .map_err(refused("take a range of guest memory"))?;
    }
    Ok(())
}

/// Makes devices' registers memory that the guest reads, in a slot behind those of `memory`, and says whether KVM takes them. If not, reads
/// reach the devices' transports.
pub(super) fn add_registers(
    vm: &VmFd,
    memory: &GuestMemoryMmap,
    registers: &RegisterPages,
) -> bool {
    let slot = u32::try_from(memory.num_regions()).unwrap_or(u32::MAX);
    let start = GuestAddress(layout::VIRTIO_MMIO_START);
    set_slot(vm, slot, KVM_MEM_READONLY, start, registers.region()).is_ok()
}

fn set_slot(
    vm: &VmFd,
    slot: u32,
    flags: u32,
    start: GuestAddress,
    region: &MmapRegion,
) -> Result<(), kvm_ioctls::Error> {
    let slot = kvm_userspace_memory_region {
        slot,
        flags,
        guest_phys_addr: start.0,
        memory_size: region.size() as u64,
        userspace_addr: region.as_ptr() as u64,
    };
    // SAFETY: the region is a mapping of that length, which the machine keeps for as long as the VM. This process has no references into
    // it: it is guest memory, or registers that are written by atomic stores only.
    unsafe { vm.set_user_memory_region(slot) }
}

/// PIC, IO-APIC and local APICs in the kernel, and the pages that KVM itself needs on some processors. There
/// is no PIT: the kernel has the local APIC's timer, and the clock from kvmclock.
pub(super) fn create_interrupt_controllers(vm: &VmFd) -> Result<(), MachineError> {
    vm.set_identity_map_address(layout::IDENTITY_MAP)
        .map_err(refused("set the address of its identity map"))?;
    let tss = usize::try_from(layout::KVM_TSS).unwrap_or(usize::MAX);
    vm.set_tss_address(tss)
        .map_err(refused("set the address of its task state segment"))?;
    vm.create_irq_chip()
        .map_err(refused("create the interrupt controllers"))
}
