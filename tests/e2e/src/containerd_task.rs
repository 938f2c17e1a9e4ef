//! The task service, call by call, and its events: a shim under an events service of the test's own.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use containerd_shim_protos::api::{self, Status};
use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message as _, UnknownValueRef};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use sandbox_harness::World;
use sandbox_harness::process::copy_program;
use sandbox_harness::task::{Event, Shim, Streams, process, spec};
use serde_json::{Value, json};

use crate::Case;

mod terminals;

pub(crate) const CASES: &[Case] = &[
    ("task_service_binds_hooks_and_refusals", binds),
    ("task_service_calls_and_events", calls),
    (
        "task_service_connect_terminals_and_delete_after_a_killed_shim",
        terminals::case,
    ),
    (
        "task_service_kills_what_does_not_answer",
        kills_without_the_guest,
    ),
    ("task_service_streams", streams),
];

/// Waits for its input's end, which never comes.
const WAITING: &[&str] = &["sh", "-c", "while :; do sleep 1000; done"];

fn bind(destination: &str, source: &Path, options: &[&str]) -> Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": options})
}

fn with_mounts(mounts: Vec<Value>) -> Result<Value> {
    let mut spec = spec(WAITING);
    let all = spec["mounts"].as_array_mut().context("mounts")?;
    all.extend(mounts);
    Ok(spec)
}

/// What cannot be had, each by its field. Nothing is booted for it.
fn refusals(world: &World, shim: &Shim) -> Result<()> {
    let socket = world.path().join("socket");
    let _listener = UnixListener::bind(&socket)?;
    for (source, parts) in [
        (socket.as_path(), ["`mounts[3].source`", "it is a socket"]),
        (
            Path::new("/dev/null"),
            ["`mounts[3].source`", "it is a device"],
        ),
        (
            Path::new("/proc/sys"),
            ["`mounts[3].source`", "proc file system"],
        ),
        (
            Path::new("/no/such"),
            ["`mounts[3].source`", "No such file"],
        ),
    ] {
        shim.must_refuse(&with_mounts(vec![bind("/x", source, &["rbind"])])?, &parts)?;
    }
    let huge = world.path().join("huge");
    fs::create_dir(&huge)?;
    let none = None::<&str>;
    // Not in every kernel.
    if nix::mount::mount(
        none,
        &huge,
        Some("hugetlbfs"),
        nix::mount::MsFlags::empty(),
        none,
    )
    .is_ok()
    {
        let refused = shim.must_refuse(
            &with_mounts(vec![bind("/x", &huge, &["rbind"])])?,
            &["`mounts[3].source`", "hugetlbfs"],
        );
        nix::mount::umount(&huge)?;
        refused?;
    }
    let out = bind("/x", world.path(), &["rbind", "rshared"]);
    shim.must_refuse(&with_mounts(vec![out])?, &["`mounts[3]`", "rshared"])?;
    let folder = bind("/x", world.path(), &["x-sandbox.copy"]);
    shim.must_refuse(
        &with_mounts(vec![folder])?,
        &["`mounts[3]`", "regular file"],
    )?;
    let mut host = spec(WAITING);
    host["linux"]["namespaces"][0]["path"] = "/proc/1/ns/pid".into();
    shim.must_refuse(&host, &["`linux.namespaces[0].path`"])?;
    let mut disk = spec(WAITING);
    disk["linux"]["devices"] = json!([{"path": "/dev/data", "type": "b", "major": 8, "minor": 0}]);
    shim.must_refuse(&disk, &["`linux.devices[0]`", "block device 8:0"])?;
    let mut malformed = spec(WAITING);
    malformed["process"]["user"]["uid"] = "root".into();
    shim.must_refuse(&malformed, &["`process.user.uid`"])
}

/// A hook that fails lets the container not be made, and the last hooks undo what it did.
fn failing_hook(world: &World, shim: &Shim) -> Result<()> {
    let undone = world.path().join("undone");
    let shell = |script: &str| json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]);
    let mut spec = spec(WAITING);
    spec["hooks"] = json!({
        "createRuntime": shell("echo no luck >&2; exit 3"),
        "poststop": shell(&format!("echo undone > {}", undone.display())),
    });
    let error = shim.create(&spec, &Streams::default());
    let error = error
        .err()
        .context("the hook's failure was ignored")?
        .to_string();
    ensure!(
        error.contains("hooks.createRuntime[0]") && error.contains("no luck"),
        "{error}"
    );
    ensure!(fs::read_to_string(undone)? == "undone\n");
    Ok(())
}

fn binds(world: &World) -> Result<()> {
    let shim = Shim::start(world, "b1")?;
    refusals(world, &shim)?;
    failing_hook(world, &shim)?;
    let at = |name: &str| world.path().join(name);
    for name in ["shared", "shared/below", "frozen"] {
        fs::create_dir(at(name))?;
    }
    for (name, text) in [
        ("frozen/f", "frozen\n"),
        ("single", "single\n"),
        ("copied", "copied\n"),
    ] {
        fs::write(at(name), text)?;
    }
    let hook = |word: &str| json!([{"path": "/bin/sh", "args": ["sh", "-c", format!("echo {word} $(cat) >> {}", at("hooks").display())], "env": ["PATH=/bin:/usr/bin"]}]);
    let mut spec = with_mounts(vec![
        bind("/shared", &at("shared"), &["rbind", "rprivate"]),
        bind("/frozen", &at("frozen"), &["rbind", "ro"]),
        bind("/etc/single", &at("single"), &["bind", "ro"]),
        bind("/etc/copied", &at("copied"), &["bind", "x-sandbox.copy"]),
    ])?;
    spec["hooks"] = json!({"createRuntime": hook("createRuntime"), "poststart": hook("poststart"), "poststop": hook("poststop")});
    shim.create(&spec, &Streams::default())?;
    shim.start_process("")?;
    let helpers = sandbox_harness::leaks::processes(world.path());
    let servers = helpers
        .iter()
        .filter(|p| p.command.contains("virtiofsd --fd"));
    // It is one that forks into its own sandbox.
    ensure!((1..=2).contains(&servers.count()), "{helpers:?}");

    let (code, text) = shim.shell(
        "write",
        "echo in > /shared/below/f && cat /frozen/f /etc/single /etc/copied && echo changed > /etc/copied && cat /etc/copied",
    )?;
    ensure!(
        code == 0 && text == "frozen\nsingle\ncopied\nchanged\n",
        "{code}: {text}\n{}",
        shim.log()
    );
    ensure!(fs::read_to_string(at("shared/below/f"))? == "in\n");
    ensure!(fs::read_to_string(at("copied"))? == "copied\n");
    for target in ["/frozen/new", "/frozen/f", "/etc/single"] {
        let (code, text) = shim.shell("refused", &format!("echo x > {target}"))?;
        ensure!(
            code != 0 && text.contains("Read-only"),
            "{target}: {code} {text}"
        );
    }
    fs::write(at("shared/later"), "later\n")?;
    let (_, text) = shim.shell("later", "cat /shared/later")?;
    ensure!(text == "later\n", "{text}");

    kill(&shim, true)?;
    shim.wait("")?;
    shim.delete("")?;
    let told = fs::read_to_string(at("hooks"))?;
    let states: Vec<(&str, Value)> = told
        .lines()
        .map(|line| {
            let (word, state) = line.split_once(' ').context("a line")?;
            Ok((word, serde_json::from_str(state)?))
        })
        .collect::<Result<_>>()?;
    let lives: Vec<_> = states
        .iter()
        .map(|(word, state)| (*word, state["status"].as_str().unwrap_or("")))
        .collect();
    ensure!(
        lives
            == [
                ("createRuntime", "creating"),
                ("poststart", "running"),
                ("poststop", "stopped")
            ],
        "{told}"
    );
    ensure!(states[0].1["id"] == "b1", "{told}");
    shim.shutdown()?;
    ensure!(fs::read_to_string(at("frozen/f"))? == "frozen\n");
    Ok(())
}

fn kill(shim: &Shim, all: bool) -> Result<()> {
    let request = api::KillRequest {
        id: id(shim),
        signal: 9,
        all,
        ..Default::default()
    };
    shim.client().kill(shim.call(), &request)?;
    Ok(())
}

/// A guest whose monitor is stopped answers nothing, so that only the end of its machine ends the container.
fn kills_without_the_guest(world: &World) -> Result<()> {
    let shim = Shim::start(world, "k1")?;
    shim.create(&spec(WAITING), &Streams::default())?;
    shim.start_process("")?;
    let monitor = world.process(world.setup().driver.monitor())?.pid;
    let monitor = Pid::from_raw(monitor);
    nix::sys::signal::kill(monitor, Signal::SIGSTOP)?;
    kill(&shim, false).with_context(|| shim.log())?;
    ensure!(shim.wait("")? == 137, "{}", shim.log());
    ensure!(shim.delete("")? == 137, "{}", shim.log());
    let events = shim.events_until("/tasks/delete")?;
    let last: Vec<_> = events.iter().rev().take(2).map(|it| &it.topic).collect();
    ensure!(last == ["/tasks/delete", "/tasks/exit"], "{last:?}");
    shim.shutdown()
}

fn id(shim: &Shim) -> String {
    let name = shim.bundle().file_name().unwrap_or_default();
    name.to_string_lossy()
        .trim_start_matches("bundle-")
        .to_owned()
}

/// The exec id and the command that `info` tells of each process.
fn state(shim: &Shim, exec: &str) -> Result<api::StateResponse> {
    let request = api::StateRequest {
        id: id(shim),
        exec_id: exec.to_owned(),
        ..Default::default()
    };
    Ok(shim.client().state(shim.call(), &request)?)
}

fn pids(shim: &Shim) -> Result<Vec<(String, String)>> {
    let request = api::PidsRequest {
        id: id(shim),
        ..Default::default()
    };
    let reply = shim.client().pids(shim.call(), &request)?;
    reply
        .processes
        .iter()
        .map(|process| {
            let info = process.info.as_ref().context("info")?;
            ensure!(
                info.type_url == "containerd.runc.v1.ProcessDetails",
                "{info:?}"
            );
            ensure!(process.pid > 0, "{process:?}");
            // Read as an `Any`, whose first field is text as well: fields that it has not are kept.
            let details = Any::parse_from_bytes(&info.value)?;
            let command = details.special_fields.unknown_fields().get(108);
            let command = match command {
                Some(UnknownValueRef::LengthDelimited(text)) => {
                    String::from_utf8_lossy(text).into_owned()
                }
                other => bail!("no command: {other:?}"),
            };
            Ok((details.type_url, command))
        })
        .collect()
}

fn update(shim: &Shim, resources: &Value) -> ttrpc::Result<api::Empty> {
    let request = api::UpdateTaskRequest {
        id: id(shim),
        resources: Some(Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".to_owned(),
            value: resources.to_string().into_bytes(),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    };
    shim.client().update(shim.call(), &request)
}

fn stats(shim: &Shim) -> Result<Metrics> {
    let request = api::StatsRequest {
        id: id(shim),
        ..Default::default()
    };
    let reply = shim.client().stats(shim.call(), &request)?;
    let any = reply.stats.into_option().context("no statistics")?;
    ensure!(
        any.type_url == "io.containerd.cgroups.v2.Metrics",
        "{any:?}"
    );
    Ok(Metrics::parse_from_bytes(&any.value)?)
}

/// What it uses is told, and limits are changed within the machine's size.
fn measured_and_limited(shim: &Shim) -> Result<()> {
    let metrics = stats(shim)?;
    ensure!(
        metrics.memory.usage > 0 && metrics.memory.usage_limit == 64 << 20,
        "{metrics:?}"
    );
    ensure!(
        metrics.pids.current >= 2 && metrics.cpu.usage_usec > 0,
        "{metrics:?}"
    );
    ensure!(
        metrics.network.iter().any(|network| network.name == "lo"),
        "{metrics:?}"
    );

    update(
        shim,
        &json!({"memory": {"limit": 48 << 20}, "pids": {"limit": 50}}),
    )?;
    let metrics = stats(shim)?;
    ensure!(
        metrics.memory.usage_limit == 48 << 20 && metrics.pids.limit == 50,
        "{metrics:?}"
    );
    for (resources, part) in [
        (
            json!({"memory": {"limit": 1u64 << 40}}),
            "machine can have while it runs",
        ),
        (
            json!({"cpu": {"quota": 900_000, "period": 100_000}}),
            "machine can have while it runs",
        ),
    ] {
        let error = update(shim, &resources)
            .err()
            .context("not refused")?
            .to_string();
        ensure!(error.contains(part), "{error}");
    }
    Ok(())
}

fn calls(world: &World) -> Result<()> {
    let shim = Shim::start(world, "t1")?;
    let pid = shim.create(&spec(WAITING), &Streams::default())?.pid;
    shim.start_process("")?;
    let user = json!({"args": ["sh", "-c", "id -u; id -g; pwd; echo $WORD; grep NoNewPrivs /proc/self/status"],
        "cwd": "/tmp", "env": ["PATH=/bin", "WORD=own"], "user": {"uid": 7, "gid": 8}, "noNewPrivileges": true});
    let (code, text) = shim.run("user", &user)?;
    ensure!(
        code == 0 && text == "7\n8\n/tmp\nown\nNoNewPrivs:\t1\n",
        "{code}: {text}"
    );

    shim.exec("listed", &process(&["sleep", "1000"]), &Streams::default())?;
    let listed = pids(&shim)?;
    ensure!(
        listed
            .iter()
            .any(|(exec, command)| exec == "listed" && command == "sleep 1000"),
        "{listed:?}"
    );
    ensure!(
        listed
            .iter()
            .any(|(exec, command)| exec.is_empty() && command.contains("while")),
        "{listed:?}"
    );

    measured_and_limited(&shim)?;
    let pause = api::PauseRequest {
        id: id(&shim),
        ..Default::default()
    };
    shim.client().pause(shim.call(), &pause)?;
    ensure!(state(&shim, "")?.status() == Status::PAUSED);
    let resume = api::ResumeRequest {
        id: id(&shim),
        ..Default::default()
    };
    shim.client().resume(shim.call(), &resume)?;
    let checkpoint = api::CheckpointTaskRequest {
        id: id(&shim),
        ..Default::default()
    };
    let error = shim
        .client()
        .checkpoint(shim.call(), &checkpoint)
        .err()
        .context("not refused")?;
    ensure!(
        matches!(&error, ttrpc::Error::RpcStatus(status) if status.code() == ttrpc::Code::UNIMPLEMENTED),
        "{error}"
    );

    let (code, _) = shim.run("hungry", &process(&["tail", "/dev/zero"]))?;
    ensure!(code == 137, "{code}");
    let running = state(&shim, "")?;
    ensure!(
        running.status() == Status::RUNNING
            && running.pid == pid
            && running.bundle == shim.bundle().display().to_string()
            && running.exit_status == 0
            && running.exited_at.is_none(),
        "{running:?}"
    );
    let added = state(&shim, "listed")?;
    ensure!(
        added.status() == Status::RUNNING && added.exec_id == "listed",
        "{added:?}"
    );
    kill(&shim, true)?;
    ensure!(shim.wait("listed")? == 137);
    ensure!(shim.wait("")? == 137);
    for exec in ["", "listed"] {
        let stopped = state(&shim, exec)?;
        ensure!(
            stopped.status() == Status::STOPPED
                && stopped.exit_status == 137
                && stopped.exited_at.seconds > 0,
            "{stopped:?}"
        );
    }
    shim.delete("listed")?;
    ensure!(shim.delete("")? == 137);
    let events = shim.events_until("/tasks/delete")?;
    shim.shutdown()?;
    check_events(&events, pid)
}

/// Takes the next event, which must be an `M`.
fn next<'a, M: containerd_shim_protos::protobuf::Message>(
    events: &mut impl Iterator<Item = &'a Event>,
) -> Result<M> {
    events.next().context("an event is missing")?.message()
}

/// The events of an exec that ran to its end.
fn check_exec<'a>(
    events: &mut impl Iterator<Item = &'a Event>,
    exec: &str,
    status: u32,
    pid: u32,
) -> Result<()> {
    check_exec_start(events, exec, pid)?;
    check_exit(&next(events)?, exec, status, pid)
}

fn check_exec_start<'a>(
    events: &mut impl Iterator<Item = &'a Event>,
    exec: &str,
    pid: u32,
) -> Result<()> {
    let added: TaskExecAdded = next(events)?;
    ensure!(
        (added.container_id.as_str(), added.exec_id.as_str()) == ("t1", exec),
        "{added:?}"
    );
    let started: TaskExecStarted = next(events)?;
    ensure!(
        (
            started.container_id.as_str(),
            started.exec_id.as_str(),
            started.pid
        ) == ("t1", exec, pid),
        "{started:?}"
    );
    Ok(())
}

fn check_exit(exit: &TaskExit, id: &str, status: u32, pid: u32) -> Result<()> {
    ensure!(
        (
            exit.container_id.as_str(),
            exit.id.as_str(),
            exit.exit_status,
            exit.pid
        ) == ("t1", id, status, pid)
            && exit.exited_at.seconds > 0,
        "{exit:?} instead of {id} with {status}"
    );
    Ok(())
}

fn check_events(events: &[Event], pid: u32) -> Result<()> {
    let mut events = events.iter();
    let events = &mut events;
    let create: TaskCreate = next(events)?;
    ensure!(
        create.container_id == "t1" && create.pid == pid && create.bundle.ends_with("bundle-t1"),
        "{create:?}"
    );
    let start: TaskStart = next(events)?;
    ensure!(
        (start.container_id.as_str(), start.pid) == ("t1", pid),
        "{start:?}"
    );
    check_exec(events, "user", 0, pid)?;
    check_exec_start(events, "listed", pid)?;
    ensure!(next::<TaskPaused>(events)?.container_id == "t1");
    ensure!(next::<TaskResumed>(events)?.container_id == "t1");
    check_exec_start(events, "hungry", pid)?;
    ensure!(next::<TaskOOM>(events)?.container_id == "t1");
    check_exit(&next(events)?, "hungry", 137, pid)?;
    // The container's own end is the last: nothing of it is left then.
    check_exit(&next(events)?, "listed", 137, pid)?;
    check_exit(&next(events)?, "t1", 137, pid)?;
    let delete: TaskDelete = next(events)?;
    ensure!(
        (delete.container_id.as_str(), delete.pid, delete.exit_status) == ("t1", pid, 137)
            && delete.exited_at.seconds > 0,
        "{delete:?}"
    );
    ensure!(events.next().is_none());
    Ok(())
}

fn make_fifo(shim: &Shim, name: &str) -> Result<PathBuf> {
    let path = shim.bundle().join(name);
    nix::unistd::mkfifo(&path, Mode::S_IRWXU)?;
    Ok(path)
}

fn streams(world: &World) -> Result<()> {
    let shim = Shim::start(world, "s1")?;
    shim.create(&spec(WAITING), &Streams::default())?;
    shim.start_process("")?;

    // 8 MiB, of which the reader takes none before the process has ended and Delete was called.
    let out = make_fifo(&shim, "out")?;
    let big = Streams {
        stdout: out.display().to_string(),
        ..Default::default()
    };
    shim.exec(
        "big",
        &process(&["sh", "-c", "head -c 8388608 /dev/zero"]),
        &big,
    )?;
    let mut reader = fs::File::open(&out)?;
    let mut first = vec![0; 4 << 20];
    reader.read_exact(&mut first)?;
    let rest = std::thread::spawn(move || {
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).map(|_| rest.len())
    });
    ensure!(shim.wait("big")? == 0);
    shim.delete("big")?;
    let rest = rest
        .join()
        .map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    ensure!(
        first.len() + rest == 8 << 20,
        "{rest} bytes after the first 4 MiB"
    );

    // A writer of input comes and goes; only CloseIO is the end.
    let stdin = make_fifo(&shim, "in")?;
    let kept = shim.bundle().join("kept");
    let mut cat = Streams::file(&kept);
    cat.stdin = stdin.display().to_string();
    shim.exec("cat", &process(&["cat"]), &cat)?;
    for part in ["one ", "two "] {
        let mut writer = fs::OpenOptions::new().write(true).open(&stdin)?;
        writer.write_all(part.as_bytes())?;
    }
    let close = api::CloseIORequest {
        id: "s1".to_owned(),
        exec_id: "cat".to_owned(),
        stdin: true,
        ..Default::default()
    };
    shim.client().close_io(shim.call(), &close)?;
    ensure!(shim.wait("cat")? == 0);
    shim.delete("cat")?;
    let text = fs::read_to_string(&kept)?;
    ensure!(text == "one two ", "{text:?}");

    let (written, logger) = (shim.bundle().join("written"), shim.bundle().join("logger"));
    fs::write(
        &written,
        "#!/bin/sh\nexec 5>&-\necho \"$1 $CONTAINER_NAMESPACE $CONTAINER_ID $(cat <&3) $(cat <&4)\" > \"$2\"\n",
    )?;
    copy_program(&written, &logger)?;
    fs::set_permissions(&logger, fs::Permissions::from_mode(0o755))?;
    let result = shim.bundle().join("result");
    let uri = format!("binary://{}?to={}", logger.display(), result.display());
    let logged = Streams {
        stdout: uri.clone(),
        stderr: uri,
        ..Default::default()
    };
    shim.exec(
        "logged",
        &process(&["sh", "-c", "echo out; echo err >&2"]),
        &logged,
    )?;
    ensure!(shim.wait("logged")? == 0);
    shim.delete("logged")?;
    let text = fs::read_to_string(&result)?;
    ensure!(text == "to tests logged out err\n", "{text:?}");

    kill(&shim, false)?;
    shim.wait("")?;
    shim.delete("")?;
    shim.shutdown()
}
