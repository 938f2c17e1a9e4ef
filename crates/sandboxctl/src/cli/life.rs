//! The command line of everything that has to do with the life of containers.

use std::path::PathBuf;
use std::time::SystemTime;

use clap::{ArgAction, Args, Subcommand};
use sandbox_types::ContainerId;

use super::{ContainerOptions, HypervisorChoice, Program, PullOptions};
use crate::events::EventFilter;
use crate::format::{self, Format};
use crate::logs::{LogDriver, LogOptions};
use crate::stdio::DetachKeys;
use crate::timings::TimingsForm;
use crate::values::{self, LogOption, UserName, Variable};

/// What makes a container, under `run` and `create` alike.
#[derive(Debug, Args)]
pub(crate) struct MakeArgs {
    /// Keep standard input open and pass it to the container
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Name the container
    #[arg(long, value_name = "NAME", value_parser = clap::value_parser!(ContainerId))]
    pub(crate) name: Option<ContainerId>,
    /// Write the container's ID to this file, which must not exist
    #[arg(long, value_name = "FILE")]
    pub(crate) cidfile: Option<PathBuf>,
    /// What keeps the container's output for `logs`
    #[arg(long, value_name = "DRIVER", value_enum, default_value_t = LogDriver::JsonFile, help_heading = "Log")]
    pub(crate) log_driver: LogDriver,
    /// How much is kept: max-size=SIZE of a file [default: 16m], max-file=NUMBER of files [default: 2]
    #[arg(long, value_name = "NAME=VALUE", value_parser = values::log_option, help_heading = "Log")]
    pub(crate) log_opt: Vec<LogOption>,
    /// What runs the virtual machine
    #[arg(long, value_name = "DRIVER", help_heading = "Virtual machine")]
    pub(crate) hypervisor: Option<HypervisorChoice>,
    /// Hold every byte of the image to its hash tree when it is read: what was changed on this host's disk is an error
    #[arg(long, help_heading = "File systems")]
    pub(crate) verity: bool,
    /// Boot this guest kernel: an uncompressed vmlinux
    #[arg(long, value_name = "PATH", help_heading = "Virtual machine")]
    pub(crate) kernel: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) pull: PullOptions,
    #[command(flatten)]
    pub(crate) container: ContainerOptions,
    #[command(flatten)]
    pub(crate) program: Program,
}

impl MakeArgs {
    /// How the output is kept.
    pub(crate) fn log_options(&self) -> LogOptions {
        let mut options = LogOptions {
            driver: self.log_driver,
            ..LogOptions::default()
        };
        for option in &self.log_opt {
            match option {
                LogOption::MaxSize(bytes) => options.max_size = *bytes,
                LogOption::MaxFile(count) => options.max_file = *count,
            }
        }
        options
    }
}

/// `run`. Its `-h` is the host name, as docker has it.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(crate) struct RunArgs {
    /// Leave the container to itself once it runs, and print its ID
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// The keys that leave the container alone, with -i and -t [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS", value_parser = DetachKeys::parse)]
    pub(crate) detach_keys: Option<DetachKeys>,
    /// Remove the container when it has ended
    #[arg(long)]
    pub(crate) rm: bool,
    /// Print when each phase of the start was reached, after the container has ended, on standard error
    #[arg(
        long,
        value_name = "FORM",
        value_enum,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "table",
        help_heading = "Virtual machine"
    )]
    pub(crate) timings: Option<TimingsForm>,
    #[command(flatten)]
    pub(crate) create: MakeArgs,
}

/// `create`.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(crate) struct CreateArgs {
    /// Remove the container when it has ended
    #[arg(long)]
    pub(crate) rm: bool,
    #[command(flatten)]
    pub(crate) create: MakeArgs,
}

/// `attend`.
#[derive(Debug, Args)]
pub(crate) struct AttendArgs {
    /// The container's ID
    #[arg(value_name = "CONTAINER")]
    pub(crate) container: ContainerId,
}

/// `kill`.
#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    /// The signal, by name or number
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL", value_parser = values::signal)]
    pub(crate) signal: u32,
    /// Names or IDs of containers
    #[arg(value_name = "CONTAINER", required = true)]
    pub(crate) containers: Vec<String>,
}

/// `rm`.
#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Kill containers that still run
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Remove their volumes without a name as well
    #[arg(short, long)]
    pub(crate) volumes: bool,
    /// Names or IDs of containers
    #[arg(value_name = "CONTAINER", required = true)]
    pub(crate) containers: Vec<String>,
}

/// `start`.
#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// Show the container's output, pass signals on, and exit with its code
    #[arg(short, long)]
    pub(crate) attach: bool,
    /// Pass standard input on, too
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// The keys that leave the container alone [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS", value_parser = DetachKeys::parse)]
    pub(crate) detach_keys: Option<DetachKeys>,
    /// Names or IDs of containers
    #[arg(value_name = "CONTAINER", required = true)]
    pub(crate) containers: Vec<String>,
}

/// `stop`.
#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// The signal that asks the container to end [default: the container's]
    #[arg(short, long, value_name = "SIGNAL", value_parser = values::signal)]
    pub(crate) signal: Option<u32>,
    /// How many seconds it then has, before it is killed; -1 for ever [default: the container's]
    #[arg(short = 't', long = "timeout", alias = "time", value_name = "SECONDS", value_parser = clap::value_parser!(i64).range(-1..), allow_hyphen_values = true)]
    pub(crate) time: Option<i64>,
    /// Names or IDs of containers
    #[arg(value_name = "CONTAINER", required = true)]
    pub(crate) containers: Vec<String>,
}

/// `restart`.
pub(crate) type RestartArgs = StopArgs;

/// `wait`, `pause`, `unpause`.
#[derive(Debug, Args)]
pub(crate) struct NamesArgs {
    /// Names or IDs of containers
    #[arg(value_name = "CONTAINER", required = true)]
    pub(crate) containers: Vec<String>,
}

/// `rename`.
#[derive(Debug, Args)]
pub(crate) struct RenameArgs {
    /// The container's name or ID
    #[arg(value_name = "CONTAINER")]
    pub(crate) container: String,
    /// Its name from now on
    #[arg(value_name = "NAME", value_parser = clap::value_parser!(ContainerId))]
    pub(crate) name: ContainerId,
}

/// `prune`.
#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
}

/// `container`.
#[derive(Debug, Subcommand)]
pub(crate) enum ContainerVerb {
    /// Remove all containers that do not run
    Prune(PruneArgs),
}

/// `attach`.
#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    /// Do not pass standard input on
    #[arg(long)]
    pub(crate) no_stdin: bool,
    /// Pass signals on to the container
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = values::truth)]
    pub(crate) sig_proxy: bool,
    /// The keys that leave the container alone [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS", value_parser = DetachKeys::parse)]
    pub(crate) detach_keys: Option<DetachKeys>,
    /// The container's name or ID
    #[arg(value_name = "CONTAINER")]
    pub(crate) container: String,
}

/// `exec`.
#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// Do not wait for the process, and show nothing of it
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// The keys that leave the process alone, with -i and -t [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS", value_parser = DetachKeys::parse)]
    pub(crate) detach_keys: Option<DetachKeys>,
    /// Keep standard input open and pass it to the process
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the process a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Set an environment variable; NAME alone passes on your own
    #[arg(short, long = "env", value_name = "NAME=VALUE", value_parser = values::variable)]
    pub(crate) env: Vec<Variable>,
    /// Read environment variables from a file, one a line
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// The user to run as, and the group
    #[arg(short, long, value_name = "USER[:GROUP]", value_parser = values::user)]
    pub(crate) user: Option<UserName>,
    /// The working directory in the container
    #[arg(short, long, value_name = "DIR", value_parser = values::absolute)]
    pub(crate) workdir: Option<String>,
    /// Give the process every capability, in the guest's kernel
    #[arg(long)]
    pub(crate) privileged: bool,
    /// The container's name or ID
    #[arg(value_name = "CONTAINER")]
    pub(crate) container: String,
    /// The command and its arguments
    #[arg(
        value_name = "COMMAND",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub(crate) command: Vec<String>,
}

/// `logs`.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Go on until the container has ended
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Show only the last lines
    #[arg(short = 'n', long, value_name = "NUMBER", value_parser = values::tail)]
    pub(crate) tail: Option<usize>,
    /// Show nothing before this time, or that long ago
    #[arg(long, value_name = "TIME", value_parser = values::moment)]
    pub(crate) since: Option<SystemTime>,
    /// Show nothing after this time
    #[arg(long, value_name = "TIME", value_parser = values::moment)]
    pub(crate) until: Option<SystemTime>,
    /// Put the time before each line
    #[arg(short, long)]
    pub(crate) timestamps: bool,
    /// The container's name or ID
    #[arg(value_name = "CONTAINER")]
    pub(crate) container: String,
}

/// `events`.
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Begin with this time, or that long ago, instead of now
    #[arg(long, value_name = "TIME", value_parser = values::moment)]
    pub(crate) since: Option<SystemTime>,
    /// End with this time; without it, never
    #[arg(long, value_name = "TIME", value_parser = values::moment)]
    pub(crate) until: Option<SystemTime>,
    /// Show only these: container=NAME, event=ACTION, label=KEY[=VALUE], type=container
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = crate::events::event_filter)]
    pub(crate) filter: Vec<EventFilter>,
    /// How to print: json, or a Go template; else a line for people
    #[arg(long, value_name = "FORMAT", value_parser = format::format)]
    pub(crate) format: Option<Format>,
}
