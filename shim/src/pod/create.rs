//! Making a container, and with the first one the machine.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::events::task::{TaskCreate, TaskIO};
use sandbox_protocol::GUEST_RUN_DIR;
use sandbox_protocol::agent::{self, CreateContainerRequest, SharedNamespace, Stdio};
use sandbox_protocol::limits::CREATE_TIMEOUT;
use sandbox_runtime::cgroup::Places;
use sandbox_runtime::rootfs::window::MappedLayer;
use sandbox_runtime::rootfs::{DeviceAllocator, plan_rootfs};
use sandbox_runtime::share::{SharePlan, SharedEntry};
use sandbox_runtime::{BlockDevice, Config, EarlyPlan, Sandbox, SandboxPlan, host};
use sandbox_types::timeline::Phase;
use sandbox_types::{ContainerId, ExecId, WithCauses};

use super::volumes::VolumeLocks;
use super::{Container, Contents, Pod, Process, ProcessKey, keep_time};
use crate::bootstrap;
use crate::caller::Caller;
use crate::error::TaskError;
use crate::hooks::{Hooks, When, due};
use crate::program;
use crate::spec::BundleSpec;
use crate::spec::binds::{Binds, SHM};
use crate::spec::check::{self, Namespaces};
use crate::spec::disks;
use crate::spec::memory_volumes::MemoryVolumes;
use crate::spec::pod_config::{self, add_mount, has_mount};
use crate::spec::role::Role;
use crate::start;
use crate::stdio::{OpenStdio, StdioPaths};
use crate::sweep;

/// Which streams the agent is to keep for us.
pub(super) fn wanted(stdio: &StdioPaths) -> Stdio {
    Stdio {
        stdin: !stdio.stdin.is_empty(),
        stdout: !stdio.stdout.is_empty(),
        stderr: !stdio.stderr.is_empty() && !stdio.terminal,
        terminal: stdio.terminal,
        ..Default::default()
    }
}

/// A container that is asked for.
#[derive(Clone, Copy)]
struct Draft<'a> {
    id: &'a ContainerId,
    bundle: &'a Path,
    request: &'a CreateTaskRequest,
    /// The bundle of its sandbox, where that was made through the sandbox service.
    sandbox: Option<&'a Path>,
}

/// What a container is made of.
struct GuestParts {
    /// What stays mounted for the pod.
    lasting: Vec<agent::Mount>,
    mounts: Vec<agent::Mount>,
    root_path: String,
    files: Vec<agent::File>,
    block: Vec<BlockDevice>,
    layers: Vec<MappedLayer>,
    shared: Vec<SharedEntry>,
    shm_bytes: Option<u64>,
    /// Volumes that the agent may fill, on the host.
    filled: Vec<PathBuf>,
}

/// Everything that the agent needs to make it, and that follows.
struct Parts {
    spec: BundleSpec,
    /// What it names, which the guest's specification may have no more.
    places: Places,
    guest: GuestParts,
    joined: Vec<SharedNamespace>,
    open: OpenStdio,
    hooks: Hooks,
}

/// The shared memory of a pod whose engine leaves it to us, in bytes: what containerd gives the others.
const SHM_BYTES: u64 = 64 << 20;
const SHM_OPTIONS: &[&str] = &["rbind", "nosuid", "nodev", "noexec"];

/// Where the shared memory is that a container of a pod has, or shares with others.
fn shm_path(owner: &ContainerId) -> String {
    format!("{GUEST_RUN_DIR}/containers/{owner}/shm")
}

impl GuestParts {
    /// Has the agent make the shared memory at `path`, when it is used. Says whether it is.
    fn add_own_shm(&mut self, path: Option<String>) -> bool {
        let (Some(target), Some(bytes)) = (path, self.shm_bytes) else {
            return false;
        };
        let mut options = vec!["nosuid", "nodev", "noexec", "mode=1777"];
        let size = format!("size={bytes}");
        if bytes > 0 {
            options.push(&size);
        }
        let mut step = agent::Mount {
            fstype: "tmpfs".to_owned(),
            options: options.into_iter().map(str::to_owned).collect(),
            target,
            ..Default::default()
        };
        step.set_literal("tmpfs".to_owned());
        self.mounts.push(step);
        true
    }
}

impl Draft<'_> {
    fn stdio(&self) -> StdioPaths {
        StdioPaths {
            stdin: self.request.stdin.clone(),
            stdout: self.request.stdout.clone(),
            stderr: self.request.stderr.clone(),
            terminal: self.request.terminal,
        }
    }

    /// Where the configuration is that its options name, where the start was told none.
    fn config_path(&self) -> Result<Option<PathBuf>, TaskError> {
        let Some(options) = self.request.options.as_ref() else {
            return Ok(None);
        };
        let path = bootstrap::config_path(&options.type_url, &options.value);
        let path = path.map_err(TaskError::Options)?;
        Ok(path.filter(|_| !start::is_told_config(self.bundle)))
    }

    /// Plans its files, and names them in the specification as the guest has them.
    fn plan(
        &self,
        spec: &mut BundleSpec,
        devices: &mut DeviceAllocator,
        shm: Option<&str>,
        volumes: Option<&mut MemoryVolumes>,
    ) -> Result<GuestParts, TaskError> {
        let mut share = SharePlan::new(self.id);
        // The one that holds the namespaces needs none.
        if let Some(bundle) = self.sandbox.filter(|bundle| *bundle != self.bundle) {
            pod_config::mount_files(&mut spec.value, bundle);
        }
        let binds = Binds {
            container: self.id,
            bundle: self.bundle,
            share: &mut share,
            devices,
            shm,
            volumes,
        };
        let mut resolved = binds.resolve(&mut spec.value)?;
        // After the binds of the host's: each disk becomes one of the guest's.
        let disks = disks::resolve(&mut spec.value, self.id, devices)?;
        if let (Some(shm), true) = (shm, self.sandbox.is_some())
            && !has_mount(&spec.value, SHM)
        {
            add_mount(&mut spec.value, SHM, Path::new(shm), SHM_OPTIONS);
            resolved.shm_bytes = Some(SHM_BYTES);
        }
        let rootfs = plan_rootfs(
            self.id,
            &self.request.rootfs,
            devices,
            &mut share,
            &spec.root(self.bundle),
        )?;
        Ok(GuestParts {
            lasting: resolved.lasting,
            // Everything else may be on what is shared.
            mounts: share
                .guest_mount()
                .into_iter()
                .chain(rootfs.guest_mounts)
                .chain(disks.guest_mounts)
                .chain(resolved.parts)
                .collect(),
            root_path: rootfs.root_path,
            files: resolved.files,
            block: [rootfs.block, disks.block].concat(),
            layers: rootfs.layers,
            shared: share.into_entries(),
            shm_bytes: resolved.shm_bytes,
            filled: resolved.filled,
        })
    }
}

impl Pod {
    /// Makes the container, up to the point where its process waits to be started; the first of a pod with the machine. If its caller is
    /// gone by then, it is undone: nobody has learnt that it is there. containerd that was started again meanwhile has taken it for one that was
    /// never made, and does not ask once more.
    ///
    /// # Errors
    /// [`TaskError`]; nothing of the container, and no machine that was made for it, is left then.
    pub(crate) async fn create(
        self: &Arc<Self>,
        request: CreateTaskRequest,
        caller: &Caller,
    ) -> Result<u32, TaskError> {
        let id = ContainerId::new(request.id.as_str())?;
        {
            let mut state = self.state();
            if state.containers.contains_key(&id) || !state.creating.insert(id.clone()) {
                return Err(TaskError::AlreadyExists {
                    what: format!("container {id}"),
                });
            }
        }
        let created = {
            let _making = self.making.lock().await;
            self.create_reserved(&id, &request).await
        };
        let unwanted = {
            let mut state = self.state();
            state.creating.remove(&id);
            // It is the container's now, or nobody's.
            state.claimed.remove(&id);
            state.creating.is_empty() && std::mem::take(&mut state.unwanted)
        };
        match created {
            Ok(_) if unwanted || caller.is_gone() => {
                tracing::info!("container {id} was created, and nobody waits for it any more");
                let key = ProcessKey::first(id);
                let deleted = self.delete(&key).await;
                if unwanted {
                    self.end();
                }
                deleted.and(Err(TaskError::Unwanted))
            }
            Ok(pid) => {
                self.announce_create(&request, pid);
                Ok(pid)
            }
            Err(error) => {
                tracing::error!("container {id} was not created: {}", WithCauses(&error));
                self.release_early().await;
                if unwanted {
                    self.end();
                }
                Err(error)
            }
        }
    }

    /// Boots the machine with the container that holds the namespaces of a pod made through the sandbox service.
    ///
    /// # Errors
    /// [`TaskError`]; the machine may be left, for the caller to stop.
    pub(super) async fn create_holder(
        self: &Arc<Self>,
        id: &ContainerId,
        spec: BundleSpec,
        request: &CreateTaskRequest,
    ) -> Result<(), TaskError> {
        let _making = self.making.lock().await;
        let draft = Draft {
            id,
            bundle: Path::new(&request.bundle),
            request,
            sandbox: Some(Path::new(&request.bundle)),
        };
        self.make_first(draft, spec, &Role::Sandbox).await?;
        Ok(())
    }

    async fn create_reserved(
        self: &Arc<Self>,
        id: &ContainerId,
        request: &CreateTaskRequest,
    ) -> Result<u32, TaskError> {
        let bundle = PathBuf::from(&request.bundle);
        let spec = BundleSpec::read(&bundle)?;
        let role = spec.role()?;
        let of_service = self.sandbox_bundle();
        let draft = Draft {
            id,
            bundle: &bundle,
            request,
            sandbox: of_service.as_deref(),
        };
        let is_first = self.state().sandbox.is_none();
        let made = match (&role, is_first) {
            (Role::Alone | Role::Sandbox, true) => self.make_first(draft, spec, &role).await,
            (Role::Member(pod), false) if *pod == self.id => self.make_member(draft, spec).await,
            (Role::Member(pod), _) => Err(TaskError::NoPod { pod: pod.clone() }),
            (Role::Alone | Role::Sandbox, false) => Err(TaskError::Unsupported {
                what: "a container that is not of this pod",
            }),
        };
        match made {
            Ok(pid) => Ok(pid),
            Err(error) => {
                let error = self.reason_for(error).await;
                self.state().containers.remove(id);
                let sandbox = self.state().sandbox.clone();
                let undone = match sandbox {
                    _ if is_first => self.stop_sandbox().await,
                    Some(sandbox) => sandbox.unshare(id).await.map_err(TaskError::from),
                    None => Ok(()),
                };
                if let Err(error) = undone {
                    tracing::error!("cleaning up after that: {}", WithCauses(&error));
                }
                Err(error)
            }
        }
    }

    /// Boots the machine, and makes in it the container that it is for or the pod's sandbox.
    async fn make_first(
        self: &Arc<Self>,
        draft: Draft<'_>,
        mut spec: BundleSpec,
        role: &Role,
    ) -> Result<u32, TaskError> {
        let (contents, mut namespaces) = match role {
            Role::Sandbox => (Contents::Pod(draft.id.clone()), Namespaces::of_pod()),
            _ => (Contents::One, Namespaces::default()),
        };
        spec.adapt(&mut namespaces)?;
        if *role == Role::Sandbox {
            for (name, instead) in check::of_the_host(&spec.value) {
                tracing::warn!(
                    "pod {} is to have its host's ({name}), which a virtual machine has not: {instead}",
                    self.id
                );
            }
        }
        let late = self.late_config(&draft).await?;
        if let Some(late) = &late
            && late.run_dir != self.config.run_dir
        {
            let own = late.sandbox_dir(&self.namespace, &self.id);
            tokio::spawn(sweep::sweep(late.clone(), own));
        }
        let config = late.as_ref().unwrap_or(&self.config);
        let EarlyPlan { mut basis, .. } = self.early_plan(&spec, role, draft.bundle, config)?;
        if draft.sandbox.is_some() {
            // A pod of the sandbox service is cleared away by its engine.
            basis.sweep = None;
        }
        // The machine is begun there.
        let places = basis.places.clone();
        let (driver, notice) = host::choose_driver(&basis.config)?;
        if let Some(notice) = notice {
            tracing::warn!("{notice}");
        }
        let mut devices =
            DeviceAllocator::new(driver).with_window(&basis.config, basis.size.memory);
        let network = match spec.network() {
            Some(network) => {
                let count = network.devices()?;
                devices.take_network(count)?;
                (count > 0).then_some(network)
            }
            None => None,
        };
        let shares_later = contents != Contents::One;
        if shares_later {
            devices.take_share()?;
        }
        let shm = shares_later.then(|| shm_path(draft.id));
        let mut volumes = MemoryVolumes::default();
        let of_pod = shares_later.then_some(&mut volumes);
        let mut guest = draft.plan(&mut spec, &mut devices, shm.as_deref(), of_pod)?;
        let has_shm = guest.add_own_shm(shm);
        let plan = SandboxPlan {
            basis,
            bundle: draft.bundle.to_owned(),
            block: std::mem::take(&mut guest.block),
            layers: std::mem::take(&mut guest.layers),
            shared: std::mem::take(&mut guest.shared),
            shares_later,
            network,
        };
        let open = self.open(&draft).await?;
        let hooks = Hooks::of(&spec.spec, draft.id.as_str(), draft.bundle)?;
        let parts = Parts {
            spec,
            places,
            guest,
            joined: Vec::new(),
            open,
            hooks,
        };
        let sandbox = self.boot(plan).await?;
        namespaces.begin(sandbox.monitor_pid());
        {
            let mut state = self.state();
            state.contents = contents;
            state.namespaces = namespaces;
            state.has_shm = has_shm;
            state.volumes = volumes;
        }
        self.make(&sandbox, draft, parts).await
    }

    /// The configuration that the call names, where the start was told none.
    async fn late_config(&self, draft: &Draft<'_>) -> Result<Option<Config>, TaskError> {
        let Some(path) = draft.config_path()? else {
            return Ok(None);
        };
        // From now on a `delete` looks where that says.
        self.release_early().await;
        start::late_config(draft.bundle, &path).map_err(|error| TaskError::Config(Box::new(error)))
    }

    /// Adds a container to the running machine.
    async fn make_member(
        self: &Arc<Self>,
        draft: Draft<'_>,
        mut spec: BundleSpec,
    ) -> Result<u32, TaskError> {
        let sandbox = self.sandbox()?;
        let (contents, mut namespaces, has_shm, mut volumes) = {
            let state = self.state();
            (
                state.contents.clone(),
                state.namespaces.clone(),
                state.has_shm,
                state.volumes.clone(),
            )
        };
        let Contents::Pod(holder) = contents else {
            return Err(TaskError::Unsupported {
                what: "a second container in a sandbox that was made for one",
            });
        };
        let joined = spec.adapt(&mut namespaces)?;
        let places = spec.places()?;
        spec.adapt_to_pod();
        // Shared memory is shared exactly when the ipc namespace is.
        let shares_ipc = joined.contains(&"ipc");
        let shm = match shares_ipc {
            true => has_shm.then(|| shm_path(&holder)),
            false => Some(shm_path(draft.id)),
        };
        let mut devices = DeviceAllocator::of_running(sandbox.driver());
        let planned = draft.plan(&mut spec, &mut devices, shm.as_deref(), Some(&mut volumes));
        // What was decided holds for the pod, whatever becomes of this container.
        self.state().volumes = volumes;
        let mut guest = planned?;
        if !shares_ipc {
            guest.add_own_shm(shm);
        }
        let joined = joined
            .into_iter()
            .map(|kind| SharedNamespace {
                kind: kind.to_owned(),
                container_id: holder.to_string(),
                ..Default::default()
            })
            .collect();
        self.make_room(&sandbox, draft.id, spec.demand()).await?;
        let open = self.open(&draft).await?;
        let hooks = Hooks::of(&spec.spec, draft.id.as_str(), draft.bundle)?;
        sandbox.share(std::mem::take(&mut guest.shared)).await?;
        let parts = Parts {
            spec,
            places,
            guest,
            joined,
            open,
            hooks,
        };
        let pid = self.make(&sandbox, draft, parts).await?;
        self.place(&sandbox).await;
        Ok(pid)
    }

    /// Opens the caller's ends of the first process's streams.
    async fn open(&self, draft: &Draft<'_>) -> Result<OpenStdio, TaskError> {
        let key = ProcessKey::first(draft.id.clone());
        Ok(draft.stdio().open(&self.identity(&key)).await?)
    }

    /// Has the agent make the container, and joins its streams.
    async fn make(
        &self,
        sandbox: &Arc<Sandbox>,
        draft: Draft<'_>,
        parts: Parts,
    ) -> Result<u32, TaskError> {
        let Parts {
            spec,
            places,
            guest,
            joined,
            open,
            hooks,
        } = parts;
        let id = draft.id;
        let stdio = draft.stdio();
        let create = CreateContainerRequest {
            container_id: id.to_string(),
            spec_json: spec.to_json()?,
            lasting_mounts: guest.lasting,
            mounts: guest.mounts,
            root_path: guest.root_path,
            stdio: Some(wanted(&stdio)).into(),
            files: guest.files,
            shared_namespaces: joined,
            program: program::of_container(spec.spec.annotations().as_ref())?.into(),
            ..Default::default()
        };
        let pid = sandbox.monitor_pid();
        let made = async {
            if hooks.has_last() {
                sandbox.note_bundle(draft.bundle)?;
            }
            hooks.begin(draft.bundle).map_err(TaskError::NoteHooks)?;
            hooks.run(When::Creating, Some(pid)).await?;
            {
                let _filled = self.lock_volumes(&guest.filled).await?;
                sandbox.agent().create_container(&create).await?;
            }
            sandbox.mark(Phase::ContainerCreated);
            let mut process = Process::new(stdio);
            self.attach(sandbox, id, None, open, &mut process).await?;
            Ok(process)
        };
        let process = match made.await {
            Ok(process) => process,
            Err(error) => {
                self.forget_in_guest(sandbox, id, None).await;
                // What the first hooks made, the last ones undo (OCI runtime spec, "Lifecycle").
                due::run(draft.bundle).await;
                return Err(error);
            }
        };
        let container = Container {
            bundle: draft.bundle.to_owned(),
            hooks,
            demand: spec.demand(),
            places,
            oom_score: spec.oom_score(),
            init: process,
            execs: std::collections::HashMap::new(),
            oom_told: None,
        };
        let score = {
            let mut state = self.state();
            state.containers.insert(id.clone(), container);
            state.oom_score()
        };
        if let Some(score) = score
            && let Err(error) = sandbox.set_oom_score(score)
        {
            tracing::warn!(
                "pod {}: its machine does not get the oom_score_adj of its containers, {score}: {error}",
                self.id
            );
        }
        Ok(pid)
    }

    /// Has no other sandbox fill these volumes, unless the shim is told to end meanwhile.
    async fn lock_volumes(&self, volumes: &[PathBuf]) -> Result<VolumeLocks, TaskError> {
        let mut closing = self.closing.subscribe();
        tokio::select! {
            // Whoever has one answers within that time.
            locks = VolumeLocks::take(volumes, CREATE_TIMEOUT) => Ok(locks?),
            // The sender is the pod's own.
            _ = closing.wait_for(|closing| *closing) => Err(TaskError::Unwanted),
        }
    }

    /// Has the agent remove what may be there of a process that was not made after all: else its name would be taken. Nothing of it may be
    /// there, and all of it goes with the machine.
    pub(super) async fn forget_in_guest(
        &self,
        sandbox: &Sandbox,
        container: &ContainerId,
        exec: Option<&ExecId>,
    ) {
        let key = ProcessKey {
            container: container.clone(),
            exec: exec.cloned(),
        };
        if self.holds_machine(&key) {
            return;
        }
        let removed = sandbox.agent().delete_process(container, exec).await;
        if let Err(error) = removed {
            tracing::debug!(
                "{key} was not removed from the guest: {}",
                WithCauses(&error)
            );
        }
    }

    async fn boot(self: &Arc<Self>, plan: SandboxPlan) -> Result<Arc<Sandbox>, TaskError> {
        let size = plan.basis.size;
        let config = plan.basis.config.clone();
        self.state().died = None;
        self.death.send_replace(false);
        let head_start = self.state().head_start.take();
        let mut closing = self.closing.subscribe();
        let unwanted = async {
            // The sender is the pod's own.
            let _ = closing.wait_for(|closing| *closing).await;
        };
        let (sandbox, events) = Sandbox::start_unless(plan, head_start, unwanted).await?;
        let sandbox = Arc::new(sandbox);
        {
            let mut state = self.state();
            state.sandbox = Some(Arc::clone(&sandbox));
            state.size = Some(size);
            state.config = Some(config);
        }
        tokio::spawn(Arc::clone(self).follow(events));
        tokio::spawn(keep_time(Arc::downgrade(&sandbox)));
        Ok(sandbox)
    }

    fn announce_create(&self, request: &CreateTaskRequest, pid: u32) {
        let io = TaskIO {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
            ..Default::default()
        };
        self.publisher.send(&TaskCreate {
            container_id: request.id.clone(),
            bundle: request.bundle.clone(),
            rootfs: request.rootfs.clone(),
            io: Some(io).into(),
            pid,
            ..Default::default()
        });
    }
}
