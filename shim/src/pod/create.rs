//! Making a container, and with the first one the machine.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::events::task::{TaskCreate, TaskIO};
use sandbox_protocol::agent::{self, CreateContainerRequest, Stdio};
use sandbox_runtime::rootfs::{DeviceAllocator, plan_rootfs};
use sandbox_runtime::share::SharePlan;
use sandbox_runtime::{Sandbox, SandboxPlan, host, network};
use sandbox_types::ContainerId;
use sandbox_types::timeline::Phase;

use super::{Container, Pod, Process, ProcessKey, keep_time};
use crate::error::{TaskError, chain};
use crate::hooks::{Hooks, When};
use crate::program;
use crate::spec::BundleSpec;
use crate::spec::binds::Binds;
use crate::stdio::StdioPaths;

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

/// What a container is made of in the guest.
struct GuestParts {
    mounts: Vec<agent::Mount>,
    root_path: String,
    files: Vec<agent::File>,
}

impl Pod {
    /// Boots the machine and makes the container, up to the point where its process waits to be started.
    ///
    /// # Errors
    /// [`TaskError`]; nothing of the container, and no machine, is left then.
    pub(crate) async fn create(
        self: &Arc<Self>,
        request: CreateTaskRequest,
    ) -> Result<u32, TaskError> {
        let id = ContainerId::new(request.id.as_str())?;
        {
            let mut state = self.state();
            if state.containers.contains_key(&id) {
                return Err(TaskError::AlreadyExists {
                    what: format!("container {id}"),
                });
            }
            if state.creating || state.sandbox.is_some() {
                return Err(TaskError::Unsupported {
                    what: "a second container in one pod",
                });
            }
            state.creating = true;
            state.died = None;
        }
        let created = self.create_reserved(&id, &request).await;
        self.state().creating = false;
        match created {
            Ok(pid) => {
                self.announce_create(&request, pid);
                Ok(pid)
            }
            Err(error) => {
                let error = self.reason_for(error).await;
                tracing::error!("container {id} was not created: {}", chain(&error));
                self.state().containers.remove(&id);
                if let Err(error) = self.stop_sandbox().await {
                    tracing::error!("cleaning up after that: {}", chain(&error));
                }
                Err(error)
            }
        }
    }

    async fn create_reserved(
        self: &Arc<Self>,
        id: &ContainerId,
        request: &CreateTaskRequest,
    ) -> Result<u32, TaskError> {
        let bundle = PathBuf::from(&request.bundle);
        let stdio = StdioPaths {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let mut spec = BundleSpec::read(&bundle)?;
        spec.adapt()?;
        let program = program::of_container(spec.spec.annotations().as_ref())?;
        let hooks = Hooks::of(&spec.spec, id.as_str(), &bundle)?;
        let key = ProcessKey {
            container: id.clone(),
            exec: None,
        };
        let open = stdio.open(&self.identity(&key)).await?;
        let (sandbox, guest) = self.boot(id, &bundle, &mut spec, request).await?;
        let create = CreateContainerRequest {
            container_id: id.to_string(),
            spec_json: spec.to_json()?,
            mounts: guest.mounts,
            root_path: guest.root_path,
            stdio: Some(wanted(&stdio)).into(),
            files: guest.files,
            program: program.into(),
            ..Default::default()
        };
        let pid = sandbox.monitor_pid();
        let made = async {
            hooks.run(When::Creating, Some(pid)).await?;
            sandbox.agent().create_container(&create).await?;
            sandbox.mark(Phase::ContainerCreated);
            let mut process = Process::new(stdio);
            self.attach(&sandbox, id, None, open, &mut process).await?;
            Ok(process)
        };
        let process = match made.await {
            Ok(process) => process,
            Err(error) => {
                // What the first hooks made, the last ones undo (OCI runtime spec, "Lifecycle").
                hooks.run_all(When::Stopped, None).await;
                return Err(error);
            }
        };
        let container = Container {
            bundle,
            hooks,
            init: process,
            execs: std::collections::HashMap::new(),
        };
        self.state().containers.insert(id.clone(), container);
        Ok(pid)
    }

    async fn boot(
        self: &Arc<Self>,
        id: &ContainerId,
        bundle: &Path,
        spec: &mut BundleSpec,
        request: &CreateTaskRequest,
    ) -> Result<(Arc<Sandbox>, GuestParts), TaskError> {
        let (driver, notice) = host::choose_driver(&self.config)?;
        if let Some(notice) = notice {
            tracing::warn!("{notice}");
        }
        let mut devices = DeviceAllocator::new(driver);
        let mut network = spec.network_namespace().map(Path::to_owned);
        if let Some(path) = &network {
            let count = network::devices(path)?;
            devices.take_network(count)?;
            network = network.filter(|_| count > 0);
        }
        let mut share = SharePlan::new(id);
        let binds = Binds {
            container: id,
            bundle,
            share: &mut share,
            devices: &mut devices,
        };
        let files = binds.resolve(&mut spec.value)?;
        let rootfs = plan_rootfs(id, &request.rootfs, &mut devices, &mut share, bundle)?;
        let guest = GuestParts {
            // Everything else may be on what is shared.
            mounts: share
                .guest_mount()
                .into_iter()
                .chain(rootfs.guest_mounts)
                .collect(),
            root_path: rootfs.root_path,
            files,
        };
        let (memory, vcpus) = spec.machine(&self.config)?;
        let plan = SandboxPlan {
            id: self.id.clone(),
            namespace: self.namespace.clone(),
            config: self.config.clone(),
            memory,
            vcpus,
            bundle: bundle.to_owned(),
            block: rootfs.block,
            shared: share.into_entries(),
            network,
        };
        let (sandbox, events) = Sandbox::start(plan).await?;
        let sandbox = Arc::new(sandbox);
        {
            let mut state = self.state();
            state.sandbox = Some(Arc::clone(&sandbox));
            state.size = Some((memory, vcpus));
        }
        tokio::spawn(Arc::clone(self).follow(events));
        tokio::spawn(keep_time(Arc::downgrade(&sandbox)));
        Ok((sandbox, guest))
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
