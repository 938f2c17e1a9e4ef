//! A pod as CRI-O's runtime type `vm` asks for one (CRI-O `internal/oci/runtime_vm.go` and `server/sandbox_run_linux.go`), without
//! a CRI-O: no mounts for the roots, namespaces that are pinned before the sandbox, a configuration that is named late.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use containerd_shim_protos::api;
use protobuf::well_known_types::any::Any;
use sandbox_harness::process::wait_until;
use sandbox_harness::shim::Shim;
use sandbox_harness::{World, bundle, process};
use serde_json::json;
use ttrpc::Code;

use crate::Case;

pub(crate) const CASES: &[Case] = &[("crio_pod_runs_by_its_task_service", pod)];

/// The pod, whose sandbox container has its name.
const POD: &str = "p1";
/// What the containers' limits are said to be, in bytes.
const LIMIT_BYTES: u64 = 200 << 20;
/// What the late configuration adds to them, in MiB.
const OVERHEAD_MIB: u64 = 160;

/// A bundle with what CRI-O says of every container.
fn make(
    world: &World,
    name: &str,
    kind: &str,
    args: &[&str],
    limit: Option<u64>,
) -> Result<PathBuf> {
    let mut spec = bundle::spec(args);
    let pinned = |kind: &str| json!({"type": kind, "path": format!("/var/run/{kind}ns/{POD}")});
    spec["linux"]["namespaces"] = json!([
        {"type": "pid"}, {"type": "mount"}, {"type": "cgroup"}, pinned("ipc"), pinned("uts"),
    ]);
    // The root is a mount of CRI-O's own, anywhere.
    spec["root"]["path"] = json!(world.path().join(name).join("rootfs"));
    if let Some(limit) = limit {
        spec["linux"]["resources"] = json!({"memory": {"limit": limit}});
    }
    let resources = json!({"cpu_period": 100_000, "memory_limit_in_bytes": LIMIT_BYTES});
    spec["annotations"] = json!({
        "io.kubernetes.cri-o.ContainerType": kind,
        "io.kubernetes.cri-o.SandboxID": POD,
        "pod-linux-resources.crio.io": resources.to_string(),
    });
    bundle::make(world, name, &spec)
}

/// Starts the shim, or finds it, as CRI-O does before each container: it knows no events, and takes all that is said for the address.
fn start(world: &World, id: &str, folder: &Path) -> Result<Shim> {
    let config = world.path().join("early.toml");
    world.write_config(&config)?;
    fs::File::create(folder.join("log"))?;
    let mut command = world.command("containerd-shim-sandbox-v2");
    command
        .args(["-namespace", "default", "-address", ""])
        .args(["-publish-binary", "/usr/bin/crio", "-id", id, "start"])
        .current_dir(folder)
        .env("SANDBOX_CONFIG", &config)
        .env("MAX_SHIM_VERSION", "2")
        .env("TTRPC_ADDRESS", "")
        .env("GRPC_ADDRESS", "");
    let said = process::run(&mut command, b"", world.setup().limit)?.expect_code(0)?;
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
fn sandbox(world: &World) -> Result<Shim> {
    let folder = make(world, POD, "sandbox", &["sleep", "100000"], None)?;
    let shim = start(world, POD, &folder)?;
    let late = world.path().join("late.toml");
    world.write_config(&late)?;
    let text = fs::read_to_string(&late)? + &format!("memory_overhead_mib = {OVERHEAD_MIB}\n");
    fs::write(&late, text)?;
    let request = api::CreateTaskRequest {
        id: POD.to_owned(),
        bundle: folder.display().to_string(),
        options: Some(options(&late)?).into(),
        ..Default::default()
    };
    shim.tasks()
        .create(Shim::context(), &request)
        .with_context(|| shim.log())?;
    shim.start_process(POD, "")?;
    Ok(shim)
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
    let holder = sandbox(world)?;
    kill(&holder, POD, 0)?;

    let service = ["sh", "-c", "echo up; while :; do sleep 1; done"];
    let folder = make(world, "m1", "container", &service, None)?;
    let first = start(world, "m1", &folder)?;
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
    let folder = make(
        world,
        "m2",
        "container",
        &["sh", "-c", hungry],
        Some(24 << 20),
    )?;
    let second = start(world, "m2", &folder)?;
    let mut output = second.run("m2", false)?;
    ensure!(output.line()? == ipc);
    ensure!(second.wait("m2", "")? == 137);
    wait_until("the note of the end's reason", world.setup().limit, || {
        folder.join("oom").exists().then_some(())
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
    kill(&holder, POD, nix::libc::SIGKILL)?;
    ensure!(holder.wait(POD, "")? == 137);
    holder.delete(POD, "")?;
    holder.shutdown(POD)
}
