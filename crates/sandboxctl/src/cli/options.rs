//! The options that say what a container is, shared by every verb that makes one.

use std::path::PathBuf;

use clap::{ArgAction, Args};

use crate::values::{self, Tmpfs, Ulimit, UserName, Variable};

/// The options that say what the container is.
#[derive(Debug, Default, Clone, Args)]
pub(crate) struct ContainerOptions {
    /// Set an environment variable; NAME alone passes on your own
    #[arg(short, long = "env", value_name = "NAME=VALUE", value_parser = values::variable, help_heading = "Process")]
    pub(crate) env: Vec<Variable>,
    /// Read environment variables from a file, one a line
    #[arg(long, value_name = "FILE", help_heading = "Process")]
    pub(crate) env_file: Vec<PathBuf>,
    /// The working directory in the container
    #[arg(short, long, value_name = "DIR", value_parser = values::absolute, help_heading = "Process")]
    pub(crate) workdir: Option<String>,
    /// The user to run as, and the group
    #[arg(short, long, value_name = "UID[:GID]", value_parser = values::user, help_heading = "Process")]
    pub(crate) user: Option<UserName>,
    /// A further group of the process
    #[arg(long, value_name = "GID", help_heading = "Process")]
    pub(crate) group_add: Vec<u32>,
    /// The program to run instead of the image's entry point; empty for none
    #[arg(long, value_name = "PROGRAM", help_heading = "Process")]
    pub(crate) entrypoint: Option<String>,
    /// A resource limit of the process
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = values::ulimit, help_heading = "Process")]
    pub(crate) ulimit: Vec<Ulimit>,
    /// How readily the guest kernel kills the process when memory runs out, from -1000 to 1000
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(-1000..=1000), allow_hyphen_values = true, help_heading = "Process")]
    pub(crate) oom_score_adj: Option<i32>,

    /// The host name in the container
    #[arg(short = 'h', long, value_name = "NAME", help_heading = "Container")]
    pub(crate) hostname: Option<String>,
    /// The NIS domain name in the container
    #[arg(long, value_name = "NAME", help_heading = "Container")]
    pub(crate) domainname: Option<String>,
    /// Make the container's root file system read-only
    #[arg(long, help_heading = "Container")]
    pub(crate) read_only: bool,
    /// Mount a file system in memory
    #[arg(long, value_name = "PATH[:OPTIONS]", value_parser = values::tmpfs, help_heading = "Container")]
    pub(crate) tmpfs: Vec<Tmpfs>,
    /// The size of /dev/shm
    #[arg(long, value_name = "SIZE", value_parser = values::size, help_heading = "Container")]
    pub(crate) shm_size: Option<u64>,
    /// Set a parameter of the guest kernel
    #[arg(long, value_name = "NAME=VALUE", value_parser = values::sysctl, help_heading = "Container")]
    pub(crate) sysctl: Vec<(String, String)>,
    /// Note something about the container
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = values::label, help_heading = "Container")]
    pub(crate) label: Vec<(String, String)>,
    /// Put an annotation into the container's OCI configuration
    #[arg(long, value_name = "KEY=VALUE", value_parser = values::label, help_heading = "Container")]
    pub(crate) annotation: Vec<(String, String)>,

    /// Give the process a capability, or ALL
    #[arg(long, value_name = "CAP", help_heading = "Privileges")]
    pub(crate) cap_add: Vec<String>,
    /// Take a capability from the process, or ALL
    #[arg(long, value_name = "CAP", help_heading = "Privileges")]
    pub(crate) cap_drop: Vec<String>,
    /// no-new-privileges[=true|false], or seccomp=builtin|unconfined|FILE
    #[arg(long, value_name = "OPTION", help_heading = "Privileges")]
    pub(crate) security_opt: Vec<String>,

    /// How much memory the container may use; its virtual machine is sized after it
    #[arg(short, long, value_name = "SIZE", value_parser = values::memory, help_heading = "Resources")]
    pub(crate) memory: Option<u64>,
    /// The memory that the container keeps when memory runs short
    #[arg(long, value_name = "SIZE", value_parser = values::memory, help_heading = "Resources")]
    pub(crate) memory_reservation: Option<u64>,
    /// How many processors' worth of time the container may use; its virtual machine is sized after it
    #[arg(long, value_name = "NUMBER", value_parser = values::cpus, help_heading = "Resources")]
    pub(crate) cpus: Option<i64>,
    /// The container's weight where processor time is short
    #[arg(short, long, value_name = "WEIGHT", value_parser = clap::value_parser!(u64).range(2..=262_144), help_heading = "Resources")]
    pub(crate) cpu_shares: Option<u64>,
    /// How many processes the container may have; -1 for no limit
    #[arg(
        long,
        value_name = "NUMBER",
        allow_hyphen_values = true,
        help_heading = "Resources"
    )]
    pub(crate) pids_limit: Option<i64>,

    /// Print this help
    #[arg(long, action = ArgAction::HelpShort)]
    pub(crate) help: Option<bool>,
}
