//! The same OCI spec under runc and under the shim, on the same machine: what a probe sees inside must agree, or the
//! difference must be in the list of `docs/compatibility.md`.
//!
//! `sandbox-compat --driver kvm|qemu --probe PROGRAM --differences FILE [libtest options]`. One trial per case of
//! [`cases`]. Each bundle is made once and handed to both: to `runc create`, and to the shim's own task service.
//! Neither containerd nor `sandboxctl` is in between, because each of them changes the spec that it is given.
//!
//! The list is held from both sides: a difference that is not in it fails the case, and so does a row of it
//! that no longer shows.

mod bundle;
mod cases;
mod compare;
mod list;
mod runc;
mod shim;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use sandbox_harness::{Driver, Setup, World, ending, leaks};
use serde_json::Value;

use cases::Case;
use list::List;

/// How long one step may take before it counts as hung.
const LIMIT: Duration = Duration::from_secs(180);

/// What the probe saw, raw: in the container's first process and in one that was added to it.
pub(crate) struct Sight {
    pub(crate) init: Value,
    pub(crate) exec: Value,
}

struct Options {
    driver: Driver,
    probe: PathBuf,
    list: PathBuf,
}

/// Takes our own options out of the command line.
fn options(arguments: &mut Vec<String>) -> Result<Options> {
    let mut take = |name: &str| -> Result<String> {
        let at = arguments.iter().position(|argument| argument == name);
        let at = at.with_context(|| format!("{name} is missing"))?;
        ensure!(at + 1 < arguments.len(), "{name} needs a value");
        arguments.remove(at);
        Ok(arguments.remove(at))
    };
    Ok(Options {
        driver: match take("--driver")?.as_str() {
            "kvm" => Driver::Kvm,
            "qemu" => Driver::Qemu,
            other => bail!("--driver takes kvm or qemu, not {other:?}"),
        },
        probe: take("--probe")?.into(),
        list: take("--differences")?.into(),
    })
}

/// Why the comparison cannot run on this machine.
fn obstacle() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root");
    }
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return Some("cgroup v2 is not mounted at /sys/fs/cgroup");
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|folder| folder.join("runc").is_file()) {
        return Some("runc is not installed");
    }
    None
}

fn run(setup: &Setup, list: &List, case: &Case) -> Result<()> {
    let world = World::empty(setup)?;
    let bundle = bundle::make(world.path(), case, &setup.probe)?;
    let reference = runc::look(&world, &bundle, case).context("under runc")?;
    let ours = shim::look(&world, &bundle, case).context("under the shim")?;
    let differences = compare::differences(&reference, &ours);
    let wrong = list.judge(case.name, &differences);
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    world.finish()
}

fn main() -> Result<ExitCode> {
    let mut arguments: Vec<String> = std::env::args().collect();
    let options = options(&mut arguments)?;
    let text = std::fs::read_to_string(&options.list)
        .with_context(|| format!("cannot read {}", options.list.display()))?;
    let list = List::read(&text)?;
    let cases = cases::all();
    list.check_places(&cases.iter().map(|case| case.name).collect::<Vec<_>>())?;
    let setup = Setup {
        binaries: std::env::current_exe()?
            .parent()
            .context("we are in a folder")?
            .to_owned(),
        demo: PathBuf::new(),
        probe: std::fs::canonicalize(&options.probe)
            .with_context(|| format!("{} is not built", options.probe.display()))?,
        driver: options.driver,
        at_once: 1,
        limit: LIMIT,
    };
    let trials = cases
        .into_iter()
        .map(|case| {
            let (setup, list) = (setup.clone(), list.clone());
            Trial::ignorable_test(format!("as_under_runc_{}", case.name), move || {
                if let Some(reason) = obstacle() {
                    return Ok(Completion::ignored_with(reason));
                }
                run(&setup, &list, &case)
                    .map(|()| Completion::Completed)
                    .map_err(|error| Failed::from(format!("{error:#}")))
            })
        })
        .collect();
    let mut arguments = Arguments::from_iter(arguments);
    // Two processors, and every case boots a machine.
    arguments.test_threads.get_or_insert(2);
    for ended in ending::begin()? {
        println!("note: left by an earlier run, and ended: {ended}");
    }
    let before = leaks::machine();
    let conclusion = libtest_mimic::run(&arguments, trials);
    ending::wait_if_interrupted();
    let left = before.left();
    for line in left.notes() {
        println!("note: {line}");
    }
    ensure!(
        left.ours.is_empty(),
        "the tests left behind:\n  {}",
        left.ours.join("\n  ")
    );
    Ok(conclusion.exit_code())
}
