//! `cargo xtask test`: every test that can run here, then one list of what was skipped and why.
//!
//! A suite is a program that prints libtest's lines. The workspace's own test programs run here; the end-to-end
//! tests run once per hypervisor driver, and those that need KVM, or version 2 of cgroups, run inside the test host
//! where this machine has none.

mod interruption;
mod lanes;
mod report;
mod silence;
mod suite;

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::{ExitCode, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{binaries, demo, guest, packages, project_root, shell, structure, testhost, userland};
use report::{Outcome, Report};
use suite::{Place, Suite};

/// Test programs that run stock kernels or a few instructions under KVM: where no stock kernel runs, they run in the test host too.
const AGAIN_UNDER_KVM: &[&str] = &[
    "sandbox-runtime/boot",
    "sandbox-vmm/boot",
    "sandbox-vmm/kvm",
];

/// Those that take any `/dev/kvm`: where there is none, they run in the test host alone.
const NEED_A_KVM: &[&str] = &[
    "sandbox-vmm/calls",
    "sandbox-vmm/hostile_guest",
    "sandbox-vmm/kvm",
];

/// The agent's test program, and what the names of its tests begin with that need version 2 of cgroups.
const AGENT_SUITE: &str = "agent/guest";
const NEED_CGROUP_V2: &str = "namespaces::";

/// The monitor's unit tests, and what is in the names of those that need io_uring, which many hosts switch off.
const MONITOR_SUITE: &str = "sandbox-vmm/sandbox_vmm";
const NEED_IO_URING: &str = "block::tests::ring::";

/// The usual test host.
const TEST_HOST: Place = Place::TestHost { cpus: 1 };

/// Suites that run only when `--only` names them, where emulation is too slow for every test twice: the agent's cases that have
/// run in a guest, once more outside one; and all of the end-to-end tests with the second driver.
const ON_REQUEST: &[&str] = &["-cgroup-v2", "e2e-kvm-whole"];

/// Skips that CI accepts, by the suite and a part of the reason.
const ALLOWED_SKIPS: &str = include_str!("tests/allowed-skips.txt");

/// What this machine has of what suites need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Facts {
    kvm: Kvm,
    /// Version 2 of cgroups, mounted where it is expected.
    cgroup_v2: bool,
    io_uring: bool,
}

/// What `/dev/kvm` is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kvm {
    /// It cannot be opened.
    None,
    /// It can, but no stock kernel runs under it.
    NoKernels,
    /// Stock kernels run under it.
    Kernels,
}

impl Facts {
    fn of_this_machine() -> Self {
        let opens = || {
            let mut options = std::fs::OpenOptions::new();
            options.read(true).write(true).open("/dev/kvm").is_ok()
        };
        Self {
            kvm: match (opens(), kvm_runs_kernels()) {
                (false, _) => Kvm::None,
                (true, true) => Kvm::Kernels,
                (true, false) => Kvm::NoKernels,
            },
            cgroup_v2: Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
            io_uring: io_uring::IoUring::new(1).is_ok(),
        }
    }
}

/// The suites that are wanted: those of this name, else those with this in their names, else all but those on request.
fn is_wanted(name: &str, only: Option<&str>, all: &[String]) -> bool {
    match only {
        Some(only) if all.iter().any(|one| one == only) => name == only,
        Some(part) => name.contains(part),
        None => !ON_REQUEST.iter().any(|end| name.ends_with(end)),
    }
}

fn names(suites: &[Suite]) -> Vec<String> {
    suites.iter().map(|suite| suite.name.clone()).collect()
}

/// Requires that `only` names a suite. Nothing has been built for that.
fn check_name(only: &str, facts: Facts) -> Result<()> {
    let workspace = structure::test_programs()?
        .into_iter()
        .map(|name| ours(&name, "", &[]))
        .collect();
    let all = names(&suites(workspace, Path::new(""), Path::new(""), facts));
    ensure!(
        all.iter().any(|name| is_wanted(name, Some(only), &all)),
        "no suite has {only:?} in its name; there are: {}",
        all.join(" ")
    );
    Ok(())
}

/// Sets up, builds, runs, and reports.
///
/// # Errors
/// When what all tests need cannot be built. Whatever fails then is in the report.
pub(crate) fn run(only: Option<&str>) -> Result<ExitCode> {
    let facts = Facts::of_this_machine();
    if let Some(only) = only {
        check_name(only, facts)?;
    }
    packages::for_test()?;
    crate::build()?;
    let demo = demo::build()?;
    let probe = guest::probe()?;
    let all = suites(workspace_suites()?, &demo, &probe, facts);
    let all_names = names(&all);
    let (there, here): (Vec<Suite>, Vec<Suite>) = all
        .into_iter()
        .filter(|suite| is_wanted(&suite.name, only, &all_names))
        .partition(|suite| suite.place != Place::Here);

    interruption::handle()?;
    let mut report = Report::default();
    if let Err(error) = userland::build() {
        report.add(Outcome::broken("userland", "the newer user land", &error));
    }
    // Before everything else takes its time.
    let there = parts_for_test_hosts(there, &mut report);
    for suite in here {
        report.add(suite.run());
    }
    for outcome in lanes::run(&there) {
        report.add(outcome);
    }
    Ok(conclude(&report, only))
}

/// The parts of these suites that can run in test hosts. What keeps the others from it goes to the report.
fn parts_for_test_hosts(suites: Vec<Suite>, report: &mut Report) -> Vec<Suite> {
    if suites.is_empty() {
        return Vec::new();
    }
    let obstacle = lanes::obstacle().or_else(|| {
        let error = testhost::BootFiles::get().err()?;
        report.add(Outcome::broken("test host", "the test host", &error));
        Some("the test host's boot files could not be made".to_owned())
    });
    let mut parts = Vec::new();
    for suite in suites {
        match (&obstacle, suite.parts()) {
            (Some(reason), _) => {
                report.add(Outcome::skipped(&suite.name, &suite.label, reason));
            }
            (None, Ok(some)) => parts.extend(some),
            (None, Err(error)) => {
                report.add(Outcome::broken(&suite.name, &suite.label, &error));
            }
        }
    }
    parts
}

/// Prints the report, and judges.
fn conclude(report: &Report, only: Option<&str>) -> ExitCode {
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
    println!("{}", report.closing_line());
    if report.passed_everything() && unexpected.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// A program of this workspace as a suite.
fn ours(name: &str, program: &str, arguments: &[&OsStr]) -> Suite {
    Suite {
        name: name.to_owned(),
        label: name.to_owned(),
        place: Place::Here,
        program: binaries().join(program),
        arguments: arguments.iter().map(|one| (*one).to_owned()).collect(),
        filter: None,
        skip: Vec::new(),
        folder: project_root().to_owned(),
    }
}

/// Every suite. Those of the test host begin with what takes longest.
fn suites(workspace: Vec<Suite>, demo: &Path, probe: &Path, facts: Facts) -> Vec<Suite> {
    let kvm = facts.kvm == Kvm::Kernels;
    let cgroup_v2 = facts.cgroup_v2;
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
        let needs_a_kvm = NEED_A_KVM.contains(&suite.name.as_str());
        let only_there = facts.kvm == Kvm::None && needs_a_kvm;
        if only_there || (!kvm && AGAIN_UNDER_KVM.contains(&suite.name.as_str())) {
            suites.push(suite.at(&format!("{}-kvm", suite.name), TEST_HOST));
        }
        if only_there {
            continue;
        }
        for (name, here, tests, label) in [
            (AGENT_SUITE, cgroup_v2, NEED_CGROUP_V2, "cgroup-v2"),
            (MONITOR_SUITE, facts.io_uring, NEED_IO_URING, "io-uring"),
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
    let mut reproducible = ours("guest-image", "xtask", &["reproducible".as_ref()]);
    if let Ok(program) = std::env::current_exe() {
        reproducible.program = program;
    }
    suites.push(reproducible);
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
    let output = shell::cargo()
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
        let name = structure::test_program(folder, target);
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

#[cfg(test)]
mod which_suites_run {
    use super::*;

    /// Name and place of each suite of a machine.
    fn places(kvm: Kvm, io_uring: bool) -> Vec<(String, bool)> {
        let workspace = structure::test_programs()
            .unwrap()
            .iter()
            .map(|name| ours(name, "", &[]))
            .collect();
        let facts = Facts {
            kvm,
            cgroup_v2: true,
            io_uring,
        };
        suites(workspace, Path::new("demo"), Path::new("probe"), facts)
            .into_iter()
            .map(|suite| (suite.name, suite.place == Place::Here))
            .collect()
    }

    /// Where a program of the monitor's tests runs: here, and in the test host.
    fn runs(all: &[(String, bool)], name: &str) -> (bool, bool) {
        let has = |name: String, here: bool| all.contains(&(name, here));
        (
            has(format!("sandbox-vmm/{name}"), true),
            has(format!("sandbox-vmm/{name}-kvm"), false),
        )
    }

    #[test]
    fn tests_that_need_kvm_run_where_there_is_one() {
        for (kvm, name, expected) in [
            (Kvm::None, "calls", (false, true)),
            (Kvm::None, "hostile_guest", (false, true)),
            (Kvm::None, "kvm", (false, true)),
            (Kvm::None, "boot", (true, true)),
            (Kvm::NoKernels, "calls", (true, false)),
            (Kvm::NoKernels, "hostile_guest", (true, false)),
            (Kvm::NoKernels, "kvm", (true, true)),
            (Kvm::NoKernels, "boot", (true, true)),
            (Kvm::Kernels, "calls", (true, false)),
            (Kvm::Kernels, "boot", (true, false)),
        ] {
            let all = places(kvm, true);
            assert_eq!(runs(&all, name), expected, "{name} with {kvm:?}");
        }
        let boot = ("sandbox-runtime/boot-kvm".to_owned(), false);
        assert!(places(Kvm::NoKernels, true).contains(&boot));
        let e2e = |kvm| places(kvm, true).contains(&("e2e-kvm".to_owned(), true));
        assert!(e2e(Kvm::Kernels) && !e2e(Kvm::NoKernels) && !e2e(Kvm::None));
    }

    #[test]
    fn tests_of_io_uring_run_where_there_is_one() {
        let name = format!("{MONITOR_SUITE}-io-uring");
        let all = places(Kvm::Kernels, false);
        assert!(all.contains(&(name, false)), "{all:?}");
    }

    #[test]
    fn every_program_that_is_named_here_is_there() {
        let all = structure::test_programs().unwrap();
        for name in [AGAIN_UNDER_KVM, NEED_A_KVM, &[AGENT_SUITE, MONITOR_SUITE]].concat() {
            assert!(
                all.iter().any(|one| one == name),
                "{name} is not in {all:?}"
            );
        }
    }

    #[test]
    fn name_that_no_suite_has_is_refused_with_those_there_are() {
        let facts = Facts {
            kvm: Kvm::None,
            cgroup_v2: true,
            io_uring: true,
        };
        for name in ["e2e-qemu", "e2e", "sandbox-vmm/calls", "structure"] {
            let checked = check_name(name, facts);
            assert_eq!(checked.is_ok(), name != "structure", "{name}: {checked:?}");
        }
        let error = check_name("typo", facts).unwrap_err().to_string();
        assert!(
            error.contains("\"typo\"") && error.contains("e2e-kvm"),
            "{error}"
        );
    }

    #[test]
    fn suite_of_the_whole_name_is_the_one_that_is_wanted() {
        let all = ["e2e-kvm", "e2e-kvm-whole"].map(str::to_owned);
        assert!(is_wanted("e2e-kvm", Some("e2e-kvm"), &all));
        assert!(!is_wanted("e2e-kvm-whole", Some("e2e-kvm"), &all));
        assert!(is_wanted("e2e-kvm-whole", Some("e2e"), &all));
        assert!(!is_wanted("e2e-kvm-whole", None, &all));
    }
}
