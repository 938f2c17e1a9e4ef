//! A sandbox: one virtual machine with its agent.

use std::path::PathBuf;

use sandbox_protocol::agent::StreamKind;
use sandbox_types::timeline::Mark;
use sandbox_types::{ContainerId, ExecId, MemMib, SandboxId, VcpuCount};
use tokio::sync::mpsc;

use crate::agent::AgentClient;
use crate::config::{Config, ConfigError};
use crate::driver::Driver;
use crate::event::SandboxEvent;
use crate::host::HostError;
use crate::rootfs::HostMount;
use crate::vsock::StreamError;

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

/// A directory of the host for the guest, over virtio-fs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// The directory.
    pub directory: PathBuf,
    /// By what the guest mounts it, at most 36 bytes.
    pub tag: String,
    /// Refuse writes, on the host's side.
    pub read_only: bool,
}

/// What to make a sandbox of.
#[derive(Debug, Clone)]
pub struct SandboxPlan {
    /// Its identifier.
    pub id: SandboxId,
    /// The namespace (containerd's) that the identifier is unique in.
    pub namespace: String,
    /// The configuration.
    pub config: Config,
    /// Guest memory.
    pub memory: MemMib,
    /// Processors.
    pub vcpus: VcpuCount,
    /// The bundle's folder.
    pub bundle: PathBuf,
    /// Disks, beside the guest's own root.
    pub block: Vec<BlockDevice>,
    /// Shared directories.
    pub shares: Vec<Share>,
    /// Mounted on the host before the shares are served, unmounted when the sandbox has ended.
    pub host_mounts: Vec<HostMount>,
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
}

/// A booted virtual machine whose agent is ready.
#[derive(Debug)]
pub struct Sandbox {
    agent: AgentClient,
    driver: Driver,
}

impl Sandbox {
    /// Makes the virtual machine and waits until its agent is ready. Dropping the future, or the sandbox, ends the
    /// machine and removes what was made for it.
    ///
    /// # Errors
    /// [`SandboxError`]; nothing of the sandbox is left then.
    pub async fn start(
        plan: SandboxPlan,
    ) -> Result<(Self, mpsc::Receiver<SandboxEvent>), SandboxError> {
        let _ = plan;
        unimplemented!()
    }

    /// Calls to the agent.
    #[must_use]
    pub fn agent(&self) -> &AgentClient {
        &self.agent
    }

    /// Which driver runs it.
    #[must_use]
    pub fn driver(&self) -> Driver {
        self.driver
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
    ) -> Result<tokio::net::UnixStream, StreamError> {
        let _ = (container, exec, kind);
        unimplemented!()
    }

    /// The process identifier of the monitor (or QEMU).
    #[must_use]
    pub fn monitor_pid(&self) -> u32 {
        unimplemented!()
    }

    /// The timeline so far.
    #[must_use]
    pub fn marks(&self) -> Vec<Mark> {
        unimplemented!()
    }

    /// Adds a mark with the present time to the timeline; the first of its phase counts.
    pub fn mark(&self, phase: sandbox_types::timeline::Phase) {
        let _ = phase;
        unimplemented!()
    }

    /// Asks the agent to shut down, waits for it (bounded), kills what is left, and removes everything that was
    /// made for the sandbox. Idempotent.
    ///
    /// # Errors
    /// [`SandboxError`] when something could not be removed.
    pub async fn stop(&self) -> Result<(), SandboxError> {
        unimplemented!()
    }
}
