//! The isolation test, as a security engineer runs it.
//!
//! Attacks on the host's kernel in which runc is the control: so they run on the host that runs the tests, and what they
//! leave is looked for.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use sandbox_harness::process::{self, Running};
use sandbox_harness::{Setup, World, leaks};
use serde_json::Value;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("isolation_sandbox_holds_every_case", sandbox_holds),
    ("isolation_runc_is_reported_as_breached", runc_is_breached),
    ("isolation_case_without_a_control_is_not_held", no_control),
    ("isolation_interrupt_leaves_nothing", interrupt),
    ("isolation_report_is_one_page", page),
];

/// Cases that show the difference between a kernel of one's own and the host's, in one container.
const KERNEL: [&str; 2] = ["--case=kernel_boot_identity", "--case=kernel_sysctl"];

/// Why the isolation test has no control on this machine, in its own words.
pub(crate) fn obstacle(setup: &Setup) -> Option<String> {
    let reason = || -> Result<Option<String>> {
        let world = World::empty(setup)?;
        let mut command = command(&world, &["--runtime=runc", KERNEL[0], "--format=json"]);
        let finished = process::run(&mut command, b"", setup.limit)?;
        if finished.code != 3 {
            return Ok(None);
        }
        let report: Value = serde_json::from_slice(&finished.stdout)?;
        let because = &report["cases"][0]["runtimes"][0]["because"];
        Ok(Some(because.as_str().unwrap_or_default().to_owned()))
    };
    // What fails otherwise fails the tests.
    reason().ok().flatten()
}

/// How long all cases may take: several emulated machines, one after the other.
const LIMIT: Duration = Duration::from_secs(540);

fn command(world: &World, arguments: &[&str]) -> std::process::Command {
    let mut command = world.sandboxctl_command(&["isolation-test"]);
    command.args(arguments);
    command.arg("--probe").arg(&world.setup().probe);
    // Everything of it is below the world, where leftovers are looked for.
    command.env("TMPDIR", world.path());
    command
}

fn report(world: &World, arguments: &[&str], code: i32) -> Result<Value> {
    let mut command = command(world, arguments);
    command.args(["--format", "json"]);
    let finished = process::run(&mut command, b"", LIMIT)?;
    let text = format!("{}{}", finished.text(), finished.stderr);
    let report = serde_json::from_slice(&finished.stdout);
    let report: Value = report.with_context(|| text.clone())?;
    if finished.code != code {
        bail!(
            "exit code {} and not {code}:\n{}",
            finished.code,
            wrong(&report)
        );
    }
    Ok(report)
}

/// Everything that is not held, a line each.
fn wrong(report: &Value) -> String {
    let cases = report["cases"].as_array().map(Vec::as_slice);
    let lines = cases.unwrap_or_default().iter().flat_map(|case| {
        let runtimes = case["runtimes"].as_array().map(Vec::as_slice);
        runtimes
            .unwrap_or_default()
            .iter()
            .filter(|one| one["outcome"] != "held")
            .map(move |one| format!("{} {} {}", case["name"], one["outcome"], one["because"]))
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// How many cases have each outcome.
fn counts(report: &Value) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for case in report["cases"].as_array().into_iter().flatten() {
        for one in case["runtimes"].as_array().into_iter().flatten() {
            let outcome = one["outcome"].as_str().unwrap_or_default().to_owned();
            *counts.entry(outcome).or_default() += 1;
        }
    }
    counts
}

fn sandbox_holds(world: &World) -> Result<()> {
    let driver = format!("--hypervisor={}", world.setup().driver.name());
    let report = report(world, &[&driver], 0)?;
    let counts = counts(&report);
    let of = |outcome: &str| counts.get(outcome).copied().unwrap_or(0);
    // Printed with the test's output where it fails, and by `--nocapture`.
    eprintln!("{counts:?}\n{}", wrong(&report));
    ensure!(of("degraded") == 0, "{}", wrong(&report));
    ensure!(of("held") >= 45, "{counts:?}\n{}", wrong(&report));
    Ok(())
}

fn runc_is_breached(world: &World) -> Result<()> {
    let mut arguments = vec!["--runtime=runc"];
    arguments.extend(KERNEL);
    let report = report(world, &arguments, 1)?;
    ensure!(
        counts(&report).get("breached") == Some(&KERNEL.len()),
        "{}",
        wrong(&report)
    );
    Ok(())
}

fn no_control(world: &World) -> Result<()> {
    let mut command = command(world, &["--runtime=runc", KERNEL[0]]);
    // No runc on it.
    command.env("PATH", world.path());
    process::run(&mut command, b"", world.setup().limit)?
        .expect_code(3)
        .map(drop)
}

fn interrupt(world: &World) -> Result<()> {
    let mut command = command(
        world,
        &["--runtime=runc", "--case=kernel_", "--case=tenant_"],
    );
    let running = Running::start(&mut command, world.setup().limit)?;
    process::wait_until("a container under runc", world.setup().limit, || {
        let processes = leaks::processes(world.path());
        let runs = |process: &leaks::Process| process.command.contains("runc --root");
        processes.iter().any(runs).then_some(())
    })?;
    running.signal(Signal::SIGINT)?;
    running
        .finish()?
        .expect_code(125)?
        .expect_stderr(&["interrupted"])?;
    // The leak check looks for processes and mounts; the folder is ours.
    for entry in std::fs::read_dir(world.path())? {
        let name = entry?.file_name();
        ensure!(
            !name.to_string_lossy().starts_with("isolation-"),
            "{} is left",
            name.display()
        );
    }
    Ok(())
}

fn page(world: &World) -> Result<()> {
    let mut arguments = vec!["--runtime=runc", "--format=html"];
    arguments.extend(KERNEL);
    let finished = process::run(&mut command(world, &arguments), b"", world.setup().limit)?;
    let text = finished.text();
    ensure!(finished.code == 1, "{text}");
    for part in ["<!DOCTYPE html>", "kernel_boot_identity", "BREACHED"] {
        ensure!(text.contains(part), "no {part} in\n{text}");
    }
    Ok(())
}
