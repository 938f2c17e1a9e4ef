use super::*;
use serde_json::{Value, json};

const ROOT: &str = "/run/sandbox/containers/a/rootfs";

fn spec(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut spec = json!({
        "ociVersion": "1.1.0",
        "root": {"path": "rootfs", "readonly": true},
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {"bounding": ["CAP_KILL"]},
            "apparmorProfile": "unconfined",
        },
        "hooks": {"prestart": [{"path": "/bin/hook"}], "startContainer": [{"path": "/bin/in"}]},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {
            "cgroupsPath": "/kubepods/x",
            "namespaces": [
                {"type": "pid", "path": "/proc/1/ns/pid"},
                {"type": "network", "path": "/var/run/netns/x"},
                {"type": "ipc"},
            ],
            "sysctl": {"net.ipv4.ping_group_range": "0 1", "kernel.shmmax": "1"},
        },
    });
    change(&mut spec);
    serde_json::to_vec(&spec).unwrap()
}

fn adapted(change: impl FnOnce(&mut Value)) -> Result<GuestSpec, SpecError> {
    let placement = Placement {
        id: "a",
        root_path: ROOT,
        cgroups_path: "/sandbox/a",
        terminal: false,
        shared: &[],
    };
    adapt(&spec(change), &placement)
}

#[test]
fn spec_of_a_host_becomes_one_for_the_guest() {
    let guest = adapted(|_| {}).unwrap();
    assert_eq!(guest.spec.root().as_ref().unwrap().path(), Path::new(ROOT));
    assert_eq!(guest.spec.root().as_ref().unwrap().readonly(), Some(false));
    assert!(guest.confinement.root_read_only);
    assert!(guest.spec.hooks().is_none());
    let linux = guest.spec.linux().as_ref().unwrap();
    assert_eq!(
        linux.cgroups_path().as_deref(),
        Some(Path::new("/sandbox/a"))
    );
    assert_eq!(
        guest.guest_sysctl,
        [("net.ipv4.ping_group_range".to_owned(), "0 1".to_owned())]
    );
    assert_eq!(linux.sysctl().as_ref().unwrap().len(), 1);
    let process = guest.spec.process().as_ref().unwrap();
    assert!(process.apparmor_profile().is_none());
    assert!(process.capabilities().is_none());
    assert!(guest.confinement.capabilities.is_some());
    let hooks = guest.confinement.hooks.unwrap();
    assert_eq!(hooks.hooks[0].path(), Path::new("/bin/in"));
    assert_eq!(hooks.state["id"], "a");
}

#[test]
fn container_never_shares_the_agents_processes_or_mounts() {
    let guest = adapted(|spec| spec["linux"]["namespaces"] = json!([])).unwrap();
    let linux = guest.spec.linux().as_ref().unwrap();
    let namespaces = linux.namespaces().as_ref().unwrap();
    let types: Vec<_> = namespaces.iter().map(LinuxNamespace::typ).collect();
    assert_eq!(
        types,
        [
            LinuxNamespaceType::Pid,
            LinuxNamespaceType::Mount,
            LinuxNamespaceType::Cgroup
        ]
    );
}

#[test]
fn namespace_path_of_the_host_becomes_a_new_namespace() {
    let guest = adapted(|_| {}).unwrap();
    let linux = guest.spec.linux().as_ref().unwrap();
    let namespaces = linux.namespaces().as_ref().unwrap();
    assert!(namespaces.iter().all(|ns| ns.path().is_none()));
    assert!(
        namespaces
            .iter()
            .all(|ns| ns.typ() != LinuxNamespaceType::Network)
    );
}

#[test]
fn namespace_of_another_container_is_joined() {
    let placement = Placement {
        id: "a",
        root_path: ROOT,
        cgroups_path: "/sandbox/a",
        terminal: false,
        shared: &[(LinuxNamespaceType::Pid, "/proc/7/ns/pid".into())],
    };
    let guest = adapt(&spec(|_| {}), &placement).unwrap();
    let linux = guest.spec.linux().as_ref().unwrap();
    let namespaces = linux.namespaces().clone().unwrap();
    let joined: Vec<_> = namespaces
        .iter()
        .filter_map(|ns| ns.path().clone())
        .collect();
    assert_eq!(joined, [Path::new("/proc/7/ns/pid")]);
    assert!(guest.shares_pids);
}

#[test]
fn read_only_paths_are_left_to_the_executor() {
    let guest = adapted(|spec| spec["linux"]["readonlyPaths"] = json!(["/proc/sys"])).unwrap();
    let linux = guest.spec.linux().as_ref().unwrap();
    assert!(linux.readonly_paths().is_none());
    assert_eq!(guest.confinement.read_only, [Path::new("/proc/sys")]);
}

#[test]
fn root_propagation_becomes_the_plain_word() {
    for (word, expected) in [
        ("rslave", Some("slave")),
        ("rprivate", Some("private")),
        ("rshared", Some("shared")),
        ("runbindable", Some("unbindable")),
        ("slave", Some("slave")),
        ("", None),
        ("other", Some("other")),
    ] {
        let guest = adapted(|spec| spec["linux"]["rootfsPropagation"] = json!(word)).unwrap();
        let linux = guest.spec.linux().as_ref().unwrap();
        assert_eq!(linux.rootfs_propagation().as_deref(), expected, "{word}");
    }
}

#[test]
fn resources_are_for_the_agent_alone() {
    let memory = json!({"memory": {"limit": 1}, "devices": [{"allow": true, "access": "rwm"}]});
    let guest = adapted(|spec| spec["linux"]["resources"] = memory).unwrap();
    let linux = guest.spec.linux().as_ref().unwrap();
    assert!(linux.resources().is_none());
    assert_ne!(guest.limits, Limits::default());
    assert_eq!(guest.devices.len(), 1);
}

#[test]
fn bind_of_a_host_path_is_refused_and_named() {
    for change in [
        json!({"destination": "/data", "type": "bind", "source": "/srv"}),
        json!({"destination": "/data", "source": "/srv", "options": ["rbind"]}),
        json!({"destination": "/data", "type": "bind", "source": "/run/sandbox/../../x"}),
    ] {
        let error = adapted(|spec| spec["mounts"] = json!([change])).unwrap_err();
        assert!(error.to_string().contains("/data"), "{error}");
    }
}

#[test]
fn bind_of_a_share_is_taken() {
    let share = json!({"destination": "/data", "type": "bind", "source": "/run/sandbox/shares/1"});
    assert!(adapted(|spec| spec["mounts"] = json!([share])).is_ok());
}

#[test]
fn deny_list_with_an_unknown_call_is_refused() {
    let profile = |default: &str, action: &str| json!({"defaultAction": default, "syscalls": [{"names": ["no_such_call"], "action": action}]});
    let with = |profile| adapted(|spec| spec["linux"]["seccomp"] = profile);
    assert!(matches!(
        with(profile("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO")),
        Err(SpecError::UnknownSyscall { .. })
    ));
    assert!(with(profile("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW")).is_ok());
    assert!(matches!(
        with(profile("SCMP_ACT_ERRNO", "SCMP_ACT_NOTIFY")),
        Err(SpecError::SeccompNotify)
    ));
}

#[test]
fn home_that_is_absent_or_empty_is_left_to_the_executor() {
    for env in [json!(["PATH=/bin"]), json!(["HOME="])] {
        let guest = adapted(|spec| spec["process"]["env"] = env).unwrap();
        let process = guest.spec.process().as_ref().unwrap();
        assert_eq!(process.env().as_ref().unwrap()[0], HOME_UNKNOWN);
    }
    let guest = adapted(|spec| spec["process"]["env"] = json!(["HOME=/h"])).unwrap();
    let process = guest.spec.process().as_ref().unwrap();
    assert_eq!(process.env().as_ref().unwrap(), &["HOME=/h"]);
}

#[test]
fn what_the_guest_has_nothing_for_is_refused_by_its_name() {
    for (pointer, value) in [
        ("/process/apparmorProfile", json!("docker-default")),
        ("/process/selinuxLabel", json!("system_u:x")),
        ("/process/execCPUAffinity", json!({"initial": "0"})),
        ("/linux/mountLabel", json!("system_u:x")),
        ("/linux/intelRdt", json!({"closID": "x"})),
        ("/hooks/createContainer", json!([{"path": "/bin/x"}])),
    ] {
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        let error = adapted(|spec| spec.pointer_mut(parent).unwrap()[name] = value).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
    for member in ["apparmorProfile", "selinuxLabel"] {
        assert!(adapted(|spec| spec["process"][member] = json!("")).is_ok());
    }
}

#[test]
fn mount_option_that_would_be_passed_over_is_refused() {
    let with = |options: Value| {
        adapted(|spec| {
            spec["mounts"] =
                json!([{"destination": "/t", "type": "tmpfs", "source": "t", "options": options}])
        })
    };
    assert!(
        with(json!(["tmpcopyup"]))
            .unwrap_err()
            .to_string()
            .contains("tmpcopyup")
    );
    let guest = with(json!(["rshared", "size=1m", "x-sandbox.copy"])).unwrap();
    let mounts = guest.spec.mounts().as_ref().unwrap();
    assert_eq!(mounts[0].options().as_ref().unwrap(), &["size=1m"]);
    assert_eq!(guest.confinement.propagation[0].kind, Propagation::Shared);
    let share = json!([{"destination": "/d", "type": "bind", "source": "/run/sandbox/s", "options": ["rshared"]}]);
    assert!(adapted(|spec| spec["mounts"] = share).is_err());
}

#[test]
fn process_limits_are_left_to_the_executor() {
    let limits = json!([{"type": "RLIMIT_NOFILE", "hard": 5, "soft": 5}]);
    let guest = adapted(|spec| spec["process"]["rlimits"] = limits).unwrap();
    assert!(guest.spec.process().as_ref().unwrap().rlimits().is_none());
    assert_eq!(guest.confinement.rlimits.len(), 1);
}
