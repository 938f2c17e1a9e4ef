//! What the members of the OCI runtime spec do, looked at from inside.

use anyhow::{Context as _, Result, ensure};
use sandbox_protocol::agent::{Mount, mount::Source};
use serde_json::{Value, json};
use ttrpc::proto::Code;

use crate::cases::{OUT, end, exec, field, shell, status_of, until};
use crate::client::{Host, PIPES, limit, text};
use crate::spec;

/// Runs the script and says what came out of it on both outputs.
async fn output(host: &mut Host<'_>, id: &str, spec: &Value) -> Result<String> {
    let (_, stdout, stderr) = host.run(id, spec).await?;
    Ok(stdout + &stderr)
}

fn expect(text: &str, lines: &[&str]) -> Result<()> {
    for line in lines {
        ensure!(
            text.lines().any(|found| found == *line),
            "no {line:?} in {text}"
        );
    }
    Ok(())
}

fn add_mount(spec: &mut Value, mount: Value) -> Result<()> {
    let mounts = spec["mounts"].as_array_mut();
    mounts.context("no mounts")?.push(mount);
    Ok(())
}

/// What a process says of itself.
const LOOK: &str = "echo id $(id -u) $(id -g) $(id -G); echo umask $(umask); echo nofile $(ulimit -n) $(ulimit -Hn); \
    echo cwd $PWD; echo env $A; echo oom $(cat /proc/self/oom_score_adj); \
    echo nice $(cut -d' ' -f19 /proc/$$/stat); echo policy $(cut -d' ' -f41 /proc/$$/stat); \
    echo io $(ionice -p $$); echo memlock $(ulimit -l); cat /proc/$$/status; timeout 9 head -c 16 /dev/random | wc -c";

pub(crate) async fn process_is_as_the_spec_says_first_and_added(host: &mut Host<'_>) -> Result<()> {
    let capabilities = |held: &[&str], ambient: &[&str]| {
        json!({
            "bounding": ["CAP_KILL", "CAP_NET_BIND_SERVICE"], "effective": held, "permitted": held,
            "inheritable": ambient, "ambient": ambient,
        })
    };
    let mut spec = shell(&format!("{LOOK}; echo end; exec sleep 1000"));
    let process = &mut spec["process"];
    process["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 0o027});
    process["rlimits"] = json!([
        {"type": "RLIMIT_NOFILE", "soft": 9, "hard": 11},
        {"type": "RLIMIT_MEMLOCK", "soft": 1_073_741_824_u64, "hard": 1_073_741_824_u64},
    ]);
    // It is made.
    process["cwd"] = json!("/made/here");
    process["env"] = json!(["PATH=/bin", "A=first one"]);
    process["oomScoreAdj"] = json!(500);
    process["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 5});
    process["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 3});
    process["capabilities"] = capabilities(
        &["CAP_KILL", "CAP_NET_BIND_SERVICE"],
        &["CAP_NET_BIND_SERVICE"],
    );
    host.create("process", &spec, PIPES()).await?;
    let mut stdout = host.stream("process", "", OUT).await?;
    host.start("process", "").await?;
    let seen = until(&mut stdout, "\nend").await?;
    expect(
        &seen,
        &[
            "id 1000 1001 1001 5 6",
            "umask 0027",
            "nofile 9 11",
            "memlock 1048576",
            "cwd /made/here",
            "env first one",
            "oom 500",
            "nice 5",
            "policy 3",
            "io best-effort: prio 3",
            "16",
        ],
    )?;
    // Kill is 5, net bind service 10. What is not ambient goes with the change to a user.
    for (set, bits) in [
        ("CapInh", "0000000000000400"),
        ("CapPrm", "0000000000000400"),
        ("CapEff", "0000000000000400"),
        ("CapBnd", "0000000000000420"),
        ("CapAmb", "0000000000000400"),
        ("NoNewPrivs", "1"),
    ] {
        ensure!(field(&seen, set) == Some(bits), "{set} in {seen}");
    }

    let mut added = spec::process(&["sh", "-c", LOOK]);
    added["user"] = json!({"uid": 0, "gid": 7, "additionalGids": [8], "umask": 0o077});
    added["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 10}]);
    added["cwd"] = json!("/bin");
    added["env"] = json!(["PATH=/bin", "A=added"]);
    added["oomScoreAdj"] = json!(-5);
    added["scheduler"] = json!({"policy": "SCHED_IDLE"});
    added["ioPriority"] = json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0});
    added["capabilities"] = capabilities(&["CAP_KILL"], &[]);
    added["noNewPrivileges"] = json!(false);
    let seen = exec(host, "process", &added).await?;
    expect(
        &seen,
        &[
            "id 0 7 7 8",
            "umask 0077",
            "nofile 10 10",
            "cwd /bin",
            "env added",
            "oom -5",
            "policy 5",
            "io idle",
        ],
    )?;
    // Root gets back what its bounding set allows (capabilities(7)).
    for (set, bits) in [
        ("CapEff", "0000000000000420"),
        ("CapBnd", "0000000000000420"),
        ("CapInh", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "0"),
    ] {
        ensure!(field(&seen, set) == Some(bits), "{set} in {seen}");
    }
    end(host, "process").await
}

pub(crate) async fn user_by_name_is_that_of_the_container(host: &mut Host<'_>) -> Result<()> {
    let look = ["sh", "-c", "id -u; id -g; id -G; echo $HOME"];
    let mut spec = spec::container(&[
        "sh",
        "-c",
        "id -u; id -g; id -G; echo $HOME; exec sleep 1000",
    ]);
    spec["process"]["user"] = json!({"username": "user", "additionalGids": [77]});
    host.create("name", &spec, PIPES()).await?;
    let mut stdout = host.stream("name", "", OUT).await?;
    host.start("name", "").await?;
    let seen = until(&mut stdout, "/home").await?;
    ensure!(seen.starts_with("1000\n1000\n1000 10 29 77\n"), "{seen}");
    for (name, expected) in [
        ("user:audio", "1000\n29\n29\n/home/user\n"),
        ("12:34", "12\n34\n34\n/\n"),
        ("root", "0\n0\n0 29\n/root\n"),
    ] {
        let mut added = spec::process(&look);
        added["user"] = json!({"username": name});
        let seen = exec(host, "name", &added).await?;
        ensure!(seen == expected, "{name}: {seen:?}");
    }
    for name in ["nobody", "user:nogroup"] {
        let mut added = spec::process(&look);
        added["user"] = json!({"username": name});
        host.add("name", "x", &added, PIPES()).await?;
        let status = status_of(host.start("name", "x").await)?;
        ensure!(status.code() == Code::INVALID_ARGUMENT, "{status:?}");
        host.delete("name", "x").await?;
    }
    end(host, "name").await?;
    spec["process"]["user"] = json!({"username": "nobody"});
    let status = status_of(host.create("name", &spec, PIPES()).await)?;
    ensure!(status.code() == Code::INVALID_ARGUMENT, "{status:?}");
    ensure!(status.message().contains("\"nobody\""), "{status:?}");
    Ok(())
}

pub(crate) async fn file_systems_are_as_the_spec_says(host: &mut Host<'_>) -> Result<()> {
    let mut spec = shell(
        "cat /proc/self/mounts; cat /proc/self/mountinfo | sed 's/^/info /'; touch /x; touch /tmp/x && echo tmp written; \
         echo 1 > /proc/sys/vm/swappiness; cat /proc/keys | wc -c | sed 's/^/keys /'; ls /proc/fs | wc -l | sed 's/^/fs /'; \
         cat /sys/fs/cgroup/cgroup.procs | head -1 | sed 's/^/cgroup /'; cat /proc/self/cgroup; \
         touch /dev/mqueue/q && echo queue made; test -c /dev/pts/ptmx && echo ptmx; cp /bin/busybox /mnt && /mnt/busybox true",
    );
    spec["root"]["readonly"] = json!(true);
    spec["linux"]["maskedPaths"] = json!(["/proc/keys", "/proc/fs", "/proc/nothing"]);
    let mounts = spec["mounts"].as_array_mut().context("no mounts")?;
    for mount in mounts.iter_mut() {
        if mount["destination"] == "/dev/shm" {
            mount["options"] = json!(["nosuid", "noexec", "nodev", "mode=1777", "size=12288k"]);
        }
    }
    add_mount(
        &mut spec,
        json!({"destination": "/mnt", "type": "tmpfs", "source": "tmpfs", "options": ["rw", "noexec", "nosuid", "size=3m", "mode=700", "uid=5", "rshared"]}),
    )?;
    let seen = output(host, "files", &spec).await?;
    let mount = |path: &str| {
        let find = |line: &&str| line.split(' ').nth(1) == Some(path);
        seen.lines()
            .find(find)
            .with_context(|| format!("no {path} in {seen}"))
    };
    let has = |path: &str, words: &[&str]| -> Result<()> {
        let line = mount(path)?;
        let options: Vec<_> = line
            .split(' ')
            .nth(3)
            .unwrap_or_default()
            .split(',')
            .collect();
        for word in words {
            ensure!(options.contains(word), "no {word} in {line}");
        }
        Ok(())
    };
    has("/", &["ro"])?;
    has(
        "/mnt",
        &["noexec", "nosuid", "size=3072k", "mode=700", "uid=5"],
    )?;
    has("/dev/shm", &["size=12288k", "nodev"])?;
    has("/proc/sys", &["ro"])?;
    has("/sys/fs/cgroup", &["ro"])?;
    ensure!(mount("/dev/mqueue")?.contains(" mqueue ") && mount("/sys")?.contains(" sysfs "));
    expect(
        &seen,
        &[
            "tmp written",
            "keys 0",
            "fs 0",
            "cgroup 1",
            "0::/",
            "queue made",
            "ptmx",
        ],
    )?;
    ensure!(seen.contains("touch: /x: Read-only file system"), "{seen}");
    ensure!(
        seen.contains("can't create /proc/sys/vm/swappiness: Read-only"),
        "{seen}"
    );
    ensure!(seen.contains("/mnt/busybox: Permission denied"), "{seen}");
    let propagation = |path: &str| {
        let find = |line: &&str| line.starts_with("info ") && line.split(' ').nth(5) == Some(path);
        seen.lines()
            .find(find)
            .map(|line| line.contains(" shared:"))
    };
    ensure!(propagation("/mnt") == Some(true), "{seen}");
    ensure!(propagation("/tmp") == Some(false), "{seen}");
    Ok(())
}

pub(crate) async fn binds_are_read_only_as_far_as_they_say(host: &mut Host<'_>) -> Result<()> {
    let mut spec = shell(
        "for m in rw ro rro one; do touch /tmp/$m/x && echo $m; touch /tmp/$m/sub/x && echo $m sub; done; true",
    );
    let share = "/run/sandbox/shares/binds";
    for (name, options) in [
        ("rw", json!(["rbind"])),
        ("ro", json!(["rbind", "ro"])),
        ("rro", json!(["rbind", "rro"])),
        ("one", json!(["bind"])),
    ] {
        add_mount(
            &mut spec,
            json!({"destination": format!("/tmp/{name}"), "type": "bind", "source": share, "options": options}),
        )?;
    }
    let mut request = host.request("binds", &spec, PIPES());
    for target in [share.to_owned(), format!("{share}/sub")] {
        request.mounts.push(Mount {
            source: Some(Source::Literal("tmpfs".to_owned())),
            fstype: "tmpfs".to_owned(),
            target,
            ..Mount::default()
        });
    }
    host.calls.create_container(limit(), &request).await?;
    let stdout = host.stream("binds", "", OUT).await?;
    host.start("binds", "").await?;
    let seen = text(stdout).await?;
    host.exit("binds", "").await?;
    host.delete("binds", "").await?;
    // Without the mounts below it, a bind shows the folder that they cover.
    ensure!(seen == "rw\nrw sub\nro sub\none\none sub\n", "{seen}");
    Ok(())
}

pub(crate) async fn devices_are_made_and_the_console_is_closed(host: &mut Host<'_>) -> Result<()> {
    let mut spec = shell(
        "stat -c '%F %t:%T %a %u:%g' /dev/own; stat -c %a /dev/mine; echo x > /dev/own && echo own written; \
         for d in '5 1' '4 64' '10 200' '1 11' '10 200'; do rm -f /dev/t; mknod /dev/t c $d && echo made; echo forged $d > /dev/t && echo $d open; done; \
         head -c 4 /dev/urandom | wc -c; echo > /dev/full; ls -l /dev/fd /dev/stdin /dev/ptmx | wc -l",
    );
    spec["linux"]["devices"] = json!([{"path": "/dev/own", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 3, "gid": 4},
        {"path": "/dev/mine/null", "type": "c", "major": 1, "minor": 3}]);
    // As docker and containerd have it, the console among them.
    spec["linux"]["resources"]["devices"] = json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
        {"allow": true, "type": "c", "major": 5, "minor": 1, "access": "rwm"},
    ]);
    let seen = output(host, "devices", &spec).await?;
    expect(
        &seen,
        &[
            "character special file 1:3 640 3:4",
            "755",
            "own written",
            "4",
            "3",
        ],
    )?;
    ensure!(seen.matches("made\n").count() == 5, "{seen}");
    ensure!(!seen.contains(" open"), "{seen}");
    ensure!(seen.contains("No space left on device"), "{seen}");
    // Nor with all devices allowed, as privileged containers have it.
    let mut spec = shell(
        "mknod /dev/t c 5 1; echo forged > /dev/t && echo open; mknod /dev/k c 1 1; test -c /dev/k && echo k",
    );
    spec["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    let seen = output(host, "devices", &spec).await?;
    ensure!(!seen.contains("open") && seen.contains("k\n"), "{seen}");
    // The kernel may have had something to say meanwhile.
    let console = host.machine.console();
    ensure!(!console.contains("forged"), "{console}");
    Ok(())
}

pub(crate) async fn kernel_parameters_names_and_clocks_are_the_containers_own(
    host: &mut Host<'_>,
) -> Result<()> {
    let mut spec = shell(
        "cat /proc/sys/kernel/shmmax /proc/sys/net/ipv4/ip_default_ttl; hostname; cat /proc/sys/kernel/domainname; \
         cut -d. -f1 /proc/uptime; uname -m; cat /proc/sys/kernel/io_uring_disabled",
    );
    spec["linux"]["sysctl"] = json!({"kernel.shmmax": "1234567", "net.ipv4.ip_default_ttl": "63"});
    spec["hostname"] = json!("named");
    spec["domainname"] = json!("example.org");
    let namespaces = spec["linux"]["namespaces"].as_array_mut();
    namespaces
        .context("no namespaces")?
        .push(json!({"type": "time"}));
    spec["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1_000_000, "nanosecs": 0}});
    spec["linux"]["personality"] = json!({"domain": "LINUX32"});
    let seen = output(host, "kernel", &spec).await?;
    let lines: Vec<_> = seen.lines().collect();
    ensure!(
        lines[..4] == ["1234567", "63", "named", "example.org"],
        "{seen}"
    );
    ensure!(lines[4].parse::<u64>()? >= 1_000_000, "{seen}");
    ensure!(lines[5] == "i686", "{seen}");
    // Older kernels than the guest's have no such switch.
    ensure!(!host.machine.in_guest() || lines[6] == "2", "{seen}");
    Ok(())
}

pub(crate) async fn user_namespace_maps_the_users(host: &mut Host<'_>) -> Result<()> {
    let look = "id -u; cat /proc/self/uid_map | tr -s ' '; cat /proc/self/gid_map | tr -s ' '; stat -c %u /bin; touch /tmp/x && stat -c %u /tmp/x; \
                grep CapEff /proc/self/status; echo x > /dev/null && echo null; ls /sys/class | grep -c net; touch /sys/x";
    let mut spec = shell(&format!("{look}; echo end; exec sleep 1000"));
    let namespaces = spec["linux"]["namespaces"].as_array_mut();
    namespaces
        .context("no namespaces")?
        .push(json!({"type": "user"}));
    let mapping = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    spec["linux"]["uidMappings"] = mapping.clone();
    spec["linux"]["gidMappings"] = mapping;
    host.create("users", &spec, PIPES()).await?;
    let mut stdout = host.stream("users", "", OUT).await?;
    host.start("users", "").await?;
    let seen = until(&mut stdout, "end").await?;
    let expected =
        "0\n 0 100000 65536\n 0 100000 65536\n65534\n0\nCapEff:\t00000000a80425fb\nnull\n1\nend";
    ensure!(seen.trim_end() == expected, "{seen:?}");
    let seen = exec(host, "users", &spec::process(&["sh", "-c", look])).await?;
    ensure!(
        seen.starts_with(expected.trim_end_matches("end")),
        "{seen:?}"
    );
    ensure!(seen.contains("Read-only file system"), "{seen:?}");
    // With its own control groups taken away, as the namespace's root may, it sees those that came with sysfs.
    let mut process = spec::process(&[
        "sh",
        "-c",
        "umount /sys/fs/cgroup || exit; mount -o remount,bind,rw /sys/fs/cgroup; mount -o remount,bind,rw /sys; \
         files=$(find /sys/fs/cgroup -name 'cgroup.procs' -o -name '*.max' -o -name 'cgroup.subtree_control'); \
         for file in $files; do (cat < /dev/null >> $file) && echo opened $file; done 2> /dev/null; \
         mkdir /sys/fs/cgroup/made && echo made; set -- $files; [ $# -gt 2 ] && echo looked",
    ]);
    for set in ["bounding", "effective", "permitted"] {
        let set = process["capabilities"][set].as_array_mut();
        set.context("no capabilities")?.push(json!("CAP_SYS_ADMIN"));
    }
    let seen = exec(host, "users", &process).await?;
    ensure!(
        seen.contains("looked") && !seen.contains("opened") && !seen.contains("made\n"),
        "{seen}"
    );
    end(host, "users").await
}

pub(crate) async fn seccomp_profile_holds_first_and_added(host: &mut Host<'_>) -> Result<()> {
    let look = "mkdir /tmp/a; unshare -U true; ln -s x /tmp/b && echo linked; chmod 777 /tmp; chmod 4777 /bin/sh";
    let mut spec = shell(&format!("{{ {look}; }} 2>&1; echo end; exec sleep 1000"));
    spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 12},
            {"names": ["unshare"], "action": "SCMP_ACT_ERRNO"},
            {"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28,
             "args": [{"index": 1, "value": 0o4000, "valueTwo": 0o4000, "op": "SCMP_CMP_MASKED_EQ"}]},
        ],
    });
    host.create("seccomp", &spec, PIPES()).await?;
    let mut stdout = host.stream("seccomp", "", OUT).await?;
    host.start("seccomp", "").await?;
    let first = until(&mut stdout, "end").await?;
    let added = exec(
        host,
        "seccomp",
        &spec::process(&["sh", "-c", &format!("rm /tmp/b; {look}")]),
    )
    .await?;
    for seen in [&first, &added] {
        ensure!(
            seen.contains("'/tmp/a': Out of memory") || seen.contains("'/tmp/a': Cannot allocate"),
            "{seen}"
        );
        ensure!(
            seen.contains("unshare") && seen.contains("not permitted"),
            "{seen}"
        );
        ensure!(
            seen.contains("linked") && seen.contains("/bin/sh: No space left"),
            "{seen}"
        );
        ensure!(!seen.contains("/tmp: No space"), "{seen}");
    }
    end(host, "seccomp").await?;
    // Unconfined: only the agent's own filter.
    spec["linux"]
        .as_object_mut()
        .context("no object")?
        .remove("seccomp");
    spec["process"]["args"] = json!(["cat", "/proc/self/status"]);
    let seen = output(host, "seccomp", &spec).await?;
    ensure!(field(&seen, "Seccomp_filters") == Some("1"), "{seen}");
    Ok(())
}

pub(crate) async fn start_hooks_run_in_the_container(host: &mut Host<'_>) -> Result<()> {
    let mut spec = shell("cat /tmp/state; cat /tmp/seen");
    let hook =
        "cat > /tmp/state; { echo; id -u; echo $0 $A; grep CapEff /proc/self/status; } > /tmp/seen";
    spec["process"]["env"] = json!(["PATH=/bin", "A=container"]);
    spec["annotations"] = json!({"k": "v"});
    spec["hooks"] = json!({
        "prestart": [{"path": "/no/such/program/of/the/host"}],
        "startContainer": [
            {"path": "/bin/sh", "args": ["sh", "-c", hook, "name"]},
            {"path": "/bin/sh", "args": ["sh", "-c", "echo $A >> /tmp/seen"], "env": ["A=hook"], "timeout": 30},
        ],
    });
    let seen = output(host, "hooks", &spec).await?;
    let (state, rest) = seen.split_once('\n').context("no state")?;
    let state: Value = serde_json::from_str(state).with_context(|| seen.clone())?;
    ensure!(
        state["id"] == "hooks" && state["status"] == "created",
        "{state}"
    );
    ensure!(
        state["pid"] == 1 && state["annotations"]["k"] == "v",
        "{state}"
    );
    ensure!(
        rest == "0\nname container\nCapEff:\t00000000a80425fb\nhook\n",
        "{seen:?}"
    );
    for (script, timeout, word) in [("exit 3", 30, "failed"), ("sleep 1000", 1, "not done")] {
        spec["hooks"]["startContainer"] =
            json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "timeout": timeout}]);
        host.create("hooks", &spec, PIPES()).await?;
        let status = status_of(host.start("hooks", "").await)?;
        ensure!(
            status.message().contains("startContainer hook /bin/sh"),
            "{status:?}"
        );
        ensure!(status.message().contains(word), "{status:?}");
        host.delete("hooks", "").await?;
    }
    Ok(())
}

pub(crate) async fn memory_that_runs_out_in_other_processes_is_told(
    host: &mut Host<'_>,
) -> Result<()> {
    let mut spec = shell("tail /dev/zero; echo child $?; exec sleep 1000");
    spec["linux"]["resources"]["memory"] = json!({"limit": 16_777_216, "swap": 16_777_216});
    host.create("oom2", &spec, PIPES()).await?;
    let mut stdout = host.stream("oom2", "", OUT).await?;
    host.start("oom2", "").await?;
    until(&mut stdout, "child 137").await?;
    host.add("oom2", "x", &spec::process(&["tail", "/dev/zero"]), PIPES())
        .await?;
    host.start("oom2", "x").await?;
    let (status, told) = host.exit_with_memory("oom2", "x").await?;
    ensure!(status == 137, "{status}");
    // One for the child, one for the added process.
    ensure!(told == 2, "{told}");
    host.delete("oom2", "x").await?;
    end(host, "oom2").await
}

pub(crate) async fn refusals_name_what_they_refuse(host: &mut Host<'_>) -> Result<()> {
    let with = |change: fn(&mut Value)| {
        let mut spec = shell("true");
        change(&mut spec);
        spec
    };
    for (spec, name) in [
        (
            with(|spec| spec["process"]["apparmorProfile"] = json!("my-profile")),
            "my-profile",
        ),
        (
            with(|spec| {
                spec["process"]["rlimits"] =
                    json!([{"type": "RLIMIT_NOFILE", "soft": 9, "hard": 8}])
            }),
            "RLIMIT_NOFILE",
        ),
        (
            with(|spec| spec["linux"]["sysctl"] = json!({"kernel.no_such": "1"})),
            "no_such",
        ),
        (
            with(|spec| {
                spec["mounts"] = json!([{"destination": "/mnt", "type": "tmpfs", "source": "t", "options": ["nonsense=1"]}]);
            }),
            "/mnt",
        ),
        (
            with(|spec| spec["process"]["cwd"] = json!("/bin/sh/below")),
            "/bin/sh/below",
        ),
    ] {
        let status = match host.create("refused", &spec, PIPES()).await {
            Err(ttrpc::Error::RpcStatus(status)) => status,
            // Some are only seen when the process is to run.
            Ok(_) => {
                let status = status_of(host.start("refused", "").await)?;
                host.delete("refused", "").await?;
                status
            }
            Err(error) => return Err(error.into()),
        };
        ensure!(status.message().contains(name), "{name}: {status:?}");
    }
    Ok(())
}
