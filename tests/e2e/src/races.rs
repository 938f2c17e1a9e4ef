//! Verbs that come while a container starts or ends, or whose shim does not answer.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sandbox_harness::World;

use crate::Case;
use crate::verbs::run;

pub(crate) const CASES: &[Case] = &[
    ("race_start_after_kill_starts", start_after_kill),
    (
        "race_restart_of_a_container_that_just_ended_starts_it",
        restart_after_end,
    ),
    (
        "race_restart_keeps_a_container_that_its_end_removes",
        restart_keeps,
    ),
    ("race_starts_at_once_start_once", starts_at_once),
    ("race_wait_never_invents_an_exit_code", wait_at_the_end),
    ("race_stop_of_a_hanging_shim_is_an_error", hanging_shim),
];

/// Starts the demo image with this script, as container `c`; returns its ID.
fn detached(world: &World, options: &[&str], script: &str) -> Result<String> {
    let before = ["run", "-d", "--name", "c"];
    let words = [&before, options, &["demo", "sh", "-c", script]].concat();
    let made = world.sandboxctl(&words)?.expect_code(0)?;
    Ok(made.text().trim().to_owned())
}

fn is_running(world: &World) -> Result<()> {
    let state = ["inspect", "-f", "{{.State.Running}}", "c"];
    run(world, &state, "true\n")
}

fn start_after_kill(world: &World) -> Result<()> {
    detached(world, &[], "sleep 1000")?;
    run(world, &["kill", "c"], "c\n")?;
    let ended = [
        "inspect",
        "-f",
        "{{.State.Status}} {{.State.ExitCode}}",
        "c",
    ];
    run(world, &ended, "exited 137\n")?;
    run(world, &["start", "c"], "c\n")?;
    is_running(world)?;
    run(world, &["rm", "-f", "c"], "c\n")
}

/// Runs the second time, but not the first.
const SECOND: &str = "echo x >> /kept; test $(wc -l < /kept) = 1 || exec sleep 1000";

fn restart_after_end(world: &World) -> Result<()> {
    detached(world, &[], SECOND)?;
    run(world, &["restart", "c"], "c\n")?;
    is_running(world)?;
    run(world, &["exec", "c", "cat", "/kept"], "x\nx\n")?;
    run(world, &["rm", "-f", "c"], "c\n")
}

fn restart_keeps(world: &World) -> Result<()> {
    detached(world, &["--rm"], "echo x >> /kept; exec sleep 1000")?;
    let is_there = ["exec", "c", "sh", "-c", "until [ -s /kept ]; do :; done"];
    run(world, &is_there, "")?;
    run(world, &["restart", "-t", "0", "c"], "c\n")?;
    is_running(world)?;
    let twice = "until [ $(wc -l < /kept) = 2 ]; do :; done";
    run(world, &["exec", "c", "sh", "-c", twice], "")?;
    run(world, &["stop", "-t", "0", "c"], "c\n")?;
    world
        .sandboxctl(&["inspect", "c"])?
        .expect_code(125)?
        .expect_stderr(&["c"])?;
    world.expect_nothing_left()
}

fn starts_at_once(world: &World) -> Result<()> {
    let script = "echo x >> /kept; exec sleep 1000";
    let create = ["create", "--name", "c", "demo", "sh", "-c", script];
    world.sandboxctl(&create)?.expect_code(0)?;
    let starts = [world.start(&["start", "c"])?, world.start(&["start", "c"])?];
    for start in starts {
        start.finish()?.expect_code(0)?.expect_stdout("c\n")?;
    }
    is_running(world)?;
    let once = "until [ -s /kept ]; do :; done; cat /kept";
    run(world, &["exec", "c", "sh", "-c", once], "x\n")?;
    // Nor is one that is held up started.
    run(world, &["pause", "c"], "c\n")?;
    world
        .sandboxctl(&["start", "c"])?
        .expect_code(125)?
        .expect_stderr(&["paused", "sandboxctl unpause"])?;
    run(world, &["rm", "-f", "c"], "c\n")
}

/// How often something is done that goes wrong only now and then.
const OFTEN: usize = 10;

fn wait_at_the_end(world: &World) -> Result<()> {
    for round in 0..OFTEN {
        let id = detached(world, &["--rm"], "exit 0")?;
        let waited = world.sandboxctl(&["wait", &id])?.expect_code(0)?;
        ensure!(waited.text() == "0\n", "round {round}: {}", waited.text());
        // The next of this name comes when this one is gone.
        world.expect_no_process()?;
    }
    detached(world, &[], "exit 3")?;
    run(world, &["wait", "c"], "3\n")?;
    run(world, &["rm", "c"], "c\n")
}

fn hanging_shim(world: &World) -> Result<()> {
    detached(world, &[], "sleep 1000")?;
    let shim = world.process("containerd-shim-sandbox-v2")?;
    kill(Pid::from_raw(shim.pid), Signal::SIGSTOP).context("cannot stop the shim")?;
    for verb in [&["stop", "-t", "1", "c"][..], &["kill", "c"]] {
        world
            .sandboxctl(verb)?
            .expect_code(125)?
            .expect_stderr(&["c does not answer", "rm -f c"])?;
    }
    run(world, &["rm", "-f", "c"], "c\n")?;
    world.expect_nothing_left()
}
