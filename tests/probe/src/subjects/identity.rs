//! Who the process is and what it may: ids, capabilities, limits.

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit};
use serde_json::{Map, Value, json};

use crate::look;

/// `/proc/self/status` (proc_pid_status(5)) and what prctl(2) adds.
pub(crate) fn look() -> Value {
    json!({
        "uid": look::status("Uid"),
        "gid": look::status("Gid"),
        "groups": look::status("Groups"),
        "umask": look::status("Umask"),
        "no_new_privileges": look::status("NoNewPrivs"),
        "seccomp_mode": look::status("Seccomp"),
        "seccomp_filters": look::status("Seccomp_filters"),
        "capabilities": {
            "inheritable": look::status("CapInh"),
            "permitted": look::status("CapPrm"),
            "effective": look::status("CapEff"),
            "bounding": look::status("CapBnd"),
            "ambient": look::status("CapAmb"),
        },
        "last_capability": look::text("/proc/sys/kernel/cap_last_cap"),
        "dumpable": look::or_error(prctl::get_dumpable()),
        "keeps_capabilities": look::or_error(prctl::get_keepcaps()),
        "is_subreaper": look::or_error(prctl::get_child_subreaper()),
        "parent_death_signal": look::or_error(
            prctl::get_pdeathsig().map(|signal| signal.map(nix::sys::signal::Signal::as_str)),
        ),
        "login_uid": look::text("/proc/self/loginuid"),
        "uid_map": look::lines("/proc/self/uid_map"),
        "gid_map": look::lines("/proc/self/gid_map"),
        "setgroups": look::text("/proc/self/setgroups"),
        "security": attributes(),
    })
}

/// `/proc/self/attr`: what a security module says of the process.
fn attributes() -> Value {
    let names = ["current", "exec", "prev", "fscreate", "apparmor/current"];
    let read = |name: &&str| {
        (
            (*name).to_owned(),
            look::text(format!("/proc/self/attr/{name}")),
        )
    };
    Value::Object(names.iter().map(read).collect())
}

/// Every resource limit (getrlimit(2)), soft and hard.
pub(crate) fn limits() -> Value {
    let all = [
        ("as", Resource::RLIMIT_AS),
        ("core", Resource::RLIMIT_CORE),
        ("cpu", Resource::RLIMIT_CPU),
        ("data", Resource::RLIMIT_DATA),
        ("fsize", Resource::RLIMIT_FSIZE),
        ("locks", Resource::RLIMIT_LOCKS),
        ("memlock", Resource::RLIMIT_MEMLOCK),
        ("msgqueue", Resource::RLIMIT_MSGQUEUE),
        ("nice", Resource::RLIMIT_NICE),
        ("nofile", Resource::RLIMIT_NOFILE),
        ("nproc", Resource::RLIMIT_NPROC),
        ("rss", Resource::RLIMIT_RSS),
        ("rtprio", Resource::RLIMIT_RTPRIO),
        ("rttime", Resource::RLIMIT_RTTIME),
        ("sigpending", Resource::RLIMIT_SIGPENDING),
        ("stack", Resource::RLIMIT_STACK),
    ];
    let show = |value: u64| match value {
        u64::MAX => "unlimited".to_owned(),
        value => value.to_string(),
    };
    let limits: Map<String, Value> = all
        .into_iter()
        .map(|(name, resource)| {
            let limit =
                getrlimit(resource).map(|(soft, hard)| format!("{} {}", show(soft), show(hard)));
            (name.to_owned(), look::or_error(limit))
        })
        .collect();
    let mut seen = Value::Object(limits);
    seen["oom_score_adj"] = look::text("/proc/self/oom_score_adj");
    seen["coredump_filter"] = look::text("/proc/self/coredump_filter");
    seen
}
