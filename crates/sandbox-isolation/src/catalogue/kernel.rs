//! Kernel exploit in the workload: is it the host's kernel that the container reaches?

use serde_json::{Value, json};

use super::{is_ok, of_this_kernel, opens_one, reads_secret, there};
use crate::case::{Case, Finding, Obstacle, Profile, Scene, Stage, Threat};
use crate::host::{self, log::KernelLog};

/// A case of this file.
const KERNEL: Case = Case {
    name: "",
    threat: Threat::KernelExploit,
    attempt: "",
    watch: "its own boot_id, beside the one that the attempt was made in",
    expected: "refused, or let through by a kernel that is not the host's",
    profile: Profile::Granted,
    control: Profile::Granted,
    stage: |_| Err(Obstacle(String::new())),
};

pub(super) const ALL: &[Case] = &[
    Case {
        name: "kernel_boot_identity",
        attempt: "reads the kernel's boot_id",
        expected: "another than the host's",
        profile: Profile::Plain,
        control: Profile::Plain,
        stage: |stage| Ok(same_text(stage, "/proc/sys/kernel/random/boot_id")),
        ..KERNEL
    },
    Case {
        name: "kernel_build",
        attempt: "reads the kernel's version, compiler and build time",
        watch: "its own /proc/version",
        expected: "another than the host's",
        profile: Profile::Plain,
        control: Profile::Plain,
        stage: |stage| Ok(same_text(stage, "/proc/version")),
        ..KERNEL
    },
    Case {
        name: "kernel_command_line",
        attempt: "reads the kernel's command line, which may hold secrets",
        watch: "its own /proc/cmdline",
        expected: "another than the host's",
        profile: Profile::Plain,
        control: Profile::Plain,
        stage: |stage| Ok(same_text(stage, "/proc/cmdline")),
        ..KERNEL
    },
    Case {
        name: "kernel_boot_time",
        attempt: "reads when the kernel was started",
        watch: "when its own was",
        expected: "another time than the host's",
        profile: Profile::Plain,
        control: Profile::Plain,
        stage: |_| {
            let own = boot_time(&std::fs::read_to_string("/proc/stat")?);
            let judge = move |seen: &Value, _: &Value| {
                let there = boot_time(seen["files"]["/proc/stat"].as_str().unwrap_or_default());
                match (own, there) {
                    // The clock may be set between the two.
                    (Some(own), Some(there)) if own.abs_diff(there) <= 1 => {
                        Finding::Reached(format!("the host's: {own}"))
                    }
                    (own, there) => Finding::Blocked(format!("{there:?}, the host's is {own:?}")),
                }
            };
            Ok(Scene::new(
                "read",
                json!({ "paths": ["/proc/stat"] }),
                Box::new(judge),
            ))
        },
        ..KERNEL
    },
    Case {
        name: "kernel_device_events",
        attempt: "listens to what the kernel tells of devices for three seconds (netlink)",
        watch: "events with a secret, which it has its own kernel tell",
        expected: "the secret is not heard",
        profile: Profile::Plain,
        control: Profile::Plain,
        stage: |_| {
            let (mark, secret) = (host::token()?, host::token()?);
            let speaker = host::speakers::Speaker::device_events(&format!("{mark}{secret}"))?;
            let params = json!({ "wanted": mark, "for_ms": 3000 });
            let judge = reads_secret("an event of the host's devices", secret);
            Ok(Scene::new("device_events", params, judge).keeping(speaker))
        },
        ..KERNEL
    },
    Case {
        name: "kernel_symbols",
        attempt: "reads the addresses of the kernel's functions, which exploits begin with",
        watch: "its own /proc/kallsyms",
        expected: "not the host's",
        stage: |_| {
            let own = host::first_line("/proc/kallsyms");
            if own.is_empty() || own.starts_with("0000000000000000") {
                return Err(Obstacle(
                    "this host's kernel shows no addresses to root".to_owned(),
                ));
            }
            Ok(same_beginning("/proc/kallsyms")?)
        },
        ..KERNEL
    },
    Case {
        name: "kernel_log_read",
        attempt: "reads the kernel's log by syslog(2)",
        watch: "a line that it wrote to its own kernel's log",
        expected: "the line is not found",
        stage: |_| {
            let mark = host::token()?;
            let secret = host::token()?;
            std::fs::write("/dev/kmsg", format!("isolation-test {mark} {secret}\n"))?;
            let judge = reads_secret("a line of the host's kernel log", secret);
            Ok(Scene::new("kernel_log", json!({ "wanted": mark }), judge))
        },
        ..KERNEL
    },
    Case {
        name: "kernel_log_write",
        attempt: "writes to the kernel's log by a device node that it makes (1:11)",
        watch: "its own kernel's log, for the line",
        expected: "the line does not arrive",
        stage: |_| {
            let mark = host::token()?;
            let text = format!("isolation-test {mark}\n");
            let log = KernelLog::from_now_on()?;
            let params = json!({ "major": 1, "minor": 11, "text": text });
            Ok(Scene::new(
                "device_write",
                params,
                watched("the line is in the host's log"),
            )
            .watching(move |_| (log.count(&mark, 1) == 1).into()))
        },
        ..KERNEL
    },
    Case {
        name: "kernel_memory",
        attempt: "makes nodes of /dev/mem and /dev/port and reads from them; opens /proc/kcore",
        stage: |stage| {
            there(&["/dev/mem", "/proc/kcore"])?;
            let params = json!({ "major": 1, "minor": 1, "offset": 0, "length": 16 });
            Ok(Scene::new(
                "device_read",
                params,
                of_this_kernel(stage, "read physical memory", is_ok("/read")),
            ))
        },
        ..KERNEL
    },
    Case {
        name: "kernel_module",
        attempt: "asks the kernel to load a file that is no module: ENOEXEC says that it would load one",
        stage: |stage| {
            there(&["/proc/modules"])?;
            Ok(Scene::new(
                "load_module",
                Value::Null,
                of_this_kernel(stage, "may load modules", |seen| {
                    seen["loaded"]["error"] == "ENOEXEC"
                }),
            ))
        },
        ..KERNEL
    },
    Case {
        name: "kernel_sysrq",
        attempt: "opens /proc/sysrq-trigger for writing, and writes nothing",
        stage: |stage| opened(stage, &["/proc/sysrq-trigger"]),
        ..KERNEL
    },
    Case {
        name: "kernel_core_pattern",
        attempt: "opens core_pattern for writing, by which a crash runs a program on the host, and writes nothing",
        stage: |stage| opened(stage, &["/proc/sys/kernel/core_pattern"]),
        ..KERNEL
    },
    Case {
        name: "kernel_helper_paths",
        attempt: "opens modprobe, hotplug and uevent_helper for writing, programs that the kernel starts, and writes nothing",
        stage: |stage| {
            opened(
                stage,
                &[
                    "/proc/sys/kernel/modprobe",
                    "/sys/kernel/uevent_helper",
                    "/proc/sys/kernel/hotplug",
                    "/proc/sys/kernel/poweroff_cmd",
                ],
            )
        },
        ..KERNEL
    },
    Case {
        name: "kernel_release_agent",
        attempt: "mounts a version 1 cgroup hierarchy and opens release_agent for writing (CVE-2022-0492), and writes nothing",
        control: Profile::Host,
        stage: |stage| {
            let list = std::fs::read_to_string("/proc/self/cgroup")?;
            let controllers: Vec<String> = list
                .lines()
                .filter_map(|line| line.split(':').nth(1))
                .filter(|names| !names.is_empty())
                .map(str::to_owned)
                .collect();
            if controllers.is_empty() {
                return Err(Obstacle(
                    "this host has no hierarchy of cgroup version 1".to_owned(),
                ));
            }
            let params = json!({ "controllers": controllers });
            let judge = of_this_kernel(stage, "release_agent is writable", |seen| {
                let tried = seen["tried"].as_array();
                tried.is_some_and(|tried| tried.iter().any(|one| one["open"] == "ok"))
            });
            Ok(Scene::new("release_agent", params, judge))
        },
        ..KERNEL
    },
    Case {
        name: "kernel_sysctl",
        attempt: "opens parameters of the whole kernel for writing, and writes nothing",
        stage: |stage| {
            opened(
                stage,
                &["/proc/sys/kernel/panic", "/proc/sys/vm/overcommit_memory"],
            )
        },
        ..KERNEL
    },
    Case {
        name: "kernel_ebpf",
        attempt: "makes an eBPF map",
        stage: |stage| {
            let judge = of_this_kernel(stage, "an eBPF map", is_ok("/map"));
            Ok(Scene::new("bpf", Value::Null, judge))
        },
        ..KERNEL
    },
    Case {
        name: "kernel_perf",
        attempt: "opens a counter of everything that a processor runs",
        stage: |stage| {
            there(&["/proc/sys/kernel/perf_event_paranoid"])?;
            let judge = of_this_kernel(stage, "a counter of all processes", is_ok("/event"));
            Ok(Scene::new("perf", Value::Null, judge))
        },
        ..KERNEL
    },
    Case {
        name: "kernel_clock",
        attempt: "sets the clock's frequency, to what it is",
        stage: |stage| {
            let judge = of_this_kernel(stage, "set the clock", is_ok("/set"));
            Ok(Scene::new("clock", Value::Null, judge))
        },
        ..KERNEL
    },
    Case {
        name: "kernel_user_namespace_overlay",
        attempt: "mounts an overlay in a new user namespace, where many a fault began (CVE-2021-3493, CVE-2023-0386)",
        stage: |stage| {
            there(&["/proc/self/ns/user"])?;
            let judge = of_this_kernel(stage, "an overlay of anyone's", is_ok("/mounted"));
            Ok(Scene::new("user_namespace_overlay", Value::Null, judge))
        },
        ..KERNEL
    },
    Case {
        name: "kernel_packet_filter",
        attempt: "opens the kernel's packet filter in new user and network namespaces (CVE-2022-32250, CVE-2024-1086)",
        stage: |stage| {
            there(&["/proc/self/ns/user"])?;
            let judge = of_this_kernel(stage, "a packet filter of anyone's", is_ok("/filter"));
            Ok(Scene::new("packet_filter", Value::Null, judge))
        },
        ..KERNEL
    },
    Case {
        name: "kernel_mount_context",
        attempt: "begins a mount by fsopen(2) in new user and mount namespaces (CVE-2022-0185)",
        stage: |stage| {
            there(&["/proc/self/ns/user"])?;
            let judge = of_this_kernel(stage, "a mount of anyone's", is_ok("/context"));
            Ok(Scene::new("mount_context", Value::Null, judge))
        },
        ..KERNEL
    },
    Case {
        name: "kernel_io_uring",
        attempt: "has the kernel make a socket through io_uring (CVE-2022-29582, CVE-2023-2598)",
        stage: |stage| {
            let judge = of_this_kernel(stage, "a ring", is_ok("/ring"));
            Ok(Scene::new("io_ring", Value::Null, judge))
        },
        ..KERNEL
    },
    Case {
        name: "kernel_user_faults",
        attempt: "asks to handle faults of memory itself (userfaultfd), with which races in the kernel are won",
        stage: |stage| {
            let judge = of_this_kernel(stage, "faults of the kernel's too", is_ok("/faults"));
            Ok(Scene::new("user_faults", Value::Null, judge))
        },
        ..KERNEL
    },
];

/// The line "btime" of `/proc/stat` (proc_stat(5)).
fn boot_time(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "));
    line?.trim().parse().ok()
}

/// Reached when the file begins in the container as it begins here.
fn same_text(_: &Stage<'_>, path: &'static str) -> Scene {
    let own = host::first_line(path);
    let judge = move |seen: &Value, _: &Value| {
        let text = seen["files"][path].as_str().unwrap_or_default();
        let line = text.lines().next().unwrap_or_default();
        if !own.is_empty() && line == own {
            Finding::Reached(format!("{path} is the host's: {line}"))
        } else {
            Finding::Blocked(format!("{path} is another: {line:?}"))
        }
    };
    Scene::new("read", json!({ "paths": [path] }), Box::new(judge))
}

/// As [`same_text`], for lists whose first lines say little.
fn same_beginning(path: &'static str) -> std::io::Result<Scene> {
    use std::io::Read as _;
    const BYTES: u64 = 32 << 10;
    let mut own = String::new();
    std::fs::File::open(path)?
        .take(BYTES)
        .read_to_string(&mut own)?;
    let judge = move |seen: &Value, _: &Value| {
        let text = seen["files"][path].as_str().unwrap_or_default();
        if text.starts_with(&own) {
            Finding::Reached(format!("{path} is the host's"))
        } else {
            Finding::Blocked(format!("{path} is another: {}", super::brief(seen)))
        }
    };
    Ok(Scene::new(
        "read",
        json!({ "paths": [path] }),
        Box::new(judge),
    ))
}

/// Reached when one of the files that the host has opens for writing, in the host's kernel.
fn opened(stage: &Stage<'_>, paths: &[&'static str]) -> Result<Scene, Obstacle> {
    let params = json!({ "paths": there(paths)? });
    let judge = of_this_kernel(stage, "writable parameters", opens_one);
    Ok(Scene::new("open_for_writing", params, judge))
}

/// Reached when the host saw it.
fn watched(what: &'static str) -> crate::case::Judge {
    Box::new(move |seen, watched| {
        if watched == true {
            Finding::Reached(what.to_owned())
        } else {
            Finding::Blocked(format!("not seen by the host: {}", super::brief(seen)))
        }
    })
}
