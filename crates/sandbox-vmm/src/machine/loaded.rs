//! A machine whose kernel is loaded, before its devices are known.

use std::fs::File;

use kvm_ioctls::{Kvm, VmFd};
use sandbox_types::{MemMib, VcpuCount};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::{MachineError, refused};
use crate::arch::x86_64::pvh;
use crate::memory::later::Later;
use crate::memory::{self, Sharing};

/// What a machine begins with.
pub(crate) struct MachineBasis {
    /// `/dev/kvm`.
    pub kvm: Kvm,
    /// An ELF kernel with a PVH note.
    pub kernel: File,
    /// Its command line, to which the devices are appended.
    pub command_line: String,
    /// Guest memory.
    pub memory: MemMib,
    /// What it may become.
    pub max_memory: MemMib,
    /// Whether back ends share it.
    pub sharing: Sharing,
    /// Processors.
    pub vcpus: VcpuCount,
}

/// A VM of KVM's, in which nothing is yet, and memory with the kernel.
#[derive(Debug)]
pub(crate) struct LoadedMachine {
    pub(super) kvm: Kvm,
    pub(super) vm: VmFd,
    kernel: File,
    /// What the guest has from the start. No memory slot of the VM yet.
    pub(super) ram: GuestMemoryMmap,
    /// Where the kernel is entered.
    pub(super) entry: GuestAddress,
    pub(super) command_line: String,
    pub(super) memory: MemMib,
    max_memory: MemMib,
    sharing: Sharing,
    pub(super) vcpus: VcpuCount,
}

impl LoadedMachine {
    /// Makes the VM, maps memory and loads the kernel.
    ///
    /// # Errors
    /// [`MachineError`].
    pub(crate) fn load(mut basis: MachineBasis) -> Result<Self, MachineError> {
        let version = basis.kvm.get_api_version();
        if version != 12 {
            return Err(MachineError::ApiVersion { version });
        }
        let vm = basis.kvm.create_vm().map_err(refused("create a VM"))?;
        let room = room(basis.memory, basis.max_memory);
        let ram = memory::create_ram(basis.memory, basis.sharing, room)?;
        let entry = pvh::load_kernel(&ram, basis.memory, &mut basis.kernel)?;
        Ok(Self {
            kvm: basis.kvm,
            vm,
            kernel: basis.kernel,
            ram,
            entry,
            command_line: basis.command_line,
            memory: basis.memory,
            max_memory: basis.max_memory,
            sharing: basis.sharing,
            vcpus: basis.vcpus,
        })
    }

    /// How much memory it has from the start.
    #[must_use]
    pub(crate) fn memory(&self) -> MemMib {
        self.memory
    }

    /// Has back ends able to share its memory. Where it was begun with memory of its own, it gets other, and the kernel is loaded again: a
    /// few milliseconds.
    ///
    /// # Errors
    /// [`MachineError`].
    pub(crate) fn share(&mut self) -> Result<(), MachineError> {
        if self.sharing == Sharing::Shared {
            return Ok(());
        }
        // Nobody has looked at it.
        memory::discard_all(&self.ram).map_err(|source| MachineError::GiveBack { source })?;
        let room = room(self.memory, self.max_memory);
        self.ram = memory::create_ram(self.memory, Sharing::Shared, room)?;
        self.entry = pvh::load_kernel(&self.ram, self.memory, &mut self.kernel)?;
        self.sharing = Sharing::Shared;
        Ok(())
    }

    /// The memory that it may get later, behind a window of `window` bytes.
    #[must_use]
    pub(crate) fn later(&self, window: u64) -> Option<Later> {
        Later::new(self.memory, self.max_memory, window)
    }
}

/// How much may come later, in bytes. However large a window is, it moves that and does not change its size.
fn room(memory: MemMib, max_memory: MemMib) -> u64 {
    Later::new(memory, max_memory, 0).map_or(0, |later| later.range().bytes)
}
