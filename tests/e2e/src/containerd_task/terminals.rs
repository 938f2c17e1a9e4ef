//! Connect, the sizes of terminals, and what is left to do when the shim was killed.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::Message as _;
use sandbox_harness::World;
use sandbox_harness::process::wait_until;
use sandbox_harness::task::{Shim, Streams, process, spec};
use serde_json::{Value, json};

use super::{WAITING, id};

const SHIM: &str = "containerd-shim-sandbox-v2";
/// How long something may take that is about to happen.
const SOON: Duration = Duration::from_secs(180);

/// An exec's terminal, whose new size is seen and signalled inside.
fn resized(shim: &Shim) -> Result<()> {
    let script = "trap 'changed=1' WINCH; stty size; while [ -z \"$changed\" ]; do sleep 0.1; done; stty size";
    let mut shell = process(&["sh", "-c", script]);
    shell["terminal"] = json!(true);
    shell["consoleSize"] = json!({"width": 100, "height": 33});
    let out = shim.bundle().join("terminal");
    let mut streams = Streams::file(&out);
    streams.stderr.clear();
    shim.exec("terminal", &shell, &streams)?;
    let printed = || fs::read_to_string(&out).unwrap_or_default();
    wait_until("the first size", SOON, || {
        printed().contains("33 100").then_some(())
    })?;
    let resize = |exec: &str| {
        let request = api::ResizePtyRequest {
            id: id(shim),
            exec_id: exec.to_owned(),
            width: 120,
            height: 40,
            ..Default::default()
        };
        shim.client().resize_pty(shim.call(), &request)
    };
    resize("terminal")?;
    ensure!(shim.wait("terminal")? == 0);
    shim.delete("terminal")?;
    ensure!(printed() == "33 100\r\n40 120\r\n", "{:?}", printed());
    // What has no terminal has no size; containerd's own shim says nothing of it either.
    resize("")?;
    let gone = resize("terminal").err().context("not refused")?;
    ensure!(
        matches!(&gone, ttrpc::Error::RpcStatus(status) if status.code() == ttrpc::Code::NOT_FOUND),
        "{gone}"
    );
    Ok(())
}

pub(super) fn case(world: &World) -> Result<()> {
    let shim = Shim::start(world, "k1")?;
    let stopped = world.path().join("stopped");
    let mut spec = spec(WAITING);
    let script = format!("{{ cat; echo; }} >> {}", stopped.display());
    spec["hooks"] = json!({"poststop": [{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}]});
    let task = shim.create(&spec, &Streams::default())?.pid;
    shim.start_process("")?;
    let request = api::ConnectRequest {
        id: "k1".to_owned(),
        ..Default::default()
    };
    let connected = shim.client().connect(shim.call(), &request)?;
    let program = world.process(SHIM)?;
    ensure!(
        i64::from(connected.shim_pid) == i64::from(program.pid) && connected.task_pid == task,
        "{connected:?}, {}",
        program.pid
    );
    resized(&shim)?;

    world.kill_process(SHIM)?;
    ensure!(!stopped.exists(), "the last hooks ran too early");
    // containerd runs it once, other callers perhaps again.
    for _ in 0..2 {
        let deleted = shim.delete_command(world).output()?;
        let answer = api::DeleteResponse::parse_from_bytes(&deleted.stdout)?;
        ensure!(
            deleted.status.success() && answer.exit_status == 137,
            "{deleted:?}"
        );
    }
    let told = fs::read_to_string(stopped)?;
    let state: Value = serde_json::from_str(&told).with_context(|| told.clone())?;
    ensure!(
        state["status"] == "stopped" && state["id"] == "k1",
        "{told}"
    );
    world.expect_no_process()
}
