//! Which system calls each kind of thread of the monitor may make once the guest runs.
//!
//! Whatever the monitor needs to set up is done before: the devices' threads wait from the start, so that no thread is ever made
//! later, and nothing maps files or code, opens paths or makes sockets of another kind than `AF_UNIX`. The lists are in [`rules`].

pub mod rules;

use std::fmt::Write as _;
use std::sync::{Arc, mpsc};

use sandbox_jail::seccomp::{Filter, Made, Rule, SeccompError};

/// A kind of thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ThreadKind {
    /// Waits for the guest's end, and reports it.
    Main,
    /// Runs a vCPU, and is the driver's side of every device: it activates and resets them.
    Vcpu,
    /// Serves a disk.
    Block,
    /// Serves a network device.
    Net,
    /// Serves a persistent memory device.
    Pmem,
    /// Serves the entropy device.
    Rng,
    /// Serves the balloon device.
    Balloon,
    /// Serves the memory device.
    Mem,
    /// Serves the vsock device.
    Vsock,
    /// Watches for a vhost-user back end's end.
    VhostUser,
}

impl ThreadKind {
    /// Every kind.
    pub const ALL: [Self; 10] = [
        Self::Main,
        Self::Vcpu,
        Self::Block,
        Self::Net,
        Self::Pmem,
        Self::Rng,
        Self::Balloon,
        Self::Mem,
        Self::Vsock,
        Self::VhostUser,
    ];

    /// As messages call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Vcpu => "vCPU",
            Self::Block => "disk",
            Self::Net => "network",
            Self::Pmem => "pmem",
            Self::Rng => "entropy",
            Self::Balloon => "balloon",
            Self::Mem => "memory",
            Self::Vsock => "vsock",
            Self::VhostUser => "vhost-user",
        }
    }

    /// What it may do: the lists to be taken together.
    #[must_use]
    pub const fn rules(self) -> &'static [&'static [Rule]] {
        match self {
            Self::Main => &[rules::EVERY_THREAD, rules::MAIN],
            Self::Vcpu => &[rules::EVERY_THREAD, rules::VCPU],
            Self::Block => &[rules::EVERY_THREAD, rules::EVERY_DEVICE, rules::BLOCK],
            Self::Net => &[rules::EVERY_THREAD, rules::EVERY_DEVICE, rules::NET],
            Self::Rng => &[rules::EVERY_THREAD, rules::EVERY_DEVICE, rules::RNG],
            Self::Balloon => &[rules::EVERY_THREAD, rules::EVERY_DEVICE, rules::BALLOON],
            Self::Mem => &[rules::EVERY_THREAD, rules::EVERY_DEVICE, rules::MEM],
            Self::Vsock => &[rules::EVERY_THREAD, rules::EVERY_DEVICE, rules::VSOCK],
            Self::Pmem | Self::VhostUser => &[rules::EVERY_THREAD, rules::EVERY_DEVICE],
        }
    }

    /// Its filter.
    ///
    /// # Errors
    /// [`SeccompError::Compile`].
    pub fn filter(self) -> Result<Filter, SeccompError> {
        Filter::new(self.name(), self.rules())
    }
}

/// As messages call the threads of the vsock back end.
const BACKEND: &str = "vsock back end";

/// The filter of the vsock back end's process: one for all its threads, which the `vhost-user-backend` crate starts.
///
/// # Errors
/// [`SeccompError::Compile`].
pub fn backend_filter() -> Result<Filter, SeccompError> {
    Filter::new_with_threads(BACKEND, BACKEND_RULES)
}

const BACKEND_RULES: &[&[Rule]] = &[
    rules::EVERY_THREAD,
    rules::EVERY_DEVICE,
    rules::VSOCK,
    rules::BACKEND,
];

/// The lists as a table for people and tests: the kind of thread, the call, when it is made, and what it is used for,
/// with tabs between.
#[must_use]
pub fn table() -> String {
    let mut text = String::new();
    let kinds = ThreadKind::ALL.map(|kind| (kind.name(), kind.rules()));
    for (kind, lists) in kinds.into_iter().chain([(BACKEND, BACKEND_RULES)]) {
        for rule in lists.iter().copied().flatten() {
            let made = match rule.made {
                Made::Always => "always",
                Made::Rarely => "rarely",
            };
            let name = rule.name.trim_start_matches("SYS_");
            let (number, used_for) = (rule.number, rule.used_for);
            // Writing to a String does not fail.
            let _ = writeln!(text, "{kind}\t{number}\t{name}\t{made}\t{used_for}");
        }
    }
    text
}

/// What the threads of a machine are confined to.
#[derive(Debug, Clone, Default)]
pub struct Confinement {
    /// In the order of [`ThreadKind::ALL`]; empty where nothing is confined.
    filters: Arc<Vec<Filter>>,
}

impl Confinement {
    /// Every kind of thread gets its list.
    ///
    /// # Errors
    /// [`SeccompError`].
    pub fn new() -> Result<Self, SeccompError> {
        sandbox_jail::seccomp::report_violations()?;
        let filters = ThreadKind::ALL.iter().map(|kind| kind.filter());
        Ok(Self {
            filters: Arc::new(filters.collect::<Result<_, _>>()?),
        })
    }

    /// No thread is confined: for tests, whose process goes on.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Confines the calling thread, for ever.
    ///
    /// # Errors
    /// [`SeccompError::Install`].
    pub fn enter(&self, kind: ThreadKind) -> Result<(), SeccompError> {
        let place = ThreadKind::ALL.iter().position(|each| *each == kind);
        match place.and_then(|place| self.filters.get(place)) {
            Some(filter) => filter.install(),
            None => Ok(()),
        }
    }
}

/// The threads that were asked to confine themselves, of which none may touch the guest before all have.
#[derive(Debug)]
pub(crate) struct RollCall {
    confinement: Confinement,
    report: mpsc::Sender<Result<(), SeccompError>>,
    reports: mpsc::Receiver<Result<(), SeccompError>>,
    expected: usize,
}

impl RollCall {
    /// No thread yet.
    #[must_use]
    pub(crate) fn new(confinement: Confinement) -> Self {
        let (report, reports) = mpsc::channel();
        Self {
            confinement,
            report,
            reports,
            expected: 0,
        }
    }

    /// What one more thread of that kind has to call before anything else.
    pub(crate) fn admit(&mut self, kind: ThreadKind) -> impl FnOnce() + Send + 'static {
        self.expected = self.expected.saturating_add(1);
        let (confinement, report) = (self.confinement.clone(), self.report.clone());
        move || {
            let entered = confinement.enter(kind);
            // Whoever called the roll has given up then, and the process ends.
            let _ = report.send(entered);
        }
    }

    /// Waits for all of them, and then confines the calling thread, the main thread.
    ///
    /// # Errors
    /// [`SeccompError`], the first that a thread met.
    pub(crate) fn close(self) -> Result<(), SeccompError> {
        // The other senders are with the threads, so that a thread that ends without reporting is noticed.
        drop(self.report);
        for _ in 0..self.expected {
            match self.reports.recv() {
                Ok(entered) => entered?,
                Err(mpsc::RecvError) => return Err(SeccompError::Vanished),
            }
        }
        self.confinement.enter(ThreadKind::Main)
    }
}
