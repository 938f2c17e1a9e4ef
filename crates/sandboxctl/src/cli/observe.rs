//! The command line of the verbs that look at containers, and of those about the program itself.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use clap_complete::Shell;
use sandbox_types::CpusetList;

use crate::filter::{self, Filter};
use crate::format::{self, Format};
use crate::values;

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

/// `stats`.
#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    /// Show containers that have ended, too
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Print once, instead of again and again
    #[arg(long)]
    pub(crate) no_stream: bool,
    /// Shorten nothing
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// How to print: table, json, a Go template, or `table` and a template
    #[arg(long, value_name = "FORMAT", value_parser = format::format, default_value = "table")]
    pub(crate) format: Format,
    /// Names or IDs of containers [default: those that run]
    #[arg(value_name = "CONTAINER")]
    pub(crate) containers: Vec<String>,
}

/// `top`.
#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// Name or ID of a container
    #[arg(value_name = "CONTAINER")]
    pub(crate) container: String,
    /// Options of ps(1): -ef, aux, or -o and a list of columns
    #[arg(
        value_name = "PS-OPTIONS",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub(crate) options: Vec<String>,
}

/// `update`.
#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    /// How much memory the container may use, at most what its virtual machine can grow to
    #[arg(short, long, value_name = "SIZE", value_parser = values::memory)]
    pub(crate) memory: Option<u64>,
    /// The limit of memory and swap together; -1 for none
    #[arg(long, value_name = "SIZE", value_parser = values::memory_swap, allow_hyphen_values = true)]
    pub(crate) memory_swap: Option<i64>,
    /// The memory that the container keeps when memory runs short
    #[arg(long, value_name = "SIZE", value_parser = values::memory)]
    pub(crate) memory_reservation: Option<u64>,
    /// How many processors' worth of time the container may use, at most what its virtual machine can grow to
    #[arg(long, value_name = "NUMBER", value_parser = values::cpus)]
    pub(crate) cpus: Option<i64>,
    /// The container's weight where processor time is short
    #[arg(short, long, value_name = "WEIGHT", value_parser = values::cpu_shares)]
    pub(crate) cpu_shares: Option<u64>,
    /// The host's processors that the virtual machine runs on; the container may use as many of its own
    #[arg(long, value_name = "LIST", value_parser = values::cpu_list)]
    pub(crate) cpuset_cpus: Option<CpusetList>,
    /// How many processes the container may have; -1 for no limit
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pub(crate) pids_limit: Option<i64>,
    /// What happens when the container has ended; only no
    #[arg(long, value_name = "POLICY", value_parser = values::restart)]
    pub(crate) restart: Option<String>,
    /// Names or IDs of containers
    #[arg(value_name = "CONTAINER", required = true)]
    pub(crate) containers: Vec<String>,
}

impl UpdateArgs {
    /// Leaves out what is nothing: to docker a limit or a weight of 0 changes none.
    pub(super) fn forget_zeros(&mut self) {
        for limit in [
            &mut self.memory,
            &mut self.memory_reservation,
            &mut self.cpu_shares,
        ] {
            *limit = limit.filter(|value| *value > 0);
        }
        self.cpus = self.cpus.filter(|quota| *quota > 0);
        self.memory_swap = self.memory_swap.filter(|limit| *limit != 0);
    }
}

/// `cp`.
#[derive(Debug, Args)]
pub(crate) struct CpArgs {
    /// Keep owners and set-user-ID bits
    #[arg(short, long)]
    pub(crate) archive: bool,
    /// Copy what a symbolic link points to, where the source is one
    #[arg(short = 'L', long)]
    pub(crate) follow_link: bool,
    /// Say nothing of what was copied
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// A path of this host, CONTAINER:PATH, or - for a tar archive on standard input
    #[arg(value_name = "SOURCE")]
    pub(crate) source: String,
    /// A path of this host, CONTAINER:PATH, or - for a tar archive on standard output
    #[arg(value_name = "DESTINATION")]
    pub(crate) destination: String,
}
