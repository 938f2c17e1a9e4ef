//! `cargo xtask test`: every test that can run here, then one list of what was skipped and why.
//!
//! A suite is a program that prints libtest's lines. The workspace's own test programs run here; the end-to-end
//! tests run once per hypervisor driver, and those that need KVM, or version 2 of cgroups, run inside the test host
//! where this machine has none.

mod lanes;
mod report;
mod suite;

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::{binaries, demo, guest, packages, project_root, shell, userland};
use report::Report;
use suite::{Place, Suite};

/// Test programs that boot guests under KVM: they run again in the test host.
const NEED_KVM: &[&str] = &["boot", "kvm"];

/// The agent's test program, and what the names of its tests begin with that need version 2 of cgroups.
const AGENT_SUITE: &str = "agent/guest";
const NEED_CGROUP_V2: &str = "namespaces::";

/// The monitor's unit tests, and what is in the names of those that need io_uring, which many hosts switch off.
const MONITOR_SUITE: &str = "sandbox-vmm";
const NEED_IO_URING: &str = "block::tests::ring::";

/// The usual test host.
const TEST_HOST: Place = Place::TestHost { cpus: 1 };

/// Suites that run only when `--only` names them, where emulation is too slow for every test twice: the agent's cases that have
/// run in a guest, once more outside one; and all of the end-to-end tests with the second driver.
const ON_REQUEST: &[&str] = &["-cgroup-v2", "e2e-kvm-whole"];

/// Skips that CI accepts, by a part of the line: the test's suite and name, and the reason it gives.
const ALLOWED_SKIPS: &str = include_str!("tests/allowed-skips.txt");

/// Sets up, builds, runs, and reports.
///
/// # Errors
/// When something other than a test fails.
pub(crate) fn run(only: Option<&str>) -> Result<ExitCode> {
    packages::for_test()?;
    crate::build()?;
    let demo = demo::build()?;
    let probe = guest::probe()?;
    userland::build()?;
    let all = suites(workspace_suites()?, &demo, &probe);
    let whole_name = only.is_some_and(|only| all.iter().any(|suite| suite.name == only));
    let wanted = |suite: &Suite| match only {
        Some(name) if whole_name => suite.name == name,
        Some(part) => suite.name.contains(part),
        None => !ON_REQUEST.iter().any(|name| suite.name.ends_with(name)),
    };
    let (there, here): (Vec<Suite>, Vec<Suite>) = all
        .into_iter()
        .filter(wanted)
        .partition(|suite| suite.place != Place::Here);

    let mut report = Report::default();
    for suite in here {
        report.add(suite.run()?);
    }
    let mut parts = Vec::new();
    for suite in there {
        parts.extend(suite.parts()?);
    }
    for outcome in lanes::run(&parts)? {
        report.add(outcome);
    }
    if only.is_none() {
        println!(
            "on request (`cargo xtask test --only NAME`): {}",
            ON_REQUEST.join(" ")
        );
    }
    report.print();
    let unexpected = if std::env::var_os("CI").is_some() {
        report.skips_not_in(ALLOWED_SKIPS)
    } else {
        Vec::new()
    };
    if !unexpected.is_empty() {
        println!("skips that CI does not allow:");
        for line in &unexpected {
            println!("  {line}");
        }
    }
    report.print_closing_line();
    Ok(if report.passed_everything() && unexpected.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Every suite. Those of the test host begin with what takes longest.
fn suites(workspace: Vec<Suite>, demo: &Path, probe: &Path) -> Vec<Suite> {
    let kvm = kvm_runs_kernels();
    let cgroup_v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let io_uring = io_uring::IoUring::new(1).is_ok();
    let ours = |name: &str, program: &str, arguments: &[&OsStr]| Suite {
        name: name.to_owned(),
        label: name.to_owned(),
        place: Place::Here,
        program: binaries().join(program),
        arguments: arguments.iter().map(|one| (*one).to_owned()).collect(),
        filter: None,
        skip: Vec::new(),
        folder: project_root().to_owned(),
    };
    let e2e = |driver: &str| {
        let arguments: [&OsStr; 6] = [
            "--driver".as_ref(),
            driver.as_ref(),
            "--demo".as_ref(),
            demo.as_ref(),
            "--probe".as_ref(),
            probe.as_ref(),
        ];
        ours(&format!("e2e-{driver}"), "sandbox-e2e", &arguments)
    };

    let mut suites = Vec::new();
    if kvm {
        suites.push(e2e("kvm"));
    } else {
        let part = |name: &str, cpus: u8, options: &[&str]| {
            let mut part = e2e("kvm").at(name, Place::TestHost { cpus });
            // What is emulated is the machine that the guest's machine runs on.
            part.arguments
                .extend(["--limit", "360"].map(OsString::from));
            part.arguments.extend(options.iter().map(OsString::from));
            part
        };
        suites.push(part("e2e-kvm-whole", 2, &[]));
        let options = ["--part", "machine", "--at-once", "4"];
        suites.push(part("e2e-kvm", 1, &options));
        suites.push(part("e2e-kvm-processors", 2, &["--part", "processors"]));
    }
    let compat = ours(
        "compat",
        "sandbox-compat",
        &[
            "--driver".as_ref(),
            "kvm".as_ref(),
            "--probe".as_ref(),
            probe.as_ref(),
            "--differences".as_ref(),
            "docs/compatibility.md".as_ref(),
        ],
    );
    suites.push(if kvm && cgroup_v2 {
        compat
    } else {
        compat.at("compat", TEST_HOST)
    });
    for mut suite in workspace {
        if !kvm && NEED_KVM.iter().any(|name| suite.name.ends_with(name)) {
            suites.push(suite.at(&format!("{}-kvm", suite.name), TEST_HOST));
        }
        for (name, here, tests, label) in [
            (AGENT_SUITE, cgroup_v2, NEED_CGROUP_V2, "cgroup-v2"),
            (MONITOR_SUITE, io_uring, NEED_IO_URING, "io-uring"),
        ] {
            if suite.name == name && !here {
                let mut apart = suite.at(&format!("{name}-{label}"), TEST_HOST);
                apart.filter = Some(tests);
                suites.push(apart);
                suite.arguments = vec!["--skip".into(), tests.into()];
            }
        }
        suites.push(suite);
    }
    suites.push(ours("guest-image", "xtask", &["reproducible".as_ref()]));
    suites.push(e2e("qemu"));
    suites
}

/// Whether stock kernels run under this machine's KVM. `/dev/kvm` alone does not say: the PVM back end opens too.
pub(crate) fn kvm_runs_kernels() -> bool {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let hardware = flags
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| {
            line.split_whitespace()
                .any(|flag| flag == "vmx" || flag == "svm")
        });
    hardware && Path::new("/dev/kvm").exists() && !Path::new("/sys/module/kvm_pvm").exists()
}

/// Builds the workspace's test programs and names them.
fn workspace_suites() -> Result<Vec<Suite>> {
    shell::step("building the tests");
    let output = Command::new(shell::cargo())
        .args([
            "test",
            "--release",
            "--workspace",
            "--no-run",
            "--message-format=json-render-diagnostics",
        ])
        .current_dir(project_root())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("the tests do not build: {}", output.status);
    }
    let text = String::from_utf8(output.stdout)?;
    let mut suites = Vec::new();
    for line in text.lines() {
        let message: serde_json::Value = serde_json::from_str(line)?;
        if message["profile"]["test"].as_bool() != Some(true) {
            continue;
        }
        let (Some(program), Some(manifest), Some(target)) = (
            message["executable"].as_str(),
            message["manifest_path"].as_str(),
            message["target"]["name"].as_str(),
        ) else {
            continue;
        };
        let folder = Path::new(manifest)
            .parent()
            .context("a manifest has a folder")?;
        let package = folder.file_name().unwrap_or_default().to_string_lossy();
        let name = if package == target {
            target.to_owned()
        } else {
            format!("{package}/{target}")
        };
        suites.push(Suite {
            label: name.clone(),
            name,
            place: Place::Here,
            program: program.into(),
            arguments: Vec::new(),
            filter: None,
            skip: Vec::new(),
            folder: folder.to_owned(),
        });
    }
    suites.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(suites)
}
