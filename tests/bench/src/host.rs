//! The host that is measured on: numbers say nothing without it.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// What kind of machine it is: how far its times are those of hardware.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum HostKind {
    /// No hypervisor below.
    BareMetal,
    /// A virtual machine that can run others with the processor's help.
    Nested,
    /// A virtual machine whose KVM has only the paravirtual PVM back end.
    Pvm,
    /// A virtual machine that can run no others.
    Virtual,
    /// Its processor is a program: times are not those of hardware, and only ratios say something.
    Emulated,
}

impl HostKind {
    /// In words.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::BareMetal => "bare metal",
            Self::Nested => "a virtual machine with nested virtualization",
            Self::Pvm => "a virtual machine whose KVM has only the PVM back end",
            Self::Virtual => "a virtual machine without nested virtualization",
            Self::Emulated => "emulated by QEMU: times are not those of hardware",
        }
    }

    /// Why KVM runs no ordinary kernel here, if so.
    pub(crate) fn kvm_obstacle(self) -> Option<&'static str> {
        match self {
            Self::Pvm => Some("KVM has only the PVM back end here, which runs no ordinary kernel"),
            Self::Virtual => Some("the processor shows neither vmx nor svm"),
            Self::BareMetal | Self::Nested | Self::Emulated => None,
        }
    }
}

/// A host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Host {
    /// Release of its kernel.
    pub(crate) kernel: String,
    /// Name of its processor's model.
    pub(crate) cpu: String,
    /// Processors.
    pub(crate) cpus: usize,
    /// Memory, in MiB.
    pub(crate) memory_mib: u64,
    /// What it is.
    pub(crate) kind: HostKind,
    /// Why KVM cannot be used, if so.
    pub(crate) kvm_obstacle: Option<String>,
}

impl Host {
    /// This one.
    pub(crate) fn look() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let kind = kind(&cpuinfo, Path::new("/sys/module/kvm_pvm").exists());
        let opened = fs::File::options().read(true).write(true).open("/dev/kvm");
        let obstacle = match (kind.kvm_obstacle(), opened) {
            (Some(reason), _) => Some(reason.to_owned()),
            (None, Err(error)) => Some(format!("/dev/kvm cannot be opened: {error}")),
            (None, Ok(_)) if !has_flag(&cpuinfo, &["vmx", "svm"]) => {
                Some("the processor shows neither vmx nor svm".to_owned())
            }
            (None, Ok(_)) => None,
        };
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: field(&cpuinfo, "model name")
                .unwrap_or("unknown")
                .to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: memory_mib(&read("/proc/meminfo")),
            kind,
            kvm_obstacle: obstacle,
        }
    }
}

fn field<'a>(cpuinfo: &'a str, name: &str) -> Option<&'a str> {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim())
}

fn has_flag(cpuinfo: &str, wanted: &[&str]) -> bool {
    field(cpuinfo, "flags")
        .unwrap_or_default()
        .split_ascii_whitespace()
        .any(|flag| wanted.contains(&flag))
}

fn kind(cpuinfo: &str, pvm: bool) -> HostKind {
    let hardware = has_flag(cpuinfo, &["vmx", "svm"]);
    // What QEMU's translator calls the processor of `-cpu max`.
    let translated = field(cpuinfo, "model name").is_some_and(|model| model.contains("QEMU TCG"));
    if translated {
        return HostKind::Emulated;
    }
    match (has_flag(cpuinfo, &["hypervisor"]), hardware) {
        (_, false) if pvm => HostKind::Pvm,
        (false, _) => HostKind::BareMetal,
        (true, true) => HostKind::Nested,
        (true, false) => HostKind::Virtual,
    }
}

fn memory_mib(meminfo: &str) -> u64 {
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|value| value.split_ascii_whitespace().next())
        .and_then(|kib| kib.parse::<u64>().ok())
        .map_or(0, |kib| kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(model: &str, flags: &str) -> String {
        format!("processor\t: 0\nmodel name\t: {model}\nflags\t\t: {flags}\n")
    }

    #[test]
    fn kind_is_told_by_flags_module_and_model() {
        let of = |model: &str, flags: &str, pvm| kind(&cpu(model, flags), pvm);
        assert_eq!(of("AMD EPYC", "fpu svm", false), HostKind::BareMetal);
        assert_eq!(
            of("AMD EPYC", "fpu svm hypervisor", false),
            HostKind::Nested
        );
        assert_eq!(of("AMD EPYC", "fpu hypervisor", false), HostKind::Virtual);
        assert_eq!(of("AMD EPYC", "fpu hypervisor", true), HostKind::Pvm);
        assert_eq!(of("AMD EPYC", "fpu", true), HostKind::Pvm);
        assert_eq!(
            of("QEMU TCG CPU version 2.5+", "svm hypervisor", false),
            HostKind::Emulated
        );
    }

    #[test]
    fn host_without_usable_kvm_says_why() {
        assert!(HostKind::Pvm.kvm_obstacle().is_some());
        assert!(HostKind::Emulated.kvm_obstacle().is_none());
        let host = Host::look();
        assert!(!host.kernel.is_empty() && host.cpus > 0 && host.memory_mib > 0);
    }
}
