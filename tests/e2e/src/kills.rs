//! A process is killed at a moment of create, start, exec or delete: the call comes back in bounded time and says what ended,
//! and nothing is left once the caller has done what containerd does then.
//!
//! Each case is a row of a table: one victim, at every moment. A moment within a call is a sign (a process or a folder that
//! is there) and a pause after it. The pauses are chosen by a seed; a failure names it, and `SANDBOX_TEST_SEED` sets it.

use std::fs;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use sandbox_harness::process::wait_until;
use sandbox_harness::{Driver, World, bundle};
use serde_json::json;

use self::cell::Cell;
use self::moment::{Dice, Sign, Victim, When};
use crate::Case;
use crate::network::Net;

mod cell;
mod containerd;
mod guest;
mod moment;

/// Victims that are the driver's.
pub(crate) const DRIVERS: &[Case] = &[
    (
        "kill_machine_at_any_moment_is_named_and_leaves_nothing",
        machine,
    ),
    (
        "kill_device_helpers_at_any_moment_is_named_and_leaves_nothing",
        helpers,
    ),
];

/// The others.
pub(crate) const CASES: &[Case] = &[
    (
        "kill_shim_at_any_moment_leaves_nothing_after_its_delete",
        shim,
    ),
    (
        "kill_guest_at_any_moment_is_named_and_leaves_nothing",
        guest::row,
    ),
    ("kill_caller_while_its_container_is_made_undoes_it", caller),
    (
        "kill_containerd_at_any_moment_leaves_nothing_after_its_restart",
        containerd::row,
    ),
];

/// What counts as bounded, for one call: far above what any takes, also in a test host that runs beside another.
const BOUND: Duration = Duration::from_secs(120);
/// What a container does that is to be killed.
const WAITS: &str = "echo up; sleep 1000";

/// One victim at several moments, each with a container of its own.
fn row(
    world: &World,
    net: Option<&Net>,
    victim: Victim,
    dice: &mut Dice,
    moments: &[When],
) -> Result<()> {
    for (index, &when) in moments.iter().enumerate() {
        let pause = match when {
            When::Creating(Sign::Process(Victim::Machine)) => dice.boot(),
            _ => dice.short(),
        };
        // Not the victim's name, by which its process is found.
        let id = format!("cell{index}");
        let spec = match net {
            Some(net) => net.spec(WAITS),
            None => bundle::spec(&["/bin/busybox", "sh", "-c", WAITS]),
        };
        let mut cell = Cell::start(world, id, &spec)?;
        let done = cell
            .strike(world, victim, when, pause)
            .and_then(|()| match victim {
                Victim::Shim => cell.end_without_shim(world),
                _ => cell.end(),
            });
        let log = cell.shim.log();
        let done = done
            .and_then(|()| cell.expect_nothing_left(world))
            .and_then(|()| net.map_or(Ok(()), Net::expect_untouched));
        let moment = dice.within(when, pause);
        told(done, &format!("{victim:?} killed when {moment}"), || log)?;
    }
    Ok(())
}

/// Create is under way when its caller goes, and nobody says anything to the shim thereafter. A hook tells that it is, and waits
/// until the caller is gone: nothing of it fails.
fn caller(world: &World) -> Result<()> {
    let (reached, gone) = (world.path().join("reached"), world.path().join("gone"));
    let script = format!("touch {reached:?}; until [ -e {gone:?} ]; do sleep 0.05; done");
    let mut spec = bundle::spec(&["/bin/busybox", "sh", "-c", WAITS]);
    spec["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]});
    let cell = Cell::start(world, "wanted".to_owned(), &spec)?;
    let call = cell.call("Create", |shim, id| shim.create(id, false));
    wait_until("the hook runs", BOUND, || reached.exists().then_some(()))?;
    cell.shim.hang_up();
    ensure!(call.answer()?.is_err(), "it was answered");
    fs::write(gone, "")?;
    let log = cell.shim.log();
    let left = cell.expect_nothing_left(world);
    told(left, "the caller of Create went away", || log)
}

/// Says of a failure when it was, then what, and last what was logged, of which a report shows the beginning.
fn told(done: Result<()>, when: &str, log: impl FnOnce() -> String) -> Result<()> {
    done.map_err(|error| anyhow!("{when}: {error:#}\nthe log:\n{}", log()))
}

/// Once Create has begun to make what the machine needs, and thrice while this boots and the container is made.
const WHILE_CREATING: [When; 4] = [
    When::Creating(Sign::Folder),
    When::Creating(Sign::Process(Victim::Machine)),
    When::Creating(Sign::Process(Victim::Machine)),
    When::Creating(Sign::Process(Victim::Machine)),
];
const LATER: [When; 4] = [
    When::Created,
    When::Running,
    When::Executing,
    When::Stopping,
];

fn shim(world: &World) -> Result<()> {
    let net = Net::filled()?;
    let moments = [
        [When::Waiting; 2].as_slice(),
        &WHILE_CREATING,
        &[When::Creating(Sign::Process(Victim::Virtiofsd))],
        &LATER,
    ]
    .concat();
    row(world, Some(&net), Victim::Shim, &mut Dice::new()?, &moments)
}

fn machine(world: &World) -> Result<()> {
    let net = Net::filled()?;
    // Its folder is no sign of it.
    let waiting = match When::machine_waits(world) {
        true => [When::Waiting].as_slice(),
        false => &[],
    };
    let moments = [waiting, &WHILE_CREATING[1..], &LATER].concat();
    row(
        world,
        Some(&net),
        Victim::Machine,
        &mut Dice::new()?,
        &moments,
    )
}

fn helpers(world: &World) -> Result<()> {
    let victims: &[Victim] = match world.setup().driver {
        Driver::Kvm => &[Victim::Virtiofsd],
        Driver::Qemu => &[Victim::Virtiofsd, Victim::VsockBackEnd],
    };
    let mut dice = Dice::new()?;
    for &victim in victims {
        let first = [
            When::Creating(Sign::Process(victim)),
            When::Creating(Sign::Process(Victim::Machine)),
        ];
        let moments = [first.as_slice(), &LATER].concat();
        row(world, None, victim, &mut dice, &moments)?;
    }
    Ok(())
}
