//! The task that owns a sandbox's processes and files, from before the first is made until the last is removed.
//!
//! Everything that can end a sandbox meets here: its processes, the agent's connection, a request to stop, and the
//! handle being dropped. Whichever it is, [`Supervisor::release`] is the one way out.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sandbox_network::{Joined, NicOptions};
use sandbox_protocol::agent::Ready;
use sandbox_protocol::{AGENT_PORT, PROTOCOL_VERSION};
use sandbox_types::WithCauses;
use sandbox_types::monitor::MAX_QUEUE_PAIRS;
use sandbox_types::timeline::Phase;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::events::{EventsEnd, accept_ready, forward};
use super::ground::{EarlyPlan, Ground};
use super::head_start::HeadStart;
use super::lifecycle::{Lifecycle, State, Step};
use super::{MachineSize, SandboxError, SandboxPlan};
use crate::agent::{AgentClient, AgentError};
use crate::cleanup::CleanupError;
use crate::config::check_socket_path;
use crate::console::Console;
use crate::driver::{Driver, Machine, MachineBasis, MachineRequest, MemoryControl, Sign};
use crate::event::{DeathCause, SandboxDeath, SandboxEvent};
use crate::loopback::LoopbackService;
use crate::network::{PodNetwork, SharedNetwork};
use crate::share::{self, ShareMountError, ShareMounts};
use crate::timeline::{Timeline, monotonic_ns, unix_time_ns};
use crate::vsock;

/// How long a guest may take to power off when asked to.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// After the machine's end, how long events that it sent before may take to be read.
const EVENTS_DRAIN: Duration = Duration::from_millis(500);

/// How the removal of a sandbox went; `None` while there is one.
pub(super) type Outcome = Option<Result<(), Arc<CleanupError>>>;

/// What the handle of a sandbox that has come up needs.
pub(super) struct Started {
    pub(super) agent: AgentClient,
    /// What its machine may become.
    pub(super) most: MachineSize,
    pub(super) monitor_pid: u32,
    pub(super) console: Option<Console>,
    /// The way to add memory, if there is one.
    pub(super) memory: Option<MemoryControl>,
    /// What the guest's kernel hands out of its memory, in bytes, as the agent says.
    pub(super) usable_bytes: u64,
    pub(super) shares: Option<ShareMounts>,
}

/// A guest that has come up.
struct Running {
    agent: AgentClient,
    /// Where it says what happens.
    events: UnixStream,
    /// As [`Started::usable_bytes`].
    usable_bytes: u64,
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
    /// Whose ground it stands on, if that is of its plan.
    pub(super) head_start: Option<HeadStart>,
    pub(super) network: SharedNetwork,
    /// What leads connections on the host to the pod's loopback interface, where the kernel can.
    pub(super) loopback: Option<LoopbackService>,
    pub(super) shares: Option<ShareMounts>,
    pub(super) ground: Option<Ground>,
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
        // To its end, even when it is given up meanwhile.
        self.take_ground().await;
        let came_up = tokio::select! {
            biased;
            _ = stop_requested(&mut stop) => {
                self.lifecycle.take(Step::StopRequested);
                Err(SandboxError::Abandoned)
            }
            result = self.come_up() => result,
        };
        let Running {
            agent,
            events: stream,
            usable_bytes,
        } = match came_up {
            Ok(running) => running,
            Err(error) => {
                self.lifecycle.take(Step::Ended);
                let released = self.release().await;
                if let Err(leak) = &released {
                    tracing::error!(error = %WithCauses(leak), "a sandbox that did not start left something behind");
                }
                let _ = outcome.send(Some(released));
                let _ = ready.send(Err(error));
                return;
            }
        };
        let started = Started {
            agent: agent.clone(),
            most: self.most,
            monitor_pid: self.machine.as_ref().map_or(0, Machine::pid),
            console: self
                .machine
                .as_ref()
                .map(|machine| machine.console().clone()),
            memory: self.machine.as_ref().and_then(Machine::memory).cloned(),
            usable_bytes,
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
    async fn come_up(&mut self) -> Result<Running, SandboxError> {
        let listener = self.prepare().await?;
        self.lifecycle.take(Step::Spawned);
        let limit = self.plan.basis.config.boot_timeout();
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
            Ok(Running {
                agent,
                events: stream,
                usable_bytes: ready.memory_bytes,
            })
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
    ///
    /// What takes the machine longest to begin with begins first, where it is known by then, and goes on beside the rest.
    async fn prepare(&mut self) -> Result<UnixListener, SandboxError> {
        let begins_early = self.begins_early();
        let plan = &self.plan;
        if self.ground.is_none() {
            let early = EarlyPlan::of(plan);
            let ground = Ground::claim(&early.basis, self.driver)?;
            let ground = self.ground.insert(ground);
            ground.furnish(&early.basis)?;
            if begins_early {
                ground.begin_machine(&early)?;
            }
        }
        let Some(ground) = &mut self.ground else {
            return Err(SandboxError::Abandoned);
        };
        self.most = ground.most;
        if plan.shares() {
            let shares = ShareMounts::make(&self.dir, &mut ground.record)?;
            let shares = self.shares.insert(shares).clone();
            let entries = plan.shared.clone();
            let shared = share::beside(move || shares.add(&entries)).await;
            shared.map_err(ShareMountError::from)?;
        }
        if let Some(network) = &plan.network {
            let options = NicOptions {
                // One for each vCPU: more are of no use to it.
                queues: usize::from(plan.basis.size.vcpus.get()).min(MAX_QUEUE_PAIRS),
                bytes_per_second: plan.basis.config.network_bytes_per_second,
            };
            self.network.join(network, options, &self.dir)?;
            self.loopback = forward_loopback(&self.network, &self.vsock);
        }
        let ports = vsock::ports(&self.dir);
        let events_path = vsock::event_socket(&ports);
        let events = bind(&events_path)?;
        if let Some(jail) = &ground.jail {
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
            begun: ground.machine.take(),
            basis: MachineBasis {
                config: &plan.basis.config,
                size: plan.basis.size,
                most: self.most,
                shared_memory: self.shares.is_some(),
                dir: &self.dir,
                jail: ground.jail.as_ref(),
                namespace: match plan.network {
                    Some(PodNetwork::New) => network.as_ref().map(Joined::namespace),
                    _ => None,
                },
            },
            plan,
            nics: network.as_ref().map_or(&[], Joined::nics),
            share: self.shares.as_ref(),
            vsock_listener: &vsock,
            ports: &ports,
            timeline: Arc::clone(&self.timeline),
            record: &mut ground.record,
        };
        self.machine = Some(Machine::start(self.driver, request)?);
        Ok(events)
    }

    /// Whether its machine can be begun before its devices are known: not one whose process is to be in a namespace that is still to be made.
    fn begins_early(&self) -> bool {
        self.driver == Driver::Kvm && self.plan.network != Some(PodNetwork::New)
    }

    /// Takes the ground that has been made before, if it is that of this sandbox; any other is removed.
    async fn take_ground(&mut self) {
        let Some(head_start) = self.head_start.take() else {
            return;
        };
        let wanted = self.begins_early().then(|| EarlyPlan::of(&self.plan));
        self.ground = head_start.take(wanted.as_ref()).await;
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
            () = agent.until_gone() => Sign::AgentGone,
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
        // The taps go with it; the rest is on record.
        self.network.lock().take();
        let removed = match self.ground.take() {
            Some(ground) => ground.release().await,
            None => Ok(()),
        };
        self.lifecycle.take(Step::Released);
        removed
    }
}

/// Leads connections on the host to the pod's loopback interface, where that is possible.
fn forward_loopback(network: &SharedNetwork, vsock: &Path) -> Option<LoopbackService> {
    let network = network.lock();
    match LoopbackService::start(network.as_ref()?.namespace(), vsock) {
        Ok(service) => Some(service),
        Err(error) => {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "ports of the pod cannot be forwarded");
            None
        }
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
                tracing::debug!(error = %WithCauses(&error), "the agent does not take the request to shut down");
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
