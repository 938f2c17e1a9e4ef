//! The shim under Debian's containerd, driven by `ctr`.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use sandbox_harness::World;
use sandbox_harness::containerd::{Containerd, RUNTIME};
use sandbox_harness::layout::{self, Layer};
use sandbox_harness::process;
use serde_json::json;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("containerd_ctr_run_prints_and_exits", run),
    ("containerd_ctr_streams_stdin", stdin),
    ("containerd_ctr_exec_and_kill", exec_and_kill),
    ("containerd_overlay_keeps_what_files_may", overlay),
    ("containerd_shim_killed_is_cleaned_up", shim_killed),
    ("containerd_shim_prints_its_version", version),
];

fn run(world: &World) -> Result<()> {
    let containerd = Containerd::start(world)?;
    containerd.import_demo(world)?;
    let script = "uname -r; echo changed > /etc/passwd; exit 7";
    let finished = containerd
        .ctr_run(&["--rm"], "c1", &["sh", "-c", script])?
        .finish()?;
    ensure!(
        finished.code == 7 && finished.text().starts_with("6.12."),
        "exit code {}: {}{}\n{}",
        finished.code,
        finished.text(),
        finished.stderr,
        containerd.log()
    );
    let again = containerd.ctr_run(&["--rm"], "c2", &["head", "-n", "1", "/etc/passwd"])?;
    again
        .finish()?
        .expect_code(0)?
        .expect_stdout("root:x:0:0:root:/root:/bin/sh\n")?;
    Ok(())
}

fn stdin(world: &World) -> Result<()> {
    let containerd = Containerd::start(world)?;
    containerd.import_demo(world)?;
    let mut running = containerd.ctr_run(&["--rm"], "c1", &["cat"])?;
    running.write(b"through containerd\n")?;
    // ctr passes the end of its input on only once the task exists, so it must not come before.
    running.wait_for_line("through containerd")?;
    running.close_stdin();
    running
        .finish()?
        .expect_code(0)?
        .expect_stdout("through containerd\n")?;
    Ok(())
}

fn exec_and_kill(world: &World) -> Result<()> {
    let containerd = Containerd::start(world)?;
    containerd.import_demo(world)?;
    let service = "echo up; while :; do sleep 1; done";
    let mut running = containerd.ctr_run(&[], "c1", &["sh", "-c", service])?;
    running.wait_for_line("up")?;
    containerd
        .ctr(&[
            "task",
            "exec",
            "--exec-id",
            "e1",
            "c1",
            "sh",
            "-c",
            "echo from exec; exit 9",
        ])?
        .expect_code(9)?
        .expect_stdout("from exec\n")?;
    containerd
        .ctr(&[
            "task",
            "exec",
            "--exec-id",
            "e2",
            "--user",
            "7:8",
            "--cwd",
            "/tmp",
            "c1",
            "sh",
            "-c",
            "id -u; id -g; pwd",
        ])?
        .expect_code(0)?
        .expect_stdout("7\n8\n/tmp\n")?;
    let metrics = containerd.ctr(&["task", "metrics", "c1"])?.expect_code(0)?;
    ensure!(
        metrics.text().contains("memory.usage_in_bytes") || metrics.text().contains("memory.usage"),
        "{}",
        metrics.text()
    );
    for (verb, state) in [("pause", "PAUSED"), ("resume", "RUNNING")] {
        containerd.ctr(&["task", verb, "c1"])?.expect_code(0)?;
        let tasks = containerd.ctr(&["task", "ls"])?.expect_code(0)?;
        ensure!(tasks.text().contains(state), "{}", tasks.text());
    }
    let listed = containerd.ctr(&["task", "ps", "c1"])?.expect_code(0)?;
    ensure!(listed.text().lines().count() >= 2, "{}", listed.text());
    let tasks = containerd.ctr(&["task", "ls"])?.expect_code(0)?;
    ensure!(tasks.text().contains("RUNNING"), "{}", tasks.text());
    containerd
        .ctr(&["task", "kill", "--all", "--signal", "SIGKILL", "c1"])?
        .expect_code(0)?;
    running.finish()?.expect_code(137)?;
    containerd.ctr(&["task", "rm", "c1"])?;
    containerd.ctr(&["container", "rm", "c1"])?.expect_code(0)?;
    Ok(())
}

/// `CAP_NET_RAW`, permitted and effective, as a file has it (`vfs_ns_cap_data` without a user: version 2).
const FILE_CAPABILITY: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// The overlay is mounted by the shim, and the kernel copies files up with what the shim has.
fn overlay(world: &World) -> Result<()> {
    const IMAGE: &str = "docker.io/library/capable:latest";
    let containerd = Containerd::start(world)?;
    let folder = world.path().join("capable");
    fs::create_dir(&folder)?;
    let mut layer = Layer::default().directory("data", 0o755)?;
    for name in ["changed", "written", "moved"] {
        let attribute = ("security.capability", &FILE_CAPABILITY[..]);
        layer = layer.file_with(&format!("data/{name}"), 0o755, attribute)?;
    }
    let layers = [layout::busybox_layer()?, layer.finish()?];
    let config = json!({ "Env": ["PATH=/bin"] });
    layout::write(&folder, "capable", &layers, &config)?;
    containerd.import(world, &[], &folder, IMAGE)?;
    let script = "cd /data && chmod 700 changed && echo more >>written && mv moved there && \
                  echo x >group && chown 0:7 group && chmod 2755 group && stat -c %a changed group";
    let run = ["run", "--rm", "--runtime", RUNTIME, IMAGE, "c1"];
    let finished = containerd
        .start_ctr(&[&run[..], &["sh", "-c", script]].concat())?
        .finish()?;
    finished.expect_code(0)?.expect_stdout("700\n2755\n")?;
    Ok(())
}

fn shim_killed(world: &World) -> Result<()> {
    let containerd = Containerd::start(world)?;
    containerd.import_demo(world)?;
    // What a killed shim's sandbox shared is none the worse for the cleaning up.
    let shared = world.path().join("shared");
    fs::create_dir(&shared)?;
    fs::write(shared.join("f"), "kept")?;
    let mount = format!(
        "type=bind,src={},dst=/shared,options=rbind:rw",
        shared.display()
    );
    let script = "cat /shared/f && echo up; cat";
    let mut running = containerd.ctr_run(&["--mount", &mount], "c1", &["sh", "-c", script])?;
    running.wait_for_line("keptup")?;
    world.kill_process("containerd-shim-sandbox-v2")?;
    process::wait_until("the monitor ends", world.setup().limit, || {
        let monitor = world.setup().driver.monitor();
        let left = sandbox_harness::leaks::processes(world.path());
        (!left.iter().any(|process| process.command.contains(monitor))).then_some(())
    })?;
    let _ = running.signal(Signal::SIGKILL);
    let _ = running.finish();
    // containerd cleans up after a dead shim in its own time, and until then knows a task that it cannot ask.
    let mut last = String::new();
    process::wait_until("containerd lets go", world.setup().limit, || {
        let _ = containerd.ctr(&["task", "rm", "--force", "c1"]);
        let removed = containerd.ctr(&["container", "rm", "c1"]).ok()?;
        last = removed.stderr;
        (removed.code == 0).then_some(())
    })
    .with_context(|| format!("{last}\n{}", containerd.log()))?;
    ensure!(fs::read_to_string(shared.join("f"))? == "kept");
    Ok(())
}

fn version(world: &World) -> Result<()> {
    let mut command = world.command("containerd-shim-sandbox-v2");
    let finished = process::run(command.arg("-v"), b"", world.setup().limit)?.expect_code(0)?;
    ensure!(
        finished.text().contains(env!("CARGO_PKG_VERSION")),
        "{}",
        finished.text()
    );
    Ok(())
}
