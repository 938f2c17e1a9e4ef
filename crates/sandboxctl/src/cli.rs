//! The command line: what can be typed, in docker's spelling where docker has the thing.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{
    Arg, ArgAction, Args, Command, CommandFactory as _, FromArgMatches as _, Parser, Subcommand,
    ValueEnum,
};

mod images;
mod isolation;
mod life;
mod networks;
mod observe;
mod options;
mod others;
mod program;
mod volumes;

use crate::values;
pub(crate) use images::{
    ArchiveChoice, HistoryArgs, ImageLsArgs, ImagePruneArgs, ImageRmArgs, ImageShortcut, ImageVerb,
    ImportArgs, LoadArgs, LoginArgs, LogoutArgs, PullArgs, PullOptions, PullPolicy, PushArgs,
    SaveArgs, TagArgs,
};
pub(crate) use isolation::{IsolationTestArgs, ReportFormat};
pub(crate) use life::{
    AttachArgs, AttendArgs, ContainerVerb, CreateArgs, EventsArgs, ExecArgs, KillArgs, LogsArgs,
    MakeArgs, NamesArgs, PruneArgs, RenameArgs, RestartArgs, RmArgs, RunArgs, StartArgs, StopArgs,
};
pub(crate) use networks::{NetworkCreateArgs, NetworkLsArgs, NetworkVerb};
pub(crate) use observe::{
    CompletionArgs, CpArgs, FormatArgs, InspectArgs, ManArgs, ObjectKind, PortArgs, PsArgs,
    StatsArgs, TopArgs, UpdateArgs,
};
pub(crate) use options::ContainerOptions;
pub(crate) use program::Program;
pub(crate) use volumes::{
    VolumeCreateArgs, VolumeInspectArgs, VolumeLsArgs, VolumePruneArgs, VolumeRmArgs, VolumeVerb,
};

/// Runs containers, each in its own micro-VM.
///
/// Every container gets a small virtual machine with a Linux kernel of its own, so that nothing it does
/// reaches the kernel of this machine. Where there is no hardware virtualization the machine is emulated.
#[derive(Debug, Parser)]
#[command(
    name = "sandboxctl",
    version,
    propagate_version = true,
    disable_help_subcommand = true,
    // As docker's command line: of an option that is given twice the last one counts.
    args_override_self = true
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

impl Cli {
    /// Reads the words of a command line, the program's own name first.
    pub(crate) fn read<W>(words: impl IntoIterator<Item = W>) -> Result<Self, clap::Error>
    where
        W: Into<OsString> + Clone,
    {
        let mut command = with_truth_values(Self::command());
        let mut matches = command.try_get_matches_from_mut(words)?;
        let mut cli =
            Self::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))?;
        match &mut cli.verb {
            Verb::Run(args) => args.create.container.forget_zeros(),
            Verb::Create(args) => args.create.container.forget_zeros(),
            Verb::Update(args) => args.forget_zeros(),
            _ => {}
        }
        Ok(cli)
    }
}

/// Lets every switch have a truth value behind an equals sign, as docker's have: `--rm=false`, `-d=true`.
fn with_truth_values(command: Command) -> Command {
    let with_value = |switch: Arg| {
        if !matches!(switch.get_action(), ArgAction::SetTrue) {
            return switch;
        }
        switch
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .value_name("BOOL")
            .value_parser(values::truth)
            .default_missing_value("true")
            .default_value("false")
            .hide_default_value(true)
    };
    command
        .mut_args(with_value)
        .mut_subcommands(with_truth_values)
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run a command in a new container
    Run(Box<RunArgs>),
    /// Make a container without starting it
    Create(Box<CreateArgs>),
    /// Start containers that do not run
    Start(StartArgs),
    /// Ask containers to end, and kill those that do not in time
    Stop(StopArgs),
    /// Stop containers and start them again
    Restart(RestartArgs),
    /// Run another process in a running container
    Exec(ExecArgs),
    /// Attach to a running container
    Attach(AttachArgs),
    /// Show what a container wrote
    Logs(LogsArgs),
    /// Wait for containers to end, and print their exit codes
    Wait(NamesArgs),
    /// Freeze containers
    Pause(NamesArgs),
    /// Let frozen containers go on
    Unpause(NamesArgs),
    /// Give a container another name
    Rename(RenameArgs),
    /// Show what happens to containers
    Events(EventsArgs),
    /// Remove all containers that do not run
    Prune(PruneArgs),
    /// Manage containers
    #[command(subcommand)]
    Container(ContainerVerb),
    /// List containers
    #[command(visible_alias = "ls")]
    Ps(PsArgs),
    /// Send a signal to running containers
    Kill(KillArgs),
    /// Remove containers
    Rm(RmArgs),
    /// Start and attend a container: what run and start use
    #[command(hide = true)]
    Attend(AttendArgs),
    /// Manage images
    #[command(subcommand)]
    Image(ImageVerb),
    /// Manage volumes
    #[command(subcommand)]
    Volume(VolumeVerb),
    /// Manage networks
    #[command(subcommand)]
    Network(NetworkVerb),
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
    /// List the ports of a container that are published
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
    /// Attack containers of this runtime and of others, and tell which boundary held
    IsolationTest(IsolationTestArgs),
    /// Measure this runtime beside runc and QEMU microvm on this machine
    Bench(BenchArgs),
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

/// `bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Only this part: start, task, exec, at-once, stdio, boot, memory, web-servers, compute, storage, files, page-cache, disk, network, counts, noise; may be given more than once
    #[arg(long, value_name = "PART")]
    pub(crate) only: Vec<String>,
    /// How often each subject is measured, after a run to warm up
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) runs: u16,
    /// How many are started at once, in turn [default: 1,5,10,20]
    #[arg(long, value_name = "N,…")]
    pub(crate) at_once: Option<String>,
    /// The folder for the tables, the values and the pictures
    #[arg(long, value_name = "DIR", default_value = "sandbox-bench")]
    pub(crate) out: PathBuf,
    /// What runs the virtual machines
    #[arg(long, value_name = "DRIVER")]
    pub(crate) hypervisor: Option<HypervisorChoice>,
    /// The program that goes into the containers [default: the one that was installed]
    #[arg(long, value_name = "PATH")]
    pub(crate) probe: Option<PathBuf>,
    /// The program that measures [default: the one that was installed]
    #[arg(long, value_name = "PATH")]
    pub(crate) program: Option<PathBuf>,
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
