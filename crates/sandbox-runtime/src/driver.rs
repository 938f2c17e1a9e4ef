//! Hypervisor drivers.

use std::fmt;

/// Which program runs the virtual machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// Our monitor, on KVM.
    Kvm,
    /// QEMU's emulation.
    Qemu,
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Qemu => "qemu",
        })
    }
}
