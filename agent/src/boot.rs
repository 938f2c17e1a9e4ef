//! From the kernel's first process to a system that containers can be made in.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rustix::mount::MountAttrFlags;
use rustix::process::{Resource, Rlimit};

use crate::cgroup;
use crate::mount::{self, MountError};

/// Open files that the agent, and no container by default, may have.
const NOFILE: u64 = 1_048_576;

/// Kernel parameters that differ from the kernel's own: roomy where a host of containers is, closed towards
/// them.
const PARAMETERS: &[(&str, &str)] = &[
    // As systemd has it, so that limits of open files that hosts set are allowed.
    ("fs/nr_open", "1073741816"),
    ("fs/inotify/max_user_instances", "8192"),
    ("fs/inotify/max_user_watches", "1048576"),
    ("kernel/dmesg_restrict", "1"),
    // It makes sockets past the filter that keeps containers from AF_VSOCK; that filter refuses it too.
    ("kernel/io_uring_disabled", "2"),
    ("kernel/kptr_restrict", "2"),
    ("kernel/pid_max", "4194304"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
    // By itself the kernel looks twice a second whether memory should be moved together. Each look wakes a vCPU that has nothing to do;
    // memory is still moved together when a big page is asked for.
    ("vm/compaction_proactiveness", "0"),
    ("vm/max_map_count", "262144"),
    // What processors keep of free pages for themselves, a 1024th of memory among all: nobody reports those to the host, and in an idle
    // guest they stay. The kernel by itself lets them become an eighth.
    ("vm/percpu_pagelist_high_fraction", "1024"),
];

/// Why the guest cannot come up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    /// A file system of the guest's own.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// Anything else.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: String,
        #[source]
        source: io::Error,
    },
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> BootError {
    let what = what.into();
    move |source| BootError::Io { what, source }
}

/// Brings the guest up.
pub(crate) fn boot() -> Result<(), BootError> {
    mount::make_private().map_err(failed("make the mounts private"))?;
    mount_file_systems()?;
    console()?;
    let nofile = Rlimit {
        current: Some(NOFILE),
        maximum: Some(NOFILE),
    };
    rustix::process::setrlimit(Resource::Nofile, nofile)
        .map_err(|errno| failed("raise the limit of open files")(errno.into()))?;
    for (parameter, value) in PARAMETERS {
        let path = Path::new("/proc/sys").join(parameter);
        match fs::write(&path, value) {
            // Depends on the kernel's configuration; nothing the agent needs.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result.map_err(failed(format!("set {parameter}={value}")))?,
        }
    }
    // Returns when the kernel's random numbers are good (random(4)): before that, no container is to run.
    fs::File::open("/dev/random")
        .and_then(|mut random| random.read_exact(&mut [0]))
        .map_err(failed("wait for random numbers"))?;
    crate::sys::bring_up_loopback().map_err(failed("bring up the loopback interface"))?;
    prepare_cgroups(Path::new(cgroup::ROOT))
}

fn mount_file_systems() -> Result<(), BootError> {
    let quiet = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let device = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let temporary = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    mount::mount_own("proc", "/proc", quiet, &[])?;
    mount::mount_own("sysfs", "/sys", quiet, &[])?;
    // The kernel may have mounted it already (CONFIG_DEVTMPFS_MOUNT).
    if !Path::new("/dev/null").exists() {
        mount::mount_own("devtmpfs", "/dev", device, &["mode=755"])?;
    }
    for folder in ["/dev/pts", "/dev/shm"] {
        fs::create_dir_all(folder).map_err(failed(format!("make {folder}")))?;
    }
    mount::mount_own(
        "devpts",
        "/dev/pts",
        device,
        &["gid=5", "mode=620", "ptmxmode=666"],
    )?;
    mount::mount_own("tmpfs", "/dev/shm", quiet, &["mode=1777"])?;
    mount::mount_own("tmpfs", "/run", temporary, &["mode=755"])?;
    mount::mount_own("tmpfs", "/tmp", temporary, &["mode=1777"])?;
    mount::mount_own(
        "cgroup2",
        cgroup::ROOT,
        quiet,
        &["nsdelegate", "memory_recursiveprot"],
    )?;
    Ok(())
}

/// What the agent says, its last words above all, goes to the console.
fn console() -> Result<(), BootError> {
    let console = fs::OpenOptions::new()
        .write(true)
        .open("/dev/console")
        .map_err(failed("open /dev/console"))?;
    rustix::stdio::dup2_stdout(&console)
        .and_then(|()| rustix::stdio::dup2_stderr(&console))
        .map_err(|errno| failed("write to /dev/console")(errno.into()))
}

/// Every controller for the containers, and a group of its own for the agent: only groups without processes can
/// hand controllers on.
fn prepare_cgroups(root: &Path) -> Result<(), BootError> {
    let agent = root.join("agent");
    let sandbox = root.join("sandbox");
    let write = |path: PathBuf, text: &str| {
        fs::write(&path, text).map_err(failed(format!("write {text:?} to {}", path.display())))
    };
    for group in [&agent, &sandbox] {
        fs::create_dir_all(group).map_err(failed(format!("make {}", group.display())))?;
    }
    write(agent.join("cgroup.procs"), "0")?;
    let controllers = fs::read_to_string(root.join("cgroup.controllers"))
        .map_err(failed("read the cgroup controllers"))?;
    let enable: Vec<String> = controllers
        .split_whitespace()
        .map(|controller| format!("+{controller}"))
        .collect();
    if !enable.is_empty() {
        for group in [root, &sandbox] {
            write(group.join("cgroup.subtree_control"), &enable.join(" "))?;
        }
    }
    Ok(())
}

/// As much of [`boot`] as an agent outside a guest may do: the groups.
pub(crate) fn prepare_outside_guest() -> Result<(), BootError> {
    mount::make_private().map_err(failed("make the mounts private"))?;
    prepare_cgroups(Path::new(cgroup::ROOT))
}
