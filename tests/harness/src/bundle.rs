//! OCI bundles with the probe and a busybox in them, for tests that speak to the shim directly.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::process::copy_program;
use crate::world::World;

/// Where the probe is in the container.
pub const PROBE: &str = "/bin/sandbox-probe";

/// Every capability that is of use without a host's devices; what `--privileged` gives, and more than the default.
const CAPABILITIES: [&str; 16] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_ADMIN",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// A `process` object of root's.
#[must_use]
pub fn process(args: &[&str]) -> Value {
    json!({
        "user": {"uid": 0, "gid": 0},
        "args": args,
        "env": ["PATH=/bin"],
        "cwd": "/",
        "capabilities": {
            "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
        },
    })
}

/// A spec that has the usual file systems and namespaces, all capabilities of [`process`], and no seccomp profile.
#[must_use]
pub fn spec(args: &[&str]) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": process(args),
        "root": {"path": "rootfs"},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}],
        },
    })
}

/// Writes a bundle with this spec into the world; `name` is the folder's.
///
/// # Errors
/// When the probe or busybox is missing, or the file system refuses.
pub fn make(world: &World, name: &str, spec: &Value) -> Result<PathBuf> {
    let bundle = world.path().join(name);
    let root = bundle.join("rootfs");
    for folder in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(folder))?;
    }
    let probe = &world.setup().probe;
    copy_program(probe, &root.join(PROBE.trim_start_matches('/')))
        .with_context(|| format!("cannot copy {}: is the probe built?", probe.display()))?;
    copy_program(Path::new("/bin/busybox"), &root.join("bin/busybox"))?;
    for applet in ["sh", "cat", "sleep", "true", "ps"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(bundle.join("config.json"), serde_json::to_vec_pretty(spec)?)?;
    Ok(bundle)
}
