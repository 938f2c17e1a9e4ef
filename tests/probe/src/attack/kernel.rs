//! The kernel's own interfaces.

use std::io::{Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use super::{Attempt, number, raw, text, texts};
use crate::attempts::io_uring;
use crate::look;

pub(super) const ALL: &[Attempt] = &[
    ("kernel_log", kernel_log),
    ("load_module", load_module),
    ("bpf", bpf),
    ("perf", perf),
    ("clock", clock),
    ("ports", ports),
    ("user_namespace_overlay", user_namespace_overlay),
    ("release_agent", release_agent),
    ("io_ring", io_ring),
    ("user_faults", user_faults),
    ("packet_filter", packet_filter),
    ("mount_context", mount_context),
    ("clock_error", clock_error),
    ("set_clock_error", set_clock_error),
    ("crash", crash),
];

/// What the kernel logged, by syslog(2) and by its device, as far as it has `text` in it.
fn kernel_log(params: &Value) -> Value {
    let wanted = text(params, "wanted");
    let has = |bytes: Vec<u8>| {
        let log = String::from_utf8_lossy(&bytes).into_owned();
        let line = log.lines().rev().find(|line| line.contains(wanted));
        line.map_or_else(
            || json!({ "bytes": bytes.len() }),
            |line| json!({ "bytes": bytes.len(), "line": line }),
        )
    };
    match raw::kernel_log() {
        Ok(bytes) => json!({ "syslog": has(bytes) }),
        Err(errno) => json!({ "syslog": look::error(errno) }),
    }
}

/// Asks the kernel to load a file that is no module: ENOEXEC says that it would have loaded one.
fn load_module(_: &Value) -> Value {
    let file = nix::sys::memfd::memfd_create(c"module", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
        .map(std::fs::File::from);
    let loaded = match file {
        Ok(mut file) => {
            let written = file
                .write_all(b"this is no module")
                .and_then(|()| file.rewind());
            match written {
                Ok(()) => raw::load_module(&file),
                Err(_) => Err(Errno::EIO),
            }
        }
        Err(errno) => Err(errno),
    };
    json!({ "loaded": look::outcome(loaded) })
}

/// Makes an eBPF map.
fn bpf(_: &Value) -> Value {
    let made = raw::bpf_map();
    let result = json!({ "map": look::outcome(made.as_ref().map_err(|errno| *errno)) });
    keep(made);
    result
}

/// Opens a counter of everything that a processor does.
fn perf(_: &Value) -> Value {
    let made = raw::perf_everything();
    let result = json!({ "event": look::outcome(made.as_ref().map_err(|errno| *errno)) });
    keep(made);
    result
}

/// Stays open until the attempt is released.
fn keep(descriptor: nix::Result<OwnedFd>) {
    if let Ok(descriptor) = descriptor {
        std::mem::forget(descriptor);
    }
}

/// Sets the clock's frequency to what it is.
fn clock(_: &Value) -> Value {
    json!({ "set": look::outcome(raw::same_clock_frequency()) })
}

/// Asks for the ports of the machine.
fn ports(_: &Value) -> Value {
    json!({ "ports": look::outcome(raw::port_access()) })
}

/// Mounts an overlay in a new user namespace, the way to many a kernel fault (CVE-2021-3493, CVE-2023-0386).
fn user_namespace_overlay(_: &Value) -> Value {
    if let Err(errno) = unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS) {
        return json!({ "namespace": look::error(errno) });
    }
    // Root in it, or its files would be nobody's (user_namespaces(7)).
    let _ = std::fs::write("/proc/self/setgroups", "deny");
    let _ = std::fs::write("/proc/self/uid_map", "0 0 1");
    let _ = std::fs::write("/proc/self/gid_map", "0 0 1");
    let folder = Path::new("/tmp");
    let options = "lowerdir=/tmp/l,upperdir=/tmp/u,workdir=/tmp/w";
    let mounted = mount(
        Some("tmpfs"),
        folder,
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .and_then(|()| {
        for name in ["l", "u", "w", "m"] {
            std::fs::create_dir(folder.join(name)).map_err(|_| Errno::EIO)?;
        }
        mount(
            Some("overlay"),
            &folder.join("m"),
            Some("overlay"),
            MsFlags::empty(),
            Some(options),
        )
    });
    json!({ "namespace": "ok", "mounted": look::outcome(mounted) })
}

/// Looks for `release_agent` (CVE-2022-0492) in the hierarchies that are mounted, and opens it for writing without
/// writing; where none is mounted, mounts one.
fn release_agent(params: &Value) -> Value {
    let mut tried = Vec::new();
    for controller in texts(params, "controllers") {
        let at = format!("/tmp/cgroup-{}", controller.replace(['/', '='], "-"));
        let _ = std::fs::create_dir(&at);
        let mounted = mount(
            Some("cgroup"),
            at.as_str(),
            Some("cgroup"),
            MsFlags::empty(),
            Some(controller),
        );
        let agent = Path::new(&at).join("release_agent");
        let opened = std::fs::OpenOptions::new().write(true).open(agent);
        let open = opened.is_ok();
        tried.push(json!({
            "controller": controller,
            "mounted": look::outcome(mounted),
            "open": look::io_outcome(opened),
        }));
        let _ = nix::mount::umount(at.as_str());
        if open {
            break;
        }
    }
    json!({ "tried": tried })
}

/// Makes a ring for system calls (io_uring(7)) and has it make a Unix socket.
fn io_ring(_: &Value) -> Value {
    let ring = match io_uring::socket(nix::libc::AF_UNIX) {
        Ok(()) => "ok".into(),
        Err((step, errno)) => json!({ "step": step, "error": format!("{errno:?}") }),
    };
    json!({ "ring": ring })
}

/// Asks to handle faults of memory itself (userfaultfd(2)).
fn user_faults(_: &Value) -> Value {
    let made = raw::user_faults();
    let result = json!({ "faults": look::outcome(made.as_ref().map_err(|errno| *errno)) });
    keep(made);
    result
}

/// Opens the kernel's packet filter (nf_tables) in user and network namespaces of its own (CVE-2024-1086).
fn packet_filter(_: &Value) -> Value {
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
    if let Err(errno) = unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET) {
        return json!({ "namespace": look::error(errno) });
    }
    let made = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    );
    json!({ "namespace": "ok", "filter": look::outcome(made) })
}

/// Begins a mount in user and mount namespaces of its own by fsopen(2) (CVE-2022-0185).
fn mount_context(_: &Value) -> Value {
    if let Err(errno) = unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS) {
        return json!({ "namespace": look::error(errno) });
    }
    json!({ "namespace": "ok", "context": look::outcome(raw::mount_context("tmpfs")) })
}

/// What the clock is said to be wrong by, in microseconds: a number that whoever may set the clock may set, and that changes nothing.
fn clock_error(_: &Value) -> Value {
    json!({ "found": look::or_error(raw::clock_error(None)) })
}

/// Sets it to `value`.
fn set_clock_error(params: &Value) -> Value {
    let value = i64::try_from(number(params, "value")).unwrap_or(0);
    json!({ "set": look::outcome(raw::clock_error(Some(value))) })
}

/// Opens what makes a kernel panic for writing; and makes it panic only where it is known to be another than `host`, the boot_id of
/// the host's kernel.
fn crash(params: &Value) -> Value {
    const TRIGGER: &str = "/proc/sysrq-trigger";
    let files = [TRIGGER, "/proc/sys/vm/panic_on_oom"].map(|path| {
        let opened = std::fs::OpenOptions::new().write(true).open(path);
        (path.to_owned(), json!({ "open": look::io_outcome(opened) }))
    });
    let files: serde_json::Map<_, _> = files.into_iter().collect();
    let (own, host) = (super::boot_id(), text(params, "host"));
    if own.is_empty() || host.is_empty() || own == host {
        return json!({ "files": files });
    }
    // Kernel `Documentation/admin-guide/sysrq.rst`: "c" is a crash.
    let crashed = std::fs::write(TRIGGER, "c");
    json!({ "files": files, "crashed": look::io_outcome(crashed) })
}
