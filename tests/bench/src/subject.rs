//! Who is measured: a runtime, and the way in which it is reached.

use std::path::Path;

use sandbox_harness::Driver;

use crate::host::Host;

/// What runs a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Runtime {
    /// None: the program runs on the host.
    Host,
    /// runc, on the host's kernel.
    Runc,
    /// This runtime, with the driver that was asked for.
    Sandbox,
    /// This runtime, but the machine is QEMU's microvm on KVM: the same kernel, guest and shim.
    QemuMicrovm,
}

/// Who asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// A command line: `sandboxctl run`, `runc run`.
    Command,
    /// `ctr run`, through one containerd.
    Containerd,
    /// Calls to the shim's task service, without an engine.
    Task,
}

/// A runtime and a way to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) runtime: Runtime,
    pub(crate) way: Way,
}

impl Subject {
    pub(crate) const fn new(way: Way, runtime: Runtime) -> Self {
        Self { runtime, way }
    }

    /// What it is called in reports.
    pub(crate) fn label(self, driver: Driver) -> String {
        let runtime = match self.runtime {
            Runtime::Host => return "host".to_owned(),
            Runtime::Runc => "runc".to_owned(),
            Runtime::Sandbox => format!("sandbox ({})", driver.name()),
            Runtime::QemuMicrovm => "sandbox (QEMU microvm on KVM)".to_owned(),
        };
        match self.way {
            Way::Command => runtime,
            Way::Containerd => format!("{runtime}, containerd"),
            Way::Task => format!("{runtime}, shim"),
        }
    }

    /// Why it cannot be measured here, if so.
    pub(crate) fn obstacle(self, host: &Host, driver: Driver) -> Option<String> {
        let programs: &[&str] = match (self.way, self.runtime) {
            (_, Runtime::Host) => &[],
            (Way::Command, Runtime::Runc) => &["runc"],
            (Way::Task, Runtime::Runc) => &["runc", "containerd-shim-runc-v2"],
            (Way::Containerd, Runtime::Runc) => &["containerd", "ctr", "runc"],
            (Way::Containerd, _) => &["containerd", "ctr"],
            (Way::Command | Way::Task, Runtime::Sandbox) => &[],
            (Way::Command | Way::Task, Runtime::QemuMicrovm) => &["qemu-system-x86_64"],
        };
        if let Some(missing) = programs.iter().find(|program| !is_installed(program)) {
            return Some(format!("{missing} is not installed"));
        }
        let kvm = match (self.runtime, driver) {
            (Runtime::Sandbox, Driver::Kvm) | (Runtime::QemuMicrovm, _) => {
                host.kvm_obstacle.clone()
            }
            _ => None,
        };
        kvm.map(|reason| format!("it needs KVM: {reason}"))
    }
}

/// Whether there is such a program.
pub(crate) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| Path::new(&folder).join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::HostKind;

    #[test]
    fn subject_without_what_it_needs_says_so() {
        let mut host = Host {
            kernel: String::new(),
            cpu: String::new(),
            cpus: 1,
            memory_mib: 1,
            kind: HostKind::Pvm,
            kvm_obstacle: Some("there is only PVM".to_owned()),
        };
        let ours = Subject::new(Way::Command, Runtime::Sandbox);
        let obstacle = ours.obstacle(&host, Driver::Kvm).unwrap();
        assert_eq!(obstacle, "it needs KVM: there is only PVM");
        assert_eq!(ours.obstacle(&host, Driver::Qemu), None);
        host.kvm_obstacle = None;
        assert_eq!(ours.obstacle(&host, Driver::Kvm), None);
        let nothing = Subject::new(Way::Command, Runtime::Host);
        assert_eq!(nothing.obstacle(&host, Driver::Kvm), None);
    }

    #[test]
    fn label_has_the_driver_and_the_way() {
        let label = |way, runtime| Subject::new(way, runtime).label(Driver::Kvm);
        assert_eq!(label(Way::Command, Runtime::Sandbox), "sandbox (kvm)");
        assert_eq!(label(Way::Containerd, Runtime::Runc), "runc, containerd");
        assert_eq!(label(Way::Task, Runtime::Runc), "runc, shim");
    }
}
