//! The small grammars of `docker run`'s options: sizes, processors, environment, limits, users.
//!
//! Each parser is pure and says in its error what it would have taken.

pub(crate) mod device;
mod moment;
pub(crate) mod mounts;
pub(crate) mod namespaces;
pub(crate) mod network;
pub(crate) mod ports;

use std::fmt;

use oci_spec::runtime::PosixRlimitType;
use sandbox_types::{CpusetList, CpusetListError, VcpuCount};

pub(crate) use moment::moment;

/// Why the value of an option was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ValueError {
    /// Not a size.
    #[error("{value:?} is not a size; write a number and b, k, m, g or t, such as 256m")]
    Size { value: String },
    /// Below what a container can live in.
    #[error("{value} of memory is too little; the least is 6m")]
    MemoryTooSmall { value: String },
    /// Not a number of processors.
    #[error("{value:?} is not a number of processors; write one from 0.01 to {max}, such as 1.5")]
    Cpus { value: String, max: u8 },
    /// Not a weight.
    #[error("{value:?} is not a weight; write a number from 2 to 262144, or 0 for the usual one")]
    CpuShares { value: String },
    /// Not an environment variable.
    #[error(
        "{value:?} is not an environment variable; write NAME=VALUE, or NAME to pass on your own"
    )]
    Environment { value: String },
    /// Not a resource limit.
    #[error("{value:?} is not a limit; write NAME=SOFT[:HARD], such as nofile=1024:4096")]
    Ulimit { value: String },
    /// No such resource limit.
    #[error("there is no limit called {name:?}; there are {}", ULIMITS.map(|(name, _)| name).join(", "))]
    UlimitName { name: String },
    /// A soft limit above the hard one.
    #[error("the soft limit of {value:?} is above its hard limit")]
    UlimitOrder { value: String },
    /// Not a kernel parameter.
    #[error("{value:?} is not a kernel parameter; write NAME=VALUE, such as net.ipv4.ip_forward=1")]
    Sysctl { value: String },
    /// Not a user.
    #[error("{value:?} is not a user; write USER[:GROUP], names or numbers")]
    User { value: String },
    /// Not a group.
    #[error("{value:?} is not a group; write a name or a number")]
    Group { value: String },
    /// Not an absolute path.
    #[error("{value:?} is not an absolute path in the container")]
    Path { value: String },
    /// Not a signal.
    #[error(
        "there is no signal called {value:?}; write a name or a number from 1 to 64, such as TERM or 15"
    )]
    Signal { value: String },
    /// Not a label.
    #[error("{value:?} is not a label; write KEY=VALUE")]
    Label { value: String },
    /// Not a limit of memory and swap.
    #[error("{value:?} is not a limit; write a size such as 512m, or -1 for none")]
    MemorySwap { value: String },
    /// Not a list of processors.
    #[error(transparent)]
    CpuList(#[from] CpusetListError),
    /// A list of more processors than a virtual machine can have.
    #[error(
        "the list names {count} processors, and a virtual machine has at most {max}; list fewer"
    )]
    TooManyCpus { count: u16, max: u8 },
    /// A policy other than `no`.
    #[error(
        "{value:?}: nothing restarts containers yet; leave --restart out, or start the container again with `sandboxctl start`"
    )]
    Restart { value: String },
    /// Docker's option that cgroup v2 has no counterpart of.
    #[error(
        "the guest's control groups (v2) cannot switch the killing off; protect the process with --oom-score-adj -1000"
    )]
    OomKillDisable,
}

/// The least memory a container may be limited to, as docker has it.
const MIN_MEMORY_BYTES: u64 = 6 << 20;

/// A size in docker's grammar (`docker/go-units`, `RAMInBytes`): a decimal number, a space or none, and a
/// binary unit in either case, `b` or `ib` after it or not.
pub(crate) fn size(value: &str) -> Result<u64, ValueError> {
    let wrong = || ValueError::Size {
        value: value.to_owned(),
    };
    let text = value.trim().to_ascii_lowercase();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let shift = match unit.strip_prefix(' ').unwrap_or(unit) {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        _ => return Err(wrong()),
    };
    // Thousandths are exact enough for what people write, and keep floating point out.
    let thousandths = decimal(number, 3).ok_or_else(wrong)?;
    thousandths
        .checked_mul(1 << shift)
        .map(|product| product / 1000)
        .and_then(|bytes| u64::try_from(bytes).ok())
        .filter(|bytes| *bytes <= i64::MAX.unsigned_abs())
        .ok_or_else(wrong)
}

/// A memory limit: a size that a container can live in, or 0 for none.
pub(crate) fn memory(value: &str) -> Result<u64, ValueError> {
    let bytes = size(value)?;
    if (1..MIN_MEMORY_BYTES).contains(&bytes) {
        return Err(ValueError::MemoryTooSmall {
            value: value.to_owned(),
        });
    }
    Ok(bytes)
}

/// `text` times ten to the `places`, when it is a plain decimal number; more digits than that are cut.
fn decimal(text: &str, places: usize) -> Option<u128> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || whole.len() > 20 {
        return None;
    }
    let kept: String = fraction.chars().take(places).collect();
    format!("{whole}{kept:0<places$}").parse().ok()
}

/// Processors, in the microseconds of each [`CPU_PERIOD_US`] that a container may run; 0 for no limit.
pub(crate) fn cpus(value: &str) -> Result<i64, ValueError> {
    let max = VcpuCount::MAX.get();
    // By more digits than are kept, so that a little is not taken for nothing.
    let is_nothing = decimal(value, 20) == Some(0);
    decimal(value, 5)
        .and_then(|n| i64::try_from(n).ok())
        .filter(|quota| is_nothing || (1_000..=i64::from(max) * 100_000).contains(quota))
        .ok_or_else(|| ValueError::Cpus {
            value: value.to_owned(),
            max,
        })
}

/// A weight where processor time is short (the kernel's bounds); 0 for the usual one.
pub(crate) fn cpu_shares(value: &str) -> Result<u64, ValueError> {
    value
        .parse()
        .ok()
        .filter(|weight| matches!(weight, 0 | 2..=262_144))
        .ok_or_else(|| ValueError::CpuShares {
            value: value.to_owned(),
        })
}

/// The period that [`cpus`] counts in, the kernel's default.
pub(crate) const CPU_PERIOD_US: u64 = 100_000;

/// What `-e` says of a variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Variable {
    /// The name.
    pub(crate) name: String,
    /// The value; none takes the caller's own. Where the caller has none, `-e` unsets the variable, and a line of a file is
    /// passed over (docker).
    pub(crate) value: Option<String>,
}

/// `NAME=VALUE` or `NAME`.
pub(crate) fn variable(value: &str) -> Result<Variable, ValueError> {
    let (name, content) = match value.split_once('=') {
        Some((name, content)) => (name, Some(content.to_owned())),
        None => (value, None),
    };
    if name.is_empty() || value.contains('\0') {
        return Err(ValueError::Environment {
            value: value.to_owned(),
        });
    }
    Ok(Variable {
        name: name.to_owned(),
        value: content,
    })
}

/// The variables of an environment file: one a line, `#` begins a comment line.
pub(crate) fn environment_file(text: &str) -> Result<Vec<Variable>, ValueError> {
    lines(text).map(variable).collect()
}

/// The labels of a label file: one a line, `#` begins a comment line.
pub(crate) fn label_file(text: &str) -> Result<Vec<(String, String)>, ValueError> {
    lines(text).map(label).collect()
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.trim_start_matches('\u{feff}')
        .lines()
        .map(str::trim_start)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// A resource limit of the container's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ulimit {
    pub(crate) kind: PosixRlimitType,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

impl Ulimit {
    /// docker's name.
    pub(crate) fn name(&self) -> &'static str {
        ULIMITS
            .iter()
            .find(|(_, kind)| *kind == self.kind)
            .map_or("", |(name, _)| name)
    }
}

/// docker's names of the limits.
const ULIMITS: [(&str, PosixRlimitType); 15] = [
    ("core", PosixRlimitType::RlimitCore),
    ("cpu", PosixRlimitType::RlimitCpu),
    ("data", PosixRlimitType::RlimitData),
    ("fsize", PosixRlimitType::RlimitFsize),
    ("locks", PosixRlimitType::RlimitLocks),
    ("memlock", PosixRlimitType::RlimitMemlock),
    ("msgqueue", PosixRlimitType::RlimitMsgqueue),
    ("nice", PosixRlimitType::RlimitNice),
    ("nofile", PosixRlimitType::RlimitNofile),
    ("nproc", PosixRlimitType::RlimitNproc),
    ("rss", PosixRlimitType::RlimitRss),
    ("rtprio", PosixRlimitType::RlimitRtprio),
    ("rttime", PosixRlimitType::RlimitRttime),
    ("sigpending", PosixRlimitType::RlimitSigpending),
    ("stack", PosixRlimitType::RlimitStack),
];

/// `NAME=SOFT[:HARD]`, where -1 is no limit.
pub(crate) fn ulimit(value: &str) -> Result<Ulimit, ValueError> {
    let wrong = || ValueError::Ulimit {
        value: value.to_owned(),
    };
    let (name, limits) = value.split_once('=').ok_or_else(wrong)?;
    let (_, kind) = ULIMITS
        .into_iter()
        .find(|(known, _)| *known == name)
        .ok_or_else(|| ValueError::UlimitName {
            name: name.to_owned(),
        })?;
    let limit = |text: &str| match text {
        "-1" => Ok(u64::MAX),
        text => text.parse::<u64>().map_err(|_| wrong()),
    };
    let (soft, hard) = match limits.split_once(':') {
        Some((soft, hard)) => (limit(soft)?, limit(hard)?),
        None => (limit(limits)?, limit(limits)?),
    };
    if soft > hard {
        return Err(ValueError::UlimitOrder {
            value: value.to_owned(),
        });
    }
    Ok(Ulimit { kind, soft, hard })
}

/// `NAME=VALUE` of a kernel parameter.
pub(crate) fn sysctl(value: &str) -> Result<(String, String), ValueError> {
    match value.split_once('=') {
        Some((name, content)) if !name.is_empty() && !name.contains("..") => {
            Ok((name.to_owned(), content.to_owned()))
        }
        _ => Err(ValueError::Sysctl {
            value: value.to_owned(),
        }),
    }
}

/// `KEY=VALUE` or `KEY` of a label.
pub(crate) fn label(value: &str) -> Result<(String, String), ValueError> {
    let (key, content) = value.split_once('=').unwrap_or((value, ""));
    if key.is_empty() {
        return Err(ValueError::Label {
            value: value.to_owned(),
        });
    }
    Ok((key.to_owned(), content.to_owned()))
}

/// An absolute path in the container.
pub(crate) fn absolute(value: &str) -> Result<String, ValueError> {
    if value.starts_with('/') && !value.contains('\0') {
        Ok(value.to_owned())
    } else {
        Err(ValueError::Path {
            value: value.to_owned(),
        })
    }
}

/// A user as `-u` and images name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UserName {
    /// A name or a number.
    pub(crate) user: String,
    /// A group's name or number.
    pub(crate) group: Option<String>,
}

impl fmt::Display for UserName {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(&self.user)?;
        match &self.group {
            Some(group) => write!(to, ":{group}"),
            None => Ok(()),
        }
    }
}

/// `USER[:GROUP]`, names or numbers.
pub(crate) fn user(value: &str) -> Result<UserName, ValueError> {
    let (user, group) = match value.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (value, None),
    };
    if user.is_empty() || group.is_some_and(str::is_empty) || value.matches(':').count() > 1 {
        return Err(ValueError::User {
            value: value.to_owned(),
        });
    }
    Ok(UserName {
        user: user.to_owned(),
        group: group.map(str::to_owned),
    })
}

/// A group's name or number.
pub(crate) fn group(value: &str) -> Result<String, ValueError> {
    if value.is_empty() || value.contains([':', ',', '\0']) {
        return Err(ValueError::Group {
            value: value.to_owned(),
        });
    }
    Ok(value.to_owned())
}

/// A limit of memory and swap together: a size, or -1 for none.
pub(crate) fn memory_swap(value: &str) -> Result<i64, ValueError> {
    if value == "-1" {
        return Ok(-1);
    }
    size(value)
        .ok()
        .and_then(|bytes| i64::try_from(bytes).ok())
        .ok_or_else(|| ValueError::MemorySwap {
            value: value.to_owned(),
        })
}

/// Processors by number, as many as a virtual machine can have.
pub(crate) fn cpu_list(value: &str) -> Result<CpusetList, ValueError> {
    let list: CpusetList = value.parse()?;
    let (count, max) = (list.count(), VcpuCount::MAX.get());
    if count > u16::from(max) {
        return Err(ValueError::TooManyCpus { count, max });
    }
    Ok(list)
}

/// `--restart`.
pub(crate) fn restart(value: &str) -> Result<String, ValueError> {
    match value {
        "no" | "" => Ok("no".to_owned()),
        _ => Err(ValueError::Restart {
            value: value.to_owned(),
        }),
    }
}

/// `--oom-kill-disable`, which only `false` can have.
pub(crate) fn oom_kill_disable(value: &str) -> Result<bool, ValueError> {
    match value {
        "false" => Ok(false),
        _ => Err(ValueError::OomKillDisable),
    }
}

/// A signal's number from its number or its name, with `SIG` or without, or `RTMIN+n`.
pub(crate) fn signal(value: &str) -> Result<u32, ValueError> {
    let wrong = || ValueError::Signal {
        value: value.to_owned(),
    };
    if let Ok(number) = value.parse::<u32>() {
        return if (1..=64).contains(&number) {
            Ok(number)
        } else {
            Err(wrong())
        };
    }
    let upper = value.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    // The kernel's first real-time signal is 32, but glibc keeps two; docker and kill(1) count from 34.
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset: u32 = match offset.strip_prefix('+') {
            Some(number) => number.parse().map_err(|_| wrong())?,
            None if offset.is_empty() => 0,
            None => return Err(wrong()),
        };
        return match offset {
            0..=30 => Ok(34 + offset),
            _ => Err(wrong()),
        };
    }
    let found: nix::sys::signal::Signal = format!("SIG{name}").parse().map_err(|_| wrong())?;
    u32::try_from(found as i32).map_err(|_| wrong())
}

#[cfg(test)]
mod tests;

/// A truth value, in the spellings that docker's switches take (Go's `strconv.ParseBool`).
pub(crate) fn truth(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

/// `--tail`: a number of lines, or `all`.
pub(crate) fn tail(text: &str) -> Result<usize, String> {
    match text {
        "all" => Ok(usize::MAX),
        number => number
            .parse()
            .map_err(|_| format!("{text:?} is neither a number of lines nor \"all\"")),
    }
}

/// The smallest and largest writable layer, in bytes: what ext4 can be with something in it, and with blocks of 4 KiB.
const STORAGE_BYTES: std::ops::RangeInclusive<u64> = 16 << 20..=16 << 40;

/// The size of a writable layer, `--storage-size`: whole blocks.
pub(crate) fn storage_size(text: &str) -> Result<u64, String> {
    let bytes = size(text).map_err(|error| error.to_string())?;
    if !STORAGE_BYTES.contains(&bytes) {
        return Err(format!(
            "a writable layer has from 16m to 16t, not {text:?}"
        ));
    }
    Ok(bytes.next_multiple_of(4096))
}

/// `--storage-opt`: `size=SIZE`, docker's only one for containers.
pub(crate) fn storage_option(text: &str) -> Result<u64, String> {
    match text.split_once('=') {
        Some(("size", value)) => storage_size(value),
        _ => Err(format!("{text:?} is not known; there is size=SIZE")),
    }
}

/// `--log-opt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogOption {
    /// When a file has this many bytes the next one is begun.
    MaxSize(u64),
    /// How many files are kept.
    MaxFile(u32),
}

/// `max-size=SIZE` or `max-file=NUMBER`.
pub(crate) fn log_option(text: &str) -> Result<LogOption, String> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| format!("{text:?} is not NAME=VALUE"))?;
    match name {
        "max-size" => match size(value) {
            Ok(bytes) if bytes > 0 => Ok(LogOption::MaxSize(bytes)),
            Ok(_) => Err("max-size must be more than nothing".to_owned()),
            Err(error) => Err(error.to_string()),
        },
        "max-file" => match value.parse() {
            Ok(count) if count > 0 => Ok(LogOption::MaxFile(count)),
            _ => Err(format!("max-file is a number from 1, not {value:?}")),
        },
        other => Err(format!(
            "{other:?} is not known; there are max-size and max-file"
        )),
    }
}
