//! What is done to containers that are there: signals, terminals, limits, lists.

use std::collections::HashMap;
use std::path::PathBuf;

use rustix::termios::Winsize;
use sandbox_protocol::agent::list_processes_reply;
use sandbox_types::{ContainerId, ExecId};

use super::{ContainerError, Containers, lock, unsigned};
use crate::cgroup::{self, Values};
use crate::{process_list, spec};

/// `SIGRTMAX` (signal(7)).
const MAX_SIGNAL: i32 = 64;
const SIGKILL: i32 = 9;

impl Containers {
    pub(crate) fn signal(
        &self,
        id: &ContainerId,
        exec: Option<&ExecId>,
        signal: u32,
        all: bool,
    ) -> Result<(), ContainerError> {
        let container = self.container(id)?;
        let number = i32::try_from(signal).unwrap_or(i32::MAX);
        if !(1..=MAX_SIGNAL).contains(&number) {
            return Err(ContainerError::NoSignal { signal });
        }
        if all && exec.is_none() {
            if number == SIGKILL {
                return Ok(container.cgroup.kill()?);
            }
            for pid in container.cgroup.pids() {
                // It may have ended since it was listed.
                if let Ok(pid) = i32::try_from(pid) {
                    let _ = crate::sys::kill(pid, number);
                }
            }
            return Ok(());
        }
        let process = container.process(exec)?;
        let Some(pid) = process.state().alive() else {
            return Err(ContainerError::Ended {
                what: container.name_of(exec),
            });
        };
        crate::sys::kill(pid, number).map_err(|source| ContainerError::Signal {
            what: container.name_of(exec),
            signal,
            source,
        })
    }

    pub(crate) fn resize(
        &self,
        id: &ContainerId,
        exec: Option<&ExecId>,
        columns: u32,
        rows: u32,
    ) -> Result<(), ContainerError> {
        let container = self.container(id)?;
        let what = || container.name_of(exec);
        let terminal = container.process(exec)?.terminal();
        let terminal = terminal.ok_or_else(|| ContainerError::NoTerminal { what: what() })?;
        let size = Winsize {
            ws_row: u16::try_from(rows).unwrap_or(u16::MAX),
            ws_col: u16::try_from(columns).unwrap_or(u16::MAX),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(terminal.get_ref(), size).map_err(|errno| {
            ContainerError::Terminal {
                what: what(),
                source: errno.into(),
            }
        })
    }

    pub(crate) fn close_stdin(
        &self,
        id: &ContainerId,
        exec: Option<&ExecId>,
    ) -> Result<(), ContainerError> {
        if let Some(stdin) = &self.process(id, exec)?.streams.stdin {
            stdin.close();
        }
        Ok(())
    }

    /// The processes of a container.
    pub(crate) fn list(
        &self,
        id: &ContainerId,
    ) -> Result<Vec<list_processes_reply::Process>, ContainerError> {
        let container = self.container(id)?;
        let added: HashMap<u32, ExecId> = lock(&container.processes)
            .values()
            .filter_map(|process| Some((unsigned(process.state().alive()?), process.exec.clone()?)))
            .collect();
        Ok(process_list::describe(&container.cgroup.pids(), &added))
    }

    /// What a container uses and may use.
    pub(crate) fn stats(&self, id: &ContainerId) -> Result<Values, ContainerError> {
        let container = self.container(id)?;
        let mut values = container.cgroup.values();
        // An ended container's interfaces are the guest's, unless it had some of its own, which went with it.
        let whose = match container.process(None)?.state().alive() {
            Some(pid) => pid.to_string(),
            None => "self".to_owned(),
        };
        let interfaces = PathBuf::from(format!("/proc/{whose}/net/dev"));
        if let Some(text) = cgroup::read(&interfaces) {
            cgroup::add_interfaces(&mut values, &text);
        }
        Ok(values)
    }

    /// Changes the limits of a container.
    pub(crate) fn update(
        &self,
        id: &ContainerId,
        resources_json: &[u8],
    ) -> Result<(), ContainerError> {
        let container = self.container(id)?;
        let (limits, devices) = spec::resources(resources_json)?;
        if devices.is_some_and(|devices| devices != container.devices) {
            return Err(ContainerError::Devices { id: id.clone() });
        }
        Ok(container.cgroup.limit(&limits)?)
    }

    pub(crate) async fn freeze(
        &self,
        id: &ContainerId,
        frozen: bool,
    ) -> Result<(), ContainerError> {
        Ok(self.container(id)?.cgroup.freeze(frozen).await?)
    }
}
