//! The size of a running machine. It grows, up to what it was made for, and never gets smaller: what a guest does not use of its
//! memory goes back to the host anyway (free page reporting), and a vCPU without work costs nothing.

use std::path::PathBuf;

use sandbox_types::{MemMib, VcpuCount};

use crate::agent::{AgentClient, AgentError};
use crate::cgroup;
use crate::config::Config;
use crate::driver::{Driver, MemoryControl, MemoryError};

/// Memory and vCPUs of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineSize {
    /// Guest memory.
    pub memory: MemMib,
    /// vCPUs that the guest uses.
    pub vcpus: VcpuCount,
}

/// Why a machine did not become larger.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// The guest did not get more memory.
    #[error("the sandbox's memory cannot be raised from {from} to {to}")]
    Memory {
        /// What it has.
        from: MemMib,
        /// What it was to have.
        to: MemMib,
        /// Why.
        #[source]
        source: MemoryError,
    },
    /// The guest did not bring more vCPUs up.
    #[error("the sandbox's vCPUs cannot be raised from {from} to {to}")]
    Vcpus {
        /// What it has.
        from: VcpuCount,
        /// What it was to have.
        to: VcpuCount,
        /// Why.
        #[source]
        source: AgentError,
    },
}

impl MachineSize {
    /// What a machine that begins with this may become: as much as is configured, but no more vCPUs than the host has processors.
    pub(crate) fn most(self, driver: Driver, config: &Config) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        self.most_of(driver, config, processors)
    }

    fn most_of(self, driver: Driver, config: &Config, processors: usize) -> Self {
        let processors = u64::try_from(processors).unwrap_or(u64::MAX);
        let vcpus = u64::from(config.max_vcpus).min(processors);
        let memory = match driver {
            Driver::Kvm => MemMib::new(config.max_memory_mib.into()).ok(),
            // microvm has no memory device: virtio-mem is there for PCI only.
            Driver::Qemu => None,
        };
        Self {
            memory: memory.map_or(self.memory, |memory| memory.max(self.memory)),
            vcpus: VcpuCount::new(vcpus).map_or(self.vcpus, |vcpus| vcpus.max(self.vcpus)),
        }
    }

    /// The next size for what is asked for, between this and `most`.
    fn next(self, memory_mib: u64, vcpus: u64, most: Self) -> Self {
        let memory = MemMib::new(memory_mib.min(most.memory.get().into()));
        let vcpus = VcpuCount::new(vcpus.min(most.vcpus.get().into()));
        Self {
            // What is less than a machine can have is less than this.
            memory: memory.map_or(self.memory, |memory| memory.max(self.memory)),
            vcpus: vcpus.map_or(self.vcpus, |vcpus| vcpus.max(self.vcpus)),
        }
    }
}

/// The size of one machine, and the ways to change it.
#[derive(Debug)]
pub(super) struct LiveSize {
    pub(super) most: MachineSize,
    pub(super) memory: Option<MemoryControl>,
    /// How much of the memory that it began with its kernel keeps for itself, in bytes.
    pub(super) kept_bytes: u64,
    pub(super) config: Config,
    pub(super) dir: PathBuf,
    /// One change at a time.
    pub(super) now: tokio::sync::Mutex<MachineSize>,
}

impl LiveSize {
    /// That of the smallest machine, which cannot grow.
    pub(super) fn of_no_machine(dir: PathBuf) -> Self {
        let size = MachineSize {
            memory: MemMib::MIN,
            vcpus: VcpuCount::ONE,
        };
        Self {
            most: size,
            memory: None,
            kept_bytes: 0,
            config: Config::default(),
            dir,
            now: tokio::sync::Mutex::new(size),
        }
    }

    /// Makes the machine as large as that, where it is not, and can be. Returns when the guest's kernel uses all of it.
    pub(super) async fn grow(
        &self,
        agent: &AgentClient,
        memory_mib: u64,
        vcpus: u64,
    ) -> Result<MachineSize, ResizeError> {
        let mut now = self.now.lock().await;
        let next = now.next(memory_mib, vcpus, self.most);
        if next == *now {
            return Ok(next);
        }
        // The host's limits first: the guest may use what it gets at once.
        let limits = cgroup::Limits::new(next.memory, next.vcpus, &self.config);
        cgroup::raise(&self.dir, limits);
        if let Some(control) = self.memory.as_ref().filter(|_| next.memory > now.memory) {
            let (from, to) = (now.memory, next.memory);
            let used = async {
                control.set(to).await?;
                // The monitor sees that the guest's driver is done, and not what its kernel could do with the last block.
                let usable_bytes = agent.guest_memory().await?;
                is_used(to, usable_bytes.saturating_add(self.kept_bytes))
            };
            used.await
                .map_err(|source| ResizeError::Memory { from, to, source })?;
            now.memory = to;
            tracing::info!("the sandbox's memory was raised from {from} to {to}");
        }
        if next.vcpus > now.vcpus {
            let (from, to) = (now.vcpus, next.vcpus);
            agent
                .bring_up_processors(to)
                .await
                .map_err(|source| ResizeError::Vcpus { from, to, source })?;
            now.vcpus = to;
            tracing::info!("the sandbox's vCPUs were raised from {from} to {to}");
        }
        Ok(*now)
    }
}

/// Whether a guest that is to have `memory` uses so many bytes of it.
fn is_used(memory: MemMib, bytes: u64) -> Result<(), MemoryError> {
    match memory.bytes().saturating_sub(bytes).div_ceil(1 << 20) {
        0 => Ok(()),
        missing_mib => Err(MemoryError::Unused { missing_mib }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use async_trait::async_trait;
    use sandbox_protocol::agent::{Empty, GuestMemoryReply};
    use sandbox_protocol::agent_ttrpc::{Agent, create_agent};
    use sandbox_types::monitor::MonitorRequest;
    use tokio::io::{AsyncBufReadExt as _, BufReader};
    use tokio::net::UnixStream;
    use tokio::net::unix::OwnedReadHalf;
    use tokio::sync::watch;
    use ttrpc::r#async::{Server, TtrpcContext};

    use super::*;
    use crate::driver::SentRequests;

    /// An agent whose kernel hands out so many bytes.
    struct Stub(Arc<AtomicU64>);

    #[async_trait]
    impl Agent for Stub {
        async fn guest_memory(
            &self,
            _: &TtrpcContext,
            _: Empty,
        ) -> ttrpc::Result<GuestMemoryReply> {
            Ok(GuestMemoryReply {
                memory_bytes: self.0.load(Ordering::Relaxed),
                ..GuestMemoryReply::default()
            })
        }
    }

    /// What a monitor's memory device does for as long as it is asked: the driver is done at once.
    async fn obey(requests: OwnedReadHalf, set: watch::Sender<Option<MemMib>>) {
        let mut lines = BufReader::new(requests).lines();
        while let Some(line) = lines.next_line().await.unwrap() {
            match serde_json::from_str(&line).unwrap() {
                MonitorRequest::SetMemory { memory } => drop(set.send_replace(Some(memory))),
                other @ MonitorRequest::Run { .. } => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn memory_that_the_kernel_does_not_use_is_not_said_to_be_there() {
        const MIB: u64 = 1 << 20;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent");
        let usable = Arc::new(AtomicU64::new(0));
        let mut server = Server::new()
            .bind(&format!("unix://{}", path.display()))
            .unwrap()
            .register_service(create_agent(Arc::new(Stub(Arc::clone(&usable)))));
        server.start().await.unwrap();
        let agent = AgentClient::new(UnixStream::connect(&path).await.unwrap());
        let (monitor, ours) = UnixStream::pair().unwrap();
        let (said, set) = watch::channel(None);
        tokio::spawn(obey(monitor.into_split().0, said));
        let live = LiveSize {
            most: size(1024, 1),
            memory: Some(MemoryControl::new(
                ours.into_split().1,
                SentRequests::default(),
                set,
            )),
            // Of 256 MiB it hands out 200.
            kept_bytes: 56 * MIB,
            config: Config::default(),
            dir: dir.path().to_owned(),
            now: tokio::sync::Mutex::new(size(256, 1)),
        };

        usable.store(454 * MIB - 1, Ordering::Relaxed);
        let error = live.grow(&agent, 512, 1).await.unwrap_err();
        let ResizeError::Memory { from, to, source } = error else {
            panic!("{error:?}");
        };
        assert_eq!((from.get(), to.get()), (256, 512));
        assert!(
            matches!(source, MemoryError::Unused { missing_mib: 3 }),
            "{source:?}"
        );

        // The kernel goes on trying, and the caller may ask again.
        usable.store(456 * MIB, Ordering::Relaxed);
        assert_eq!(live.grow(&agent, 512, 1).await.unwrap(), size(512, 1));
        assert_eq!(live.grow(&agent, 512, 1).await.unwrap(), size(512, 1));
    }

    fn size(memory: u64, vcpus: u64) -> MachineSize {
        MachineSize {
            memory: MemMib::new(memory).unwrap(),
            vcpus: VcpuCount::new(vcpus).unwrap(),
        }
    }

    #[test]
    fn most_is_what_is_configured_what_the_host_has_and_no_less_than_it_begins_with() {
        let config = Config {
            max_memory_mib: 1024,
            max_vcpus: 4,
            ..Config::default()
        };
        let most = |begin: MachineSize, driver| begin.most_of(driver, &config, 3);
        assert_eq!(most(size(512, 1), Driver::Kvm), size(1024, 3));
        assert_eq!(most(size(2048, 8), Driver::Kvm), size(2048, 8));
        assert_eq!(most(size(512, 1), Driver::Qemu), size(512, 3));
    }

    #[test]
    fn next_is_never_less_and_never_more_than_it_can_be() {
        let (now, most) = (size(512, 2), size(1024, 4));
        for (memory, vcpus, next) in [
            (0, 0, size(512, 2)),
            (256, 1, size(512, 2)),
            (600, 3, size(600, 3)),
            (u64::MAX, u64::MAX, size(1024, 4)),
        ] {
            assert_eq!(now.next(memory, vcpus, most), next);
        }
    }
}
