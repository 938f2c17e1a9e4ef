//! What the host can ask of a container that is there.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use sandbox_protocol::agent::{
    AgentProgram, ContainerRequest, File, Mount, Part, SetClockRequest, SharedNamespace,
    StreamKind, UpdateContainerRequest, mount::Source,
};
use sandbox_protocol::limits::MAX_LASTING_MOUNTS;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use ttrpc::proto::Code;

use crate::cases::{OUT, SIGKILL, SIGTERM, end, exec, field, shell, status_of, until};
use crate::client::{Host, PIPES, TERMINAL, limit};
use crate::spec;

fn of(id: &str) -> ContainerRequest {
    ContainerRequest {
        container_id: id.to_owned(),
        ..Default::default()
    }
}

fn update(id: &str, resources: &serde_json::Value) -> UpdateContainerRequest {
    UpdateContainerRequest {
        container_id: id.to_owned(),
        resources_json: resources.to_string().into_bytes(),
        ..Default::default()
    }
}

pub(crate) async fn clock_is_stepped_when_far_off_and_slewed_when_near(
    host: &mut Host<'_>,
) -> Result<()> {
    if !host.machine.in_guest() {
        // That clock is this machine's.
        return Ok(());
    }
    let ns = |time: SystemTime| -> Result<u64> {
        Ok(u64::try_from(time.duration_since(UNIX_EPOCH)?.as_nanos())?)
    };
    let set = |unix_time_ns| SetClockRequest {
        unix_time_ns,
        ..Default::default()
    };
    let day = Duration::from_secs(86_400);
    for time in [SystemTime::now() + day, SystemTime::now()] {
        let time = ns(time)?;
        host.calls.set_clock(limit(), &set(time)).await?;
        let (_, stdout, _) = host.run("clock", &shell("date +%s")).await?;
        let seen: u64 = stdout.trim().parse()?;
        ensure!(seen.abs_diff(time / 1_000_000_000) < 60, "{seen} {time}");
    }
    // What is left to be made up for shows in adjtimex's reply; a step leaves nothing.
    host.calls
        .set_clock(limit(), &set(ns(SystemTime::now())?))
        .await?;
    let refused = status_of(host.calls.set_clock(limit(), &set(u64::MAX)).await)?;
    ensure!(refused.code() == Code::INVALID_ARGUMENT, "{refused:?}");
    Ok(())
}

/// In the running container `limits`.
async fn disk_throttling_is_changed_and_told(host: &mut Host<'_>) -> Result<()> {
    let device = exec(
        host,
        "limits",
        &spec::process(&["cat", "/sys/block/vda/dev"]),
    )
    .await?;
    let device = device.trim();
    let (major, minor) = device.split_once(':').context("no device")?;
    let (major, minor): (u32, u32) = (major.parse()?, minor.parse()?);
    let throttled = |major| json!({"blockIO": {"throttleReadBpsDevice": [{"major": major, "minor": minor, "rate": 1_048_576}]}});
    host.calls
        .update_container(limit(), &update("limits", &throttled(major)))
        .await?;
    let reply = host.calls.container_stats(limit(), &of("limits")).await?;
    let rate = reply.values.get(&format!("io.max/{device}/rbps"));
    ensure!(rate == Some(&1_048_576), "{rate:?}");
    let request = update("limits", &throttled(99));
    let status = status_of(host.calls.update_container(limit(), &request).await)?;
    ensure!(
        status.message().contains("blockIO.throttleReadBpsDevice"),
        "{status:?}"
    );
    Ok(())
}

pub(crate) async fn limits_are_changed_and_told(host: &mut Host<'_>) -> Result<()> {
    let mut spec = shell("while :; do sleep 1000; done");
    spec["linux"]["resources"] = json!({
        "devices": [{"allow": false, "access": "rwm"}],
        "memory": {"limit": 67_108_864, "reservation": 33_554_432, "swap": 67_108_864},
        "cpu": {"shares": 2048, "quota": 50_000, "period": 100_000, "cpus": "7", "mems": "1"},
        "pids": {"limit": 50},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4_194_304}],
        "unified": {"memory.high": "60000000", "cpu.max.burst": "1000"},
    });
    host.create("limits", &spec, PIPES()).await?;
    host.start("limits", "").await?;
    let values = |reply: sandbox_protocol::agent::ContainerStatsReply| {
        move |name: &str| {
            let value = reply.values.get(name).copied();
            value.with_context(|| format!("no {name} in {:?}", reply.values))
        }
    };
    let reply = host.calls.container_stats(limit(), &of("limits")).await?;
    let value = values(reply);
    for (name, expected) in [
        ("memory.max", 67_108_864),
        ("memory.low", 33_554_432),
        ("memory.swap.max", 0),
        ("memory.high", 59_998_208),
        ("cpu.weight", 79),
        ("cpu.max/quota", 50_000),
        ("cpu.max/period", 100_000),
        ("cpu.max.burst", 1000),
        ("pids.max", 50),
        ("hugetlb.2MB.max", 4_194_304),
        ("hugetlb.2MB.rsvd.max", 4_194_304),
        ("memory.events/oom_kill", 0),
    ] {
        ensure!(value(name)? == expected, "{name} is {}", value(name)?);
    }
    ensure!(value("memory.current")? > 0 && value("pids.current")? > 0);
    ensure!(value("cpu.stat/usage_usec")? > 0 && value("memory.stat/file").is_ok());
    ensure!(value("net/lo/rx_bytes").is_ok());
    // As many processors as the list names, whatever numbers the host gives them.
    let seen = exec(host, "limits", &spec::process(&["nproc"])).await?;
    ensure!(seen == "1\n", "{seen}");

    let change = json!({
        "devices": [{"allow": false, "access": "rwm"}],
        "memory": {"limit": 134_217_728, "swap": -1}, "cpu": {"quota": -1}, "pids": {"limit": -1},
    });
    host.calls
        .update_container(limit(), &update("limits", &change))
        .await?;
    let reply = host.calls.container_stats(limit(), &of("limits")).await?;
    let value = values(reply);
    ensure!(value("memory.max")? == 134_217_728 && value("memory.swap.max")? == u64::MAX);
    ensure!(value("cpu.max/quota")? == u64::MAX && value("cpu.max/period")? == 100_000);
    ensure!(value("pids.max")? == u64::MAX && value("memory.low")? == 33_554_432);

    if host.machine.in_guest() {
        disk_throttling_is_changed_and_told(host).await?;
    }
    for (change, name) in [
        (json!({"memory": {"swappiness": 1}}), "memory.swappiness"),
        (json!({"blockIO": {"weight": 10}}), "blockIO.weight"),
        (json!({"unified": {"no.such": "1"}}), "unified.no.such"),
        (
            json!({"hugepageLimits": [{"pageSize": "3MB", "limit": 1}]}),
            "hugepageLimits.3MB",
        ),
        (
            json!({"devices": [{"allow": true, "access": "rwm"}]}),
            "device rules",
        ),
        (
            json!({"memory": {"limit": 4096, "checkBeforeUpdate": true}}),
            "checkBeforeUpdate",
        ),
    ] {
        let request = update("limits", &change);
        let status = status_of(host.calls.update_container(limit(), &request).await)?;
        ensure!(status.code() == Code::INVALID_ARGUMENT, "{status:?}");
        ensure!(status.message().contains(name), "{status:?}");
    }
    end(host, "limits").await?;
    // A limit that the kernel refuses fails the creation and leaves nothing.
    spec["linux"]["resources"] = json!({"unified": {"memory.max": "nonsense"}});
    let status = status_of(host.create("limits", &spec, PIPES()).await)?;
    ensure!(
        status.message().contains("unified.memory.max"),
        "{status:?}"
    );
    ensure!(host.run("limits", &shell("true")).await?.0 == 0);
    Ok(())
}

pub(crate) async fn list_describes_the_processes(host: &mut Host<'_>) -> Result<()> {
    let script = "sleep 1001 & exec sleep 1000";
    let mut spec = shell(script);
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    host.create("list", &spec, PIPES()).await?;
    let first = host.start("list", "").await?;
    let mut process = spec::process(&["sh"]);
    process["terminal"] = json!(true);
    host.add("list", "x", &process, TERMINAL()).await?;
    let mut stdout = host.stream("list", "x", OUT).await?;
    let added = host.start("list", "x").await?;
    until(&mut stdout, "# ").await?;
    let reply = host.calls.list_processes(limit(), &of("list")).await?;
    ensure!(reply.processes.len() == 3, "{:?}", reply.processes);
    let find = |pid: u32| {
        let found = reply.processes.iter().find(|process| process.pid == pid);
        found.with_context(|| format!("no {pid} in {:?}", reply.processes))
    };
    let sleep = find(first)?;
    ensure!(sleep.exec_id.is_empty() && sleep.uid == 1000, "{sleep:?}");
    ensure!(
        sleep.command == "sleep 1000" && sleep.terminal.is_empty(),
        "{sleep:?}"
    );
    ensure!(sleep.state == "S" && sleep.resident_bytes > 0, "{sleep:?}");
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    let age = now.abs_diff(u128::from(sleep.started_unix_ns));
    ensure!(
        !host.machine.in_guest() || age < 86_400_000_000_000,
        "{age} ns"
    );
    let shell = find(added)?;
    ensure!(shell.exec_id == "x" && shell.uid == 0, "{shell:?}");
    ensure!(shell.terminal.starts_with("pts/"), "{shell:?}");
    let child = reply.processes.iter().find(|p| p.command == "sleep 1001");
    let child = child.context("no child")?;
    ensure!(child.parent_pid == first, "{child:?}");
    host.signal("list", "x", SIGKILL, false).await?;
    host.exit("list", "x").await?;
    host.delete("list", "x").await?;
    end(host, "list").await
}

pub(crate) async fn copied_file_is_bound_and_removed_with_the_container(
    host: &mut Host<'_>,
) -> Result<()> {
    let path = "/run/sandbox/files/copied/hosts";
    let mut spec = shell("cat /etc/hosts; stat -c '%a %u %g' /etc/hosts; echo more >> /etc/hosts");
    spec["mounts"].as_array_mut().context("no mounts")?.push(
        json!({"destination": "/etc/hosts", "type": "bind", "source": path, "options": ["rbind", "rprivate"]}),
    );
    for _ in 0..2 {
        let mut request = host.request("copied", &spec, PIPES());
        request.files.push(File {
            path: path.to_owned(),
            mode: 0o640,
            uid: 5,
            gid: 6,
            content: b"127.0.0.1 box\n".to_vec(),
            ..Default::default()
        });
        host.calls.create_container(limit(), &request).await?;
        let stdout = host.stream("copied", "", OUT).await?;
        host.start("copied", "").await?;
        let text = crate::client::text(stdout).await?;
        ensure!(text == "127.0.0.1 box\n640 5 6\n", "{text}");
        host.exit("copied", "").await?;
        host.delete("copied", "").await?;
    }
    // Gone with the container, so nothing is there to bind.
    let status = status_of(host.create("copied", &spec, PIPES()).await)?;
    ensure!(
        status.message().contains("ENOENT") || status.message().contains("No such file"),
        "{status:?}"
    );
    Ok(())
}

/// A tmpfs at `target` for all containers.
fn lasting(target: &str) -> Mount {
    Mount {
        source: Some(Source::Literal("tmpfs".to_owned())),
        fstype: "tmpfs".to_owned(),
        options: vec!["size=64k".to_owned(), "mode=1777".to_owned()],
        target: target.to_owned(),
        ..Mount::default()
    }
}

pub(crate) async fn lasting_mount_outlives_its_container_and_parts_of_it_are_bound(
    host: &mut Host<'_>,
) -> Result<()> {
    let volume = "/run/sandbox/volumes/lasting";
    let part = "/run/sandbox/containers/lasting/volumes/4";
    let mut spec = shell(
        "cat /v/part/f || ln -s /run /v/out; echo x >> /part/f; stat -c '%a %u %g' /v /v/part",
    );
    let mounts = spec["mounts"].as_array_mut().context("no mounts")?;
    for (destination, source) in [("/v", volume), ("/part", part)] {
        mounts.push(
            json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind"]}),
        );
    }
    let request = |host: &Host<'_>, path: &str| {
        let mut request = host.request("lasting", &spec, PIPES());
        request.lasting_mounts.push(lasting(volume));
        request.mounts.push(Mount {
            source: Some(Source::Literal(volume.to_owned())),
            options: vec!["bind".to_owned()],
            target: part.to_owned(),
            part: Some(Part {
                path: path.to_owned(),
                mode: 0o2777,
                uid: 5,
                gid: 6,
                ..Part::default()
            })
            .into(),
            ..Mount::default()
        });
        request
    };
    // Of a container that is not made nothing stays.
    let mut broken = request(host, "part");
    broken.root_path = "/run/sandbox/none".to_owned();
    broken.lasting_mounts[0].options = vec!["mode=700".to_owned()];
    status_of(host.calls.create_container(limit(), &broken).await)?;
    for written in ["", "x\n"] {
        let request = request(host, "part");
        host.calls.create_container(limit(), &request).await?;
        let stdout = host.stream("lasting", "", OUT).await?;
        host.start("lasting", "").await?;
        let text = crate::client::text(stdout).await?;
        ensure!(text == format!("{written}1777 0 0\n2777 5 6\n"), "{text}");
        host.exit("lasting", "").await?;
        host.delete("lasting", "").await?;
    }
    // What the container has put in the way leads nowhere.
    for path in ["out", "out/sandbox", "../containers"] {
        let request = request(host, path);
        let status = status_of(host.calls.create_container(limit(), &request).await)?;
        ensure!(status.message().contains(volume), "{path}: {status:?}");
    }
    // They are as many as they may be.
    let mut request = host.request("many", &shell("true"), PIPES());
    request.lasting_mounts = (0..MAX_LASTING_MOUNTS)
        .map(|number| lasting(&format!("/run/sandbox/volumes/many{number}")))
        .collect();
    let status = status_of(host.calls.create_container(limit(), &request).await)?;
    ensure!(status.code() == Code::INVALID_ARGUMENT, "{status:?}");
    Ok(())
}

pub(crate) async fn namespaces_of_another_container_are_shared(host: &mut Host<'_>) -> Result<()> {
    host.create("pod", &spec::container(&["sleep", "1000"]), PIPES())
        .await?;
    host.start("pod", "").await?;
    let mut spec = shell(
        "cat /proc/1/cmdline; hostname; hostname other 2>&1; readlink /proc/self/ns/ipc; sleep 1000 &",
    );
    let shared = |kind: &str| SharedNamespace {
        kind: kind.to_owned(),
        container_id: "pod".to_owned(),
        ..Default::default()
    };
    spec.as_object_mut()
        .context("no object")?
        .remove("hostname");
    let mut request = host.request("guest", &spec, PIPES());
    request.shared_namespaces = ["pid", "ipc", "uts", "network"].map(shared).to_vec();
    host.calls.create_container(limit(), &request).await?;
    let stdout = host.stream("guest", "", OUT).await?;
    host.start("guest", "").await?;
    // Its child does not outlive the first process, although nothing in the namespace ends it.
    let text = crate::client::text(stdout).await?;
    host.exit("guest", "").await?;
    let ipc = exec(
        host,
        "pod",
        &spec::process(&["readlink", "/proc/self/ns/ipc"]),
    )
    .await?;
    ensure!(text.starts_with("sleep\x001000\0box\n"), "{text:?}");
    ensure!(text.ends_with(&ipc), "{text:?} {ipc:?}");
    let left = host.calls.list_processes(limit(), &of("guest")).await?;
    ensure!(left.processes.iter().all(|p| p.state == "Z"), "{left:?}");
    host.delete("guest", "").await?;
    for (kind, id, code) in [
        ("mount", "pod", Code::INVALID_ARGUMENT),
        ("pid", "nobody", Code::NOT_FOUND),
    ] {
        let mut request = host.request("guest", &spec, PIPES());
        request.shared_namespaces = vec![SharedNamespace {
            kind: kind.to_owned(),
            container_id: id.to_owned(),
            ..Default::default()
        }];
        let status = status_of(host.calls.create_container(limit(), &request).await)?;
        ensure!(status.code() == code, "{status:?}");
    }
    end(host, "pod").await
}

pub(crate) async fn init_passes_signals_on_and_reaps(host: &mut Host<'_>) -> Result<()> {
    let script = "trap 'echo got; exit 9' TERM; (sleep 0 &); cat /proc/1/cmdline; ls /proc/1/fd; \
                  sleep 1000 & echo; wait";
    let mut request = host.request("init", &shell(script), PIPES());
    request.program = AgentProgram::AGENT_PROGRAM_INIT.into();
    host.calls.create_container(limit(), &request).await?;
    let mut stdout = host.stream("init", "", OUT).await?;
    host.start("init", "").await?;
    let text = until(&mut stdout, "\n\n").await?;
    ensure!(
        text.starts_with("sandbox-agent\0init\0sh\0-c\0"),
        "{text:?}"
    );
    // The orphan may still be about to end. No zombie stays, and nothing of the agent's is in the container's
    // file system.
    let look = "tries=100; while grep -q State:.Z /proc/[0-9]*/status && [ $((tries -= 1)) -gt 0 ]; do \
                sleep 0.1; done; grep -h State /proc/[0-9]*/status; ls /; ls /sbin /usr 2>/dev/null";
    let seen = exec(host, "init", &spec::process(&["sh", "-c", look])).await?;
    ensure!(!seen.contains('Z') && !seen.contains("agent"), "{seen}");
    // All of it is confined as the command itself would be.
    let status = exec(host, "init", &spec::process(&["cat", "/proc/1/status"])).await?;
    ensure!(field(&status, "Seccomp") == Some("2"), "{status}");
    ensure!(
        field(&status, "CapEff") == Some("00000000a80425fb"),
        "{status}"
    );
    ensure!(field(&status, "Name") == Some("init"), "{status}");
    host.signal("init", "", SIGTERM, false).await?;
    until(&mut stdout, "got").await?;
    ensure!(host.exit("init", "").await?.0 == 9);
    host.delete("init", "").await?;

    let mut request = host.request("init", &shell("kill -9 $$"), PIPES());
    request.program = AgentProgram::AGENT_PROGRAM_INIT.into();
    host.calls.create_container(limit(), &request).await?;
    host.start("init", "").await?;
    ensure!(host.exit("init", "").await?.0 == 137);
    host.delete("init", "").await?;

    let mut request = host.request("init", &spec::container(&["nothing"]), PIPES());
    request.program = AgentProgram::AGENT_PROGRAM_INIT.into();
    let status = status_of(host.calls.create_container(limit(), &request).await)?;
    ensure!(status.code() == Code::NOT_FOUND, "{status:?}");
    Ok(())
}

pub(crate) async fn init_with_a_terminal_leaves_it_to_the_command(
    host: &mut Host<'_>,
) -> Result<()> {
    let mut spec = spec::container(&["sh"]);
    spec["process"]["terminal"] = json!(true);
    let mut request = host.request("tinit", &spec, TERMINAL());
    request.program = AgentProgram::AGENT_PROGRAM_INIT.into();
    host.calls.create_container(limit(), &request).await?;
    let mut stdout = host.stream("tinit", "", OUT).await?;
    let mut stdin = host
        .stream("tinit", "", StreamKind::STREAM_KIND_STDIN)
        .await?;
    host.start("tinit", "").await?;
    until(&mut stdout, "# ").await?;
    stdin
        .write_all(b"sh -c 'echo go; exec sleep 1000'\n")
        .await?;
    until(&mut stdout, "\ngo").await?;
    stdin.write_all(b"\x03").await?;
    until(&mut stdout, "^C").await?;
    stdin.write_all(b"exit 4\n").await?;
    ensure!(host.exit("tinit", "").await?.0 == 4);
    host.delete("tinit", "").await?;
    Ok(())
}

pub(crate) async fn archive_goes_out_of_one_container_and_into_another(
    host: &mut Host<'_>,
) -> Result<()> {
    let make = "mkdir -p /tmp/tree/sub && cd /tmp/tree && echo content > sub/file && ln sub/file hard && \
                ln -s sub/file soft && chown 7:8 sub/file && chmod 4751 sub/file && echo ready; sleep 1000";
    host.create("out", &shell(make), PIPES()).await?;
    let mut stdout = host.stream("out", "", OUT).await?;
    host.start("out", "").await?;
    until(&mut stdout, "ready").await?;
    let request = host.added(
        "out",
        "a",
        &spec::process(&["/tmp/tree"]),
        PIPES(),
        AgentProgram::AGENT_PROGRAM_ARCHIVE_READ,
    );
    host.calls.add_process(limit(), &request).await?;
    host.start("out", "a").await?;
    let archive = host.output("out", "a", OUT).await?;
    ensure!(host.exit("out", "a").await?.0 == 0);
    host.delete("out", "a").await?;

    // Into a container that only unpacks, and out again to look.
    host.create("in", &spec::container(&["sleep", "1000"]), PIPES())
        .await?;
    host.start("in", "").await?;
    let request = host.added(
        "in",
        "b",
        &spec::process(&["/tmp"]),
        PIPES(),
        AgentProgram::AGENT_PROGRAM_ARCHIVE_WRITE,
    );
    host.calls.add_process(limit(), &request).await?;
    let mut stdin = host
        .stream("in", "b", StreamKind::STREAM_KIND_STDIN)
        .await?;
    host.start("in", "b").await?;
    stdin.write_all(&archive).await?;
    stdin.shutdown().await?;
    host.close_stdin("in", "b").await?;
    let code = host.exit("in", "b").await?.0;
    let complaint = host.output("in", "b", crate::cases::ERR).await?;
    ensure!(code == 0, "{code} {}", String::from_utf8_lossy(&complaint));
    host.delete("in", "b").await?;
    let look = "cd /tmp/tree && cat soft && stat -c '%a %u %g %h' sub/file && readlink soft";
    let seen = exec(host, "in", &spec::process(&["sh", "-c", look])).await?;
    ensure!(seen == "content\n4751 7 8 2\nsub/file\n", "{seen}");

    // A missing file is said on standard error, with a code that is not zero.
    let request = host.added(
        "out",
        "a",
        &spec::process(&["/nothing"]),
        PIPES(),
        AgentProgram::AGENT_PROGRAM_ARCHIVE_READ,
    );
    host.calls.add_process(limit(), &request).await?;
    host.start("out", "a").await?;
    let complaint = host.output("out", "a", crate::cases::ERR).await?;
    ensure!(host.exit("out", "a").await?.0 == 1);
    let complaint = String::from_utf8_lossy(&complaint).into_owned();
    ensure!(complaint.contains("/nothing"), "{complaint}");
    host.delete("out", "a").await?;
    end(host, "in").await?;
    end(host, "out").await?;

    // As a first process it needs no program of the container's either.
    let mut request = host.request("out", &spec::container(&["/etc/passwd"]), PIPES());
    request.program = AgentProgram::AGENT_PROGRAM_ARCHIVE_READ.into();
    host.calls.create_container(limit(), &request).await?;
    host.start("out", "").await?;
    let archive = host.output("out", "", OUT).await?;
    ensure!(host.exit("out", "").await?.0 == 0);
    let text = String::from_utf8_lossy(&archive).into_owned();
    ensure!(
        text.starts_with("passwd\0") && text.contains("/home/user"),
        "{text}"
    );
    host.delete("out", "").await?;
    Ok(())
}
