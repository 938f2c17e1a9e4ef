//! The pod behind the task service: one virtual machine, its containers, their processes.
//!
//! State is behind one lock that is never held while waiting. What takes time (booting, calls to the agent, copying)
//! happens between two short looks at the state, and the state machine ([`crate::lifecycle`]) keeps what may
//! follow what.

mod create;
mod early;
pub(crate) mod process;
pub(crate) mod sandbox;
#[cfg(test)]
mod tests;
pub(crate) mod volumes;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use containerd_shim_protos::events::task::{
    TaskDelete, TaskExecStarted, TaskExit, TaskOOM, TaskStart,
};
use sandbox_protocol::bundle::DEATH_FILE;
use sandbox_runtime::cgroup::Places;
use sandbox_runtime::files::write_atomically;
use sandbox_runtime::{
    AgentError, Config, HeadStart, MachineSize, Sandbox, SandboxDeath, SandboxError, SandboxEvent,
};
use sandbox_types::timeline::Phase;
use sandbox_types::{ContainerId, ExecId, SandboxId, WithCauses};
use serde::Serialize;
use tokio::sync::{mpsc, watch};

use crate::delete::KILLED;
use crate::error::TaskError;
use crate::events::{Publisher, timestamp};
use crate::hooks::Hooks;
use crate::lifecycle::{Announcement, Exit, Lifecycle, LifecycleError};
use crate::spec::check::Namespaces;
use crate::spec::memory_volumes::MemoryVolumes;
use crate::spec::size::Demand;
use crate::stdio::logger::Identity;
use crate::stdio::{Copying, StdioPaths};

/// How long a failed call waits for the reason: a machine that died is told by its own event.
/// It is looked for, then everything of the machine is removed, and then it is told.
const REASON_WAIT: Duration = Duration::from_secs(10);
/// How long the end of the pod waits for a container that is being made: for its machine's removal, or its broken call.
const BOOT_END: Duration = Duration::from_secs(60);
/// How long output may take to reach its reader after the process is gone.
pub(crate) const DRAIN: Duration = Duration::from_secs(10);
/// No more than one event in this time says that a container is out of memory.
const OOM_INTERVAL: Duration = Duration::from_secs(1);

/// How often the guest's clock is set to the host's.
const CLOCK_INTERVAL: Duration = Duration::from_secs(60);

/// The file that says, in a container's bundle, that memory ran out in it (CRI-O `internal/oci/runtime_vm.go`).
const OOM_FILE: &str = "oom";

/// What `<bundle>/death.json` holds when a sandbox died.
#[derive(Serialize)]
struct DeathRecord<'a> {
    /// One line.
    cause: String,
    /// The last lines of the guest's console.
    console_tail: &'a [String],
}

/// One process of the pod.
struct Process {
    lifecycle: Lifecycle,
    stdio: StdioPaths,
    copying: Copying,
    /// Tells the waiting; holds the exit once there is one.
    exit: watch::Sender<Option<Exit>>,
    /// Held by who removes it: others wait, and then find nothing.
    removal: Arc<tokio::sync::Mutex<()>>,
}

impl Process {
    fn new(stdio: StdioPaths) -> Self {
        Self {
            lifecycle: Lifecycle::Created,
            stdio,
            copying: Copying::default(),
            exit: watch::Sender::new(None),
            removal: Arc::default(),
        }
    }

    /// A start was asked for.
    fn start(&mut self) -> Result<(), LifecycleError> {
        match self.removal.try_lock() {
            Ok(_) => self.lifecycle.start(),
            Err(_) => Err(LifecycleError::Wrong {
                action: "start",
                state: "being deleted",
            }),
        }
    }
}

/// One container of the pod.
struct Container {
    bundle: PathBuf,
    hooks: Hooks,
    /// What it may use.
    demand: Demand,
    /// Where on the host it is to run.
    places: Places,
    /// How soon it is to be killed when the host runs out of memory.
    oom_score: Option<i32>,
    init: Process,
    execs: HashMap<ExecId, Process>,
    /// When it was last told that it is out of memory.
    oom_told: Option<Instant>,
}

/// What is in the machine, and so when it ends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Contents {
    /// One container; the machine goes with it.
    #[default]
    One,
    /// Any number; the machine goes with the one that is the pod's sandbox.
    Pod(ContainerId),
}

#[derive(Default)]
struct State {
    /// What was begun of the machine before its first container was asked for.
    head_start: Option<HeadStart>,
    sandbox: Option<Arc<Sandbox>>,
    contents: Contents,
    /// The pod's namespaces, as the host names them.
    namespaces: Namespaces,
    /// The pod has shared memory of its own.
    has_shm: bool,
    /// The pod's volumes in memory.
    volumes: MemoryVolumes,
    /// The machine's size.
    size: Option<MachineSize>,
    /// What the machine was made with: the configuration with what its first container says of it.
    config: Option<Config>,
    /// What containers are about to be able to use, by a Create or an Update that is under way.
    claimed: HashMap<ContainerId, Demand>,
    /// Containers of which a Create is under way.
    creating: HashSet<ContainerId>,
    /// The server was to end while the first container was being made.
    unwanted: bool,
    containers: HashMap<ContainerId, Container>,
    died: Option<String>,
    /// What the sandbox service was told, when the pod is made through it.
    api: Option<sandbox::Api>,
}

impl State {
    /// What all containers may use, or are about to. The one that holds the pod does nothing; its limits may be those of the pod.
    fn demands(&self) -> impl Iterator<Item = Demand> {
        let made = self.containers.iter();
        let made = made.filter(|(id, _)| !self.claimed.contains_key(*id));
        let made = made.map(|(id, container)| (id, container.demand));
        let claimed = self.claimed.iter().map(|(id, demand)| (id, *demand));
        let all = made.chain(claimed).filter(|(id, _)| !self.is_holder(id));
        all.map(|(_, demand)| demand)
    }

    /// Whether a container is there to hold the pod.
    fn is_holder(&self, id: &ContainerId) -> bool {
        match &self.contents {
            Contents::One => false,
            Contents::Pod(holder) => holder == id,
        }
    }

    /// How soon the machine is to be killed when the host runs out of memory: as the container that is to be last. The one that holds
    /// the pod does nothing, and its own, next to never, counts as long as it is alone.
    fn oom_score(&self) -> Option<i32> {
        let (holder, others): (Vec<_>, Vec<_>) = self
            .containers
            .iter()
            .partition(|(id, _)| self.is_holder(id));
        let lowest = |of: Vec<(_, &Container)>| of.iter().filter_map(|(_, c)| c.oom_score).min();
        lowest(others).or_else(|| lowest(holder))
    }

    /// Where on the host the machine is to run: where any of its containers may, those that have ended left out. The one that holds the pod
    /// does nothing, and its own counts as long as it is alone.
    fn places(&self) -> Places {
        let live = self.containers.iter();
        let live = live.filter(|(_, container)| container.init.lifecycle.exit().is_none());
        let (holder, others): (Vec<_>, Vec<_>) = live.partition(|(id, _)| self.is_holder(id));
        let counted = if others.is_empty() { holder } else { others };
        let places = counted
            .into_iter()
            .map(|(_, container)| container.places.clone());
        places
            .reduce(|all, one| all.union(&one))
            .unwrap_or_default()
    }

    fn container(&mut self, id: &ContainerId) -> Result<&mut Container, TaskError> {
        self.containers
            .get_mut(id)
            .ok_or_else(|| TaskError::NotFound {
                what: format!("container {id}"),
            })
    }

    fn process(&mut self, key: &ProcessKey) -> Result<&mut Process, TaskError> {
        let container = self.container(&key.container)?;
        match &key.exec {
            None => Ok(&mut container.init),
            Some(exec) => container
                .execs
                .get_mut(exec)
                .ok_or_else(|| TaskError::NotFound {
                    what: key.to_string(),
                }),
        }
    }
}

/// Names a process of the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProcessKey {
    /// Its container.
    pub(crate) container: ContainerId,
    /// Which exec; `None` for the container's first process.
    pub(crate) exec: Option<ExecId>,
}

impl ProcessKey {
    /// The first process of a container.
    pub(crate) fn first(container: ContainerId) -> Self {
        Self {
            container,
            exec: None,
        }
    }

    /// The key that a request names; an empty exec id is the first process.
    ///
    /// # Errors
    /// When an identifier breaks the grammar.
    pub(crate) fn new(container: &str, exec: &str) -> Result<Self, TaskError> {
        Ok(Self {
            container: ContainerId::new(container)?,
            exec: if exec.is_empty() {
                None
            } else {
                Some(ExecId::new(exec)?)
            },
        })
    }

    /// As events name the process: the exec's identifier, or the container's.
    fn event_id(&self) -> String {
        self.exec
            .as_ref()
            .map_or_else(|| self.container.to_string(), ExecId::to_string)
    }
}

impl std::fmt::Display for ProcessKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.exec {
            None => write!(f, "container {}", self.container),
            Some(exec) => write!(f, "exec {exec} of container {}", self.container),
        }
    }
}

/// What `State` says of a process.
pub(crate) struct ProcessView {
    /// Where it is in its life.
    pub(crate) lifecycle: Lifecycle,
    /// Its streams.
    pub(crate) stdio: StdioPaths,
    /// The container's bundle.
    pub(crate) bundle: PathBuf,
}

/// The pod.
pub(crate) struct Pod {
    id: SandboxId,
    namespace: String,
    config: Config,
    /// Where it is served.
    socket: PathBuf,
    publisher: Publisher,
    state: Mutex<State>,
    /// Held while a container is made: one at a time, so that the pod's first is there before its second.
    making: tokio::sync::Mutex<()>,
    /// Held while limits are changed: one change at a time, so that each begins with what the one before has left.
    updating: tokio::sync::Mutex<()>,
    /// Held while the machine is told where on the host to run, so that the last who does knows of the latest change. Whether it was said that
    /// this cannot be.
    placing: tokio::sync::Mutex<bool>,
    /// Becomes true when the server is to end.
    ended: watch::Sender<bool>,
    /// Becomes true when the machine has ended, and told why if it died.
    death: watch::Sender<bool>,
    /// Becomes true when no machine is to be made any more; one that is being booted is given up.
    closing: watch::Sender<bool>,
}

impl Pod {
    /// A pod in which nothing runs.
    pub(crate) fn new(
        id: SandboxId,
        namespace: String,
        config: Config,
        socket: PathBuf,
        publisher: Publisher,
    ) -> Self {
        Self {
            id,
            namespace,
            config,
            socket,
            publisher,
            state: Mutex::new(State::default()),
            making: tokio::sync::Mutex::default(),
            updating: tokio::sync::Mutex::default(),
            placing: tokio::sync::Mutex::default(),
            ended: watch::Sender::new(false),
            death: watch::Sender::new(false),
            closing: watch::Sender::new(false),
        }
    }

    /// One for a test.
    #[cfg(test)]
    pub(crate) fn to_test(publisher: Publisher) -> Self {
        Self::new(
            SandboxId::new("c0").unwrap(),
            "ns".to_owned(),
            Config::default(),
            PathBuf::from("/nonexistent"),
            publisher,
        )
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held is a bug already reported; the state itself is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine.
    ///
    /// # Errors
    /// When there is none (yet), or it died.
    fn sandbox(&self) -> Result<Arc<Sandbox>, TaskError> {
        let state = self.state();
        match (&state.sandbox, &state.died) {
            (_, Some(reason)) => Err(TaskError::Died {
                reason: reason.clone(),
            }),
            (Some(sandbox), None) => Ok(Arc::clone(sandbox)),
            (None, None) => Err(TaskError::NotFound {
                what: format!("the machine of pod {}", self.id),
            }),
        }
    }

    /// As containerd knows the pod's processes on the host: the machine's.
    pub(crate) fn pid(&self) -> u32 {
        self.state()
            .sandbox
            .as_ref()
            .map_or(0, |sandbox| sandbox.monitor_pid())
    }

    /// The pod's name.
    pub(crate) fn name(&self) -> &str {
        self.id.as_str()
    }

    /// Whether nothing is in the pod, and nothing is being put there.
    pub(crate) fn is_empty(&self) -> bool {
        let state = self.state();
        state.containers.is_empty() && state.creating.is_empty() && state.api.is_none()
    }

    /// Ends the server unless anything is in the pod. While a first container is being made, that comes to its end before,
    /// and is undone: whoever asks for the end does not know of it, as containerd that was killed and started again.
    pub(crate) fn end_when_empty(&self) {
        {
            let mut state = self.state();
            if !state.containers.is_empty() || state.api.is_some() {
                return;
            }
            if !state.creating.is_empty() {
                state.unwanted = true;
                return;
            }
        }
        self.end();
    }

    /// Ends the server if nothing is in the pod. Where a container is being made, somebody knows of it.
    pub(crate) fn end_if_empty(&self) {
        if self.is_empty() {
            self.end();
        }
    }

    /// Ends the server.
    pub(crate) fn end(&self) {
        self.ended.send_replace(true);
    }

    /// Returns when the server is to end.
    pub(crate) async fn until_ended(&self) {
        let mut ended = self.ended.subscribe();
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// Ends the machine, whatever runs in it, or what was begun of it.
    pub(crate) async fn stop_sandbox(&self) -> Result<(), TaskError> {
        self.release_early().await;
        let Some(sandbox) = self.state().sandbox.clone() else {
            return Ok(());
        };
        // It is there meanwhile: who asks once more waits for the same end.
        let stopped = sandbox.stop().await;
        self.state()
            .sandbox
            .take_if(|present| Arc::ptr_eq(present, &sandbox));
        Ok(stopped?)
    }

    /// As [`Self::stop_sandbox`], and no machine is made any more: a boot that is under way is given up, and waited for, so that nothing
    /// of it is left on the host.
    pub(crate) async fn close(&self) -> Result<(), TaskError> {
        self.closing.send_replace(true);
        let stopped = self.stop_sandbox().await;
        // Held by whoever boots one. It may have come up after all.
        match tokio::time::timeout(BOOT_END, self.making.lock()).await {
            Ok(_made) => stopped.and(self.stop_sandbox().await),
            Err(_elapsed) => {
                tracing::error!("pod {}: a container is still being made", self.id);
                stopped
            }
        }
    }

    /// Has the machine run where its containers may now. Where that cannot be it goes on where it was, which is said once.
    async fn place(&self, sandbox: &Sandbox) {
        let mut is_said = self.placing.lock().await;
        let places = self.state().places();
        if let Err(error) = sandbox.place(places).await
            && !std::mem::replace(&mut *is_said, true)
        {
            tracing::warn!(
                "pod {}: its machine does not run on all, or not only, of its containers' processors and memory nodes: {}",
                self.id,
                WithCauses(&error)
            );
        }
    }

    /// A call failed: when the machine is dying, the reason is its death, which is told a moment later.
    async fn reason_for(&self, error: TaskError) -> TaskError {
        let connection = matches!(
            error,
            TaskError::Agent(AgentError::Connection { .. })
                | TaskError::Sandbox(SandboxError::Agent(AgentError::Connection { .. }))
                | TaskError::Stream(_)
        );
        if connection {
            let mut death = self.death.subscribe();
            let _ = tokio::time::timeout(REASON_WAIT, death.wait_for(|dead| *dead)).await;
        }
        match &self.state().died {
            Some(reason) => TaskError::Died {
                reason: reason.clone(),
            },
            None => error,
        }
    }

    /// As logging programs know a process.
    fn identity(&self, key: &ProcessKey) -> Identity {
        Identity {
            id: key.event_id(),
            namespace: self.namespace.clone(),
        }
    }

    /// Follows what the machine tells, until it ends.
    async fn follow(self: Arc<Self>, mut events: mpsc::Receiver<SandboxEvent>) {
        while let Some(event) = events.recv().await {
            match event {
                SandboxEvent::ProcessExited {
                    container,
                    exec,
                    exit_status,
                    ..
                } => {
                    let key = ProcessKey { container, exec };
                    let exit = Exit::now(exit_status);
                    self.change(&key, |process| process.lifecycle.exited(exit));
                }
                SandboxEvent::OutOfMemory { container } => {
                    self.out_of_memory(&container, Instant::now());
                }
                SandboxEvent::Died(death) => self.died(&death).await,
            }
        }
        // One that was stopped tells nothing more; nobody needs to wait for it.
        self.death.send_replace(true);
    }

    /// The guest says that it killed a process of a container for want of memory. Containerd tells all sandboxes' events to everyone who
    /// listens, so that the guest is heard about its own containers alone, and about each now and then.
    fn out_of_memory(&self, id: &ContainerId, now: Instant) {
        {
            let mut state = self.state();
            let Ok(container) = state.container(id) else {
                return;
            };
            let told = container.oom_told.replace(now);
            if told.is_some_and(|told| now.saturating_duration_since(told) < OOM_INTERVAL) {
                container.oom_told = told;
                return;
            }
        }
        self.note_out_of_memory(id);
        self.publisher.send(&TaskOOM {
            container_id: id.to_string(),
            ..Default::default()
        });
    }

    /// CRI-O, which takes no events, looks for a file in the bundle of a container that has ended.
    fn note_out_of_memory(&self, container: &ContainerId) {
        let bundle = match self.state().containers.get(container) {
            Some(container) => container.bundle.clone(),
            None => return,
        };
        if let Err(error) = std::fs::write(bundle.join(OOM_FILE), []) {
            tracing::debug!("no {OOM_FILE} in {}: {error}", bundle.display());
        }
    }

    /// The machine ended by itself: everything in it did.
    async fn died(&self, death: &SandboxDeath) {
        tracing::error!("pod {}: {death}", self.id);
        let bundles: Vec<PathBuf> = {
            let mut state = self.state();
            state.died = Some(death.to_string());
            let containers = state.containers.values();
            containers
                .map(|container| container.bundle.clone())
                .collect()
        };
        for bundle in bundles {
            write_death(&bundle, death);
        }
        self.death.send_replace(true);
        self.all_killed();
        self.sandbox_ended(KILLED);
        if let Err(error) = self.stop_sandbox().await {
            tracing::error!("pod {}: {}", self.id, WithCauses(&error));
        }
    }

    /// There is no machine any more, so nothing runs in it.
    fn all_killed(&self) {
        let exit = Exit::now(KILLED);
        let mut keys = Vec::new();
        for (id, container) in &self.state().containers {
            let key = |exec: Option<&ExecId>| ProcessKey {
                container: id.clone(),
                exec: exec.cloned(),
            };
            keys.extend(container.execs.keys().map(|exec| key(Some(exec))));
            keys.push(key(None));
        }
        for key in keys {
            self.change(&key, |process| process.lifecycle.exited(exit));
        }
    }

    /// Applies a change to a process and tells the world what follows. A process that is gone has nothing to tell.
    fn change(&self, key: &ProcessKey, change: impl FnOnce(&mut Process) -> Vec<Announcement>) {
        let pid = self.pid();
        let mut state = self.state();
        let Ok(process) = state.process(key) else {
            return;
        };
        for announcement in change(process) {
            match announcement {
                Announcement::Started => self.announce_start(key, pid),
                Announcement::Exited(exit) => {
                    self.announce_exit(key, pid, exit);
                    process.exit.send_replace(Some(exit));
                    if let Some(sandbox) = state.sandbox.as_ref().filter(|_| key.exec.is_none()) {
                        sandbox.mark(Phase::Exited);
                    }
                    return;
                }
            }
        }
    }

    fn announce_start(&self, key: &ProcessKey, pid: u32) {
        let container_id = key.container.to_string();
        match &key.exec {
            None => self.publisher.send(&TaskStart {
                container_id,
                pid,
                ..Default::default()
            }),
            Some(exec) => self.publisher.send(&TaskExecStarted {
                container_id,
                exec_id: exec.to_string(),
                pid,
                ..Default::default()
            }),
        }
    }

    fn announce_exit(&self, key: &ProcessKey, pid: u32, exit: Exit) {
        self.publisher.send(&TaskExit {
            container_id: key.container.to_string(),
            id: key.event_id(),
            pid,
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        });
    }

    fn announce_delete(&self, key: &ProcessKey, pid: u32, exit: Exit) {
        // containerd expects this event for containers only.
        if key.exec.is_none() {
            self.publisher.send(&TaskDelete {
                container_id: key.container.to_string(),
                pid,
                exit_status: exit.status,
                exited_at: Some(timestamp(exit.at)).into(),
                ..Default::default()
            });
        }
    }
}

/// Keeps the guest's clock at the host's, as long as there is the machine.
async fn keep_time(sandbox: Weak<Sandbox>) {
    loop {
        tokio::time::sleep(CLOCK_INTERVAL).await;
        let Some(sandbox) = sandbox.upgrade() else {
            return;
        };
        if let Err(error) = sandbox.agent().set_clock().await {
            tracing::warn!("the guest's clock is not set: {}", WithCauses(&error));
        }
    }
}

/// Writes `death.json`, so that the caller can say why its container ended; whole or not at all.
fn write_death(bundle: &std::path::Path, death: &SandboxDeath) {
    let record = DeathRecord {
        cause: death.cause.to_string(),
        console_tail: &death.console_tail,
    };
    let written = serde_json::to_vec(&record)
        .map_err(std::io::Error::from)
        .and_then(|json| write_atomically(&bundle.join(DEATH_FILE), &json));
    if let Err(error) = written {
        tracing::error!(
            "cannot record the death of the pod in {}: {error}",
            bundle.display()
        );
    }
}
