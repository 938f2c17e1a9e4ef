//! `cargo xtask bench`: measures this runtime beside its peers on this machine, or, with a driver that cannot run on it, in the
//! test host.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::{binaries, guest, packages, project_root, shell, testhost, tests};

/// How long the test host may take.
const TESTHOST_LIMIT: Duration = Duration::from_secs(3 * 60 * 60);

/// What is measured, and where it is written.
#[derive(Args)]
pub(crate) struct BenchArgs {
    /// The driver to measure [default: kvm where KVM runs kernels, else qemu]
    #[arg(long, value_enum)]
    driver: Option<Driver>,
    /// Only these parts; in a report of the same host that is there, they take the place of those that it has
    #[arg(long = "only", value_name = "PART")]
    only: Vec<String>,
    /// How often each subject is measured
    #[arg(long, default_value_t = 10)]
    runs: u16,
    /// How many are started at once, in turn
    #[arg(long, value_name = "N,…", default_value = "1,5,10,20")]
    at_once: String,
    /// The folder for the table, JSON and pictures [default: docs/benchmarks/<driver>]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Driver {
    Kvm,
    Qemu,
}

impl Driver {
    fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Qemu => "qemu",
        }
    }
}

/// Sets up, builds, measures, writes.
///
/// # Errors
/// When something cannot be built, or the measuring itself fails. What cannot be measured is part of the report.
pub(crate) fn run(arguments: &BenchArgs) -> Result<()> {
    packages::for_test()?;
    crate::build()?;
    let probe = guest::probe()?;
    let kvm = tests::kvm_runs_kernels();
    let chosen = if kvm { Driver::Kvm } else { Driver::Qemu };
    let driver = arguments.driver.unwrap_or(chosen);
    let program = binaries().join("sandbox-bench");
    let mut options: Vec<String> = vec![
        "--driver".to_owned(),
        driver.name().to_owned(),
        "--probe".to_owned(),
        probe.display().to_string(),
        "--runs".to_owned(),
        arguments.runs.to_string(),
        "--at-once".to_owned(),
        arguments.at_once.clone(),
    ];
    for part in &arguments.only {
        options.extend(["--only".to_owned(), part.clone()]);
    }
    let out = match &arguments.out {
        Some(folder) => std::path::absolute(folder)?,
        None => project_root().join("docs/benchmarks").join(driver.name()),
    };
    let measured = if driver == Driver::Kvm && !kvm {
        shell::step("KVM runs no kernels here: measuring in the test host");
        in_testhost(&program, &options)?
    } else {
        let folder = project_root().join("target/bench-report");
        let mut command = Command::new(&program);
        command.args(&options).arg("--out").arg(&folder);
        shell::run(command.current_dir(project_root()))?;
        folder.join("results.json")
    };
    let mut write = Command::new(&program);
    let known = out.join("results.json");
    if !arguments.only.is_empty() && known.exists() {
        write.arg("--from").arg(known);
    }
    shell::run(write.arg("--from").arg(&measured).arg("--out").arg(&out))
}

/// Nothing that is written in the test host stays: the report comes back as a line, in the file that is returned.
fn in_testhost(program: &Path, options: &[String]) -> Result<PathBuf> {
    // As most hosts, it has more than one processor, and what can run side by side does.
    let mut child = testhost::command(TESTHOST_LIMIT, 2, &["PATH"])?
        .arg(program)
        .args(options)
        .args(["--out", "-"])
        .current_dir(project_root())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the test host")?;
    let stdout = child.stdout.take().context("its output is piped")?;
    let path = project_root().join("target/bench-output");
    let mut file = fs::File::create(&path)?;
    for line in BufReader::new(stdout).split(b'\n') {
        file.write_all(&line?)?;
        file.write_all(b"\n")?;
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("measuring in the test host failed: {status}");
    }
    Ok(path)
}
