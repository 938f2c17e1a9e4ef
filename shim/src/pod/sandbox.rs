//! A pod that is made through the sandbox service: its machine first, then its containers through the task service.
//!
//! ```text
//!            create             start             stop, or the machine's death
//!  (nothing) ------> Created -----------> Ready --------------------> Ended
//! ```
//!
//! Namespaces need a process to hold them, so the machine gets a first container that is the agent's own `pause`, of the
//! sandbox's name. For the other containers it is what the CRI plugin's sandbox container is.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::types::mount::Mount;
use oci_spec::runtime::Spec;
use sandbox_protocol::extensions::{PROGRAM_ANNOTATION, PROGRAM_PAUSE};
use sandbox_runtime::MachineSize;
use sandbox_types::{ContainerId, WithCauses};
use serde_json::json;
use tokio::sync::watch;

use super::{Pod, ProcessKey};
use crate::caller::Caller;
use crate::delete::KILLED;
use crate::error::TaskError;
use crate::lifecycle::Exit;
use crate::spec::pod_config::PodConfig;
use crate::spec::{BundleSpec, SpecError};

/// What the service is told of a sandbox that is to be made.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    /// Its bundle.
    pub(crate) bundle: PathBuf,
    /// Its annotations.
    pub(crate) annotations: HashMap<String, String>,
    /// The path of its network namespace; none when it is empty.
    pub(crate) network: String,
    /// The pod that it is for, when the caller is the CRI plugin.
    pub(crate) config: Option<PodConfig>,
}

/// What the service was told, and where the sandbox is in its life.
pub(super) struct Api {
    wanted: Wanted,
    created_at: SystemTime,
    phase: Phase,
    pid: u32,
    /// Tells the waiting.
    end: watch::Sender<Option<Exit>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Created,
    Starting,
    Ready,
    Ended,
}

/// What is known of a sandbox.
pub(crate) struct View {
    /// Whether containers can be made in it.
    pub(crate) ready: bool,
    /// The machine's process.
    pub(crate) pid: u32,
    /// When it was made.
    pub(crate) created_at: SystemTime,
    /// How it ended.
    pub(crate) end: Option<Exit>,
    /// More, for people.
    pub(crate) info: Vec<(String, String)>,
}

/// A change that the sandbox's phase does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot {action} the sandbox: it {state}")]
pub(crate) struct PhaseError {
    action: &'static str,
    state: &'static str,
}

fn wrong(action: &'static str, phase: Option<Phase>) -> TaskError {
    let state = match phase {
        None => "was not created",
        Some(Phase::Created) => "was not started",
        Some(Phase::Starting) => "is being started",
        Some(Phase::Ready) => "runs already",
        Some(Phase::Ended) => "has ended",
    };
    PhaseError { action, state }.into()
}

/// The specification of the container that holds the namespaces, in the sandbox `id`.
fn holder_spec(id: &str, wanted: &Wanted) -> Result<BundleSpec, serde_json::Error> {
    let mut annotations = wanted.annotations.clone();
    let network = wanted.network.as_str();
    if let Some(config) = &wanted.config {
        annotations.extend(config.annotations());
    }
    annotations.insert(PROGRAM_ANNOTATION.to_owned(), PROGRAM_PAUSE.to_owned());
    let mut value = json!({
        "ociVersion": "1.0.2",
        "annotations": annotations,
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": [PROGRAM_PAUSE],
            "cwd": "/",
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
        },
    });
    if !network.is_empty()
        && let Some(namespaces) = value["linux"]["namespaces"].as_array_mut()
    {
        namespaces.push(json!({"type": "network", "path": network}));
    }
    if let Some(config) = &wanted.config {
        config.apply(id, &mut value);
    }
    let spec: Spec = serde_json::from_value(value.clone())?;
    Ok(BundleSpec { value, spec })
}

impl Pod {
    /// Takes note of a sandbox that is to be made.
    ///
    /// # Errors
    /// [`TaskError::AlreadyExists`] when there is one; [`TaskError::PodFiles`].
    pub(crate) fn create_sandbox(&self, wanted: Wanted) -> Result<(), TaskError> {
        let mut state = self.state();
        if state.api.is_some() || !state.containers.is_empty() || !state.creating.is_empty() {
            return Err(TaskError::AlreadyExists {
                what: format!("sandbox {}", self.id),
            });
        }
        if let Some(config) = &wanted.config {
            let written = config.write_files(&wanted.bundle);
            written.map_err(TaskError::PodFiles)?;
        }
        state.api = Some(Api {
            wanted,
            created_at: SystemTime::now(),
            phase: Phase::Created,
            pid: 0,
            end: watch::Sender::new(None),
        });
        Ok(())
    }

    /// Boots the machine. Returns its process, and when the sandbox was created. If its caller is gone by then it is undone, as a container
    /// is: nobody has learnt that it runs.
    ///
    /// # Errors
    /// [`TaskError`] unless it was created and not yet started, or when the machine does not come up, or is not wanted any more.
    pub(crate) async fn start_sandbox(
        self: &Arc<Self>,
        caller: &Caller,
    ) -> Result<(u32, SystemTime), TaskError> {
        let (bundle, spec, created_at) = {
            let mut state = self.state();
            match &mut state.api {
                Some(api) if api.phase == Phase::Created => {
                    api.phase = Phase::Starting;
                    let spec = holder_spec(self.id.as_str(), &api.wanted);
                    (api.wanted.bundle.clone(), spec, api.created_at)
                }
                other => {
                    return Err(wrong("start", other.as_ref().map(|api| api.phase)));
                }
            }
        };
        let started = self.start_holder(bundle, spec).await;
        match started.and_then(|pid| self.started_sandbox(pid, caller)) {
            Ok(pid) => Ok((pid, created_at)),
            Err(error) => {
                if let Err(error) = self.stop_sandbox().await {
                    tracing::error!("cleaning up: {}", WithCauses(&error));
                }
                self.state().containers.clear();
                self.sandbox_ended(KILLED);
                Err(error)
            }
        }
    }

    /// The machine has come up: it is ready, if it is still wanted.
    fn started_sandbox(&self, pid: u32, caller: &Caller) -> Result<u32, TaskError> {
        if caller.is_gone() || *self.closing.borrow() {
            return Err(TaskError::Unwanted);
        }
        match &mut self.state().api {
            Some(api) if api.phase == Phase::Starting => {
                api.phase = Phase::Ready;
                api.pid = pid;
                Ok(pid)
            }
            // It has died, or was stopped.
            other => Err(wrong("start", other.as_ref().map(|api| api.phase))),
        }
    }

    async fn start_holder(
        self: &Arc<Self>,
        bundle: PathBuf,
        spec: Result<BundleSpec, serde_json::Error>,
    ) -> Result<u32, TaskError> {
        let id = ContainerId::new(self.id.as_str())?;
        let spec = spec.map_err(|source| SpecError::Malformed {
            what: "the sandbox's own specification".to_owned(),
            field: String::new(),
            source,
        })?;
        let request = CreateTaskRequest {
            id: id.to_string(),
            bundle: bundle.display().to_string(),
            rootfs: vec![Mount {
                type_: "tmpfs".to_owned(),
                source: "tmpfs".to_owned(),
                options: ["mode=0755", "size=64k", "nosuid"]
                    .map(str::to_owned)
                    .into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        self.create_holder(&id, spec, &request).await?;
        let key = ProcessKey::first(id);
        self.start(&key).await
    }

    /// The sandbox's bundle, where it was made through the service: there its engine leaves to us what it gives the containers of
    /// other pods.
    pub(super) fn sandbox_bundle(&self) -> Option<PathBuf> {
        let state = self.state();
        state.api.as_ref().map(|api| api.wanted.bundle.clone())
    }

    /// Ends the machine and everything in it, also while it is being started. Once more is no error.
    ///
    /// # Errors
    /// [`TaskError`] when something could not be removed.
    pub(crate) async fn end_sandbox(&self) -> Result<(), TaskError> {
        self.close().await?;
        self.all_killed();
        self.sandbox_ended(0);
        Ok(())
    }

    /// The machine is gone. Only the first end counts.
    pub(super) fn sandbox_ended(&self, status: u32) {
        let exit = Exit::now(status);
        if let Some(api) = &mut self.state().api
            && api.phase != Phase::Ended
        {
            api.phase = Phase::Ended;
            api.end.send_replace(Some(exit));
        }
    }

    /// Returns when the sandbox has ended.
    ///
    /// # Errors
    /// [`TaskError`] when none was created.
    pub(crate) async fn wait_sandbox(&self) -> Result<Exit, TaskError> {
        let mut end = match &self.state().api {
            Some(api) => api.end.subscribe(),
            None => return Err(wrong("wait for", None)),
        };
        match end.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(exit)) => Ok(*exit),
            _ => Err(wrong("wait for", Some(Phase::Ended))),
        }
    }

    /// What is known of the sandbox.
    ///
    /// # Errors
    /// [`TaskError`] when none was created.
    pub(crate) fn view_sandbox(&self) -> Result<View, TaskError> {
        let state = self.state();
        let api = state.api.as_ref().ok_or_else(|| wrong("look at", None))?;
        let mut info = Vec::new();
        if let Some(sandbox) = &state.sandbox {
            info.push(("driver".to_owned(), sandbox.driver().to_string()));
            if let Some(notice) = sandbox.emulation_notice() {
                info.push(("emulation".to_owned(), notice.to_owned()));
            }
        }
        if let Some(MachineSize { memory, vcpus }) = state.size {
            info.push(("memory_mib".to_owned(), memory.get().to_string()));
            info.push(("vcpus".to_owned(), vcpus.get().to_string()));
        }
        if let Some(reason) = &state.died {
            info.push(("died".to_owned(), reason.clone()));
        }
        Ok(View {
            ready: api.phase == Phase::Ready,
            pid: api.pid,
            created_at: api.created_at,
            end: *api.end.borrow(),
            info,
        })
    }

    /// Whether the sandbox is alive.
    ///
    /// # Errors
    /// [`TaskError`] unless it runs.
    pub(crate) fn ping_sandbox(&self) -> Result<(), TaskError> {
        let phase = self.state().api.as_ref().map(|api| api.phase);
        match phase {
            Some(Phase::Ready) => self.sandbox().map(drop),
            other => Err(wrong("reach", other)),
        }
    }

    /// What all containers use together.
    ///
    /// # Errors
    /// [`TaskError`] unless it runs.
    pub(crate) async fn sandbox_metrics(&self) -> Result<Metrics, TaskError> {
        self.ping_sandbox()?;
        let ids: Vec<ContainerId> = self.state().containers.keys().cloned().collect();
        let mut sum = Metrics::default();
        for id in ids {
            // One that goes meanwhile uses nothing.
            let Ok(metrics) = self.stats(&id).await else {
                continue;
            };
            crate::stats::add(&mut sum, &metrics);
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Publisher;
    use sandbox_runtime::network::PodNetwork;

    fn pod() -> Arc<Pod> {
        Arc::new(Pod::to_test(Publisher::from_environment("ns")))
    }

    fn create(pod: &Pod) -> Result<(), TaskError> {
        pod.create_sandbox(Wanted::default())
    }

    async fn start(pod: &Arc<Pod>) -> Result<(u32, SystemTime), TaskError> {
        let (caller, _waiting) = Caller::of_call();
        pod.start_sandbox(&caller).await
    }

    fn starting() -> Arc<Pod> {
        let pod = pod();
        create(&pod).unwrap();
        pod.state().api.as_mut().unwrap().phase = Phase::Starting;
        pod
    }

    #[test]
    fn sandbox_that_ended_while_it_was_started_is_not_ready() {
        let (caller, waiting) = Caller::of_call();
        let ended = starting();
        ended.sandbox_ended(0);
        let started = ended.started_sandbox(7, &caller);
        assert!(matches!(started, Err(TaskError::Phase(_))), "{started:?}");
        let closing = starting();
        closing.closing.send_replace(true);
        let started = closing.started_sandbox(7, &caller);
        assert!(matches!(started, Err(TaskError::Unwanted)), "{started:?}");
        let wanted = starting();
        assert_eq!(wanted.started_sandbox(7, &caller).unwrap(), 7);
        assert!(wanted.view_sandbox().unwrap().ready);
        drop(waiting);
        let started = starting().started_sandbox(7, &caller);
        assert!(matches!(started, Err(TaskError::Unwanted)), "{started:?}");
    }

    #[tokio::test]
    async fn sandbox_that_is_being_started_ends_when_its_start_has() {
        let pod = starting();
        let making = pod.making.lock().await;
        let stopping = tokio::spawn({
            let pod = Arc::clone(&pod);
            async move { pod.end_sandbox().await }
        });
        pod.closing.subscribe().wait_for(|it| *it).await.unwrap();
        tokio::task::yield_now().await;
        assert!(!stopping.is_finished());
        assert!(pod.view_sandbox().unwrap().end.is_none());
        drop(making);
        stopping.await.unwrap().unwrap();
        assert!(pod.view_sandbox().unwrap().end.is_some());
    }

    #[tokio::test]
    async fn sandbox_is_created_once_and_before_anything_else() {
        let pod = pod();
        for refused in [
            start(&pod).await.map(drop),
            pod.view_sandbox().map(drop),
            pod.ping_sandbox(),
            pod.wait_sandbox().await.map(drop),
        ] {
            assert!(matches!(refused, Err(TaskError::Phase(_))), "{refused:?}");
        }
        create(&pod).unwrap();
        assert!(matches!(create(&pod), Err(TaskError::AlreadyExists { .. })));
        assert!(!pod.view_sandbox().unwrap().ready);
        assert!(pod.ping_sandbox().is_err());
    }

    #[tokio::test]
    async fn sandbox_that_is_stopped_stays_so_and_tells_who_waits() {
        let pod = pod();
        create(&pod).unwrap();
        pod.end_sandbox().await.unwrap();
        pod.end_sandbox().await.unwrap();
        assert_eq!(pod.wait_sandbox().await.unwrap().status, 0);
        assert!(matches!(start(&pod).await, Err(TaskError::Phase(_))));
    }

    #[tokio::test]
    async fn server_that_is_to_end_while_a_container_is_made_ends_after_it() {
        let pod = pod();
        let making = pod.making.lock().await;
        let request = CreateTaskRequest {
            id: "c1".to_owned(),
            bundle: "/nonexistent".to_owned(),
            ..Default::default()
        };
        let creator = Arc::clone(&pod);
        let (caller, _waiting) = Caller::of_call();
        let creating = tokio::spawn(async move { creator.create(request, &caller).await });
        while pod.state().creating.is_empty() {
            tokio::task::yield_now().await;
        }
        pod.end_when_empty();
        assert!(!*pod.ended.borrow());
        drop(making);
        assert!(creating.await.unwrap().is_err());
        pod.until_ended().await;
    }

    #[test]
    fn holder_runs_the_agents_pause() {
        let mut wanted = Wanted {
            network: "/run/netns/a".to_owned(),
            ..Default::default()
        };
        let spec = holder_spec("p1", &wanted).unwrap();
        let program = crate::program::of_container(spec.spec.annotations().as_ref());
        assert!(program.is_ok());
        assert_eq!(spec.network(), Some(PodNetwork::At("/run/netns/a".into())));
        wanted.network.clear();
        let spec = holder_spec("p1", &wanted).unwrap();
        assert_eq!(spec.network(), None);
    }
}
