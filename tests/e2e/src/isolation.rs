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

use crate::{Case, note};

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

/// Cases that try what some hosts do not have, and a part of the reason for which they are skipped there. Any other case that is
/// skipped fails the test.
const HOST_MAY_LACK: &[(&str, &str)] = &[
    (
        "exhaustion_inodes",
        "the file system has no count of inodes",
    ),
    ("filesystem_host_disk", "disk"),
    ("filesystem_host_disk", "cannot read /dev/"),
    ("filesystem_host_disk", "holds no ext4 file system"),
    ("filesystem_sysfs", "this host's kernel has no"),
    ("kernel_memory", "this host's kernel has no"),
    ("kernel_module", "this host's kernel has no"),
    ("kernel_perf", "this host's kernel has no"),
    ("kernel_release_agent", "no hierarchy of cgroup version 1"),
    ("kernel_symbols", "shows no addresses to root"),
    ("kernel_sysrq", "this host's kernel has no"),
    ("network_interfaces", "no interface with a hardware address"),
    ("network_metadata_address", "no way to that address itself"),
    ("network_neighbours", "knows no neighbours now"),
    ("network_vsock", "this host's kernel has no vsock"),
    ("tenant_kernel_panic", "this host's kernel has no"),
];

/// How many cases there are at least. All of them are held but for those above: a hundred where this was written.
const CASES_AT_LEAST: usize = 104;

/// Requires that every case is held, or skipped for a reason that [`HOST_MAY_LACK`] has. Says which are skipped, and why.
fn held_or_lacking(report: &Value) -> Result<Vec<String>> {
    let cases = report["cases"].as_array().context("a report has cases")?;
    ensure!(
        cases.len() >= CASES_AT_LEAST,
        "{} cases were tried, and there are {CASES_AT_LEAST}",
        cases.len()
    );
    let mut skipped = Vec::new();
    let mut wrong = Vec::new();
    for case in cases {
        let name = case["name"].as_str().unwrap_or_default();
        let runtimes = case["runtimes"].as_array().map(Vec::as_slice);
        let [one] = runtimes.unwrap_or_default() else {
            bail!("{name} was tried with other than one runtime: {case}");
        };
        let because = one["because"].as_str().unwrap_or_default();
        let is_lacking = one["unanswered"] == false
            && HOST_MAY_LACK
                .iter()
                .any(|(listed, reason)| *listed == name && because.contains(reason));
        match one["outcome"].as_str() {
            Some("held") => {}
            Some("skipped") if is_lacking => skipped.push(format!("{name}: {because}")),
            outcome => wrong.push(format!("{name} {}: {because}", outcome.unwrap_or("?"))),
        }
    }
    ensure!(
        wrong.is_empty(),
        "neither held, nor known to be skipped where a host lacks something:\n  {}",
        wrong.join("\n  ")
    );
    Ok(skipped)
}

fn sandbox_holds(world: &World) -> Result<()> {
    let driver = format!("--hypervisor={}", world.setup().driver.name());
    let report = report(world, &[&driver], 0)?;
    for case in held_or_lacking(&report)? {
        note(format!("isolation case skipped: {case}"));
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A report with as many cases as there must be, of which the first is this.
    fn report_with(name: &str, outcome: &str, because: &str, unanswered: bool) -> Value {
        let case = |name: &str, outcome: &str, because: &str, unanswered: bool| {
            json!({ "name": name, "runtimes": [
                { "outcome": outcome, "because": because, "unanswered": unanswered },
            ] })
        };
        let mut cases = vec![case(name, outcome, because, unanswered)];
        let held = |number| case(&format!("case_{number}"), "held", "refused", false);
        cases.extend((1..CASES_AT_LEAST).map(held));
        json!({ "cases": cases })
    }

    const NO_MODULES: &str = "this host's kernel has no /proc/modules";

    #[test]
    fn report_with_a_skip_that_is_listed_is_accepted_and_the_skip_told() {
        let report = report_with("kernel_module", "skipped", NO_MODULES, false);
        let skipped = held_or_lacking(&report).unwrap();
        assert_eq!(skipped, [format!("kernel_module: {NO_MODULES}")]);
    }

    #[test]
    fn report_with_another_skip_is_refused() {
        for (name, because, unanswered) in [
            ("kernel_clock", NO_MODULES, false),
            ("kernel_module", "cannot start a container", false),
            ("kernel_module", NO_MODULES, true),
        ] {
            let report = report_with(name, "skipped", because, unanswered);
            let error = held_or_lacking(&report).unwrap_err().to_string();
            assert!(error.contains(&format!("{name} skipped")), "{error}");
        }
    }

    #[test]
    fn report_with_a_breach_or_too_few_cases_is_refused() {
        let breached = report_with("kernel_module", "breached", "read", false);
        assert!(held_or_lacking(&breached).is_err());
        let mut few = report_with("kernel_module", "held", "refused", false);
        few["cases"].as_array_mut().unwrap().pop();
        let error = held_or_lacking(&few).unwrap_err().to_string();
        assert!(error.contains("103 cases"), "{error}");
    }
}
