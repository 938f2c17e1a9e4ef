//! What a case is: whom it threatens, what is attempted, what is watched, and how the two are judged.

use std::any::Any;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;

use crate::host::Host;

/// What an operator is afraid of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Threat {
    /// A fault in the kernel that the workload can reach.
    KernelExploit,
    /// Using up what others need.
    ResourceExhaustion,
    /// Reaching files that are not the container's.
    FilesystemEscape,
    /// Hearing, or speaking as, somebody else.
    NetworkSnooping,
    /// Becoming, or acting on, more than was given.
    PrivilegeEscalation,
    /// Reaching another container.
    MultiTenant,
}

impl Threat {
    /// All, in the order of reports.
    pub const ALL: [Self; 6] = [
        Self::KernelExploit,
        Self::ResourceExhaustion,
        Self::FilesystemEscape,
        Self::NetworkSnooping,
        Self::PrivilegeEscalation,
        Self::MultiTenant,
    ];

    /// In words.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::KernelExploit => "kernel exploit in the workload",
            Self::ResourceExhaustion => "resource exhaustion",
            Self::FilesystemEscape => "filesystem escape",
            Self::NetworkSnooping => "network snooping",
            Self::PrivilegeEscalation => "privilege escalation",
            Self::MultiTenant => "multi-tenant",
        }
    }
}

/// How a container is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// As `run` without options makes it: docker's capabilities, its filter of system calls, masked paths.
    Plain,
    /// `--privileged`: every capability, no filter, nothing masked, every device rule open. Namespaces of its own.
    Granted,
    /// As plain, with limits of memory and processes.
    Limited,
    /// Only in controls: as granted, without namespaces but that of mounts, and with the host's root at `/host`.
    Host,
}

impl Profile {
    /// Memory of the limited profile, in MiB.
    pub const MEMORY_MIB: u64 = 48;
    /// Processes of the limited profile.
    pub const PROCESSES: u64 = 64;

    /// In words.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Granted => "privileged",
            Self::Limited => "limited",
            Self::Host => "host namespaces",
        }
    }
}

/// One attack.
pub struct Case {
    /// Its name, which begins with its threat's word.
    pub name: &'static str,
    /// Whom it threatens.
    pub threat: Threat,
    /// What the probe does.
    pub attempt: &'static str,
    /// What the host plants and watches.
    pub watch: &'static str,
    /// What must come out.
    pub expected: &'static str,
    /// How the container under test is made.
    pub profile: Profile,
    /// How the control is made, under runc.
    pub control: Profile,
    pub(crate) stage: fn(&Stage<'_>) -> Result<Scene, Obstacle>,
}

/// Why a case cannot run on this machine.
#[derive(Debug, Clone)]
pub(crate) struct Obstacle(pub(crate) String);

impl<T: std::fmt::Display> From<T> for Obstacle {
    fn from(reason: T) -> Self {
        Self(reason.to_string())
    }
}

/// What a case is set up with.
pub(crate) struct Stage<'a> {
    pub(crate) host: &'a Host,
    /// How the container is made.
    pub(crate) profile: Profile,
    /// Where on the host the folders are that the container shares, and the file that it writes to.
    pub(crate) shares: &'a Shares,
    /// Where on the host the root file system is that containers without protection have in common.
    pub(crate) common_root: &'a std::path::Path,
}

/// Folders and a file of the host's that a container is given on purpose.
#[derive(Debug, Clone)]
pub(crate) struct Shares {
    /// `/share` in the container.
    pub(crate) writable: PathBuf,
    /// `/share-ro` in the container.
    pub(crate) read_only: PathBuf,
    /// What its standard error goes to.
    pub(crate) errors: PathBuf,
}

/// Reads what the host can see while the attempt is held.
pub(crate) type Watch = Box<dyn FnMut(&Value) -> Value>;
/// Says what the probe's and the host's sight mean.
pub(crate) type Judge = Box<dyn Fn(&Value, &Value) -> Finding>;

/// Output of an added process, as fast as it can write: seen are how much more memory is used then, whether the attempt and the other
/// container are answered all the same, and whether it ends with its reader.
pub(crate) struct Flood {
    /// Whether all of it is read and kept, instead of none.
    pub(crate) is_kept: bool,
    /// How much of this machine's memory is used, in MiB.
    pub(crate) weight: Box<dyn Fn() -> u64>,
    /// How much more is enough to say so, in MiB.
    pub(crate) enough_mib: u64,
}

/// A case, set up for one container.
pub(crate) struct Scene {
    /// What the probe is asked for.
    pub(crate) attempt: &'static str,
    pub(crate) params: Value,
    /// What another container of the same kind is asked for before.
    pub(crate) peer: Option<(&'static str, Value)>,
    /// Whether a process that the host adds to the container says what it is confined to, while the attempt is held.
    pub(crate) adds: bool,
    /// What a process does with its output that the host adds to the container before the attempt is made.
    pub(crate) flood: Option<Flood>,
    /// Whether the attempt may end the container: what its runtime said is then what was seen, and the other container is asked again.
    pub(crate) may_end: bool,
    pub(crate) watch: Watch,
    pub(crate) judge: Judge,
    /// What was planted: it goes when the case is over.
    pub(crate) kept: Vec<Box<dyn Any>>,
}

impl Scene {
    pub(crate) fn new(attempt: &'static str, params: Value, judge: Judge) -> Self {
        Self {
            attempt,
            params,
            peer: None,
            adds: false,
            flood: None,
            may_end: false,
            watch: Box::new(|_| Value::Null),
            judge,
            kept: Vec::new(),
        }
    }

    pub(crate) fn watching(mut self, watch: impl FnMut(&Value) -> Value + 'static) -> Self {
        self.watch = Box::new(watch);
        self
    }

    pub(crate) fn keeping(mut self, planted: impl Any) -> Self {
        self.kept.push(Box::new(planted));
        self
    }

    pub(crate) fn adding(mut self) -> Self {
        self.adds = true;
        self
    }

    pub(crate) fn flooded(mut self, flood: Flood) -> Self {
        self.flood = Some(flood);
        self
    }

    pub(crate) fn ending(mut self) -> Self {
        self.may_end = true;
        self
    }

    pub(crate) fn beside(mut self, attempt: &'static str, params: Value) -> Self {
        self.peer = Some((attempt, params));
        self
    }
}

/// What one run of a case showed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "finding", content = "because", rename_all = "snake_case")]
pub enum Finding {
    /// The boundary was crossed.
    Reached(String),
    /// It was not.
    Blocked(String),
    /// Not the boundary, but a protection inside of it.
    Partial(String),
    /// It was crossed where it was opened on purpose, and nowhere else.
    Shared(String),
}
