//! Hypervisor drivers: the programs that run a virtual machine, and how their end is to be read.
//!
//! A [`Machine`] is one process that runs the guest and the helper processes that serve its devices. A driver
//! says how to start the former and what its exit means; everything else is the same for all.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::FutureExt;
use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;
use sandbox_network::{Namespace, Nic};
use sandbox_protocol::ROOT_VARIABLE;
use sandbox_types::MemMib;
use sandbox_types::monitor::{MAX_DEVICES, MAX_PASSED_FDS};
use tokio::time::Instant;

use crate::cleanup::{CleanupError, Record};
use crate::config::{Config, ConfigError};
use crate::console::Console;
use crate::event::DeathCause;
use crate::jail::{JailError, SandboxJail};
use crate::process::{Launch, Process, ProcessEnd, SpawnError};
use crate::rootfs::window::{MappedLayer, place_of_image};
use crate::sandbox::{BlockDevice, MachineSize, SandboxPlan};
use crate::share::ShareMounts;
use crate::timeline::Timeline;

mod kvm;
mod memory;
mod passing;
mod qemu;
mod tsc;
mod virtiofsd;

pub use memory::MemoryError;
pub(crate) use memory::{MemoryControl, SentRequests};

/// The base of the guest kernel's command line, in one line of a file, which the benchmark of the bare boot reads too. `vda` is always the
/// guest image.
///
/// `memhp_default_state=online`: memory that comes later is used at once, and for everything.
///
/// `noreplace-smp`: with one processor at first the kernel would rewrite every locked instruction that it has, some eight thousand, one
/// by one, and all of them again when another comes.
///
/// `percpu_alloc=page`: else what the kernel notes of every fourth byte of memory for processors is kept for a part of two megabytes, of
/// which it uses a tenth.
///
/// `rcupdate.rcu_expedited=1`: who waits until nobody has the old any more (to move a process into a control group, take down a
/// namespace or a network device) interrupts the few processors there are, and does not wait for two ticks of 10 ms each.
///
/// `swiotlb=noforce`: no device here reaches only a part of memory. From 3.25 GiB on the kernel would keep 64 MiB for such.
const COMMAND_LINE: &str = include_str!("../../../guest-image/kernel.command-line").trim_ascii();
/// Bytes of a guest's memory for each entry of its kernel's hash table of names ([`hash_tables`]).
const MEMORY_PER_NAME: u64 = 32 << 10;
/// Serial number of the guest image's disk.
const ROOT_SERIAL: &str = "guest-root";
/// How long killed processes may take to end: virtiofsd may wait for a file system that does not answer.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// After a first sign of death, how long the machine may take to say what it died of.
const SETTLE: Duration = Duration::from_secs(2);

/// Which program runs the virtual machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// Our monitor, on KVM.
    Kvm,
    /// QEMU's emulation.
    Qemu,
}

impl Driver {
    /// How many devices a machine has room for beside those that every machine has.
    #[must_use]
    pub fn device_slots(self) -> usize {
        match self {
            // The guest image, vsock, the random number generator, the balloon and the memory device have theirs.
            Self::Kvm => MAX_DEVICES - 5,
            // microvm without ACPI has eight transports; the guest image and vsock are always there, the random
            // number generator and the balloon where there is room.
            Self::Qemu => qemu::TRANSPORTS - 2,
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Qemu => "qemu",
        })
    }
}

/// Why a machine could not be started.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// A program or artifact is missing.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A process cannot be jailed.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// A process could not be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// A process could not be recorded.
    #[error(transparent)]
    Record(#[from] CleanupError),
    /// A file that the machine needs could not be opened.
    #[error("cannot open {what} {}", path.display())]
    Open {
        /// What it is.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What is to be a disk is something else.
    #[error("{} is neither an image file nor a block device", path.display())]
    NoDisk {
        /// Where.
        path: PathBuf,
    },
    /// Another sandbox, or program of the host's, has it.
    #[error("the disk {} is in use: who writes to a disk must be the only one who has it; end the other user, or give both the disk read-only", path.display())]
    DiskInUse {
        /// Where.
        path: PathBuf,
    },
    /// More devices, or layers, than the monitor can be told of.
    #[error(
        "the sandbox has more than {MAX_PASSED_FDS} files and sockets for its devices; `image_dax = false`, or fewer layers, networks or \
         vCPUs, need fewer"
    )]
    TooManyDescriptors,
    /// A socket or memory file between the processes could not be made.
    #[error("cannot make {what}")]
    Plumbing {
        /// What it is.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn open(what: &'static str, path: &Path, read_only: bool) -> Result<File, DriverError> {
    // Nobody is waited for at the other end of a fifo.
    OpenOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(|source| DriverError::Open {
            what,
            path: path.to_owned(),
            source,
        })
}

/// Opens a disk. What one machine writes to no other has: the lock lasts as long as anyone who was handed the descriptor (flock(2)).
fn open_disk(device: &BlockDevice) -> Result<File, DriverError> {
    let path = &device.path;
    let what = "the disk image";
    let file = open(what, path, device.read_only)?;
    let kind = file.metadata().map(|metadata| metadata.file_type());
    let is_disk = kind.is_ok_and(|kind| kind.is_file() || kind.is_block_device());
    if !is_disk {
        return Err(DriverError::NoDisk { path: path.clone() });
    }
    let lock = match device.read_only {
        true => FlockOperation::NonBlockingLockShared,
        false => FlockOperation::NonBlockingLockExclusive,
    };
    match rustix::fs::flock(&file, lock) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(DriverError::DiskInUse { path: path.clone() }),
        Err(errno) => Err(DriverError::Open {
            what,
            path: path.clone(),
            source: errno.into(),
        }),
    }
}

/// What a machine is begun with.
#[derive(Clone, Copy)]
pub(crate) struct MachineBasis<'a> {
    pub(crate) config: &'a Config,
    /// What it begins with.
    pub(crate) size: MachineSize,
    /// What it may become.
    pub(crate) most: MachineSize,
    /// Helpers share its memory.
    pub(crate) shared_memory: bool,
    /// The sandbox's folder.
    pub(crate) dir: &'a Path,
    /// What its processes are jailed in, if they are to be.
    pub(crate) jail: Option<&'a SandboxJail>,
    /// The network namespace in which the process that runs the guest is to be, if not in one of its jail's own.
    pub(crate) namespace: Option<&'a Namespace>,
}

impl MachineBasis<'_> {
    /// Where the guest image is in the machine's memory, if it is there: under `kvm`, and if the configuration says so.
    fn image_in_memory(&self) -> Option<MappedLayer> {
        let image = self.config.image_path().ok()?;
        let place = || place_of_image(self.size.memory, &image);
        self.config.image_dax.then(place).flatten()
    }

    /// The guest kernel's command line, without what describes devices. The guest image may be in memory too.
    fn command_line(&self, root: Option<&MappedLayer>) -> String {
        let mut line = COMMAND_LINE.to_owned();
        if let Some(place) = root.map(MappedLayer::guest_range) {
            line.push_str(&format!(
                " {ROOT_VARIABLE}={}+{}",
                place.offset, place.bytes
            ));
        }
        line.push_str(&hash_tables(self.size.memory));
        if self.most.vcpus > self.size.vcpus {
            // The others are brought up when they are needed.
            line.push_str(&format!(" maxcpus={}", self.size.vcpus));
        }
        let extra = self.config.kernel_arguments.trim();
        if !extra.is_empty() {
            line.push(' ');
            line.push_str(extra);
        }
        line
    }

    /// Has the process that runs the guest begin in the network namespace that is its own, if there is one.
    fn place(&self, launch: &mut Launch) -> Result<(), DriverError> {
        if let Some(namespace) = self.namespace {
            launch.begin_in_network(namespace)?;
        }
        Ok(())
    }
}

/// A machine of the `kvm` driver of which the monitor is there, and waits to be told the devices. Dropping it kills the process.
#[derive(Debug)]
pub(crate) struct BegunMachine(kvm::Waiting);

impl BegunMachine {
    /// Begins one. Must run on a thread that lives as long as the machine should.
    pub(crate) fn begin(basis: MachineBasis<'_>, record: &mut Record) -> Result<Self, DriverError> {
        kvm::Waiting::begin(basis, record).map(Self)
    }

    /// Whether the monitor has given up waiting.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.0.process.has_ended()
    }

    /// What it said last.
    pub(crate) fn last_words(&self) -> String {
        self.0.process.last_words()
    }

    /// Kills the monitor and waits until it is gone, within [`KILL_TIMEOUT`].
    pub(crate) async fn kill(&mut self) {
        self.0.process.kill();
        self.0
            .process
            .wait_until(Instant::now() + KILL_TIMEOUT)
            .await;
    }
}

/// What a driver starts a machine from.
pub(crate) struct MachineRequest<'a> {
    /// What has been begun of it, where a driver can.
    pub(crate) begun: Option<BegunMachine>,
    /// What it is begun with, where it has not been.
    pub(crate) basis: MachineBasis<'a>,
    pub(crate) plan: &'a SandboxPlan,
    /// What is shared, mounted.
    pub(crate) share: Option<&'a ShareMounts>,
    /// The network devices.
    pub(crate) nics: &'a [Nic],
    /// The vsock device's socket, listening.
    pub(crate) vsock_listener: &'a UnixListener,
    /// The prefix of the sockets of the guest's ports.
    pub(crate) ports: &'a Path,
    pub(crate) timeline: Arc<Timeline>,
    pub(crate) record: &'a mut Record,
}

/// The sizes of the guest kernel's hash tables of names and of inodes (kernel-parameters.txt: `dhash_entries`, `ihash_entries`), a quarter
/// of what it chooses for this memory: it clears them at boot, so that they are the host's memory in a guest that never has so many files.
fn hash_tables(memory: MemMib) -> String {
    let names = memory.bytes() / MEMORY_PER_NAME;
    format!(" dhash_entries={names} ihash_entries={}", names / 2)
}

/// Hands the queues of a network device over; their numbers.
fn pass_queues(launch: &mut Launch, nic: &Nic) -> Result<Vec<RawFd>, SpawnError> {
    nic.queues.iter().map(|queue| launch.pass(queue)).collect()
}

/// For `map_err`: what could not be set up between the shim and the machine.
fn plumbing(what: &'static str) -> impl FnOnce(std::io::Error) -> DriverError {
    move |source| DriverError::Plumbing { what, source }
}

impl MachineRequest<'_> {
    /// The prefix of the sockets of the guest's ports, for the process that connects to them.
    fn ports_inside(&self) -> PathBuf {
        match self.basis.jail {
            Some(jail) => jail.inside(self.ports),
            None => self.ports.to_owned(),
        }
    }

    /// A listening socket for a helper's vhost-user device.
    fn bind(&self, name: &str) -> Result<(PathBuf, UnixListener), DriverError> {
        let path = self.basis.dir.join(name);
        crate::config::check_socket_path(&path)?;
        let listener = UnixListener::bind(&path).map_err(|source| DriverError::Plumbing {
            what: "a vhost-user socket",
            source,
        })?;
        Ok((path, listener))
    }
}

/// One way to run a machine.
trait HypervisorDriver: Send {
    /// Starts the helpers and then the process that runs the guest.
    fn start(&mut self, request: &mut MachineRequest<'_>) -> Result<Parts, DriverError>;

    /// What the end of that process means.
    fn cause(&self, end: ProcessEnd, process: &Process, console: &Console) -> DeathCause;
}

/// What a driver has started.
struct Parts {
    process: Process,
    helpers: Vec<Process>,
    console: Console,
    /// Where memory can be added.
    memory: Option<MemoryControl>,
}

/// What is first noticed of a machine's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sign {
    /// The process that runs the guest ended.
    Machine,
    /// A helper ended.
    Helper,
    /// One of the agent's connections ended, that of its events or that for calls, or it does not answer.
    AgentGone,
    /// The agent's event connection carried nonsense.
    AgentMisbehaved(String),
}

/// A running machine. Dropping it kills its processes.
pub(crate) struct Machine {
    driver: Box<dyn HypervisorDriver>,
    process: Process,
    helpers: Vec<Process>,
    console: Console,
    memory: Option<MemoryControl>,
    is_killed: bool,
}

impl Machine {
    /// Starts one.
    pub(crate) fn start(
        driver: Driver,
        mut request: MachineRequest<'_>,
    ) -> Result<Self, DriverError> {
        for device in &request.plan.block {
            // Not every driver says as clearly what is wrong with one.
            open("the disk image", &device.path, device.read_only)?;
        }
        let mut driver: Box<dyn HypervisorDriver> = match driver {
            Driver::Kvm => Box::new(kvm::Kvm::new()),
            Driver::Qemu => Box::new(qemu::Qemu),
        };
        let Parts {
            process,
            helpers,
            console,
            memory,
        } = driver.start(&mut request)?;
        Ok(Self {
            driver,
            process,
            helpers,
            console,
            memory,
            is_killed: false,
        })
    }

    /// The way to give it more memory, if there is one.
    pub(crate) fn memory(&self) -> Option<&MemoryControl> {
        self.memory.as_ref()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// How much processor time the process that runs the guest has had; none once it has ended.
    pub(crate) fn processor_time(&self) -> Option<Duration> {
        self.process.processor_time()
    }

    pub(crate) fn console(&self) -> &Console {
        &self.console
    }

    /// Waits until the guest's process has ended. Cancel-safe.
    pub(crate) async fn ended(&mut self) {
        self.process.wait().await;
    }

    /// Waits until the guest's process or a helper has ended. Cancel-safe.
    pub(crate) async fn first_sign(&mut self) -> Sign {
        let helpers = &mut self.helpers;
        let helper = async {
            if helpers.is_empty() {
                std::future::pending::<()>().await;
            }
            let waits = helpers.iter_mut().map(|helper| helper.wait().boxed());
            futures::future::select_all(waits).await;
        };
        tokio::select! {
            biased;
            _ = self.process.wait() => Sign::Machine,
            () = helper => Sign::Helper,
        }
    }

    /// Finds out what the machine died of. One process's end entails the others', so what is noticed first need not
    /// be the cause: the machine gets a moment to end and tell.
    pub(crate) async fn cause_of_death(&mut self, first: Sign) -> DeathCause {
        let end = tokio::time::timeout(SETTLE, self.process.wait()).await.ok();
        let machine = end.map(|end| self.driver.cause(end, &self.process, &self.console));
        let machine = machine.map(|cause| match cause {
            DeathCause::GuestPanic if self.console.shows_end_of_init() => DeathCause::AgentDied,
            cause => cause,
        });
        let mut helpers = Vec::new();
        for process in &mut self.helpers {
            if let Some(end) = process.wait().now_or_never() {
                let killed = matches!(end, ProcessEnd::Killed(_));
                let cause = DeathCause::HelperEnded {
                    name: process.name().to_owned(),
                    how: end.to_string(),
                    detail: process.last_words(),
                };
                helpers.push((killed, cause));
            }
        }
        // Nothing that ends beside one kills it: what else ended, ended because of it.
        let of_killed = |(killed, _): &(bool, DeathCause)| *killed;
        if let Some(at) = helpers.iter().position(of_killed) {
            return helpers.swap_remove(at).1;
        }
        let helper = helpers.into_iter().next().map(|(_, cause)| cause);
        blame(first, machine, helper)
    }

    /// Kills every process and waits until they are gone, within [`KILL_TIMEOUT`]. What is left then is in the log, and not waited for
    /// once more.
    pub(crate) async fn kill(&mut self) {
        if std::mem::replace(&mut self.is_killed, true) {
            return;
        }
        let deadline = Instant::now() + KILL_TIMEOUT;
        self.process.kill();
        self.helpers.iter_mut().for_each(Process::kill);
        for process in std::iter::once(&mut self.process).chain(&mut self.helpers) {
            process.wait_until(deadline).await;
        }
    }
}

/// Decides among what ended.
fn blame(first: Sign, machine: Option<DeathCause>, helper: Option<DeathCause>) -> DeathCause {
    match (first, machine, helper) {
        // It could not go on without the helper.
        (Sign::Helper, Some(DeathCause::MonitorFailed { .. }), Some(helper)) => helper,
        (_, Some(machine), _) => machine,
        (_, None, Some(helper)) => helper,
        (Sign::AgentMisbehaved(what), None, None) => DeathCause::AgentMisbehaved(what),
        (_, None, None) => DeathCause::AgentGone,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn helper() -> DeathCause {
        DeathCause::HelperEnded {
            name: "virtiofsd".into(),
            how: "exit code 1".into(),
            detail: String::new(),
        }
    }

    #[test]
    fn command_line_is_one_line_with_the_words_that_others_replace() {
        assert!(!COMMAND_LINE.contains('\n'));
        for word in ["init=/sbin/sandbox-agent", "reboot=k"] {
            assert!(COMMAND_LINE.split(' ').any(|one| one == word), "{word}");
        }
    }

    #[test]
    fn hash_tables_are_a_quarter_of_what_linux_takes() {
        // It takes an entry for 8 KiB, and for 16.
        assert_eq!(
            hash_tables(MemMib::new(512).unwrap()),
            " dhash_entries=16384 ihash_entries=8192"
        );
        // The least that a guest has; a table may not be empty.
        assert_eq!(
            hash_tables(MemMib::new(64).unwrap()),
            " dhash_entries=2048 ihash_entries=1024"
        );
    }

    #[test]
    fn blame_goes_to_the_machine_when_it_tells() {
        for first in [Sign::Machine, Sign::Helper, Sign::AgentGone] {
            assert_eq!(
                blame(first, Some(DeathCause::GuestPanic), Some(helper())),
                DeathCause::GuestPanic
            );
        }
    }

    #[test]
    fn blame_goes_to_the_helper_that_took_the_machine_along() {
        let failed = DeathCause::MonitorFailed {
            code: 1,
            detail: String::new(),
        };
        assert_eq!(blame(Sign::Helper, Some(failed), Some(helper())), helper());
        assert_eq!(blame(Sign::AgentGone, None, Some(helper())), helper());
    }

    #[test]
    fn blame_goes_to_the_agent_when_all_else_lives() {
        assert_eq!(blame(Sign::AgentGone, None, None), DeathCause::AgentGone);
        assert_eq!(
            blame(Sign::AgentMisbehaved("x".into()), None, None),
            DeathCause::AgentMisbehaved("x".into())
        );
    }
}
