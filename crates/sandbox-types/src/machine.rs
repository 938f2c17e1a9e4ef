//! The size and address of a virtual machine.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a machine of that size cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MachineSizeError {
    /// Not enough, or too much, memory.
    #[error(
        "a virtual machine has between {} and {} MiB of memory, not {mib}",
        MemMib::MIN.0,
        MemMib::MAX.0
    )]
    Memory {
        /// What was asked for, in MiB.
        mib: u64,
    },
    /// Not enough, or too many, vCPUs.
    #[error(
        "a virtual machine has between 1 and {} vCPUs, not {count}",
        VcpuCount::MAX.0
    )]
    Vcpus {
        /// What was asked for.
        count: u64,
    },
    /// A reserved context identifier.
    #[error("vsock context identifier {cid} is reserved (vsock(7))")]
    Cid {
        /// What was asked for.
        cid: u64,
    },
}

/// Guest memory, in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct MemMib(u32);

impl MemMib {
    /// The least memory the guest kernel and the agent come up in.
    pub const MIN: Self = Self(64);
    /// The most the monitor maps: the memory map has one hole, below 4 GiB, and a 40-bit physical address.
    pub const MAX: Self = Self(512 * 1024);

    /// `mib` MiB of memory.
    ///
    /// # Errors
    /// [`MachineSizeError::Memory`] outside [`Self::MIN`] to [`Self::MAX`].
    pub fn new(mib: u64) -> Result<Self, MachineSizeError> {
        match u32::try_from(mib) {
            Ok(size) if (Self::MIN.0..=Self::MAX.0).contains(&size) => Ok(Self(size)),
            _ => Err(MachineSizeError::Memory { mib }),
        }
    }

    /// The size in MiB.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }

    /// The size in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        u64::from(self.0) << 20
    }
}

impl TryFrom<u64> for MemMib {
    type Error = MachineSizeError;
    fn try_from(mib: u64) -> Result<Self, MachineSizeError> {
        Self::new(mib)
    }
}

impl From<MemMib> for u64 {
    fn from(size: MemMib) -> u64 {
        u64::from(size.0)
    }
}

impl fmt::Display for MemMib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}

/// How many virtual processors a machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct VcpuCount(u8);

impl VcpuCount {
    /// One vCPU.
    pub const ONE: Self = Self(1);
    /// `CONFIG_NR_CPUS` of the guest kernel.
    pub const MAX: Self = Self(32);

    /// `count` vCPUs.
    ///
    /// # Errors
    /// [`MachineSizeError::Vcpus`] outside 1 to [`Self::MAX`].
    pub fn new(count: u64) -> Result<Self, MachineSizeError> {
        match u8::try_from(count) {
            Ok(n) if (1..=Self::MAX.0).contains(&n) => Ok(Self(n)),
            _ => Err(MachineSizeError::Vcpus { count }),
        }
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<u64> for VcpuCount {
    type Error = MachineSizeError;
    fn try_from(count: u64) -> Result<Self, MachineSizeError> {
        Self::new(count)
    }
}

impl From<VcpuCount> for u64 {
    fn from(count: VcpuCount) -> u64 {
        u64::from(count.0)
    }
}

impl fmt::Display for VcpuCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A guest's vsock context identifier (VirtIO 1.3, 5.10.4). User-space vsock never routes between guests by
/// it, so every guest may have the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct GuestCid(u32);

impl GuestCid {
    /// The first identifier that is not reserved (vsock(7)).
    pub const FIRST: Self = Self(3);
    /// The host's identifier, `VMADDR_CID_HOST`.
    pub const HOST: u64 = 2;

    /// Context identifier `cid`.
    ///
    /// # Errors
    /// [`MachineSizeError::Cid`] for 0 to 2 and anything from `u32::MAX` up.
    pub fn new(cid: u64) -> Result<Self, MachineSizeError> {
        match u32::try_from(cid) {
            Ok(n) if n >= Self::FIRST.0 && n != u32::MAX => Ok(Self(n)),
            _ => Err(MachineSizeError::Cid { cid }),
        }
    }

    /// The identifier, as the device's configuration space has it.
    #[must_use]
    pub fn get(self) -> u64 {
        u64::from(self.0)
    }
}

impl TryFrom<u64> for GuestCid {
    type Error = MachineSizeError;
    fn try_from(cid: u64) -> Result<Self, MachineSizeError> {
        Self::new(cid)
    }
}

impl From<GuestCid> for u64 {
    fn from(cid: GuestCid) -> u64 {
        cid.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_outside_bounds_are_refused() {
        assert!(MemMib::new(0).is_err());
        assert!(MemMib::new(u64::MAX).is_err());
        assert_eq!(MemMib::new(128).unwrap().bytes(), 128 << 20);
        assert!(VcpuCount::new(0).is_err());
        assert!(VcpuCount::new(33).is_err());
        assert!(GuestCid::new(2).is_err());
        assert!(GuestCid::new(u64::from(u32::MAX)).is_err());
    }
}
