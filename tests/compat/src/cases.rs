//! The specs that are compared: a base as engines write it, and one change of it for each case.

mod base;

use sandbox_harness::bundle::PROBE;
use serde_json::{Value, json};

use crate::bundle::SHARED;

/// A spec, and a process to add to its container.
pub(crate) struct Case {
    /// Its name, also the container's.
    pub(crate) name: &'static str,
    /// `config.json` but for the arguments.
    pub(crate) spec: Value,
    /// The `process` object of the exec.
    pub(crate) exec: Value,
}

impl Case {
    /// Whether the container's first process has a terminal.
    pub(crate) fn terminal(&self) -> bool {
        self.spec["process"]["terminal"].as_bool().unwrap_or(false)
    }
}

/// The base's spec and exec, changed.
fn case(name: &'static str, change: impl FnOnce(&mut Value, &mut Value)) -> Case {
    let mut spec = base::spec(name);
    let mut exec = base::process();
    exec["args"] = json!([PROBE, "look", "all"]);
    change(&mut spec, &mut exec);
    Case { name, spec, exec }
}

/// Adds to an array of the spec.
fn push(array: &mut Value, more: &[Value]) {
    if let Some(array) = array.as_array_mut() {
        array.extend_from_slice(more);
    }
}

/// Every case. Each boots a machine, so each changes what does not get in the way of the others.
pub(crate) fn all() -> Vec<Case> {
    vec![
        case("plain", |_, _| {}),
        case("hardened", hardened),
        case("process", |spec, exec| {
            user(spec, exec);
            limits(spec, exec);
            terminal(spec, exec);
        }),
        case("privileges", |spec, exec| {
            capabilities(spec, exec);
            sysctl(spec);
        }),
        case("system", |spec, _| {
            devices(spec);
            mounts(spec);
            binds(spec);
            resources(spec);
        }),
        case("userns", |spec, _| user_namespace(spec)),
        case("shared", |spec, _| shared_namespaces(spec)),
    ]
}

/// What engines make of `--cap-drop ALL --cap-add NET_BIND_SERVICE --read-only --user 1000:1000 --security-opt
/// seccomp=… --security-opt no-new-privileges --memory 512m --cpus 1.0 --tmpfs /tmp:rw,noexec,nosuid`.
fn hardened(spec: &mut Value, exec: &mut Value) {
    spec["root"]["readonly"] = json!(true);
    push(
        &mut spec["mounts"],
        &[json!({
            "destination": "/tmp", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "nodev", "noexec", "rw"],
        })],
    );
    for process in [&mut spec["process"], exec] {
        process["user"] = json!({"uid": 1000, "gid": 1000});
        process["noNewPrivileges"] = json!(true);
        process["capabilities"] = json!({
            "bounding": ["CAP_NET_BIND_SERVICE"],
            "effective": ["CAP_NET_BIND_SERVICE"],
            "permitted": ["CAP_NET_BIND_SERVICE"],
        });
    }
    spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [{"names": base::ALLOWED_CALLS, "action": "SCMP_ACT_ALLOW"}],
    });
    spec["linux"]["resources"]["memory"] = json!({"limit": 536_870_912, "swap": 536_870_912});
    spec["linux"]["resources"]["cpu"] = json!({"quota": 100_000, "period": 100_000});
    spec["linux"]["resources"]["pids"] = json!({"limit": 100});
}

/// Ids, groups, umask, folder, an environment without HOME and PATH; each with another value for the exec.
fn user(spec: &mut Value, exec: &mut Value) {
    let process = &mut spec["process"];
    process["user"] =
        json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 2000], "umask": 0o027});
    process["cwd"] = json!("/home/user");
    process["env"] = json!(["A=1", "EMPTY=", "SPACES=a b  c", "A=2"]);
    exec["user"] = json!({"uid": 1234, "gid": 0, "additionalGids": [7], "umask": 0o077});
    exec["cwd"] = json!("/var/link");
    exec["env"] = json!(["HOME=/nowhere", "PATH=/x", "B=3"]);
    exec["noNewPrivileges"] = json!(true);
}

/// Five sets, each different; the exec has others.
fn capabilities(spec: &mut Value, exec: &mut Value) {
    spec["process"]["capabilities"] = json!({
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW", "CAP_SETUID", "CAP_SYS_ADMIN"],
        "inheritable": ["CAP_CHOWN", "CAP_NET_RAW"],
        "permitted": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
        "effective": ["CAP_KILL"],
        "ambient": ["CAP_NET_RAW"],
    });
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    exec["capabilities"] = json!({
        "bounding": ["CAP_CHOWN", "CAP_SYS_TIME"],
        "inheritable": ["CAP_CHOWN"],
        "permitted": ["CAP_CHOWN"],
        "effective": ["CAP_CHOWN"],
        "ambient": ["CAP_CHOWN"],
    });
    exec["user"] = json!({"uid": 1001, "gid": 1001});
}

/// Resource limits and scheduling.
fn limits(spec: &mut Value, exec: &mut Value) {
    let limit =
        |kind: &str, soft: u64, hard: u64| json!({"type": kind, "soft": soft, "hard": hard});
    spec["process"]["rlimits"] = json!([
        limit("RLIMIT_AS", 1 << 40, 1 << 41),
        limit("RLIMIT_CORE", 0, 0),
        limit("RLIMIT_CPU", 3600, 7200),
        limit("RLIMIT_DATA", 1 << 32, 1 << 33),
        limit("RLIMIT_FSIZE", 1 << 30, 1 << 31),
        limit("RLIMIT_LOCKS", 11, 12),
        limit("RLIMIT_MEMLOCK", 65536, 65536),
        limit("RLIMIT_MSGQUEUE", 4096, 8192),
        limit("RLIMIT_NICE", 1, 2),
        limit("RLIMIT_NOFILE", 512, 4096),
        limit("RLIMIT_NPROC", 100, 200),
        limit("RLIMIT_RSS", 1 << 30, 1 << 30),
        limit("RLIMIT_RTPRIO", 3, 4),
        limit("RLIMIT_RTTIME", 1000, 2000),
        limit("RLIMIT_SIGPENDING", 77, 88),
        limit("RLIMIT_STACK", 1 << 22, 1 << 23),
    ]);
    spec["process"]["oomScoreAdj"] = json!(500);
    exec["rlimits"] = json!([limit("RLIMIT_NOFILE", 100, 200)]);
    exec["oomScoreAdj"] = json!(700);
}

/// Kernel parameters of the container's namespaces, and its names.
fn sysctl(spec: &mut Value) {
    spec["hostname"] = json!("named");
    spec["domainname"] = json!("example.org");
    spec["linux"]["sysctl"] = json!({
        "kernel.shmmax": "123456789",
        "kernel.msgmax": "4096",
        "kernel.sem": "100 3200 50 64",
        "fs.mqueue.msg_max": "20",
        "net.ipv4.ip_unprivileged_port_start": "80",
        "net.ipv4.ping_group_range": "0 2000",
        "net.core.somaxconn": "1000",
    });
}

/// Devices of the caller's, and rules for more than those.
fn devices(spec: &mut Value) {
    spec["linux"]["devices"] = json!([
        {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666, "uid": 0, "gid": 0},
        {"path": "/dev/mine/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 1000, "gid": 5},
        {"path": "/dev/pipe", "type": "p", "fileMode": 0o600, "uid": 7, "gid": 8},
    ]);
    push(
        &mut spec["linux"]["resources"]["devices"],
        &[
            json!({"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"}),
            json!({"allow": true, "type": "c", "major": 10, "minor": 200, "access": "rwm"}),
            json!({"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"}),
            json!({"allow": false, "type": "c", "major": 1, "minor": 7, "access": "w"}),
        ],
    );
}

/// Mounts of each type of the kernel's, with options and propagation.
fn mounts(spec: &mut Value) {
    push(
        &mut spec["mounts"],
        &[
            json!({"destination": "/run", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "noexec", "nodev", "noatime", "size=4m", "mode=750", "uid=1000", "gid=5"]}),
            json!({"destination": "/mnt/deep/folder", "type": "tmpfs", "source": "deep", "options": ["ro", "shared"]}),
            json!({"destination": "/mnt/inner", "type": "tmpfs", "source": "inner",
                "options": ["size=64k", "nr_inodes=7", "nodiratime", "slave"]}),
            json!({"destination": "/mnt/proc", "type": "proc", "source": "proc", "options": ["ro", "nosuid"]}),
            json!({"destination": "/mnt/mqueue", "type": "mqueue", "source": "mqueue", "options": ["noexec"]}),
            json!({"destination": "/mnt/sys", "type": "sysfs", "source": "sysfs", "options": ["ro", "nodev"]}),
            json!({"destination": "/mnt/copied", "type": "tmpfs", "source": "tmpfs", "options": ["strictatime", "unbindable"]}),
            // A folder with a mode of its own, and a link that leads nowhere yet.
            json!({"destination": "/mnt/kept", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]}),
            json!({"destination": "/mnt/dangling", "type": "tmpfs", "source": "tmpfs", "options": ["nodev"]}),
            // A link in the container's root.
            json!({"destination": "/var/link/over", "type": "tmpfs", "source": "tmpfs", "options": ["relatime"]}),
        ],
    );
    spec["linux"]["rootfsPropagation"] = json!("rslave");
}

/// Folders and files of the host's.
fn binds(spec: &mut Value) {
    let folder = format!("{SHARED}/folder");
    push(
        &mut spec["mounts"],
        &[
            json!({"destination": "/mnt/rw", "type": "bind", "source": folder, "options": ["rbind", "rprivate"]}),
            json!({"destination": "/mnt/ro", "type": "bind", "source": folder, "options": ["rbind", "ro", "nosuid"]}),
            json!({"destination": "/mnt/plain", "source": folder, "options": ["bind", "noexec", "nodev"]}),
            json!({"destination": "/etc/file", "type": "bind", "source": format!("{SHARED}/file"), "options": ["bind", "ro"]}),
        ],
    );
}

/// Limits of the control group.
fn resources(spec: &mut Value) {
    let resources = &mut spec["linux"]["resources"];
    resources["memory"] =
        json!({"limit": 268_435_456, "reservation": 134_217_728, "swap": 402_653_184});
    resources["cpu"] = json!({"shares": 512, "quota": 150_000, "period": 100_000, "cpus": "0"});
    resources["pids"] = json!({"limit": 77});
    resources["hugepageLimits"] = json!([{"pageSize": "2MB", "limit": 4_194_304}]);
    resources["unified"] =
        json!({"memory.low": "33554432", "memory.oom.group": "1", "cpu.max.burst": "10000"});
}

/// A terminal with a size, of whoever the process is.
fn terminal(spec: &mut Value, exec: &mut Value) {
    for (process, width) in [(&mut spec["process"], 100), (exec, 71)] {
        process["terminal"] = json!(true);
        process["consoleSize"] = json!({"width": width, "height": 33});
    }
}

/// A user namespace.
fn user_namespace(spec: &mut Value) {
    push(&mut spec["linux"]["namespaces"], &[json!({"type": "user"})]);
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    spec["linux"]["uidMappings"] = map.clone();
    spec["linux"]["gidMappings"] = map;
}

/// Namespaces of the host's: of the guest, here.
fn shared_namespaces(spec: &mut Value) {
    spec["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "mount"}]);
    if let Some(members) = spec.as_object_mut() {
        members.remove("hostname");
    }
}
