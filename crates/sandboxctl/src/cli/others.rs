//! docker's options of `run` and `create` that are not there: most are refused with a reason and what to do instead, those
//! that would change nothing anyway are taken. None is in the help.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

/// An option that is refused.
struct Refused {
    long: &'static str,
    takes: Takes,
    /// What is said.
    why: &'static str,
}

/// What an option has behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    Value,
    /// A truth value or nothing; `false` is taken.
    Switch,
}

const fn value(long: &'static str, why: &'static str) -> Refused {
    let takes = Takes::Value;
    Refused { long, takes, why }
}

const NO_NAMES: &str = "names of containers are not looked up; put both on one network and give the address with --add-host NAME:ADDRESS";
const USE_CPUS: &str =
    "give the time with --cpus: a quota of 150000 in a period of 100000 is --cpus 1.5";
const DISK_RATES: &str = "disks are limited for each sandbox, by disk_bytes_per_second and disk_operations_per_second of the configuration";
const NO_HEALTH: &str =
    "there are no health checks; run one with `sandboxctl exec` from what watches the container";

const REFUSED: &[Refused] = &[
    value(
        "gpus",
        "no device of this host's is given to a container: it runs behind a kernel of its own",
    ),
    value("link", NO_NAMES),
    value("network-alias", NO_NAMES),
    value("net-alias", NO_NAMES),
    value(
        "volumes-from",
        "name each volume with -v NAME:PATH; `sandboxctl inspect` shows the other container's",
    ),
    Refused {
        long: "publish-all",
        takes: Takes::Switch,
        why: "name each port with -p PORT, which leads a free port of this host's to it",
    },
    value("cpu-period", USE_CPUS),
    value("cpu-quota", USE_CPUS),
    value(
        "cpu-rt-period",
        "the guest's kernel shares out no real time",
    ),
    value(
        "cpu-rt-runtime",
        "the guest's kernel shares out no real time",
    ),
    value(
        "cpuset-mems",
        "the virtual machine's memory is one node; leave it out",
    ),
    value(
        "memory-swappiness",
        "the virtual machine has no swap device; leave it out",
    ),
    value("kernel-memory", "it is part of what --memory limits"),
    value("blkio-weight", DISK_RATES),
    value("blkio-weight-device", DISK_RATES),
    value("device-read-bps", DISK_RATES),
    value("device-read-iops", DISK_RATES),
    value("device-write-bps", DISK_RATES),
    value("device-write-iops", DISK_RATES),
    value(
        "device-cgroup-rule",
        "name each device with --device, or give all of the virtual machine's with --privileged",
    ),
    value(
        "cgroup-parent",
        "the control groups of sandboxes are below /sandboxctl; leave it out",
    ),
    value(
        "runtime",
        "there is no other runtime here; --hypervisor says what runs the virtual machine",
    ),
    value(
        "volume-driver",
        "volumes are folders of this host's; leave it out",
    ),
    value("health-cmd", NO_HEALTH),
    value("health-interval", NO_HEALTH),
    value("health-retries", NO_HEALTH),
    value("health-start-interval", NO_HEALTH),
    value("health-start-period", NO_HEALTH),
    value("health-timeout", NO_HEALTH),
];

/// docker's options that are refused, or taken without effect.
#[derive(Debug, Default, Clone)]
pub(crate) struct DockersOthers;

impl Refused {
    fn arg(&self) -> Arg {
        let (why, takes) = (self.why, self.takes);
        let refuse = move |text: &str| match (takes, crate::values::truth(text)) {
            (Takes::Switch, Ok(false)) => Ok(text.to_owned()),
            _ => Err(why),
        };
        let arg = Arg::new(self.long)
            .long(self.long)
            .action(ArgAction::Append)
            .value_parser(refuse)
            .hide(true);
        match takes {
            Takes::Value => arg.num_args(1).value_name("VALUE"),
            Takes::Switch => arg
                .value_name("BOOL")
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true"),
        }
    }
}

impl FromArgMatches for DockersOthers {
    fn from_arg_matches(_: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self)
    }

    fn update_from_arg_matches(&mut self, _: &ArgMatches) -> Result<(), clap::Error> {
        Ok(())
    }
}

impl Args for DockersOthers {
    fn augment_args(command: Command) -> Command {
        let refused = REFUSED.iter().map(|option| match option.long {
            "publish-all" => option.arg().short('P'),
            _ => option.arg(),
        });
        command
            .args(refused)
            // There are no health checks, and every port of a container can be reached from its network.
            .arg(
                Arg::new("no-healthcheck")
                    .long("no-healthcheck")
                    .action(ArgAction::SetTrue)
                    .hide(true),
            )
            .arg(
                Arg::new("expose")
                    .long("expose")
                    .action(ArgAction::Append)
                    .num_args(1)
                    .hide(true),
            )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}
