//! What the host offers.

use crate::config::Config;
use crate::driver::Driver;

/// Whether a requirement holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RequirementState {
    /// It does.
    Holds,
    /// It does not, and nothing runs without it.
    Missing,
    /// It does not; something runs slower or less well.
    Degraded,
}

/// One thing the host must have.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Requirement {
    /// What.
    pub name: &'static str,
    /// Whether it holds.
    pub state: RequirementState,
    /// What was found.
    pub detail: String,
    /// What to do, a package or a command; empty when it holds.
    pub next_step: String,
}

/// Why no driver can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// KVM was asked for and cannot run a guest here.
    #[error(
        "hypervisor = \"kvm\", but {reason}; with `hypervisor = \"qemu\"` the guest is emulated instead, which is slower"
    )]
    KvmUnusable {
        /// Why.
        reason: String,
    },
    /// Neither KVM nor emulation.
    #[error(
        "{reason}, and emulation is not allowed; set `allow_emulation = true` (or `hypervisor = \"qemu\"`) in the configuration to run slowly without hardware virtualization"
    )]
    NoDriver {
        /// Why KVM cannot be used.
        reason: String,
    },
}

/// Everything that is asked of the host, whether it holds, and what to do.
#[must_use]
pub fn requirements(config: &Config) -> Vec<Requirement> {
    let _ = config;
    Vec::new()
}

/// The driver for this host and configuration, and a line to show when it is emulation that was not asked for.
///
/// # Errors
/// [`HostError`] names the reason and the setting.
pub fn choose_driver(config: &Config) -> Result<(Driver, Option<String>), HostError> {
    let _ = config;
    unimplemented!()
}
