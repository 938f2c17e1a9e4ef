//! Privilege escalation: acting on the host's processes and keys, and becoming more than was given.

use serde_json::{Value, json};

use super::{brief, confinement, is_ok, opens_one, reads_secret};
use crate::case::{Case, Finding, Judge, Obstacle, Profile, Scene, Threat};
use crate::host::{self, raw::Key};

/// A case of this file.
const PRIVILEGE: Case = Case {
    name: "",
    threat: Threat::PrivilegeEscalation,
    attempt: "",
    watch: "its own boot_id, beside the one that the attempt was made in",
    expected: "refused",
    profile: Profile::Plain,
    control: Profile::Granted,
    stage: |_| Err(Obstacle(String::new())),
};

/// Docker's default capabilities, as bits (`moby/profiles`, `oci/caps/defaults.go`).
const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;

pub(super) const ALL: &[Case] = &[
    Case {
        name: "privilege_host_processes",
        attempt: "looks for a process of the host's by its name",
        watch: "a process of its own with a name of its own",
        expected: "it is not found",
        profile: Profile::Granted,
        control: Profile::Host,
        stage: |stage| {
            let name = host::token()?;
            let decoy = stage.host.decoy(&name, "")?;
            let judge: Judge = Box::new(|seen, _| match seen["found"].as_u64() {
                Some(1..) => Finding::Reached("sees a process of the host's".to_owned()),
                _ => Finding::Blocked(format!("sees none: {}", brief(seen))),
            });
            Ok(Scene::new("process_find", json!({ "name": name }), judge).keeping(decoy))
        },
        ..PRIVILEGE
    },
    Case {
        name: "privilege_signal",
        attempt: "kills a process of the host's",
        watch: "whether the process, which is there for it, still runs",
        expected: "it runs",
        profile: Profile::Granted,
        control: Profile::Host,
        stage: |stage| {
            let name = host::token()?;
            let mut decoy = stage.host.decoy(&name, "")?;
            let judge: Judge = Box::new(|seen, watched| {
                if watched == true {
                    Finding::Blocked(format!("the process runs: {}", brief(seen)))
                } else {
                    Finding::Reached("killed a process of the host's".to_owned())
                }
            });
            Ok(Scene::new("process_kill", json!({ "name": name }), judge)
                .watching(move |_| decoy.runs().into()))
        },
        ..PRIVILEGE
    },
    Case {
        name: "privilege_process_memory",
        attempt: "reads the environment of a process of the host's, for which ptrace(2)'s check is made",
        watch: "a process with a secret in its environment",
        expected: "the secret is not read",
        profile: Profile::Granted,
        control: Profile::Host,
        stage: |stage| {
            let (name, secret) = (host::token()?, host::token()?);
            let decoy = stage.host.decoy(&name, &secret)?;
            let judge = reads_secret("the environment of a process of the host's", secret);
            Ok(Scene::new("process_environment", json!({ "name": name }), judge).keeping(decoy))
        },
        ..PRIVILEGE
    },
    Case {
        name: "privilege_trace",
        attempt: "becomes the tracer of a process of the host's (ptrace)",
        watch: "who traces the process, which is there for it",
        expected: "nobody",
        profile: Profile::Granted,
        control: Profile::Host,
        stage: |stage| {
            let name = host::token()?;
            let decoy = stage.host.decoy(&name, "")?;
            let judge: Judge = Box::new(|seen, watched| match watched.as_u64() {
                Some(1..) => Finding::Reached("traces a process of the host's".to_owned()),
                _ => Finding::Blocked(format!("nobody traces it: {}", brief(seen))),
            });
            Ok(Scene::new("process_trace", json!({ "name": name }), judge)
                .watching(move |_| decoy.tracer().into()))
        },
        ..PRIVILEGE
    },
    Case {
        name: "privilege_process_on_host",
        attempt: "gives itself a name",
        watch: "its own processes, for the name",
        expected: "no process of the container is one of the host's",
        control: Profile::Plain,
        stage: |_| {
            let name = host::token()?;
            let judge: Judge = Box::new(|_, watched| match watched.as_u64() {
                Some(1..) => Finding::Reached("it is a process of the host's".to_owned()),
                _ => Finding::Blocked("the host has no such process".to_owned()),
            });
            Ok(Scene::new("process_named", json!({ "name": name }), judge)
                .watching(move |_| host::processes_called(&name).count.into()))
        },
        ..PRIVILEGE
    },
    Case {
        name: "privilege_keyring",
        attempt: "searches the keyrings of its user for a key and reads it",
        watch: "a key with a secret in its own root's keyring",
        expected: "the key is not found",
        profile: Profile::Granted,
        stage: |_| {
            let (name, secret) = (host::token()?, host::token()?);
            let key = Key::add(&name, &secret)?;
            let judge = reads_secret("a key of the host's root", secret);
            Ok(Scene::new("key_find", json!({ "name": name }), judge).keeping(key))
        },
        ..PRIVILEGE
    },
    Case {
        name: "privilege_join_namespaces",
        attempt: "joins the mount namespace of every process it sees, and reads a file of the host's there",
        watch: "a file with a secret outside of every share",
        expected: "the secret is not read",
        profile: Profile::Granted,
        control: Profile::Host,
        stage: |stage| {
            let judge = reads_secret("a file of the host's", stage.host.secret());
            let params = json!({ "path": stage.host.secret_path() });
            Ok(Scene::new("join_namespaces", params, judge))
        },
        ..PRIVILEGE
    },
    Case {
        name: "privilege_cgroup_path",
        attempt: "reads which control group it is in",
        watch: "the name that the group has on the host",
        expected: "the name is not read",
        control: Profile::Host,
        stage: |stage| {
            let folder = stage.shares.writable.parent();
            let name = folder.and_then(std::path::Path::file_name);
            let name = name.unwrap_or_default().to_string_lossy().into_owned();
            let judge = reads_secret("the container's control group on the host", name);
            let params = json!({ "paths": ["/proc/self/cgroup", "/proc/1/cgroup"] });
            Ok(Scene::new("read", params, judge))
        },
        ..PRIVILEGE
    },
    Case {
        name: "privilege_host_name",
        attempt: "reads the name of the machine",
        watch: "its own name",
        expected: "another than the host's",
        control: Profile::Host,
        stage: |_| {
            let own = host::first_line("/proc/sys/kernel/hostname");
            let judge: Judge = Box::new(move |seen, _| {
                let there = seen["name"].as_str().unwrap_or_default();
                if there == own {
                    Finding::Reached(format!("the host's name: {own}"))
                } else {
                    Finding::Blocked(format!("another name: {there}"))
                }
            });
            Ok(Scene::new("host_name", Value::Null, judge))
        },
        ..PRIVILEGE
    },
    Case {
        name: "privilege_capabilities",
        attempt: "reads its capabilities",
        watch: "the list that docker grants",
        expected: "no more than docker's, without asking for it",
        stage: |stage| {
            let judge = confinement(stage, "more than docker grants", |seen| {
                let text = seen["effective"].as_str().unwrap_or_default();
                let set = u64::from_str_radix(text, 16).unwrap_or(u64::MAX);
                set & !DEFAULT_CAPABILITIES != 0
            });
            Ok(Scene::new("capabilities", Value::Null, judge))
        },
        ..PRIVILEGE
    },
    Case {
        name: "privilege_system_calls",
        attempt: "makes nine calls that docker's profile refuses, each in a form that does nothing",
        expected: "every one refused, without asking for it",
        stage: |stage| {
            let judge = confinement(stage, "calls are let through", |seen| {
                let calls = seen["calls"].as_object();
                calls.is_none_or(|calls| calls.values().any(|call| call["refused"] == false))
            });
            Ok(Scene::new("system_calls", Value::Null, judge))
        },
        ..PRIVILEGE
    },
    Case {
        name: "privilege_io_uring",
        attempt: "makes a ring for system calls (io_uring), which no filter of system calls sees into",
        expected: "refused, without asking for it",
        stage: |stage| {
            let judge = confinement(stage, "a ring", is_ok("/ring"));
            Ok(Scene::new("io_ring", Value::Null, judge))
        },
        ..PRIVILEGE
    },
    Case {
        name: "privilege_exec_confinement",
        attempt: "looks at the capabilities and the filter of system calls of a process that is added to the container (exec)",
        watch: "what that process says, beside the first one",
        expected: "docker's capabilities and a filter, without asking for it, and no more than the first process has",
        stage: |stage| {
            let less_confined = |both: &Value| {
                let of = |who: &str, what: &str| both[who][what].as_str().unwrap_or("?").to_owned();
                let set = |who: &str, what: &str| u64::from_str_radix(&of(who, what), 16);
                let more = ["effective", "bounding"].into_iter().any(|what| {
                    let (first, added) = (set("first", what), set("added", what));
                    let allowed = DEFAULT_CAPABILITIES & first.unwrap_or(0);
                    added.unwrap_or(u64::MAX) & !allowed != 0
                });
                more || of("added", "filter") != "2"
                    || of("added", "no_new_privileges") < of("first", "no_new_privileges")
            };
            let what = "an added process is confined less";
            let judge = of_added(confinement(stage, what, less_confined));
            Ok(Scene::new("confinement", Value::Null, judge).adding())
        },
        ..PRIVILEGE
    },
    Case {
        name: "privilege_exec_namespaces",
        attempt: "looks at the namespaces and the control group of a process that is added to the container (exec)",
        watch: "what that process says, beside the first one, and its own namespaces",
        expected: "the first process's, and none of the host's",
        profile: Profile::Granted,
        control: Profile::Host,
        stage: |stage| {
            let here = stage.host.boot_id.clone();
            let mut own = Vec::new();
            for kind in ["ipc", "net", "pid", "uts"] {
                let target = std::fs::read_link(format!("/proc/self/ns/{kind}"))?;
                own.push((kind, target.to_string_lossy().into_owned()));
            }
            let outside = move |both: &Value| {
                let (first, added) = (&both["first"], &both["added"]);
                let is_ours = |(kind, target): &(&str, String)| {
                    added["namespaces"][*kind].as_str() == Some(target.as_str())
                };
                first["namespaces"] != added["namespaces"]
                    || first["control_group"] != added["control_group"]
                    || both["boot_id"] == here && own.iter().any(is_ours)
            };
            let what = "an added process is outside of the container";
            let judge = of_added(confinement(stage, what, outside));
            Ok(Scene::new("confinement", Value::Null, judge).adding())
        },
        ..PRIVILEGE
    },
    Case {
        name: "privilege_user_namespace",
        attempt: "makes a user namespace, in which it has every capability",
        stage: |stage| {
            super::there(&["/proc/self/ns/user"])?;
            let judge = confinement(stage, "a user namespace", is_ok("/made"));
            Ok(Scene::new("user_namespace", Value::Null, judge))
        },
        ..PRIVILEGE
    },
    Case {
        name: "privilege_mount",
        attempt: "mounts a tmpfs",
        stage: |stage| {
            let judge = confinement(stage, "a mount", is_ok("/mounted"));
            let params = json!({ "path": "/tmp/mount", "source": "probe" });
            Ok(Scene::new("mount_tmpfs", params, judge))
        },
        ..PRIVILEGE
    },
    Case {
        name: "privilege_device_rules",
        attempt: "makes a node of the kernel's log (1:11) and opens it",
        stage: |stage| {
            let judge = confinement(stage, "a device beyond the rules", is_ok("/opened"));
            let params = json!({ "major": 1, "minor": 11, "offset": 0, "length": 1 });
            Ok(Scene::new("device_read", params, judge))
        },
        ..PRIVILEGE
    },
    Case {
        name: "privilege_read_only_proc",
        attempt: "opens parameters of the kernel for writing, and writes nothing",
        stage: |stage| {
            let judge = confinement(stage, "writable parameters", opens_one);
            let params =
                json!({ "paths": ["/proc/sys/kernel/panic", "/proc/sys/vm/overcommit_memory"] });
            Ok(Scene::new("open_for_writing", params, judge))
        },
        ..PRIVILEGE
    },
    Case {
        name: "privilege_masked_paths",
        attempt: "reads lists of the kernel's that docker masks",
        expected: "they are empty",
        stage: |stage| {
            let judge = confinement(stage, "masked lists are there", |seen| {
                let files = seen["files"].as_object();
                files.is_none_or(|files| {
                    files
                        .values()
                        .any(|text| text.as_str().is_some_and(|text| !text.trim().is_empty()))
                })
            });
            let paths = [
                "/proc/keys",
                "/proc/timer_list",
                "/proc/interrupts",
                "/proc/sched_debug",
            ];
            Ok(Scene::new("read", json!({ "paths": paths }), judge))
        },
        ..PRIVILEGE
    },
];

/// The judgement of the first process and of one that was added to it, together.
fn of_added(judge: Judge) -> Judge {
    Box::new(move |seen, watched| {
        let added = &watched["added"];
        let both = json!({ "boot_id": added["boot_id"], "first": seen, "added": added });
        judge(&both, &Value::Null)
    })
}
