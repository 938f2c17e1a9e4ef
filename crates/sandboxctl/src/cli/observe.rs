//! The command line of the verbs that look at containers, and of those about the program itself.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use clap_complete::Shell;

use crate::filter::{self, Filter};
use crate::format::{self, Format};

/// `ps`.
#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// Show containers that have ended, too
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Show only what this holds for: name=, id=, label=, status=, ancestor=, exited=, before=, since=
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = filter::filter)]
    pub(crate) filter: Vec<Filter>,
    /// Show the last containers that were made, whatever their state
    #[arg(short = 'n', long, value_name = "NUMBER")]
    pub(crate) last: Option<usize>,
    /// Show the last container that was made, whatever its state
    #[arg(short, long)]
    pub(crate) latest: bool,
    /// Print only IDs
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Shorten nothing
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// How to print: table, json, a Go template, or `table` and a template
    #[arg(long, value_name = "FORMAT", value_parser = format::format, default_value = "table")]
    pub(crate) format: Format,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ObjectKind {
    /// Only containers
    Container,
    /// Only images
    Image,
}

/// `inspect`.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// How to print: json, or a Go template
    #[arg(short, long, value_name = "FORMAT", value_parser = format::format)]
    pub(crate) format: Option<Format>,
    /// What the names stand for [default: containers, and images where there is none]
    #[arg(long = "type", value_enum, value_name = "KIND")]
    pub(crate) kind: Option<ObjectKind>,
    /// Names or IDs
    #[arg(value_name = "NAME", required = true)]
    pub(crate) names: Vec<String>,
}

/// `version` and `info`.
#[derive(Debug, Args)]
pub(crate) struct FormatArgs {
    /// How to print: json, or a Go template
    #[arg(short, long, value_name = "FORMAT", value_parser = format::format)]
    pub(crate) format: Option<Format>,
}

/// `port`.
#[derive(Debug, Args)]
pub(crate) struct PortArgs {
    /// Name or ID of a container
    #[arg(value_name = "CONTAINER")]
    pub(crate) container: String,
    /// Only what this port of the container's is published as
    #[arg(value_name = "PORT[/PROTOCOL]")]
    pub(crate) port: Option<String>,
}

/// `completion`.
#[derive(Debug, Args)]
pub(crate) struct CompletionArgs {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: Shell,
}

/// `man`.
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// The folder that the pages are written to, which is made if it is not there
    #[arg(value_name = "DIR")]
    pub(crate) folder: PathBuf,
}
