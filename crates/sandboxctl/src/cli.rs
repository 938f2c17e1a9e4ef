//! The command line: what can be typed, in docker's spelling where docker has the thing.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use sandbox_image::Reference;
use sandbox_types::ContainerId;

use crate::values;

mod images;
mod observe;
mod options;

pub(crate) use images::{
    ArchiveChoice, HistoryArgs, ImageLsArgs, ImageRmArgs, ImageShortcut, ImageVerb, ImportArgs,
    LoadArgs, LoginArgs, LogoutArgs, PruneArgs, PullArgs, PullOptions, PullPolicy, PushArgs,
    SaveArgs, TagArgs,
};
pub(crate) use observe::{
    CompletionArgs, CpArgs, FormatArgs, InspectArgs, ManArgs, ObjectKind, PortArgs, PsArgs,
    StatsArgs, TopArgs, UpdateArgs,
};
pub(crate) use options::ContainerOptions;

/// Runs containers, each in its own micro-VM.
///
/// Every container gets a small virtual machine with a Linux kernel of its own, so that nothing it does
/// reaches the kernel of this machine. Where there is no hardware virtualization the machine is emulated.
#[derive(Debug, Parser)]
#[command(
    name = "sandboxctl",
    version,
    propagate_version = true,
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    /// Where images and containers are kept
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "SANDBOX_ROOT",
        default_value = "/var/lib/sandbox"
    )]
    pub(crate) root: PathBuf,
    /// Where the sockets of running sandboxes are kept [default: the configuration's run_dir, /run/sandbox]
    #[arg(long, global = true, value_name = "DIR", env = "SANDBOX_RUN_DIR")]
    pub(crate) run_dir: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run a command in a new container
    Run(Box<RunArgs>),
    /// List containers
    #[command(visible_alias = "ls")]
    Ps(PsArgs),
    /// Send a signal to running containers
    Kill(KillArgs),
    /// Remove containers
    Rm(RmArgs),
    /// Manage images
    #[command(subcommand)]
    Image(ImageVerb),
    /// Show everything about containers or images
    Inspect(InspectArgs),
    /// Show what containers use
    Stats(StatsArgs),
    /// Show the processes of a container
    Top(TopArgs),
    /// Change the limits of containers
    Update(UpdateArgs),
    /// Copy files between this host and a container
    Cp(CpArgs),
    /// List the ports of a container that are published; none are yet
    Port(PortArgs),
    /// Show the program's version
    Version(FormatArgs),
    /// Show what this installation has
    Info(FormatArgs),
    /// Print a script that makes a shell complete command lines
    Completion(CompletionArgs),
    /// Write the manual pages
    Man(ManArgs),
    #[command(flatten)]
    ImageShortcut(ImageShortcut),
    /// Tell whether this machine can run sandboxes, and what to do where it cannot
    Check(CheckArgs),
}

/// How a table is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

/// Which driver runs the virtual machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum HypervisorChoice {
    /// KVM where the hardware has virtualization, else emulation
    Auto,
    /// Only KVM
    Kvm,
    /// Emulation by QEMU, which is slower
    Qemu,
}

/// `run`. Its `-h` is the host name, as docker has it.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(crate) struct RunArgs {
    /// Keep standard input open and pass it to the container
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Remove the container when it has ended
    #[arg(long)]
    pub(crate) rm: bool,
    /// Name the container
    #[arg(long, value_name = "NAME", value_parser = clap::value_parser!(ContainerId))]
    pub(crate) name: Option<ContainerId>,
    /// Write the container's ID to this file, which must not exist
    #[arg(long, value_name = "FILE")]
    pub(crate) cidfile: Option<PathBuf>,
    /// What runs the virtual machine
    #[arg(long, value_name = "DRIVER", help_heading = "Virtual machine")]
    pub(crate) hypervisor: Option<HypervisorChoice>,
    /// Boot this guest kernel: an uncompressed vmlinux
    #[arg(long, value_name = "PATH", help_heading = "Virtual machine")]
    pub(crate) kernel: Option<PathBuf>,
    /// Print when each phase of the start was reached, after the container has ended
    #[arg(long, help_heading = "Virtual machine")]
    pub(crate) timings: bool,
    #[command(flatten)]
    pub(crate) pull: PullOptions,
    #[command(flatten)]
    pub(crate) container: ContainerOptions,
    /// The image to run
    #[arg(value_name = "IMAGE")]
    pub(crate) image: Reference,
    /// The command and its arguments, instead of the image's
    #[arg(
        value_name = "COMMAND",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub(crate) command: Vec<String>,
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
    /// Names or IDs of containers
    #[arg(value_name = "CONTAINER", required = true)]
    pub(crate) containers: Vec<String>,
}

/// `check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
}

#[cfg(test)]
mod tests;
