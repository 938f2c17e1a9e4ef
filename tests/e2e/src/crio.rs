//! A pod as CRI-O's runtime type `vm` asks for one (CRI-O `internal/oci/runtime_vm.go` and `server/sandbox_run_linux.go`), without
//! a CRI-O: no mounts for the roots, namespaces that are pinned before the sandbox, a configuration that is named late.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use containerd_shim_protos::api;
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use sandbox_harness::process::wait_until;
use sandbox_harness::shim::Shim;
use sandbox_harness::{World, bundle, process};
use serde_json::{Value, json};
use ttrpc::Code;

use crate::network::Net;
use crate::{Case, control_group};

pub(crate) const CASES: &[Case] = &[
    ("crio_pod_runs_by_its_task_service", pod),
    (
        "crio_pod_of_a_killed_shim_is_cleared_away_by_the_next_pods_shim",
        killed_shim,
    ),
];

/// The pod, whose sandbox container has its name.
const POD: &str = "p1";
/// What the containers' limits are said to be, in bytes.
const LIMIT_BYTES: u64 = 200 << 20;
/// What the late configuration adds to them, in MiB.
const OVERHEAD_MIB: u64 = 160;

/// A container's specification with what CRI-O says of every one. The pod's sandbox has its name.
fn spec(world: &World, pod: &str, name: &str, args: &[&str]) -> Value {
    let mut spec = bundle::spec(args);
    let pinned = |kind: &str| json!({"type": kind, "path": format!("/var/run/{kind}ns/{pod}")});
    spec["linux"]["namespaces"] = json!([
        {"type": "pid"}, {"type": "mount"}, {"type": "cgroup"}, pinned("ipc"), pinned("uts"),
    ]);
    // The root is a mount of CRI-O's own, anywhere.
    spec["root"]["path"] = json!(world.path().join(name).join("rootfs"));
    let resources = json!({"cpu_period": 100_000, "memory_limit_in_bytes": LIMIT_BYTES});
    spec["annotations"] = json!({
        "io.kubernetes.cri-o.ContainerType": if name == pod { "sandbox" } else { "container" },
        "io.kubernetes.cri-o.SandboxID": pod,
        "pod-linux-resources.crio.io": resources.to_string(),
    });
    spec
}

/// The specification of a pod's sandbox, which does nothing.
fn idle(world: &World, pod: &str) -> Value {
    spec(world, pod, pod, &["sleep", "100000"])
}

/// The shim's program in a bundle, up to the command; it knows no events.
fn shim_command(world: &World, id: &str, folder: &Path) -> Command {
    let mut command = world.command("containerd-shim-sandbox-v2");
    command
        .args(["-namespace", "default", "-address", ""])
        .args(["-publish-binary", "/usr/bin/crio", "-id", id])
        .current_dir(folder)
        .env("SANDBOX_CONFIG", world.path().join("early.toml"))
        .env("MAX_SHIM_VERSION", "2")
        .env("TTRPC_ADDRESS", "")
        .env("GRPC_ADDRESS", "");
    command
}

/// Starts the shim, or finds it, as CRI-O does before each container: it takes all that is said for the address.
fn start(world: &World, id: &str, folder: &Path) -> Result<Shim> {
    world.write_config(&world.path().join("early.toml"))?;
    fs::File::create(folder.join("log"))?;
    let mut command = shim_command(world, id, folder);
    let said = process::run(command.arg("start"), b"", world.setup().limit)?.expect_code(0)?;
    ensure!(
        said.stderr.is_empty(),
        "beside the address: {}",
        said.stderr
    );
    Shim::connect(world, said.text().trim(), folder)
}

/// `runtimeoptions.v1.Options` with a `config_path`.
fn options(path: &Path) -> Result<Any> {
    let path = path.to_str().context("the path is text")?.as_bytes();
    // The length is a number of one byte.
    ensure!(path.len() < 128, "the path is too long");
    let mut value = vec![2 << 3 | 2, u8::try_from(path.len())?];
    value.extend(path);
    Ok(Any {
        type_url: "runtimeoptions.v1.Options".to_owned(),
        value,
        ..Default::default()
    })
}

/// The sandbox container, and with it the machine.
fn sandbox(world: &World, pod: &str, spec: &Value) -> Result<Shim> {
    let folder = bundle::make(world, pod, spec)?;
    let shim = start(world, pod, &folder)?;
    let late = world.path().join("late.toml");
    world.write_config(&late)?;
    let text = fs::read_to_string(&late)? + &format!("memory_overhead_mib = {OVERHEAD_MIB}\n");
    fs::write(&late, text)?;
    let request = api::CreateTaskRequest {
        id: pod.to_owned(),
        bundle: folder.display().to_string(),
        options: Some(options(&late)?).into(),
        ..Default::default()
    };
    shim.tasks()
        .create(Shim::context(), &request)
        .with_context(|| shim.log())?;
    shim.start_process(pod, "")?;
    Ok(shim)
}

/// Another container of the pod.
fn member(world: &World, name: &str, spec: &Value) -> Result<Shim> {
    let folder = bundle::make(world, name, spec)?;
    start(world, name, &folder)
}

/// By signal 0 CRI-O asks whether a container lives, before each exec.
fn kill(shim: &Shim, id: &str, signal: i32) -> ttrpc::Result<api::Empty> {
    let request = api::KillRequest {
        id: id.to_owned(),
        signal: signal.cast_unsigned(),
        ..Default::default()
    };
    shim.tasks().kill(Shim::context(), &request)
}

fn pod(world: &World) -> Result<()> {
    let holder = sandbox(world, POD, &idle(world, POD))?;
    kill(&holder, POD, 0)?;

    let service = ["sh", "-c", "echo up; while :; do sleep 1; done"];
    // Without a limit it would have the configured size beside those of the others.
    let mut limited = spec(world, POD, "m1", &service);
    limited["linux"]["resources"] = json!({"memory": {"limit": LIMIT_BYTES / 2}});
    let first = member(world, "m1", &limited)?;
    let mut output = first.run("m1", false)?;
    ensure!(output.line()? == "up");
    kill(&first, "m1", 0)?;
    let script = "busybox readlink /proc/1/ns/ipc; busybox grep MemTotal /proc/meminfo";
    let mut said = first.exec("m1", "e1", &bundle::process(&["sh", "-c", script]))?;
    let (ipc, total) = (said.line()?, said.line()?);
    ensure!(first.wait("m1", "e1")? == 0);
    first.delete("m1", "e1")?;
    // The limits by the annotation, the overhead by the late configuration; without what the kernel keeps for itself.
    let kib: u64 = total
        .split_whitespace()
        .nth(1)
        .context("MemTotal has no number")?
        .parse()?;
    let all = LIMIT_BYTES / 1024 + OVERHEAD_MIB * 1024;
    ensure!((all - (90 << 10)..all).contains(&kib), "{total}");

    // One whose memory runs out, in the same ipc namespace. CRI-O looks for the file.
    let hungry = "busybox readlink /proc/1/ns/ipc; x=x; while :; do x=$x$x; done";
    let mut hungry = spec(world, POD, "m2", &["sh", "-c", hungry]);
    hungry["linux"]["resources"] = json!({"memory": {"limit": 24 << 20}});
    let second = member(world, "m2", &hungry)?;
    let mut output = second.run("m2", false)?;
    ensure!(output.line()? == ipc);
    ensure!(second.wait("m2", "")? == 137);
    wait_until("the note of the end's reason", world.setup().limit, || {
        world.path().join("m2/oom").exists().then_some(())
    })?;

    // Each container that is removed is followed by a shutdown, which is not the pod's.
    kill(&first, "m1", nix::libc::SIGKILL)?;
    ensure!(first.wait("m1", "")? == 137);
    for (shim, id) in [(&first, "m1"), (&second, "m2")] {
        let gone = kill(shim, id, 0);
        ensure!(
            matches!(&gone, Err(ttrpc::Error::RpcStatus(status)) if status.code() == Code::NOT_FOUND),
            "{gone:?}"
        );
        shim.delete(id, "")?;
        shim.shutdown(id)?;
    }
    kill(&holder, POD, 0)?;
    end(&holder, POD)
}

/// What CRI-O does with a pod that is to be removed.
fn end(holder: &Shim, pod: &str) -> Result<()> {
    kill(holder, pod, nix::libc::SIGKILL)?;
    ensure!(holder.wait(pod, "")? == 137);
    holder.delete(pod, "")?;
    holder.shutdown(pod)
}

/// Everything that a pod has on the host, and that its shim did not take away because it was killed.
fn killed_shim(world: &World) -> Result<()> {
    let net = Net::filled()?;
    let place = control_group::place("swept");
    let ran = world.path().join("ran");
    let last = |name: &str| {
        let script = format!("echo {name} >> {}", ran.display());
        json!({"poststop": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]})
    };
    let mut lost = idle(world, "lost");
    lost["linux"]["cgroupsPath"] = json!(place);
    lost["hooks"] = last("lost");
    lost["linux"]["namespaces"]
        .as_array_mut()
        .context("there are namespaces")?
        .push(json!({"type": "network", "path": format!("/run/netns/{}", net.pod())}));
    sandbox(world, "lost", &lost)?;
    let mut also = spec(
        world,
        "lost",
        "also",
        &["sh", "-c", "echo up; sleep 100000"],
    );
    also["hooks"] = last("also");
    ensure!(member(world, "also", &also)?.run("also", false)?.line()? == "up");

    let monitor = world.process(world.setup().driver.monitor())?.pid;
    let groups = [
        control_group::group(monitor, "memory")?.1,
        control_group::group(monitor, "pids")?.1,
    ];
    let address = fs::read_to_string(world.path().join("lost/address"))?;
    let socket = PathBuf::from(address.trim_start_matches("unix://"));
    world.kill_process("containerd-shim-sandbox-v2")?;
    let sandboxes = || fs::read_dir(world.run_dir()).map_or(0, Iterator::count);
    ensure!(sandboxes() == 1 && socket.exists() && groups.iter().all(|group| group.is_dir()));

    let next = sandbox(world, "next", &idle(world, "next"))?;
    wait_until(
        "that the other pod is cleared away",
        world.setup().limit,
        || next.log().contains("cleared away pod lost").then_some(()),
    )
    .with_context(|| next.log())?;
    let hooks = fs::read_to_string(&ran)?;
    ensure!(hooks == "lost\nalso\n", "the last hooks: {hooks}");
    ensure!(sandboxes() == 1, "not only the next pod's is left");
    ensure!(!socket.exists(), "{} is left", socket.display());
    control_group::expect_gone(&groups)?;
    net.expect_untouched()?;
    // Who asks for it by hand all the same is answered as ever.
    let mut delete = shim_command(world, "lost", &world.path().join("lost"));
    let said = process::run(delete.arg("delete"), b"", world.setup().limit)?.expect_code(0)?;
    let answer = api::DeleteResponse::parse_from_bytes(&said.stdout)?;
    ensure!(answer.exit_status == 137, "{answer:?}");
    // The one that did it lives on.
    kill(&next, "next", 0)?;
    end(&next, "next")
}
