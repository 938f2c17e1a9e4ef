//! The containers of this guest and what can be done with them.

mod container;
mod control;
mod error;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use oci_spec::runtime::LinuxNamespaceType;
use protobuf::EnumOrUnknown;
use sandbox_protocol::agent::{
    AgentProgram, CreateContainerRequest, Mount, ProcessExited, SharedNamespace,
};
use sandbox_protocol::bundle::SPEC_FILE;
use sandbox_protocol::limits::MAX_LASTING_MOUNTS;
use sandbox_types::{ContainerId, ExecId, WithCauses};
use tokio::sync::oneshot;

use self::container::Container;
pub(crate) use self::error::ContainerError;
use crate::cgroup::Cgroup;
use crate::copied_files::CopiedFiles;
use crate::events::Events;
use crate::fill::{Fill, FillError};
use crate::helper::Action;
use crate::launch::{self, Launch, LaunchError};
use crate::mount::Mounted;
use crate::process::{Prepared, Process, State};
use crate::programs::Program;
use crate::reaper::{ExitStatus, Reaper};
use crate::spec::{self, GuestSpec, Placement};
use crate::stdio::{Streams, Wanted, descriptor};

/// How long a delete waits for output that is still being read.
const DRAIN: Duration = Duration::from_secs(10);

/// Every container.
#[derive(Debug)]
pub(crate) struct Containers {
    reaper: Reaper,
    events: Events,
    containers: Mutex<BTreeMap<ContainerId, Arc<Container>>>,
    /// What was mounted with a container and stays when it goes.
    lasting: Mutex<Mounted>,
    folders: AtomicU64,
    /// Held while a container is made, so that no two of one name are.
    creating: tokio::sync::Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Copies into new volumes what a container's root has at their places.
async fn fill_volumes(fills: Vec<Fill>, root: &str) -> Result<(), ContainerError> {
    if fills.is_empty() {
        return Ok(());
    }
    let root = PathBuf::from(root);
    let filling =
        tokio::task::spawn_blocking(move || fills.iter().try_for_each(|fill| fill.run(&root)));
    Ok(filling.await.unwrap_or(Err(FillError::Lost))?)
}

impl Containers {
    pub(crate) fn new(reaper: Reaper, events: Events) -> Self {
        Self {
            reaper,
            events,
            containers: Mutex::default(),
            lasting: Mutex::default(),
            folders: AtomicU64::new(1),
            creating: tokio::sync::Mutex::default(),
        }
    }

    fn container(&self, id: &ContainerId) -> Result<Arc<Container>, ContainerError> {
        lock(&self.containers)
            .get(id)
            .cloned()
            .ok_or_else(|| ContainerError::NoContainer { id: id.clone() })
    }

    /// A process of a container; `None` is its first.
    pub(crate) fn process(
        &self,
        id: &ContainerId,
        exec: Option<&ExecId>,
    ) -> Result<Arc<Process>, ContainerError> {
        self.container(id)?.process(exec)
    }

    /// Builds the root and makes the container; its process waits. The reply is its pid.
    pub(crate) async fn create(
        self: &Arc<Self>,
        id: ContainerId,
        request: CreateContainerRequest,
    ) -> Result<i32, ContainerError> {
        let _creating = self.creating.lock().await;
        if lock(&self.containers).contains_key(&id) {
            return Err(ContainerError::Exists {
                what: id.to_string(),
            });
        }
        let wanted = wanted(request.stdio.as_ref());
        let shared = self.shared_namespaces(&request.shared_namespaces)?;
        let mut guest = spec::adapt(
            &request.spec_json,
            &Placement {
                id: id.as_str(),
                root_path: &request.root_path,
                cgroups_path: &Cgroup::spec_path(&id),
                terminal: wanted.terminal,
                shared: &shared,
            },
        )?;
        guest.confinement.program = program(request.program)?;
        let lasting = self.mount_lasting(&request.lasting_mounts)?;
        let mut mounted = Mounted::default();
        for step in &request.mounts {
            mounted.add(step)?;
        }
        let mut files = CopiedFiles::default();
        for file in &request.files {
            files.add(file)?;
        }
        fill_volumes(std::mem::take(&mut guest.fills), &request.root_path).await?;
        let folder = self.new_folder(&guest)?;
        let cgroup = Cgroup::of(&id);
        let result = match set_parameters(&guest.guest_sysctl)
            .and_then(|()| Ok(cgroup.create(&guest.limits, &guest.devices)?))
        {
            Ok(()) => {
                let parts = Parts {
                    folder: folder.clone(),
                    mounted,
                    files,
                    guest,
                };
                self.launch_first(&id, parts, wanted).await
            }
            Err(error) => Err(error),
        };
        if result.is_err() {
            clean(cgroup.kill());
            clean(cgroup.empty().await);
            clean(cgroup.remove());
            remove_folder(&folder);
        } else {
            lock(&self.lasting).append(lasting);
        }
        result
    }

    /// Mounts what is to stay when its container goes, as far as it is not there.
    fn mount_lasting(&self, steps: &[Mount]) -> Result<Mounted, ContainerError> {
        let present = lock(&self.lasting);
        let mut added = Mounted::default();
        for step in steps {
            if present.has(&step.target) || added.has(&step.target) {
                continue;
            }
            if present.count() + added.count() >= MAX_LASTING_MOUNTS {
                return Err(ContainerError::TooManyLasting);
            }
            added.add(step)?;
        }
        Ok(added)
    }

    /// Where the namespaces are that a new container joins.
    fn shared_namespaces(
        &self,
        shared: &[SharedNamespace],
    ) -> Result<Vec<(LinuxNamespaceType, PathBuf)>, ContainerError> {
        let mut found = Vec::new();
        for namespace in shared {
            let (kind, file) = match namespace.kind.as_str() {
                "pid" => (LinuxNamespaceType::Pid, "pid"),
                "ipc" => (LinuxNamespaceType::Ipc, "ipc"),
                "uts" => (LinuxNamespaceType::Uts, "uts"),
                "network" => (LinuxNamespaceType::Network, "net"),
                "user" => (LinuxNamespaceType::User, "user"),
                kind => {
                    return Err(ContainerError::SharedKind {
                        kind: kind.to_owned(),
                    });
                }
            };
            let id = ContainerId::new(namespace.container_id.as_str())?;
            let container = self.container(&id)?;
            let Some(pid) = container.process(None)?.state().alive() else {
                return Err(ContainerError::Ended {
                    what: id.to_string(),
                });
            };
            found.push((kind, PathBuf::from(format!("/proc/{pid}/ns/{file}"))));
        }
        Ok(found)
    }

    async fn launch_first(
        self: &Arc<Self>,
        id: &ContainerId,
        parts: Parts,
        wanted: Wanted,
    ) -> Result<i32, ContainerError> {
        let Parts {
            folder,
            mounted,
            files,
            guest,
        } = parts;
        let (streams, stdio) = Streams::new(wanted).map_err(ContainerError::Streams)?;
        let seccomp = guest.confinement.seccomp.clone();
        let launch = Launch {
            action: Action::Create,
            folder: folder.clone(),
            stdio,
            confinement: guest.confinement,
        };
        let launched = launch::launch(launch, &self.reaper).await?;
        let pid = launched.pid;
        let process = Arc::new(Process::new(
            None,
            State::Created { pid },
            streams,
            Prepared::Waiting(launched.report),
        ));
        if let Some(terminal) = launched.terminal {
            process.set_terminal(Some(descriptor(terminal).map_err(ContainerError::Streams)?));
        }
        let container = Arc::new(Container {
            id: id.clone(),
            folder,
            cgroup: Cgroup::of(id),
            mounted: Mutex::new(mounted),
            files: Mutex::new(files),
            seccomp,
            devices: guest.devices,
            shares_pids: guest.shares_pids,
            processes: Mutex::new(HashMap::from([(None, process.clone())])),
            changing: tokio::sync::Mutex::default(),
            oom_reported: Mutex::new(0),
        });
        self.watch_memory(&container);
        self.watch_exit(&container, process, pid, launched.exited);
        lock(&self.containers).insert(id.clone(), container);
        Ok(pid)
    }

    fn new_folder(&self, guest: &GuestSpec) -> Result<PathBuf, ContainerError> {
        let number = self.folders.fetch_add(1, Ordering::Relaxed);
        let folder = spec::agent_folder().join(number.to_string());
        let failed = |source| ContainerError::Folder {
            path: folder.clone(),
            source,
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(failed)?;
        guest
            .spec
            .save(folder.join(SPEC_FILE))
            .map_err(spec::SpecError::from)?;
        Ok(folder)
    }

    /// Describes a process to be added to a running container.
    pub(crate) async fn add_process(
        &self,
        id: &ContainerId,
        exec: ExecId,
        process_json: &[u8],
        wanted: Wanted,
        own: AgentProgramField,
    ) -> Result<(), ContainerError> {
        let container = self.container(id)?;
        let _changing = container.changing.lock().await;
        let first = container.process(None)?.state();
        if !matches!(first, State::Running { .. }) {
            return Err(container.wrong_state("add a process to", None, first));
        }
        if lock(&container.processes).contains_key(&Some(exec.clone())) {
            return Err(ContainerError::Exists {
                what: format!("{id}/{exec}"),
            });
        }
        let (process, mut confinement) = spec::adapt_added_process(process_json, wanted.terminal)?;
        let path = container.description(&exec);
        let text = serde_json::to_vec(&process).map_err(spec::SpecError::from)?;
        fs::write(&path, text).map_err(|source| ContainerError::Folder {
            path: path.clone(),
            source,
        })?;
        confinement.seccomp = container.seccomp.clone();
        confinement.program = program(own)?;
        let (streams, stdio) = Streams::new(wanted).map_err(ContainerError::Streams)?;
        let launch = Launch {
            action: Action::Add(path),
            folder: container.folder.clone(),
            stdio,
            confinement,
        };
        let process = Process::new(
            Some(exec.clone()),
            State::Added,
            streams,
            Prepared::Launch(Box::new(launch)),
        );
        lock(&container.processes).insert(Some(exec), Arc::new(process));
        Ok(())
    }

    /// Starts a created container's process or an added one; the reply, its pid, comes when the program runs.
    pub(crate) async fn start(
        self: &Arc<Self>,
        id: &ContainerId,
        exec: Option<&ExecId>,
    ) -> Result<i32, ContainerError> {
        let container = self.container(id)?;
        let process = container.process(exec)?;
        let _changing = container.changing.lock().await;
        let state = process.state();
        let prepared = match state {
            State::Created { .. } | State::Added => process.take_prepared(),
            _ => None,
        };
        let Some(prepared) = prepared else {
            return Err(container.wrong_state("start", exec, state));
        };
        process.set_state(State::Starting { pid: state.alive() });
        let result = match prepared {
            Prepared::Waiting(report) => match state.alive() {
                Some(pid) => match launch::signal_start(&container.folder) {
                    Ok(()) => report.executed().await.map(|()| pid),
                    Err(error) => Err(error),
                },
                None => Err(LaunchError::Died),
            },
            Prepared::Launch(launch) => {
                if let Action::Add(path) = &launch.action {
                    let path = path.clone();
                    let result = self.start_added(&container, &process, *launch).await;
                    let _ = fs::remove_file(path);
                    result
                } else {
                    self.start_added(&container, &process, *launch).await
                }
            }
        };
        match result {
            Ok(pid) => {
                process.set_state(State::Running { pid });
                Ok(pid)
            }
            Err(error) => {
                process.set_state(State::Failed);
                process.release();
                Err(error.into())
            }
        }
    }

    async fn start_added(
        self: &Arc<Self>,
        container: &Arc<Container>,
        process: &Arc<Process>,
        launch: Launch,
    ) -> Result<i32, LaunchError> {
        let launched = launch::launch(launch, &self.reaper).await?;
        let pid = launched.pid;
        process.set_state(State::Starting { pid: Some(pid) });
        if let Some(terminal) = launched.terminal {
            let terminal = descriptor(terminal).map_err(|source| LaunchError::Io {
                what: "use the terminal",
                source,
            })?;
            process.set_terminal(Some(terminal));
        }
        self.watch_exit(container, process.clone(), pid, launched.exited);
        launched.report.executed().await?;
        Ok(pid)
    }

    /// Tells the host of the process's end, unless the answer to its start did.
    fn watch_exit(
        self: &Arc<Self>,
        container: &Arc<Container>,
        process: Arc<Process>,
        pid: i32,
        exited: oneshot::Receiver<ExitStatus>,
    ) {
        let (events, container) = (self.events.clone(), container.clone());
        tokio::spawn(async move {
            let Ok(status) = exited.await else { return };
            process
                .until(|state| !matches!(state, State::Starting { .. }))
                .await;
            if process.state() == State::Failed {
                return;
            }
            container.report_oom(&events);
            if container.shares_pids && process.exec.is_none() {
                clean(container.cgroup.kill());
            }
            process.set_state(State::Exited { pid, status });
            events.exited(ProcessExited {
                container_id: container.id.to_string(),
                exec_id: process
                    .exec
                    .as_ref()
                    .map(ToString::to_string)
                    .unwrap_or_default(),
                pid: unsigned(pid),
                exit_status: status,
                ..ProcessExited::default()
            });
        });
    }

    fn watch_memory(&self, container: &Arc<Container>) {
        let changes = match container.cgroup.memory_events() {
            Ok(changes) => changes,
            Err(error) => {
                crate::log!("cannot watch the memory of {}: {error}", container.id);
                return;
            }
        };
        let (events, container) = (self.events.clone(), Arc::downgrade(container));
        tokio::spawn(async move {
            while changes.next().await.is_ok() {
                let Some(container) = container.upgrade() else {
                    return;
                };
                container.report_oom(&events);
            }
        });
    }

    /// Removes an ended process, or a container whose first process has ended or was never started. The reply is
    /// its pid and exit status.
    pub(crate) async fn delete(
        &self,
        id: &ContainerId,
        exec: Option<&ExecId>,
    ) -> Result<(u32, ExitStatus), ContainerError> {
        let container = self.container(id)?;
        let changing = container.changing.lock().await;
        // Another delete may have been waited for.
        let process = self.process(id, exec)?;
        let state = process.state();
        if matches!(state, State::Running { .. } | State::Starting { .. }) {
            return Err(container.wrong_state("delete", exec, state));
        }
        if let Some(exec) = exec {
            process.release();
            // A process that it has left behind may hold its outputs open: others need not wait for that.
            drop(changing);
            container.forget(exec, &process).await;
        } else {
            container.tear_down().await;
            lock(&self.containers).remove(id);
        }
        Ok(match process.state() {
            State::Exited { pid, status } => (unsigned(pid), status),
            _ => (0, 0),
        })
    }

    /// Ends every container, for the power-off.
    pub(crate) async fn end_all(&self) {
        let containers: Vec<_> = lock(&self.containers).values().cloned().collect();
        let all = Cgroup::all();
        clean(all.kill());
        clean(all.empty().await);
        for container in containers.into_iter().rev() {
            lock(&container.mounted).unmount();
        }
        lock(&self.lasting).unmount();
    }
}

/// What a container is launched with.
struct Parts {
    folder: PathBuf,
    mounted: Mounted,
    files: CopiedFiles,
    guest: GuestSpec,
}

/// A program as it comes over the wire.
pub(crate) type AgentProgramField = EnumOrUnknown<AgentProgram>;

fn program(field: AgentProgramField) -> Result<Option<Program>, ContainerError> {
    let program = field.enum_value();
    program
        .map(Program::from_wire)
        .map_err(|number| ContainerError::NoProgram { number })
}

/// Says what a clean-up step could not do, and goes on.
fn clean<E: std::error::Error>(result: Result<(), E>) {
    if let Err(error) = result {
        crate::log!("{}", WithCauses(&error));
    }
}

fn remove_folder(folder: &std::path::Path) {
    if let Err(error) = fs::remove_dir_all(folder) {
        crate::log!("cannot remove {}: {error}", folder.display());
    }
}

pub(crate) fn wanted(stdio: Option<&sandbox_protocol::agent::Stdio>) -> Wanted {
    Wanted {
        stdin: stdio.is_some_and(|stdio| stdio.stdin),
        stdout: stdio.is_some_and(|stdio| stdio.stdout),
        stderr: stdio.is_some_and(|stdio| stdio.stderr),
        terminal: stdio.is_some_and(|stdio| stdio.terminal),
    }
}

fn unsigned(pid: i32) -> u32 {
    u32::try_from(pid).unwrap_or(0)
}

/// Sets kernel parameters that all containers of the guest share.
fn set_parameters(parameters: &[(String, String)]) -> Result<(), ContainerError> {
    for (key, value) in parameters {
        let relative = match key.contains('/') {
            true => key.clone(),
            false => key.replace('.', "/"),
        };
        let plain = relative
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..");
        let path = PathBuf::from("/proc/sys").join(relative);
        let result = match plain {
            true => fs::write(&path, value),
            false => Err(std::io::ErrorKind::InvalidInput.into()),
        };
        result.map_err(|source| ContainerError::Sysctl {
            key: key.clone(),
            value: value.clone(),
            source,
        })?;
    }
    Ok(())
}
