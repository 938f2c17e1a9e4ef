//! `sandboxctl bench`: measures this runtime beside its peers on this host, with the program that the project's own
//! benchmarks are made with.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use sandbox_runtime::config::{ConfigError, Hypervisor};
use sandbox_runtime::host::{self, HostError};

use crate::app::App;
use crate::cli::{BenchArgs, HypervisorChoice};
use crate::installed::{self, BENCH, NotInstalled, PROBE};

/// Why nothing is measured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// A program is missing.
    #[error(transparent)]
    NotInstalled(#[from] NotInstalled),
    /// The configuration cannot be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No driver runs here.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The program cannot be executed.
    #[error("cannot execute {program}")]
    Execute {
        program: String,
        source: std::io::Error,
    },
}

/// Becomes the program that measures; returns only when it cannot.
pub(crate) fn bench(app: &App, args: &BenchArgs) -> Result<u8, BenchError> {
    let program = installed::find(&BENCH, args.program.as_deref())?;
    let probe = installed::find(&PROBE, args.probe.as_deref())?;
    let mut config = app.configuration()?;
    match args.hypervisor {
        Some(HypervisorChoice::Kvm) => config.hypervisor = Hypervisor::Kvm,
        Some(HypervisorChoice::Qemu) => config.hypervisor = Hypervisor::Qemu,
        Some(HypervisorChoice::Auto) | None => {}
    }
    let (driver, notice) = host::choose_driver(&config)?;
    if let Some(notice) = notice {
        eprintln!("sandboxctl: {notice}");
    }
    let ours = std::env::current_exe().unwrap_or_default();
    let mut command = Command::new(&program);
    command
        .args(["--driver", &driver.to_string(), "--runs"])
        .arg(args.runs.to_string())
        .arg("--probe")
        .arg(probe)
        .arg("--binaries")
        .arg(ours.parent().unwrap_or(Path::new("/")))
        .arg("--out")
        .arg(&args.out);
    for part in &args.only {
        command.args(["--only", part]);
    }
    if let Some(counts) = &args.at_once {
        command.args(["--at-once", counts]);
    }
    let source = command.exec();
    Err(BenchError::Execute {
        program: program.display().to_string(),
        source,
    })
}
