//! The options that say what a container is, shared by every verb that makes one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use clap::{ArgAction, Args};
use sandbox_types::{CpusetList, MacAddress};

use super::others::DockersOthers;
use crate::values::device::{self, Device};
use crate::values::mounts::{self, Bind, Mount, Tmpfs};
use crate::values::namespaces::{self, Ipc, NetworkMode};
use crate::values::network::{self, HostEntry};
use crate::values::ports::{self, Ports};
use crate::values::{self, Ulimit, UserName, Variable};

/// The options that say what the container is.
///
/// docker's other options are [`DockersOthers`].
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
    /// The user to run as, and the group: names of the image's, or numbers
    #[arg(short, long, value_name = "USER[:GROUP]", value_parser = values::user, help_heading = "Process")]
    pub(crate) user: Option<UserName>,
    /// A further group of the process: a name of the image's, or a number
    #[arg(long, value_name = "GROUP", value_parser = values::group, help_heading = "Process")]
    pub(crate) group_add: Vec<String>,
    /// The program to run instead of the image's entry point; empty for none
    #[arg(long, value_name = "PROGRAM", help_heading = "Process")]
    pub(crate) entrypoint: Option<String>,
    /// A resource limit of the process
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = values::ulimit, help_heading = "Process")]
    pub(crate) ulimit: Vec<Ulimit>,
    /// How readily the guest kernel kills the process when memory runs out, from -1000 to 1000
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(-1000..=1000), allow_hyphen_values = true, help_heading = "Process")]
    pub(crate) oom_score_adj: Option<i32>,
    /// Run the command below an init that passes signals on and reaps orphans
    #[arg(long, help_heading = "Process")]
    pub(crate) init: bool,
    /// The signal that asks the container to end [default: the image's, or TERM]
    #[arg(long, value_name = "SIGNAL", value_parser = values::signal, help_heading = "Process")]
    pub(crate) stop_signal: Option<u32>,
    /// How many seconds it then has, before it is killed; -1 for ever [default: 10]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(i64).range(-1..), allow_hyphen_values = true, help_heading = "Process")]
    pub(crate) stop_timeout: Option<i64>,
    /// What happens when the container has ended; only no
    #[arg(long, value_name = "POLICY", value_parser = values::restart, help_heading = "Process")]
    pub(crate) restart: Option<String>,

    /// The host name in the container
    #[arg(short = 'h', long, value_name = "NAME", value_parser = network::hostname, help_heading = "Container")]
    pub(crate) hostname: Option<String>,
    /// The NIS domain name in the container
    #[arg(long, value_name = "NAME", help_heading = "Container")]
    pub(crate) domainname: Option<String>,
    /// Set a parameter of the guest kernel
    #[arg(long, value_name = "NAME=VALUE", value_parser = values::sysctl, help_heading = "Container")]
    pub(crate) sysctl: Vec<(String, String)>,
    /// Note something about the container
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = values::label, help_heading = "Container")]
    pub(crate) label: Vec<(String, String)>,
    /// Read labels from a file, one a line
    #[arg(long, value_name = "FILE", help_heading = "Container")]
    pub(crate) label_file: Vec<PathBuf>,
    /// Put an annotation into the container's OCI configuration
    #[arg(long, value_name = "KEY=VALUE", value_parser = values::label, help_heading = "Container")]
    pub(crate) annotation: Vec<(String, String)>,

    /// Make a file or folder of this host visible in the container
    #[arg(short, long, value_name = "HOST-PATH:PATH[:ro]", value_parser = mounts::volume, help_heading = "File systems")]
    pub(crate) volume: Vec<Bind>,
    /// Mount a file or folder of this host (type=bind), a volume (type=volume), the file system of a disk image or block device (type=block) or one in memory (type=tmpfs)
    #[arg(long, value_name = "type=TYPE,…", value_parser = mounts::mount, help_heading = "File systems")]
    pub(crate) mount: Vec<Mount>,
    /// Mount a file system in memory
    #[arg(long, value_name = "PATH[:OPTIONS]", value_parser = mounts::tmpfs, help_heading = "File systems")]
    pub(crate) tmpfs: Vec<Tmpfs>,
    /// Make the container's root file system read-only
    #[arg(long, help_heading = "File systems")]
    pub(crate) read_only: bool,
    /// The size of /dev/shm [default: 64m]
    #[arg(long, value_name = "SIZE", value_parser = values::size, help_heading = "File systems")]
    pub(crate) shm_size: Option<u64>,
    /// Give the container a device of its virtual machine's, such as /dev/fuse
    #[arg(long, value_name = "PATH[:PATH][:rwm]", value_parser = device::device, help_heading = "File systems")]
    pub(crate) device: Vec<Device>,

    /// The network: its name, or none, which is a loopback interface [default: bridge]
    #[arg(long, visible_alias = "net", value_name = "NETWORK", value_parser = namespaces::network, help_heading = "Names and networks")]
    pub(crate) network: Vec<NetworkMode>,
    /// Have a port of this host lead to one of the container's
    #[arg(short, long, value_name = "[[ADDRESS:]PORT:]PORT[/PROTOCOL]", value_parser = ports::publish, help_heading = "Names and networks")]
    pub(crate) publish: Vec<Ports>,
    /// The IPv4 address in the network
    #[arg(long, value_name = "ADDRESS", help_heading = "Names and networks")]
    pub(crate) ip: Option<Ipv4Addr>,
    /// The IPv6 address in the network
    #[arg(long, value_name = "ADDRESS", help_heading = "Names and networks")]
    pub(crate) ip6: Option<Ipv6Addr>,
    /// The hardware address of the container's interface
    #[arg(long, value_name = "ADDRESS", help_heading = "Names and networks")]
    pub(crate) mac_address: Option<MacAddress>,
    /// Add a line to the container's /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS", value_parser = network::add_host, help_heading = "Names and networks")]
    pub(crate) add_host: Vec<HostEntry>,
    /// A name server, in the container's /etc/resolv.conf
    #[arg(long, value_name = "ADDRESS", help_heading = "Names and networks")]
    pub(crate) dns: Vec<IpAddr>,
    /// A domain in which names are looked up
    #[arg(long, value_name = "DOMAIN", value_parser = network::word, help_heading = "Names and networks")]
    pub(crate) dns_search: Vec<String>,
    /// An option of the resolver, as in resolv.conf(5)
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION", value_parser = network::word, help_heading = "Names and networks")]
    pub(crate) dns_option: Vec<String>,

    /// Give the process a capability, or ALL
    #[arg(long, value_name = "CAP", help_heading = "Privileges")]
    pub(crate) cap_add: Vec<String>,
    /// Take a capability from the process, or ALL
    #[arg(long, value_name = "CAP", help_heading = "Privileges")]
    pub(crate) cap_drop: Vec<String>,
    /// Give all rights over the virtual machine's kernel, though none over this host's
    #[arg(long, help_heading = "Privileges")]
    pub(crate) privileged: bool,
    /// no-new-privileges[=true|false], seccomp=builtin|unconfined|FILE, or systempaths=unconfined
    #[arg(long, value_name = "OPTION", help_heading = "Privileges")]
    pub(crate) security_opt: Vec<String>,
    /// The process namespace; only private
    #[arg(long, value_name = "MODE", value_parser = namespaces::pid, help_heading = "Privileges")]
    pub(crate) pid: Option<()>,
    /// The namespace of shared memory: private, shareable, or none, which has no /dev/shm
    #[arg(long, value_name = "MODE", value_parser = namespaces::ipc, help_heading = "Privileges")]
    pub(crate) ipc: Option<Ipc>,
    /// The namespace of the host name; only private
    #[arg(long, value_name = "MODE", value_parser = namespaces::uts, help_heading = "Privileges")]
    pub(crate) uts: Option<()>,
    /// The user namespace; only host, which maps no numbers
    #[arg(long, value_name = "MODE", value_parser = namespaces::user, help_heading = "Privileges")]
    pub(crate) userns: Option<()>,
    /// The control group namespace; only private
    #[arg(long, value_name = "MODE", value_parser = namespaces::cgroup, help_heading = "Privileges")]
    pub(crate) cgroupns: Option<()>,

    /// How much memory the container may use; its virtual machine is sized after it
    #[arg(short, long, value_name = "SIZE", value_parser = values::memory, help_heading = "Resources")]
    pub(crate) memory: Option<u64>,
    /// The limit of memory and swap together; -1 for none
    #[arg(long, value_name = "SIZE", value_parser = values::memory_swap, allow_hyphen_values = true, help_heading = "Resources")]
    pub(crate) memory_swap: Option<i64>,
    /// The memory that the container keeps when memory runs short
    #[arg(long, value_name = "SIZE", value_parser = values::memory, help_heading = "Resources")]
    pub(crate) memory_reservation: Option<u64>,
    /// How many processors' worth of time the container may use; its virtual machine is sized after it
    #[arg(long, value_name = "NUMBER", value_parser = values::cpus, help_heading = "Resources")]
    pub(crate) cpus: Option<i64>,
    /// The container's weight where processor time is short
    #[arg(short, long, value_name = "WEIGHT", value_parser = values::cpu_shares, help_heading = "Resources")]
    pub(crate) cpu_shares: Option<u64>,
    /// The host's processors that the virtual machine runs on; it gets as many of its own
    #[arg(long, value_name = "LIST", value_parser = values::cpu_list, help_heading = "Resources")]
    pub(crate) cpuset_cpus: Option<CpusetList>,
    /// Refused: the guest's control groups have no such switch
    #[arg(long, value_name = "BOOL", value_parser = values::oom_kill_disable, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub(crate) oom_kill_disable: Option<bool>,
    /// How many processes the container may have; -1 for no limit
    #[arg(
        long,
        value_name = "NUMBER",
        allow_hyphen_values = true,
        help_heading = "Resources"
    )]
    pub(crate) pids_limit: Option<i64>,
    /// How much the container may write to its own files, outside of volumes [default: 8g]
    #[arg(long, value_name = "SIZE", value_parser = values::storage_size, help_heading = "Resources")]
    pub(crate) storage_size: Option<u64>,
    /// The same in docker's words: size=SIZE
    #[arg(long, value_name = "NAME=VALUE", value_parser = values::storage_option, conflicts_with = "storage_size", help_heading = "Resources")]
    pub(crate) storage_opt: Option<u64>,

    #[command(flatten)]
    pub(crate) others: DockersOthers,

    /// Print this help
    #[arg(long, action = ArgAction::HelpShort)]
    pub(crate) help: Option<bool>,
}

impl ContainerOptions {
    /// Leaves out what is nothing: to docker a size, a limit or a weight of 0 is none given.
    pub(super) fn forget_zeros(&mut self) {
        for size in [
            &mut self.shm_size,
            &mut self.memory,
            &mut self.memory_reservation,
            &mut self.cpu_shares,
        ] {
            *size = size.filter(|value| *value > 0);
        }
        self.cpus = self.cpus.filter(|quota| *quota > 0);
        self.memory_swap = self.memory_swap.filter(|limit| *limit != 0);
    }
}
