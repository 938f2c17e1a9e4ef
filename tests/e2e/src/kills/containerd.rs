//! containerd is killed, and started again.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use sandbox_harness::World;
use sandbox_harness::containerd::Containerd;
use sandbox_harness::process::wait_until;

use super::moment::{Dice, Sign, Victim, When};
use super::{BOUND, told};

/// At every moment, one after the other.
pub(super) fn row(world: &World) -> Result<()> {
    let mut containerd = Containerd::start(world)?;
    containerd.import_demo(world)?;
    let mut dice = Dice::new()?;
    let creating = When::Creating(Sign::Process(Victim::Machine));
    let moments = [
        creating,
        creating,
        When::Running,
        When::Executing,
        When::Stopping,
    ];
    for (index, when) in moments.into_iter().enumerate() {
        let pause = match when {
            When::Creating(_) => dice.boot(),
            _ => dice.short(),
        };
        let name = format!("c{index}");
        let killed = containerd_killed(world, &mut containerd, &name, when, pause);
        let moment = dice.within(when, pause);
        let what = format!("containerd killed when {moment}");
        told(killed, &what, || containerd.log())?;
    }
    Ok(())
}

/// Kills containerd at a moment of a container's life, starts it again, and removes the container as a person would.
fn containerd_killed(
    world: &World,
    containerd: &mut Containerd,
    name: &str,
    when: When,
    pause: Duration,
) -> Result<()> {
    let script = "echo up; while :; do sleep 1; done";
    let mut callers = vec![containerd.ctr_run(&[], name, &["sh", "-c", script])?];
    match when {
        When::Creating(sign) => sign.wait(world)?,
        _ => drop(callers[0].wait_for_line("up")?),
    }
    match when {
        When::Executing => {
            let exec = ["task", "exec", "--exec-id", "e", name, "sleep", "1000"];
            callers.push(containerd.start_ctr(&exec)?);
        }
        When::Stopping => {
            containerd
                .ctr(&["task", "kill", "--all", "--signal", "SIGKILL", name])?
                .expect_code(0)?;
            callers.push(containerd.start_ctr(&["task", "rm", name])?);
        }
        When::Waiting | When::Creating(_) | When::Created | When::Running => {}
    }
    thread::sleep(pause);
    containerd.kill();
    for caller in callers {
        // How long it takes to see that containerd is gone is ctr's affair.
        let _ = caller.signal(Signal::SIGKILL);
        let _ = caller.finish();
    }
    containerd.restart()?;
    if when == When::Running {
        let tasks = containerd.ctr(&["task", "ls"])?.expect_code(0)?;
        ensure!(tasks.text().contains("RUNNING"), "{}", tasks.text());
    }
    let mut last = String::new();
    wait_until("containerd lets go", BOUND, || {
        let _ = containerd.ctr(&["task", "rm", "--force", name]);
        let removed = containerd.ctr(&["container", "rm", name]).ok()?;
        last = removed.stderr;
        (removed.code == 0).then_some(())
    })
    .with_context(|| format!("{name} cannot be removed: {last}"))?;
    let victims = [Victim::Shim, Victim::Machine, Victim::Virtiofsd];
    let mut left = Vec::new();
    wait_until("nothing but containerd is left", BOUND, || {
        let processes = victims.iter().flat_map(|victim| victim.processes(world));
        left = processes.map(|process| process.command).collect();
        let files = fs::read_dir(world.run_dir())
            .into_iter()
            .flatten()
            .flatten();
        left.extend(files.map(|file| file.path().display().to_string()));
        left.is_empty().then_some(())
    })
    .with_context(|| format!("left: {left:?}"))
}
