//! Removal of what a sandbox left when its shim could not.

use sandbox_types::SandboxId;

use crate::config::Config;

/// Something of a sandbox could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {}

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names of the processes that were killed.
    pub processes: Vec<String>,
    /// Mounts that were undone.
    pub mounts: Vec<std::path::PathBuf>,
}

/// Kills the recorded processes of a sandbox, undoes its mounts and removes its folder. Nothing to remove is
/// no error. For `shim delete`, after the shim has ended.
///
/// # Errors
/// [`CleanupError`] names what is left.
pub fn remove_sandbox(
    config: &Config,
    namespace: &str,
    id: &SandboxId,
) -> Result<Removed, CleanupError> {
    let _ = (config, namespace, id);
    unimplemented!()
}
