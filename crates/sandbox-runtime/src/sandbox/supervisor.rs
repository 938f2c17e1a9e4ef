//! The task that owns a sandbox's processes and files, from before the first is made until the last is removed.
//!
//! Everything that can end a sandbox meets here: its processes, the agent's connection, a request to stop, and the
//! handle being dropped. Whichever it is, [`Supervisor::release`] is the one way out.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use sandbox_network::{Joined, NicOptions};
use sandbox_protocol::agent::Ready;
use sandbox_protocol::{AGENT_PORT, PROTOCOL_VERSION};
use sandbox_types::monitor::MAX_QUEUE_PAIRS;
use sandbox_types::timeline::Phase;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::events::{EventsEnd, accept_ready, forward};
use super::lifecycle::{Lifecycle, State, Step};
use super::{MachineSize, SandboxError, SandboxPlan};
use crate::agent::{AgentClient, AgentError};
use crate::cgroup::{self, Limits};
use crate::cleanup::{self, Attempt, CleanupError, FolderClaim, Record};
use crate::config::check_socket_path;
use crate::console::Console;
use crate::driver::{Driver, Machine, MachineRequest, MemoryControl, Sign};
use crate::event::{DeathCause, SandboxDeath, SandboxEvent};
use crate::jail::SandboxJail;
use crate::loopback::LoopbackService;
use crate::network::{PodNetwork, SharedNetwork};
use crate::share::ShareMounts;
use crate::timeline::{Timeline, monotonic_ns, unix_time_ns};
use crate::vsock;

/// How long a guest may take to power off when asked to.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// After the machine's end, how long events that it sent before may take to be read.
const EVENTS_DRAIN: Duration = Duration::from_millis(500);

/// How often a folder is made that others clear away at the same time.
const MAKE_ATTEMPTS: usize = 4;

/// How the removal of a sandbox went; `None` while there is one.
pub(super) type Outcome = Option<Result<(), Arc<CleanupError>>>;

/// What the handle of a sandbox that has come up needs.
pub(super) struct Started {
    pub(super) agent: AgentClient,
    pub(super) monitor_pid: u32,
    pub(super) console: Option<Console>,
    /// The way to add memory, if there is one.
    pub(super) memory: Option<MemoryControl>,
    pub(super) shares: Option<ShareMounts>,
}

/// The supervisor's ends of what connects it with the handle.
pub(super) struct Links {
    pub(super) ready: oneshot::Sender<Result<Started, SandboxError>>,
    pub(super) events: mpsc::Sender<SandboxEvent>,
    /// Becomes true when the sandbox is to stop; closed when its handle is dropped.
    pub(super) stop: watch::Receiver<bool>,
    pub(super) outcome: watch::Sender<Outcome>,
}

pub(super) struct Supervisor {
    pub(super) plan: SandboxPlan,
    /// What its machine may become.
    pub(super) most: MachineSize,
    pub(super) driver: Driver,
    pub(super) dir: PathBuf,
    pub(super) vsock: PathBuf,
    pub(super) timeline: Arc<Timeline>,
    pub(super) lifecycle: Lifecycle,
    pub(super) machine: Option<Machine>,
    /// What its processes are jailed in; outlives them.
    pub(super) jail: Option<SandboxJail>,
    pub(super) network: SharedNetwork,
    /// What leads connections on the host to the pod's loopback interface, where the kernel can.
    pub(super) loopback: Option<LoopbackService>,
    pub(super) shares: Option<ShareMounts>,
    /// The folder is ours, and to be removed by us: there may be another sandbox of the same name.
    pub(super) claim: Option<FolderClaim>,
}

/// Who wants a sandbox to end.
enum StopReason {
    Requested,
    HandleDropped,
}

async fn stop_requested(stop: &mut watch::Receiver<bool>) -> StopReason {
    match stop.wait_for(|&stop| stop).await {
        Ok(_) => StopReason::Requested,
        Err(_) => StopReason::HandleDropped,
    }
}

impl Supervisor {
    /// The sandbox's whole life.
    pub(super) async fn run(mut self, links: Links) {
        let Links {
            ready,
            events,
            mut stop,
            outcome,
        } = links;
        let came_up = tokio::select! {
            biased;
            _ = stop_requested(&mut stop) => {
                self.lifecycle.take(Step::StopRequested);
                Err(SandboxError::Abandoned)
            }
            result = self.come_up() => result,
        };
        let (agent, stream) = match came_up {
            Ok(running) => running,
            Err(error) => {
                self.lifecycle.take(Step::Ended);
                let released = self.release().await;
                if let Err(leak) = &released {
                    tracing::error!(error = %leak, "a sandbox that did not start left something behind");
                }
                let _ = outcome.send(Some(released));
                let _ = ready.send(Err(error));
                return;
            }
        };
        let started = Started {
            agent: agent.clone(),
            monitor_pid: self.machine.as_ref().map_or(0, Machine::pid),
            console: self
                .machine
                .as_ref()
                .map(|machine| machine.console().clone()),
            memory: self.machine.as_ref().and_then(Machine::memory).cloned(),
            shares: self.shares.clone(),
        };
        let abandoned = ready.send(Ok(started)).is_err();
        let mut forwarding = tokio::spawn(forward(stream, events.clone()));
        let death = if abandoned {
            self.lifecycle.take(Step::StopRequested);
            None
        } else {
            self.attend(&agent, &mut stop, &mut forwarding).await
        };
        let console_tail = self.console_tail();
        if let Some(machine) = &mut self.machine {
            machine.kill().await;
        }
        // What the guest sent before its end still counts.
        if !forwarding.is_finished() {
            let _ = tokio::time::timeout(EVENTS_DRAIN, &mut forwarding).await;
        }
        forwarding.abort();
        let released = self.release().await;
        let _ = outcome.send(Some(released));
        if let Some(cause) = death {
            let death = SandboxDeath {
                cause,
                console_tail,
            };
            tracing::warn!(%death, "the sandbox died");
            let _ = events.send(SandboxEvent::Died(death)).await;
        }
    }

    /// Makes everything, and waits until the agent has announced itself and taken its configuration.
    async fn come_up(&mut self) -> Result<(AgentClient, UnixStream), SandboxError> {
        let listener = self.prepare()?;
        self.lifecycle.take(Step::Spawned);
        let limit = self.plan.config.boot_timeout();
        let vsock = self.vsock.clone();
        let timeline = Arc::clone(&self.timeline);
        let network = self.network.configuration();
        let Some(machine) = &mut self.machine else {
            return Err(SandboxError::Abandoned);
        };
        let boot = async {
            let (stream, ready) = accept_ready(listener).await.map_err(BootProblem::Events)?;
            let arrived_ns = monotonic_ns();
            mark_ready(&timeline, &ready, arrived_ns);
            if ready.protocol_version != PROTOCOL_VERSION {
                return Err(BootProblem::Fatal(SandboxError::ProtocolVersion {
                    guest: ready.protocol_version,
                }));
            }
            let connection = vsock::connect(&vsock, AGENT_PORT)
                .await
                .map_err(|e| BootProblem::Fatal(e.into()))?;
            let agent = AgentClient::new(connection);
            agent
                .configure_guest(unix_time_ns(), "")
                .await
                .map_err(|e| BootProblem::Fatal(e.into()))?;
            if let Some(request) = network {
                agent
                    .configure_network(&request)
                    .await
                    .map_err(|e| BootProblem::Fatal(e.into()))?;
            }
            Ok((agent, stream))
        };
        let problem = tokio::select! {
            biased;
            result = tokio::time::timeout(limit, boot) => match result {
                Ok(Ok(running)) => {
                    self.lifecycle.take(Step::AgentReady);
                    return Ok(running);
                }
                Ok(Err(problem)) => problem,
                Err(_elapsed) => {
                    return Err(SandboxError::BootTimeout {
                        limit,
                        ran: machine.processor_time().unwrap_or_default(),
                        console_tail: machine.console().tail(),
                    });
                }
            },
            sign = machine.first_sign() => BootProblem::Sign(sign),
        };
        let sign = match problem {
            // A call that broke off may be the first that is noticed of the machine's end.
            BootProblem::Fatal(error) if !error.may_be_a_death() => return Err(error),
            BootProblem::Fatal(_) => Sign::AgentGone,
            BootProblem::Events(end) => end.into(),
            BootProblem::Sign(sign) => sign,
        };
        let cause = machine.cause_of_death(sign).await;
        Err(SandboxError::DiedBooting(SandboxDeath {
            cause,
            console_tail: machine.console().tail(),
        }))
    }

    /// Makes the folder, mounts and sockets, and starts the processes. Returns where the agent will announce itself.
    fn prepare(&mut self) -> Result<UnixListener, SandboxError> {
        self.claim = Some(make_dir(&self.dir)?);
        if let Some(note) = &self.plan.sweep {
            note.write(&self.dir)?;
        }
        let mut record = Record::new(&self.dir);
        // Before anything that its memory is to be charged for.
        if let Some(path) = &self.plan.cgroup {
            let limits = Limits::new(self.plan.memory, self.plan.vcpus, &self.plan.config);
            cgroup::enter(path, limits, &self.dir)?;
        }
        self.shares = match self.plan.shared.as_slice() {
            [] if !self.plan.shares_later => None,
            entries => Some(ShareMounts::make(&self.dir, entries, &mut record)?),
        };
        if let Some(network) = &self.plan.network {
            let options = NicOptions {
                // One for each vCPU: more are of no use to it.
                queues: usize::from(self.plan.vcpus.get()).min(MAX_QUEUE_PAIRS),
                bytes_per_second: self.plan.config.network_bytes_per_second,
            };
            self.network.join(network, options, &self.dir)?;
            self.loopback = self.forward_loopback();
        }
        let ports = vsock::ports(&self.dir);
        let events_path = vsock::event_socket(&ports);
        make_parent(&events_path)?;
        let events = bind(&events_path)?;
        let jail_ports = ports.parent().unwrap_or(&self.dir);
        self.jail = SandboxJail::make(&self.plan.config, &self.dir, jail_ports)?;
        if let Some(jail) = &self.jail {
            jail.admit(&events_path)?;
        }
        let events = UnixListener::from_std(events).map_err(|source| SandboxError::Socket {
            path: events_path,
            source,
        })?;
        // Handed over as it is: whoever serves the device decides whether it blocks.
        let vsock = bind(&self.vsock)?;
        let network = self.network.lock();
        let request = MachineRequest {
            nics: network.as_ref().map_or(&[], Joined::nics),
            namespace: match self.plan.network {
                Some(PodNetwork::New) => network.as_ref().map(Joined::namespace),
                _ => None,
            },
            plan: &self.plan,
            most: self.most,
            dir: &self.dir,
            share: self.shares.as_ref(),
            vsock_listener: &vsock,
            ports: &ports,
            jail: self.jail.as_ref(),
            timeline: Arc::clone(&self.timeline),
            record: &mut record,
        };
        self.machine = Some(Machine::start(self.driver, request)?);
        Ok(events)
    }

    /// Leads connections on the host to the pod's loopback interface, where that is possible.
    fn forward_loopback(&self) -> Option<LoopbackService> {
        let network = self.network.lock();
        match LoopbackService::start(network.as_ref()?.namespace(), &self.vsock) {
            Ok(service) => Some(service),
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "ports of the pod cannot be forwarded");
                None
            }
        }
    }

    /// Waits for the end of a running sandbox; says what it died of, or nothing if it was stopped.
    async fn attend(
        &mut self,
        agent: &AgentClient,
        stop: &mut watch::Receiver<bool>,
        forwarding: &mut JoinHandle<EventsEnd>,
    ) -> Option<DeathCause> {
        let machine = self.machine.as_mut()?;
        let sign = tokio::select! {
            biased;
            reason = stop_requested(stop) => {
                self.lifecycle.take(Step::StopRequested);
                if let StopReason::Requested = reason {
                    shut_down(machine, agent).await;
                }
                return None;
            }
            sign = machine.first_sign() => sign,
            end = forwarding => match end {
                Ok(end) => end.into(),
                Err(_) => Sign::AgentGone,
            },
        };
        self.lifecycle.take(Step::Ended);
        Some(machine.cause_of_death(sign).await)
    }

    fn console_tail(&self) -> Vec<String> {
        self.machine
            .as_ref()
            .map(|machine| machine.console().tail())
            .unwrap_or_default()
    }

    /// Kills what runs and removes what was made.
    async fn release(&mut self) -> Result<(), Arc<CleanupError>> {
        debug_assert!(matches!(
            self.lifecycle.state(),
            State::Stopping | State::Failing | State::Died
        ));
        if let Some(machine) = &mut self.machine {
            machine.kill().await;
        }
        self.machine = None;
        self.loopback = None;
        // Nobody runs as its user any more.
        self.jail = None;
        // The taps go with it; the rest is on record.
        self.network.lock().take();
        let claim = self.claim.take();
        let dir = self.dir.clone();
        // It waits for processes and file systems, so not on the runtime's own thread.
        let removal = tokio::task::spawn_blocking(move || {
            // It is held until the folder is gone.
            claim.map_or(Ok(()), |_claim| cleanup::remove_dir(&dir).map(drop))
        });
        let removed = match removal.await {
            Ok(removed) => removed.map_err(Arc::new),
            // It panicked, or the runtime is ending: then there is nobody to tell.
            Err(_) => Ok(()),
        };
        self.lifecycle.take(Step::Released);
        removed
    }
}

/// What came in the way of the agent's announcement.
enum BootProblem {
    Events(EventsEnd),
    Sign(Sign),
    Fatal(SandboxError),
}

impl From<EventsEnd> for Sign {
    fn from(end: EventsEnd) -> Self {
        match end {
            EventsEnd::Gone => Self::AgentGone,
            EventsEnd::Misbehaved(what) => Self::AgentMisbehaved(what),
        }
    }
}

impl SandboxError {
    /// Whether a machine that ended could be what is behind it.
    fn may_be_a_death(&self) -> bool {
        matches!(
            self,
            Self::Stream(_) | Self::Agent(AgentError::Connection { .. })
        )
    }
}

/// Asks the agent to power the guest off, and waits until it has, within limits.
async fn shut_down(machine: &mut Machine, agent: &AgentClient) {
    let asked = async {
        match agent.shutdown().await {
            Ok(()) => std::future::pending::<()>().await,
            Err(error) => {
                tracing::debug!(%error, "the agent does not take the request to shut down");
            }
        }
    };
    let ended = async {
        tokio::select! {
            () = machine.ended() => {}
            () = asked => {}
        }
    };
    if tokio::time::timeout(STOP_TIMEOUT, ended).await.is_err() {
        tracing::warn!("the guest did not power off when asked to; killing it");
    }
}

/// The agent started as long before its announcement as the guest's clock says, but not before the guest.
fn mark_ready(timeline: &Timeline, ready: &Ready, arrived_ns: u64) {
    let took_ns = ready.ready_ns.saturating_sub(ready.agent_started_ns);
    let first_ns = timeline
        .marks()
        .iter()
        .find(|mark| mark.phase == Phase::FirstInstruction)
        .map_or(0, |mark| mark.monotonic_ns);
    timeline.mark_at(
        Phase::AgentStarted,
        arrived_ns.saturating_sub(took_ns).max(first_ns),
    );
    timeline.mark_at(Phase::AgentReady, arrived_ns);
}

/// Makes the sandbox's folder, readable by its owner only, and claims it. What a sandbox of the same name left is removed first,
/// unless it lives.
fn make_dir(dir: &Path) -> Result<FolderClaim, SandboxError> {
    let error = |source| SandboxError::RunDir {
        path: dir.to_owned(),
        source,
    };
    if let Some(parent) = dir.parent() {
        std::fs::create_dir_all(parent).map_err(error)?;
    }
    for _ in 0..MAKE_ATTEMPTS {
        let is_new = match rustix::fs::mkdir(dir, rustix::fs::Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) if cleanup::has_live_process(dir) => break,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(error(errno.into())),
        };
        match FolderClaim::take(dir).map_err(error)? {
            Attempt::Taken(claim) if is_new => return Ok(claim),
            // Still held while it is removed.
            Attempt::Taken(_claim) => drop(cleanup::remove_dir(dir)?),
            Attempt::Held => break,
            // Somebody has cleared it away.
            Attempt::Missing => {}
        }
    }
    Err(SandboxError::AlreadyRunning {
        dir: dir.to_owned(),
    })
}

/// Makes the folder of a socket, which others may enter: the sandbox's own lets nobody as far as here.
fn make_parent(socket: &Path) -> Result<(), SandboxError> {
    let folder = socket.parent().unwrap_or(socket);
    let error = |source| SandboxError::RunDir {
        path: folder.to_owned(),
        source,
    };
    std::fs::create_dir(folder).map_err(error)?;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).map_err(error)
}

fn bind(path: &Path) -> Result<std::os::unix::net::UnixListener, SandboxError> {
    check_socket_path(path)?;
    let listener =
        std::os::unix::net::UnixListener::bind(path).map_err(|source| SandboxError::Socket {
            path: path.to_owned(),
            source,
        })?;
    listener
        .set_nonblocking(true)
        .map_err(|source| SandboxError::Socket {
            path: path.to_owned(),
            source,
        })?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_that_was_left_is_made_anew_and_one_that_is_held_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("run/box");
        let first = make_dir(&dir).unwrap();
        std::fs::write(dir.join("left"), "").unwrap();
        let refused = make_dir(&dir).unwrap_err();
        assert!(
            matches!(refused, SandboxError::AlreadyRunning { .. }),
            "{refused}"
        );
        drop(first);
        let _second = make_dir(&dir).unwrap();
        assert!(!dir.join("left").exists());
    }
}
