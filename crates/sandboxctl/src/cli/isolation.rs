//! The command line of `isolation-test`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::HypervisorChoice;

/// `isolation-test`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 nothing was breached; 1 a breach; 2 an invalid control, or a runtime that gave no answer; 3 nothing could be tried; 125 the test itself failed."
)]
pub(crate) struct IsolationTestArgs {
    /// What to attack: sandbox, runc, or the name of a runtime that containerd knows; may be given more than once
    #[arg(long = "runtime", value_name = "RUNTIME", default_values_t = ["sandbox".to_owned()])]
    pub(crate) runtimes: Vec<String>,
    /// Only the cases whose names begin so; may be given more than once
    #[arg(long = "case", value_name = "NAME")]
    pub(crate) cases: Vec<String>,
    /// How to print
    #[arg(long, value_enum, default_value_t = ReportFormat::Table)]
    pub(crate) format: ReportFormat,
    /// Print the cases, what they do and what must come out, and run none
    #[arg(long)]
    pub(crate) list: bool,
    /// What runs the virtual machines of the runtime sandbox
    #[arg(long, value_name = "DRIVER")]
    pub(crate) hypervisor: Option<HypervisorChoice>,
    /// The program that goes into the containers [default: the one that was installed]
    #[arg(long, value_name = "PATH")]
    pub(crate) probe: Option<PathBuf>,
}

/// How a report is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReportFormat {
    /// For a terminal
    Table,
    /// For programs, with everything that was seen
    Json,
    /// A page for a browser that needs nothing else
    Html,
}
