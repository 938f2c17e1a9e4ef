//! What this host can run.

use std::fs;
use std::path::{Path, PathBuf};

/// Why `/dev/kvm` cannot be used at all, if so.
pub(crate) fn without_kvm() -> Option<String> {
    match fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
    {
        Ok(_) => None,
        Err(error) => Some(format!("/dev/kvm cannot be opened: {error}")),
    }
}

/// Why an ordinary kernel cannot be run here, if so. KVM's paravirtual back end (`kvm_pvm`) opens and makes
/// machines, but interprets what such a kernel does.
#[allow(
    dead_code,
    reason = "included by each test program, not all of which boot a kernel"
)]
pub(crate) fn without_virtualization() -> Option<String> {
    if let Some(reason) = without_kvm() {
        return Some(reason);
    }
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpus.lines().find(|line| line.starts_with("flags"));
    let virtualizes = flags.is_some_and(|line| {
        line.split_whitespace()
            .any(|flag| flag == "vmx" || flag == "svm")
    });
    (!virtualizes)
        .then(|| "the processor has neither vmx nor svm, so that no stock kernel runs".to_owned())
}

/// The file that `variable` names, or that `cargo xtask guest` makes as `name`.
#[allow(
    dead_code,
    reason = "included by each test program, not all of which use artifacts"
)]
pub(crate) fn artifact(variable: &str, name: &str) -> Result<PathBuf, String> {
    let path = std::env::var_os(variable).map_or_else(
        || {
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../../target/artifacts")
                .join(name)
        },
        PathBuf::from,
    );
    if path.exists() {
        Ok(path)
    } else {
        Err(format!(
            "{} is not there; `cargo xtask guest` makes it, or name another in {variable}",
            path.display()
        ))
    }
}
