//! Several containers, and the verbs beside `run`.

use anyhow::{Context as _, Result, ensure};
use sandbox_harness::World;
use serde_json::Value;

use crate::Case;

/// In these the driver, its devices or its helpers take part.
pub(crate) const CASES: &[Case] = &[
    ("lifecycle_many_at_once", many),
    ("lifecycle_check_lists_requirements", check),
];

/// In these what is above every driver.
pub(crate) const ABOVE: &[Case] = &[
    ("lifecycle_ps_kill_rm", ps_kill_rm),
    ("lifecycle_rm_refuses_a_running_container", rm_refuses),
];

fn many(world: &World) -> Result<()> {
    let count = world.setup().at_once;
    let mut all = Vec::new();
    for number in 0..count {
        let script = format!("echo {number}; cat");
        all.push(world.start(&["run", "--rm", "-i", "demo", "sh", "-c", &script])?);
    }
    for (number, running) in all.iter_mut().enumerate() {
        running.wait_for_line(&number.to_string())?;
    }
    let ps = world.sandboxctl(&["ps", "-q"])?.expect_code(0)?;
    ensure!(ps.text().lines().count() == count, "ps shows {}", ps.text());
    for (number, mut running) in all.into_iter().enumerate() {
        running.write(b"bye\n")?;
        running.close_stdin();
        running
            .finish()?
            .expect_code(0)?
            .expect_stdout(&format!("{number}\nbye\n"))?;
    }
    Ok(())
}

fn ps_kill_rm(world: &World) -> Result<()> {
    let mut running = world.start(&[
        "run",
        "--name",
        "one",
        "demo",
        "sh",
        "-c",
        "echo up; sleep 1000",
    ])?;
    running.wait_for_line("up")?;
    let ps = world
        .sandboxctl(&["ps", "--format", "json"])?
        .expect_code(0)?;
    let line = ps.text();
    let all: Value = serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))?;
    let all = if all.is_array() {
        all
    } else {
        Value::Array(vec![all])
    };
    let text = all[0].to_string().to_lowercase();
    ensure!(
        text.contains("\"one\"") && text.contains("running"),
        "ps shows {text}"
    );
    world
        .sandboxctl(&["kill", "-s", "TERM", "one"])?
        .expect_code(0)?;
    // `sleep` is not PID 1 and `sh` ignores TERM without a handler there, as under any container runtime.
    world.sandboxctl(&["kill", "one"])?.expect_code(0)?;
    running.finish()?.expect_code(137)?;
    let ps = world.sandboxctl(&["ps"])?.expect_code(0)?;
    ensure!(!ps.text().contains("one"), "still running: {}", ps.text());
    let ps = world.sandboxctl(&["ps", "-a"])?.expect_code(0)?;
    ensure!(
        ps.text().contains("one") && ps.text().contains("137"),
        "ps -a shows {}",
        ps.text()
    );
    world.sandboxctl(&["rm", "one"])?.expect_code(0)?;
    world
        .sandboxctl(&["rm", "one"])?
        .expect_code(125)?
        .expect_stderr(&["one"])?;
    Ok(())
}

fn rm_refuses(world: &World) -> Result<()> {
    let running = world.start_waiting(&["-i", "--name", "busy"])?;
    world
        .sandboxctl(&["rm", "busy"])?
        .expect_code(125)?
        .expect_stderr(&["running"])?;
    world.sandboxctl(&["rm", "-f", "busy"])?.expect_code(0)?;
    let finished = running.finish()?;
    ensure!(
        finished.code == 137 || finished.code == 125,
        "exit code {}",
        finished.code
    );
    // What is not there: an error, but with -f as it should be.
    world
        .sandboxctl(&["rm", "busy"])?
        .expect_code(125)?
        .expect_stderr(&["busy"])?;
    world
        .sandboxctl(&["rm", "-f", "busy"])?
        .expect_code(0)?
        .expect_stdout("")?
        .expect_stderr(&["there is no container", "busy"])?;
    Ok(())
}

fn check(world: &World) -> Result<()> {
    let finished = world.sandboxctl(&["check"])?.expect_code(0)?;
    for part in ["kvm", "kernel", "qemu", "jail"] {
        ensure!(
            finished.text().to_lowercase().contains(part),
            "{part} is not in {}",
            finished.text()
        );
    }
    let json = world
        .sandboxctl(&["check", "--format", "json"])?
        .expect_code(0)?;
    let value: Value = serde_json::from_str(&json.text())?;
    ensure!(value.is_array() || value.is_object(), "not a list: {value}");
    Ok(())
}
