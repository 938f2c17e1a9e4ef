//! One container.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxSeccomp};
use sandbox_types::{ContainerId, ExecId};

use super::{ContainerError, DRAIN, clean, lock, remove_folder};
use crate::cgroup::Cgroup;
use crate::copied_files::CopiedFiles;
use crate::events::Events;
use crate::mount::Mounted;
use crate::process::{Process, State};

/// A container.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) id: ContainerId,
    /// Bundle and libcontainer's state.
    pub(super) folder: PathBuf,
    pub(super) cgroup: Cgroup,
    pub(super) mounted: Mutex<Mounted>,
    /// Copied for its bind mounts.
    pub(super) files: Mutex<CopiedFiles>,
    pub(super) seccomp: Option<LinuxSeccomp>,
    /// Its device rules, which do not change.
    pub(super) devices: Vec<LinuxDeviceCgroup>,
    /// Its processes are in another container's pid namespace, and do not end with its first one by themselves.
    pub(super) shares_pids: bool,
    pub(super) processes: Mutex<HashMap<Option<ExecId>, Arc<Process>>>,
    /// Held while a process is added, started or deleted.
    pub(super) changing: tokio::sync::Mutex<()>,
    pub(super) oom_reported: Mutex<u64>,
}

impl Container {
    pub(super) fn process(&self, exec: Option<&ExecId>) -> Result<Arc<Process>, ContainerError> {
        lock(&self.processes)
            .get(&exec.cloned())
            .cloned()
            .ok_or_else(|| ContainerError::NoProcess {
                what: self.name_of(exec),
            })
    }

    /// Where the description of an added process is, until it is started.
    pub(super) fn description(&self, exec: &ExecId) -> PathBuf {
        self.folder.join(format!("exec-{exec}.json"))
    }

    pub(super) fn name_of(&self, exec: Option<&ExecId>) -> String {
        match exec {
            Some(exec) => format!("{}/{exec}", self.id),
            None => self.id.to_string(),
        }
    }

    pub(super) fn wrong_state(
        &self,
        action: &'static str,
        exec: Option<&ExecId>,
        state: State,
    ) -> ContainerError {
        ContainerError::WrongState {
            action,
            what: self.name_of(exec),
            state,
        }
    }

    pub(super) fn report_oom(&self, events: &Events) {
        let kills = self.cgroup.oom_kills();
        let mut reported = lock(&self.oom_reported);
        if kills > *reported {
            *reported = kills;
            events.out_of_memory(self.id.as_str());
        }
    }

    /// Lets an added process that is over go once its outputs have been read, or were not for [`DRAIN`].
    pub(super) async fn forget(&self, exec: &ExecId, process: &Arc<Process>) {
        process.streams.drain(DRAIN).await;
        process.streams.abandon();
        let mut processes = lock(&self.processes);
        let key = Some(exec.clone());
        // Two may have waited here, and another of this name have been added since.
        if processes
            .get(&key)
            .is_some_and(|known| Arc::ptr_eq(known, process))
        {
            processes.remove(&key);
            // One that was never started still has it.
            let _ = fs::remove_file(self.description(exec));
        }
    }

    pub(super) async fn tear_down(&self) {
        clean(self.cgroup.kill());
        clean(self.cgroup.empty().await);
        let processes: Vec<_> = lock(&self.processes).values().cloned().collect();
        for process in &processes {
            if process.state().alive().is_some() {
                process.until(State::over).await;
            }
            process.release();
            process.streams.drain(DRAIN).await;
            process.streams.abandon();
        }
        clean(self.cgroup.remove());
        let has_share = {
            let mut mounted = lock(&self.mounted);
            mounted.unmount();
            mounted.has_share()
        };
        if has_share {
            crate::mount::forget_unused_names();
        }
        lock(&self.files).remove();
        remove_folder(&self.folder);
    }
}
