//! End-to-end tests: the product's programs, run as a user or containerd runs them.
//!
//! `sandbox-e2e --driver kvm|qemu --demo LAYOUT [--probe PROGRAM] [--part all|machine|processors] [--at-once N]
//! [--limit SECONDS] [libtest options]`. Everything real: kernel, machine, agent, containerd. Each test has a world of its own and ends with the leak
//! check. The part `machine` leaves out what no driver has a part in: images, registries, the verbs on containers that are
//! there, and the services that the shim offers to its callers; and what needs a second processor, which is `processors`.

mod containerd;
mod containerd2;
mod containerd_task;
mod control_group;
mod crio;
mod deploy;
mod docker;
mod failures;
mod habits;
mod images;
mod images_registry;
mod inside;
mod isolation;
mod jail;
mod kills;
mod layers;
mod lifecycle;
mod memory;
mod network;
mod network_devices;
mod networks;
mod observe;
mod options;
mod places;
mod pod_memory_volumes;
mod pod_streams;
mod pods;
mod races;
mod registry_access;
mod run;
mod shim_contract;
mod stdio;
mod storage;
mod tty;
mod verbs;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use sandbox_harness::{Driver, Setup, World, ending, leaks, within};

/// A test: what it is called, and what it does in a world that has the demo image.
type Case = (&'static str, fn(&World) -> Result<()>);

/// How long one command may take before it counts as hung, where nothing else is asked for.
const LIMIT: Duration = Duration::from_secs(180);

/// How many times as long one test may take before it counts as hung.
const COMMANDS_OF_A_CASE: u32 = 4;

/// The tests in which the driver, its devices or its helpers take part.
const MACHINE: &[&[Case]] = &[
    run::CASES,
    layers::CASES,
    stdio::CASES,
    failures::CASES,
    lifecycle::CASES,
    network::CASES,
    network_devices::CASES,
    containerd::CASES,
    pods::DEVICES,
    inside::CASES,
    jail::CASES,
    kills::DRIVERS,
    control_group::CASES,
    storage::CASES,
    memory::CASES,
];

/// The tests in which the driver takes part that need a host with two processors.
const PROCESSORS: &[&[Case]] = &[pods::PROCESSORS, places::PROCESSORS];

/// The tests of what stands above every driver.
const ABOVE: &[&[Case]] = &[
    run::ABOVE,
    tty::CASES,
    failures::ABOVE,
    lifecycle::ABOVE,
    options::CASES,
    habits::CASES,
    deploy::CASES,
    images::CASES,
    images_registry::CASES,
    registry_access::CASES,
    storage::ABOVE,
    observe::CASES,
    verbs::CASES,
    races::CASES,
    networks::CASES,
    isolation::CASES,
    inside::ABOVE,
    containerd_task::CASES,
    containerd2::CASES,
    docker::CASES,
    crio::CASES,
    pods::CASES,
    pod_memory_volumes::CASES,
    pod_streams::CASES,
    shim_contract::CASES,
    kills::CASES,
];

/// Takes our own options out of the command line; returns them, and the tests to choose from.
fn options(arguments: &mut Vec<String>) -> Result<(Setup, Vec<Case>)> {
    let mut take = |name: &str| -> Result<Option<String>> {
        let Some(at) = arguments.iter().position(|argument| argument == name) else {
            return Ok(None);
        };
        if at + 1 >= arguments.len() {
            bail!("{name} needs a value");
        }
        arguments.remove(at);
        Ok(Some(arguments.remove(at)))
    };
    let driver = match take("--driver")?.context("--driver is missing")?.as_str() {
        "kvm" => Driver::Kvm,
        "qemu" => Driver::Qemu,
        other => bail!("--driver takes kvm or qemu, not {other:?}"),
    };
    let binaries = std::env::current_exe()?
        .parent()
        .context("we are in a folder")?
        .to_owned();
    // Where a build leaves it.
    let probe = take("--probe")?.map_or_else(
        || binaries.join("../x86_64-unknown-linux-gnu/release/sandbox-probe"),
        PathBuf::from,
    );
    let cases = match take("--part")?.as_deref() {
        None | Some("all") => [MACHINE, PROCESSORS, ABOVE].concat().concat(),
        Some("machine") => MACHINE.concat(),
        Some("processors") => PROCESSORS.concat(),
        Some(other) => bail!("--part takes all, machine or processors, not {other:?}"),
    };
    let at_once = match take("--at-once")? {
        None => 10,
        Some(count) => count.parse().context("--at-once takes a number")?,
    };
    let limit = match take("--limit")? {
        None => LIMIT,
        Some(seconds) => Duration::from_secs(seconds.parse().context("--limit takes seconds")?),
    };
    let setup = Setup {
        at_once,
        probe,
        demo: std::fs::canonicalize(take("--demo")?.context("--demo is missing")?)?,
        binaries,
        driver,
        limit,
    };
    Ok((setup, cases))
}

/// How long each test took that ran.
type Times = Arc<Mutex<Vec<(Duration, &'static str)>>>;

fn trial(setup: &Setup, times: &Times, (name, case): Case) -> Trial {
    let setup = setup.clone();
    let times = Arc::clone(times);
    Trial::ignorable_test(name, move || {
        if isolation::CASES.iter().any(|(one, _)| *one == name)
            && let Some(reason) = isolation::obstacle(&setup)
        {
            return Ok(Completion::ignored_with(reason));
        }
        if let Some(reason) = layers::obstacle(name, setup.driver) {
            return Ok(Completion::ignored_with(reason));
        }
        let attempt = || -> Result<()> {
            let world = World::with_demo(&setup)?;
            // A failed test says why it failed; only a passed one is also asked what it left.
            within(setup.limit * COMMANDS_OF_A_CASE, world, move |world| {
                case(&world).and_then(|()| world.finish())
            })
        };
        let start = Instant::now();
        let outcome = attempt();
        let mut times = times.lock().unwrap_or_else(PoisonError::into_inner);
        times.push((start.elapsed(), name));
        match outcome {
            Ok(()) => Ok(Completion::Completed),
            Err(error) => match error.downcast_ref::<Obstacle>() {
                Some(Obstacle(reason)) => Ok(Completion::ignored_with(reason.clone())),
                None => Err(Failed::from(format!("{error:#}"))),
            },
        }
    })
}

/// What a test returns when it finds that it can say nothing on this machine: it is skipped.
#[derive(Debug)]
pub(crate) struct Obstacle(String);

impl std::fmt::Display for Obstacle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Obstacle {}

/// What tests that passed have to say, for the end of the run.
static NOTES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Keeps a line for the end of the run, where [`print_notes`] prints it and `cargo xtask test` takes it into its closing list.
fn note(line: String) {
    let mut notes = NOTES.lock().unwrap_or_else(PoisonError::into_inner);
    notes.push(line);
}

/// Prints what was noted: between the lines of tests that run side by side, it could be in the middle of one.
fn print_notes() {
    let notes = NOTES.lock().unwrap_or_else(PoisonError::into_inner);
    for line in notes.iter() {
        println!("note: {line}");
    }
}

/// Tells what takes the suite's time. Tests run side by side: the times add up to more than the suite's.
fn print_slowest(times: &Times) {
    let mut times = times.lock().unwrap_or_else(PoisonError::into_inner);
    times.sort_unstable();
    let sum: Duration = times.iter().map(|(time, _)| *time).sum();
    println!("slowest of {:.0} s:", sum.as_secs_f64());
    for (time, name) in times.iter().rev().take(15) {
        println!("{:7.1} s  {name}", time.as_secs_f64());
    }
}

fn main() -> Result<ExitCode> {
    let mut arguments: Vec<String> = std::env::args().collect();
    let (setup, cases) = options(&mut arguments)?;
    let times = Times::default();
    let trials = cases
        .into_iter()
        .map(|case| trial(&setup, &times, case))
        .collect();
    let mut arguments = Arguments::from_iter(arguments);
    // Two processors, and every test boots machines.
    arguments.test_threads.get_or_insert(2);
    // Tests run side by side, so what the machine has only once is compared around all of them.
    for ended in ending::begin()? {
        println!("note: left by an earlier run, and ended: {ended}");
    }
    let before = leaks::machine();
    let conclusion = libtest_mimic::run(&arguments, trials);
    ending::wait_if_interrupted();
    print_slowest(&times);
    let left = before.left();
    left.notes().into_iter().for_each(note);
    print_notes();
    ensure!(
        left.ours.is_empty(),
        "the tests left behind:\n  {}",
        left.ours.join("\n  ")
    );
    Ok(conclusion.exit_code())
}
