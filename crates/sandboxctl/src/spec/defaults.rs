//! What docker gives every container (moby `daemon/pkg/oci/defaults.go`).

use std::path::Path;

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capability, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxNamespace,
    LinuxNamespaceBuilder, LinuxNamespaceType, Mount, MountBuilder,
};

use crate::values::device::Device;

/// The search path of an image that sets none.
pub(super) const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Files of the kernel's that a container does not see.
pub(super) const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Files of the kernel's that a container cannot change.
pub(super) const READONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// The capabilities of a container that asks for no others.
pub(super) const CAPABILITIES: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// Every capability of Linux 6.12 (`linux/capability.h`).
pub(super) const ALL_CAPABILITIES: [Capability; 41] = [
    Capability::AuditControl,
    Capability::AuditRead,
    Capability::AuditWrite,
    Capability::BlockSuspend,
    Capability::Bpf,
    Capability::CheckpointRestore,
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::Kill,
    Capability::Lease,
    Capability::LinuxImmutable,
    Capability::MacAdmin,
    Capability::MacOverride,
    Capability::Mknod,
    Capability::NetAdmin,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetRaw,
    Capability::Perfmon,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysChroot,
    Capability::SysModule,
    Capability::SysNice,
    Capability::SysPacct,
    Capability::SysPtrace,
    Capability::SysRawio,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Syslog,
    Capability::WakeAlarm,
];

/// The open files a process may have: the soft limit that programs were written for, and a hard one that
/// leaves room to raise it (systemd's defaults).
pub(super) const OPEN_FILES: (u64, u64) = (1024, 524_288);

/// docker's size of `/dev/shm`.
pub(crate) const SHM_BYTES: u64 = 64 << 20;

/// One mount.
pub(super) fn mount(
    target: &str,
    kind: &str,
    source: &str,
    options: &[&str],
) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .destination(target)
        .typ(kind)
        .source(source)
        .options(
            options
                .iter()
                .copied()
                .map(str::to_owned)
                .collect::<Vec<_>>(),
        )
        .build()
}

/// The file systems of the kernel's and the temporary ones.
///
/// A privileged container may change what the guest's kernel shows of itself.
pub(super) fn mounts(shm_bytes: Option<u64>, privileged: bool) -> Result<Vec<Mount>, OciSpecError> {
    let shm_size = format!("size={}", shm_bytes.unwrap_or(SHM_BYTES));
    let kept_in = ["nosuid", "noexec", "nodev"];
    let read_only = ["nosuid", "noexec", "nodev", "ro"];
    let system: &[&str] = if privileged { &kept_in } else { &read_only };
    let dev = ["nosuid", "strictatime", "mode=755", "size=65536k"];
    let pts = [
        "nosuid",
        "noexec",
        "newinstance",
        "ptmxmode=0666",
        "mode=0620",
        "gid=5",
    ];
    let shm = ["nosuid", "noexec", "nodev", "mode=1777", &shm_size];
    Ok(vec![
        mount("/proc", "proc", "proc", &kept_in)?,
        mount("/dev", "tmpfs", "tmpfs", &dev)?,
        mount("/dev/pts", "devpts", "devpts", &pts)?,
        mount("/sys", "sysfs", "sysfs", system)?,
        mount("/sys/fs/cgroup", "cgroup", "cgroup", system)?,
        mount("/dev/mqueue", "mqueue", "mqueue", &kept_in)?,
        mount("/dev/shm", "tmpfs", "shm", &shm)?,
    ])
}

/// Namespaces of the container's own. Its network namespace lies in the guest; that at `network` on the host is joined.
pub(super) fn namespaces(network: Option<&Path>) -> Result<Vec<LinuxNamespace>, OciSpecError> {
    [
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Network,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Cgroup,
    ]
    .into_iter()
    .map(|kind| {
        let namespace = LinuxNamespaceBuilder::default().typ(kind);
        match network.filter(|_| kind == LinuxNamespaceType::Network) {
            Some(path) => namespace.path(path).build(),
            None => namespace.build(),
        }
    })
    .collect()
}

/// No device but these: null, zero, full, random, urandom, tty, console, ptmx and the terminals. Any node
/// may be made, but not opened.
///
/// Beside them those that were asked for.
pub(super) fn device_rules(asked: &[&Device]) -> Result<Vec<LinuxDeviceCgroup>, OciSpecError> {
    const ALLOWED: [(i64, Option<i64>); 9] = [
        (1, Some(3)),
        (1, Some(5)),
        (1, Some(7)),
        (1, Some(8)),
        (1, Some(9)),
        (5, Some(0)),
        (5, Some(1)),
        (5, Some(2)),
        (136, None),
    ];
    let mut rules = vec![
        LinuxDeviceCgroupBuilder::default()
            .allow(false)
            .access("rwm")
            .build()?,
    ];
    for kind in [LinuxDeviceType::C, LinuxDeviceType::B] {
        rules.push(
            LinuxDeviceCgroupBuilder::default()
                .allow(true)
                .typ(kind)
                .access("m")
                .build()?,
        );
    }
    for (major, minor) in ALLOWED {
        let mut rule = LinuxDeviceCgroupBuilder::default()
            .allow(true)
            .typ(LinuxDeviceType::C)
            .major(major)
            .access("rwm")
            .build()?;
        rule.set_minor(minor);
        rules.push(rule);
    }
    for device in asked {
        let Some(guest) = device.guest else {
            continue;
        };
        rules.push(
            LinuxDeviceCgroupBuilder::default()
                .allow(true)
                .typ(LinuxDeviceType::C)
                .major(guest.major)
                .minor(guest.minor)
                .access(device.access.as_str())
                .build()?,
        );
    }
    Ok(rules)
}

/// Every device.
pub(super) fn all_devices() -> Result<Vec<LinuxDeviceCgroup>, OciSpecError> {
    Ok(vec![
        LinuxDeviceCgroupBuilder::default()
            .allow(true)
            .access("rwm")
            .build()?,
    ])
}
