//! `cargo xtask test`: every test that can run here, then one list of what was skipped and why.
//!
//! A suite is a program that prints libtest's lines. The workspace's own test programs run here; the end-to-end
//! tests run once per hypervisor driver, and those that need KVM, or version 2 of cgroups, run inside the test host
//! where this machine has none.

mod report;

use std::ffi::{OsStr, OsString};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::{binaries, demo, guest, packages, project_root, shell, testhost, userland};
use report::Report;

/// Test programs that boot guests under KVM: they run again in the test host.
const NEED_KVM: &[&str] = &["boot", "kvm"];

/// The agent's test program, and what the names of its tests begin with that need version 2 of cgroups.
const AGENT_SUITE: &str = "agent/guest";
const NEED_CGROUP_V2: &str = "namespaces::";

/// How long a suite may take in test hosts, all together.
const TESTHOST_LIMIT: Duration = Duration::from_secs(40 * 60);

/// In how many test hosts a suite may run: an emulated machine fails now and then.
const TEST_HOSTS: u32 = 6;

/// Suites that run only when `--only` names them, where emulation is too slow for every test twice: the agent's cases that have
/// run in a guest, once more outside one; and all of the end-to-end tests with the second driver.
const ON_REQUEST: &[&str] = &["-cgroup-v2", "e2e-kvm-whole"];

/// Skips that CI accepts, by a part of the line: the test's suite and name, and the reason it gives.
const ALLOWED_SKIPS: &str = include_str!("tests/allowed-skips.txt");

/// A program to run and the folder to run it in.
#[derive(Clone)]
struct Suite {
    name: String,
    program: PathBuf,
    arguments: Vec<OsString>,
    /// The tests to run, by the beginning of their names; all when there is none.
    filter: Option<&'static str>,
    /// Tests to leave out, by their names.
    skip: Vec<String>,
    folder: PathBuf,
}

impl Suite {
    /// What the program is started with.
    fn arguments(&self) -> Vec<OsString> {
        let mut arguments = self.arguments.clone();
        arguments.extend(self.filter.map(OsString::from));
        if !self.skip.is_empty() {
            arguments.push("--exact".into());
        }
        for name in &self.skip {
            arguments.extend(["--skip".into(), name.into()]);
        }
        arguments
    }

    /// The same under another name.
    fn named(&self, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..self.clone()
        }
    }

    /// Whether it can go on where it was cut off: libtest takes either beginnings of names or whole ones.
    fn can_go_on(&self) -> bool {
        self.filter.is_none()
    }
}

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
    let suites = suites(workspace_suites()?, &demo, &probe);

    let mut report = Report::default();
    for (suite, in_testhost) in suites {
        let wanted = match only {
            Some(part) => suite.name.contains(part),
            None => !ON_REQUEST.iter().any(|name| suite.name.ends_with(name)),
        };
        if !wanted {
            continue;
        }
        let place = if in_testhost {
            " (in the test host)"
        } else {
            ""
        };
        shell::step(format!("{}{place}", suite.name));
        run_suite(&suite, in_testhost, &mut report)?;
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

/// Every suite, and whether it runs in the test host.
fn suites(workspace: Vec<Suite>, demo: &Path, probe: &Path) -> Vec<(Suite, bool)> {
    let kvm = kvm_runs_kernels();
    let cgroup_v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let ours = |name: &str, program: &str, arguments: &[&OsStr]| Suite {
        name: name.to_owned(),
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
    let compat = ours(
        "compat",
        "sandbox-compat",
        &[
            "--driver".as_ref(),
            "kvm".as_ref(),
            "--probe".as_ref(),
            probe.as_ref(),
            "--list".as_ref(),
            "docs/compatibility.md".as_ref(),
        ],
    );

    let (mut here, mut there) = (Vec::new(), Vec::new());
    for mut suite in workspace {
        if NEED_KVM.iter().any(|name| suite.name.ends_with(name)) {
            let again = format!("{}-kvm", suite.name);
            there.push((suite.named(&again), !kvm));
        }
        if suite.name == AGENT_SUITE && !cgroup_v2 {
            let mut apart = suite.named(&format!("{}-cgroup-v2", suite.name));
            apart.filter = Some(NEED_CGROUP_V2);
            there.push((apart, true));
            suite.arguments = vec!["--skip".into(), NEED_CGROUP_V2.into()];
        }
        here.push((suite, false));
    }
    here.push((
        ours("guest-image", "xtask", &["reproducible".as_ref()]),
        false,
    ));
    here.push((e2e("qemu"), false));
    let mut e2e_kvm = e2e("kvm");
    if !kvm {
        there.push((e2e_kvm.named("e2e-kvm-whole"), true));
        // An emulated SVM under many guests at once is what fails most.
        let few = ["--part", "machine", "--at-once", "4"];
        e2e_kvm.arguments.extend(few.map(OsString::from));
    }
    there.push((e2e_kvm, !kvm));
    there.push((compat, !(kvm && cgroup_v2)));
    here.into_iter().chain(there).collect()
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
        suites.push(Suite {
            name: if package == target {
                target.to_owned()
            } else {
                format!("{package}/{target}")
            },
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

/// Runs a suite and reports it. When the test host fails under it, not the suite, what is left of it runs in another.
fn run_suite(suite: &Suite, in_testhost: bool, report: &mut Report) -> Result<()> {
    report.begin(&suite.name);
    let start = Instant::now();
    let mut suite = suite.clone();
    for left in (0..TEST_HOSTS).rev() {
        let limit = TESTHOST_LIMIT.saturating_sub(start.elapsed());
        let status = run_once(&suite, in_testhost.then_some(limit), report)?;
        report.end(status.success(), start.elapsed());
        if !in_testhost || left == 0 || !suite.can_go_on() {
            break;
        }
        let done = match status.code() {
            Some(testhost::WEDGED) => Some(report.test_host_failed()),
            _ => report.another_run(),
        };
        let Some(done) = done else {
            break;
        };
        shell::step(format!("{} goes on in another test host", suite.name));
        suite.skip.extend(done);
    }
    Ok(())
}

/// Runs a suite once, to its end or the test host's: here, or in a test host for at most `limit`.
fn run_once(suite: &Suite, limit: Option<Duration>, report: &mut Report) -> Result<ExitStatus> {
    let mut command = if let Some(limit) = limit {
        // A program of its own, so that the test host's clean-up does not depend on ours.
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["testhost", "--timeout", &limit.as_secs().to_string()])
            .args(["--env", "PATH", "--env", "SANDBOX_TEST_KERNEL", "--"])
            .arg(&suite.program);
        command
    } else {
        Command::new(&suite.program)
    };
    let mut child = command
        .args(suite.arguments())
        .current_dir(&suite.folder)
        .env("SANDBOX_TEST_KERNEL", guest::artifacts().join("vmlinux"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", suite.program.display()))?;
    let stdout = child.stdout.take().context("the test's output is piped")?;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        report.line(&line);
    }
    Ok(child.wait()?)
}
