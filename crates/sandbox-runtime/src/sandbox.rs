//! A sandbox: one virtual machine with its agent.
//!
//! [`Sandbox`] is a handle; the machine is owned by a task of its own (`supervisor`), whose states are in
//! `lifecycle`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sandbox_network::JoinError;
use sandbox_protocol::PROTOCOL_VERSION;
use sandbox_protocol::agent::StreamKind;
use sandbox_types::timeline::{Mark, Phase};
use sandbox_types::{ContainerId, ExecId};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};

use crate::agent::{AgentClient, AgentError};
use crate::cgroup::{self, CgroupError, Places};
use crate::cleanup::{self, CleanupError, SweepNote};
use crate::config::{ConfigError, check_socket_path};
use crate::console::Console;
use crate::driver::{Driver, DriverError};
use crate::event::{SandboxDeath, SandboxEvent, console_tail_text};
use crate::host::{HostError, choose_driver};
use crate::jail::JailError;
use crate::network::{PodNetwork, SharedNetwork};
use crate::oom;
use crate::resolver::ResolverService;
use crate::rootfs::window::MappedLayer;
use crate::share::{self, ShareMountError, ShareMounts, SharedEntry};
use crate::timeline::Timeline;
use crate::vsock::{self, StreamError};

pub(crate) mod events;
mod ground;
mod head_start;
mod lifecycle;
mod size;
mod supervisor;

pub use ground::{EarlyPlan, SandboxBasis};
pub use head_start::HeadStart;
pub use size::{MachineSize, ResizeError};

use lifecycle::Lifecycle;
use size::LiveSize;
use supervisor::{Links, Outcome, Started, Supervisor};

/// How many events wait for a receiver before the agent has to.
const EVENT_BACKLOG: usize = 64;

/// A raw disk image for the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    /// The image file, or a block device, on the host.
    pub path: PathBuf,
    /// Refuse writes.
    pub read_only: bool,
    /// By what the guest knows it, at most 20 bytes.
    pub serial: String,
}

/// What to make a sandbox of.
#[derive(Debug, Clone)]
pub struct SandboxPlan {
    /// What it is begun with.
    pub basis: SandboxBasis,
    /// The bundle's folder.
    pub bundle: PathBuf,
    /// Disks, beside the guest's own root.
    pub block: Vec<BlockDevice>,
    /// Image layers to map, in the order of their places.
    pub layers: Vec<MappedLayer>,
    /// What the guest sees of the host's file system.
    pub shared: Vec<SharedEntry>,
    /// The pod's network namespace; without one it has no network.
    pub network: Option<PodNetwork>,
    /// More may be shared later ([`Sandbox::share`]), even if nothing is at first.
    pub shares_later: bool,
}

impl SandboxPlan {
    /// Whether something is shared, or may be later.
    fn shares(&self) -> bool {
        self.shares_later || !self.shared.is_empty()
    }
}

/// Why a sandbox did not start or stop.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A file of the installation is missing, or a path does not fit.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No driver can run it here.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A sandbox of that name lives.
    #[error("a sandbox of this name is already running (its folder is {})", dir.display())]
    AlreadyRunning {
        /// Its folder.
        dir: PathBuf,
    },
    /// Its folder could not be made.
    #[error("cannot make the sandbox's folder {}", path.display())]
    RunDir {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A socket could not be made.
    #[error("cannot listen on {}", path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Something of the host cannot be shared with the guest.
    #[error(transparent)]
    Share(#[from] ShareMountError),
    /// The pod's network namespace cannot be joined.
    #[error(transparent)]
    Network(#[from] JoinError<CleanupError>),
    /// The machine has no device for it.
    #[error(
        "the sandbox was made for one container that shares nothing, so nothing can be shared now"
    )]
    SharesNothing,
    /// Its processes cannot be jailed.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// The machine could not be started.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The machine ended before its agent was ready.
    #[error("the sandbox did not start: {0}")]
    DiedBooting(SandboxDeath),
    /// The agent did not announce itself in time.
    #[error(
        "the sandbox did not start: its agent was not ready within {} s (`boot_timeout_s`), in which its machine had \
         {:.1} s of processor time{}",
        limit.as_secs(),
        ran.as_secs_f64(),
        console_tail_text(console_tail)
    )]
    BootTimeout {
        /// The limit.
        limit: Duration,
        /// How much processor time the guest's process had.
        ran: Duration,
        /// The last lines of the guest's console.
        console_tail: Vec<String>,
    },
    /// The agent is of another build.
    #[error(
        "the guest image speaks protocol version {guest}, this program {PROTOCOL_VERSION}; build the guest image anew (`make`)"
    )]
    ProtocolVersion {
        /// What the agent speaks.
        guest: u32,
    },
    /// The agent could not be reached.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The agent did not take its configuration.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The start was given up by whoever asked for it.
    #[error("the sandbox was stopped before it was ready")]
    Abandoned,
    /// Something could not be recorded.
    #[error(transparent)]
    Record(#[from] CleanupError),
    /// Something could not be removed.
    #[error("the sandbox has ended, but something of it is left")]
    Left(#[source] Arc<CleanupError>),
}

/// A booted virtual machine whose agent is ready. Dropping it ends the machine at once.
#[derive(Debug)]
pub struct Sandbox {
    agent: AgentClient,
    driver: Driver,
    size: LiveSize,
    emulation_notice: Option<String>,
    monitor_pid: u32,
    console: Option<Console>,
    shares: Option<ShareMounts>,
    vsock: PathBuf,
    dir: PathBuf,
    network: SharedNetwork,
    /// The pod's network namespace was made for it.
    makes_network: bool,
    /// Asked for at each start of a container until there is one.
    resolver: tokio::sync::Mutex<Option<ResolverService>>,
    timeline: Arc<Timeline>,
    stop: watch::Sender<bool>,
    outcome: watch::Receiver<Outcome>,
}

/// The vsock device's socket in the sandbox's folder.
const SOCKET: &str = "vsock.sock";

/// The driver for a plan that can be carried out, and why it emulates.
fn choose(basis: &SandboxBasis) -> Result<(Driver, Option<String>), SandboxError> {
    let chosen = choose_driver(&basis.config)?;
    let dir = basis.dir();
    check_socket_path(&dir.join(SOCKET))?;
    check_socket_path(&vsock::event_socket(&vsock::ports(&dir)))?;
    Ok(chosen)
}

impl Sandbox {
    /// Makes the virtual machine and waits until its agent is ready. As long as there is one with a control group of its own,
    /// the calling process is in it too. Dropping the future, or the sandbox, ends the
    /// machine and removes what was made for it.
    ///
    /// A head start of the same plan is gone on with; of any other, or one that failed, nothing is left when the sandbox is made.
    ///
    /// When the sandbox ends by itself, the last event is [`SandboxEvent::Died`], sent when everything of it has been
    /// removed. When it is stopped, the channel closes without one.
    ///
    /// # Errors
    /// [`SandboxError`]; nothing of the sandbox is left then.
    pub async fn start(
        plan: SandboxPlan,
        head_start: Option<HeadStart>,
    ) -> Result<(Self, mpsc::Receiver<SandboxEvent>), SandboxError> {
        Self::start_unless(plan, head_start, std::future::pending()).await
    }

    /// As [`Self::start`], which is given up when `unwanted` comes first. Unlike one whose future is dropped, it returns when nothing is left.
    ///
    /// # Errors
    /// As [`Self::start`]; [`SandboxError::Abandoned`] when it was given up.
    pub async fn start_unless(
        plan: SandboxPlan,
        head_start: Option<HeadStart>,
        unwanted: impl Future<Output = ()>,
    ) -> Result<(Self, mpsc::Receiver<SandboxEvent>), SandboxError> {
        let (driver, emulation_notice) = match choose(&plan.basis) {
            Ok(chosen) => chosen,
            Err(error) => {
                if let Some(head_start) = head_start {
                    head_start.release().await;
                }
                return Err(error);
            }
        };
        let dir = plan.basis.dir();
        let vsock = dir.join(SOCKET);
        let timeline = Arc::new(Timeline::new(plan.basis.config.timeline.clone()));
        let (ready, mut came_up) = oneshot::channel();
        let (events, events_receiver) = mpsc::channel(EVENT_BACKLOG);
        let (stop, stop_receiver) = watch::channel(false);
        let (outcome, outcome_receiver) = watch::channel(None);
        let network = SharedNetwork::default();
        let makes_network = plan.network == Some(PodNetwork::New);
        let begin = plan.basis.size;
        let most = begin.most(driver, &plan.basis.config);
        let config = plan.basis.config.clone();
        let supervisor = Supervisor {
            plan,
            most,
            driver,
            dir: dir.clone(),
            network: network.clone(),
            vsock: vsock.clone(),
            timeline: Arc::clone(&timeline),
            lifecycle: Lifecycle::new(),
            machine: None,
            loopback: None,
            shares: None,
            head_start,
            ground: None,
        };
        let links = Links {
            ready,
            events,
            stop: stop_receiver,
            outcome,
        };
        tokio::spawn(supervisor.run(links));
        let Started {
            agent,
            most,
            monitor_pid,
            console,
            memory,
            usable_bytes,
            shares,
        } = {
            let came_up = tokio::select! {
                biased;
                came_up = &mut came_up => came_up,
                () = unwanted => {
                    // The supervisor may have heard of nothing else before it told that it has come up.
                    let _ = stop.send(true);
                    came_up.await
                }
            };
            came_up.map_err(|_| SandboxError::Abandoned)??
        };
        let sandbox = Self {
            agent,
            driver,
            size: LiveSize {
                most,
                memory,
                kept_bytes: begin.memory.bytes().saturating_sub(usable_bytes),
                config,
                dir: dir.clone(),
                now: tokio::sync::Mutex::new(begin),
            },
            emulation_notice,
            monitor_pid,
            console,
            shares,
            vsock,
            dir,
            network,
            makes_network,
            resolver: tokio::sync::Mutex::default(),
            timeline,
            stop,
            outcome: outcome_receiver,
        };
        Ok((sandbox, events_receiver))
    }

    /// A sandbox that has no machine, for tests: what is on the other end of `agent` answers as one, and `dir` is where its sockets would be.
    #[must_use]
    pub fn without_machine(agent: UnixStream, dir: PathBuf) -> Self {
        let (stop, _) = watch::channel(false);
        let (_, outcome) = watch::channel(None);
        Self {
            agent: AgentClient::new(agent),
            driver: Driver::Kvm,
            size: LiveSize::of_no_machine(dir.clone()),
            emulation_notice: None,
            monitor_pid: std::process::id(),
            console: None,
            shares: None,
            vsock: dir.join(SOCKET),
            dir,
            network: SharedNetwork::default(),
            makes_network: false,
            resolver: tokio::sync::Mutex::default(),
            timeline: Arc::new(Timeline::new(None)),
            stop,
            outcome,
        }
    }

    /// Calls to the agent.
    #[must_use]
    pub fn agent(&self) -> &AgentClient {
        &self.agent
    }

    /// What its machine may grow to.
    #[must_use]
    pub fn most(&self) -> MachineSize {
        self.size.most
    }

    /// Has its machine have at least this much memory and this many vCPUs, or as much of it as it may grow to. Returns when the guest's
    /// kernel uses them; the size that it has then.
    ///
    /// # Errors
    /// [`ResizeError`]. What was added before stays.
    pub async fn grow(&self, memory_mib: u64, vcpus: u64) -> Result<MachineSize, ResizeError> {
        self.size.grow(&self.agent, memory_mib, vcpus).await
    }

    /// Looks again at a network namespace in which nothing was when the machine was started, and gives the guest what is
    /// there now, the resolver of Docker's engine too. For callers that fill it late.
    ///
    /// # Errors
    /// [`SandboxError::Network`] or [`SandboxError::Agent`]. A resolver that cannot be had is logged.
    pub async fn look_at_network_again(&self) -> Result<(), SandboxError> {
        if let Some(request) = self.network.look_again(&self.dir, self.makes_network)? {
            self.agent.configure_network(&request).await?;
        }
        let mut resolver = self.resolver.lock().await;
        if resolver.is_none() {
            *resolver = self.offer_resolver().await;
        }
        Ok(())
    }

    async fn offer_resolver(&self) -> Option<ResolverService> {
        let found = self.network.namespace().and_then(|namespace| {
            let Some(namespace) = namespace else {
                return Ok(None);
            };
            Ok(namespace.has_resolver()?.then_some(namespace))
        });
        let offered = match found {
            Ok(None) => return None,
            Ok(Some(namespace)) => ResolverService::start(namespace, &self.vsock)
                .await
                .map_err(SandboxError::from),
            Err(error) => Err(SandboxError::Network(error.into())),
        };
        match offered {
            Ok(service) => Some(service),
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "the engine's resolver cannot be asked from the pod");
                None
            }
        }
    }

    /// Which driver runs it.
    #[must_use]
    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// Why it is emulated, where that was not asked for.
    #[must_use]
    pub fn emulation_notice(&self) -> Option<&str> {
        self.emulation_notice.as_deref()
    }

    /// Opens one byte stream of a process.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn open_stream(
        &self,
        container: &ContainerId,
        exec: Option<&ExecId>,
        kind: StreamKind,
    ) -> Result<UnixStream, StreamError> {
        vsock::open_stream(&self.vsock, container, exec, kind).await
    }

    /// Lets the guest see more of the host's file system. Takes as long as that does.
    ///
    /// # Errors
    /// [`SandboxError::SharesNothing`] unless it was made for that, or when an entry cannot be shared, or the sandbox has ended; what was
    /// added before it goes with [`Self::unshare`].
    pub async fn share(&self, entries: Vec<SharedEntry>) -> Result<(), SandboxError> {
        if entries.is_empty() {
            return Ok(());
        }
        let shares = self.shares.clone().ok_or(SandboxError::SharesNothing)?;
        let shared = share::beside(move || shares.add(&entries)).await;
        Ok(shared.map_err(ShareMountError::from)?)
    }

    /// Takes away what the guest sees for one container, which may be nothing.
    ///
    /// # Errors
    /// [`SandboxError::Record`] names what is left.
    pub async fn unshare(&self, container: &ContainerId) -> Result<(), SandboxError> {
        let Some(shares) = self.shares.clone() else {
            return Ok(());
        };
        let container = container.clone();
        Ok(share::beside(move || shares.remove(&container)).await?)
    }

    /// Notes that something is due in the bundle of a container when that has ended. Only [`SandboxPlan::sweep`] takes it.
    ///
    /// # Errors
    /// [`SandboxError::Record`].
    pub fn note_bundle(&self, bundle: &Path) -> Result<(), SandboxError> {
        Ok(SweepNote::add_bundle(&self.dir, bundle)?)
    }

    /// The process identifier of the monitor (or QEMU).
    #[must_use]
    pub fn monitor_pid(&self) -> u32 {
        self.monitor_pid
    }

    /// Has the host's kernel treat what runs and serves the guest as a process with this `oom_score_adj`, when it runs out of memory ([`oom`]).
    ///
    /// # Errors
    /// The first that one of the processes could not be given it for.
    pub fn set_oom_score(&self, score: i32) -> std::io::Result<()> {
        let mut result = Ok(());
        for pid in cleanup::live_processes(&self.dir) {
            result = result.and(oom::set(pid, score));
        }
        result
    }

    /// Has what runs and serves the guest run on these of the host's processors and memory nodes, where it has a control group. Takes as long
    /// as memory takes to move to other nodes.
    ///
    /// # Errors
    /// [`CgroupError`]; it may run there in part.
    pub async fn place(&self, places: Places) -> Result<(), CgroupError> {
        let dir = self.dir.clone();
        share::beside(move || cgroup::place(&dir, &places)).await
    }

    /// Whether its network namespace was made for it ([`PodNetwork::New`]), so that its caller looks for things of the
    /// container by the number of its process on the host.
    #[must_use]
    pub fn makes_network(&self) -> bool {
        self.makes_network
    }

    /// The last lines of the guest's console, made printable.
    #[must_use]
    pub fn console_tail(&self) -> Vec<String> {
        self.console.as_ref().map(Console::tail).unwrap_or_default()
    }

    /// The timeline so far.
    #[must_use]
    pub fn marks(&self) -> Vec<Mark> {
        self.timeline.marks()
    }

    /// Adds a mark with the present time to the timeline; the first of its phase counts.
    pub fn mark(&self, phase: Phase) {
        self.timeline.mark(phase);
    }

    /// Asks the agent to shut down, waits for it (bounded), kills what is left, and removes everything that was
    /// made for the sandbox. Idempotent.
    ///
    /// # Errors
    /// [`SandboxError::Left`] when something could not be removed.
    pub async fn stop(&self) -> Result<(), SandboxError> {
        // Nobody listens any more when it has ended already.
        let _ = self.stop.send(true);
        let mut outcome = self.outcome.clone();
        match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => match &*outcome {
                Some(Err(error)) => Err(SandboxError::Left(Arc::clone(error))),
                _ => Ok(()),
            },
            // The supervisor's task is gone, with its runtime.
            Err(_) => Ok(()),
        }
    }
}
