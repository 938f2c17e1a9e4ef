//! The shim, seen from its caller: started and spoken to as containerd would (containerd
//! `core/runtime/v2/README.md`, "Shim Authoring").

mod client;
mod process;

use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use sandbox_runtime::process::start_time;
use serde::Deserialize;
use tokio::process::Command;
use tokio::time::timeout;

use crate::container::{ProcessRecord, ShimRecord};
pub(crate) use client::{
    ProcessInfo, ProgramStreams, RootMount, RpcError, RpcFailure, TaskState, Tasks,
};
use process::ProcessHandle;

/// containerd's name for a tenant; ours has one.
pub(crate) const NAMESPACE: &str = "sandboxctl";
/// The program.
pub(crate) const PROGRAM: &str = "containerd-shim-sandbox-v2";
/// Where a shim finds the service that takes its events, as containerd tells it.
const EVENTS_VARIABLE: &str = "TTRPC_ADDRESS";
/// How long `start` and `delete` may take: what containerd gives a shim (`io.containerd.timeout.shim.load`
/// and `.cleanup`), and more, because emulation keeps the machine busy.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a shim may take to end once it was told to.
const END_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a shim may take to say who it is, or how its container is.
pub(crate) const ANSWER: Duration = Duration::from_secs(5);

/// Why a shim cannot be started, reached or ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShimError {
    /// The program could not be run.
    #[error("cannot run {} {verb}", program.display())]
    Run {
        program: PathBuf,
        verb: &'static str,
        source: io::Error,
    },
    /// The program failed.
    #[error("{PROGRAM} {verb} failed ({status}){}", after_colon(said))]
    Failed {
        verb: &'static str,
        status: ExitStatus,
        said: String,
    },
    /// The program did not end.
    #[error("{PROGRAM} {verb} did not end within {} s", PROGRAM_TIMEOUT.as_secs())]
    TimedOut { verb: &'static str },
    /// What it printed is no address.
    #[error("{PROGRAM} start printed {printed:?}, which is not the address of a task service")]
    Address { printed: String },
    /// Its socket cannot be connected to.
    #[error("cannot connect to the shim at {address}")]
    Connect {
        address: String,
        source: containerd_shim_protos::ttrpc::Error,
    },
    /// It did not say who it is.
    #[error("the shim at {address} does not answer")]
    Silent { address: String, source: RpcError },
    /// Its process cannot be watched.
    #[error("cannot watch the shim's process {pid}")]
    Watch { pid: u32, source: io::Error },
    /// It would not end.
    #[error("the shim's process {pid} did not end within {} s, not even when killed", END_TIMEOUT.as_secs())]
    Stuck { pid: u32 },
}

fn after_colon(said: &str) -> String {
    match said.trim() {
        "" => String::new(),
        said => format!(": {said}"),
    }
}

/// What a shim is started with.
#[derive(Debug, Clone)]
pub(crate) struct ShimProgram {
    /// The program's path.
    pub(crate) program: PathBuf,
    /// The sandbox, which has the container's identifier.
    pub(crate) id: String,
    /// The container's folder.
    pub(crate) bundle: PathBuf,
    /// Its configuration file.
    pub(crate) config: PathBuf,
}

impl ShimProgram {
    async fn run(&self, verb: &'static str, events: Option<&Path>) -> Result<Vec<u8>, ShimError> {
        let mut command = Command::new(&self.program);
        command
            .args(["-namespace", NAMESPACE, "-id", &self.id])
            .args(["-address", "", "-publish-binary", ""])
            .arg("-bundle")
            .arg(&self.bundle)
            .arg(verb)
            .current_dir(&self.bundle)
            .env(sandbox_runtime::config::CONFIG_ENV, &self.config)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Keys of our terminal that mean a signal are not meant for the shim and its machine.
            .process_group(0)
            .kill_on_drop(true);
        match events {
            Some(socket) => command.env(EVENTS_VARIABLE, socket),
            None => command.env_remove(EVENTS_VARIABLE),
        };
        let child = command.spawn().map_err(|source| ShimError::Run {
            program: self.program.clone(),
            verb,
            source,
        })?;
        let output = timeout(PROGRAM_TIMEOUT, child.wait_with_output())
            .await
            .map_err(|_| ShimError::TimedOut { verb })?
            .map_err(|source| ShimError::Run {
                program: self.program.clone(),
                verb,
                source,
            })?;
        if !output.status.success() {
            return Err(ShimError::Failed {
                verb,
                status: output.status,
                said: String::from_utf8_lossy(&output.stderr).into_owned(),
            });
        }
        Ok(output.stdout)
    }

    /// Starts the shim's service and connects to it. Its events go to the service at the socket `events`, if any.
    pub(crate) async fn start(&self, events: Option<&Path>) -> Result<Shim, ShimError> {
        let printed = self.run("start", events).await?;
        let printed = String::from_utf8_lossy(&printed);
        let address = address(&printed).ok_or_else(|| ShimError::Address {
            printed: printed.clone().into_owned(),
        })?;
        Shim::connect(&address).await
    }

    /// Removes what a shim that is gone left behind.
    pub(crate) async fn delete(&self) -> Result<(), ShimError> {
        self.run("delete", None).await.map(drop)
    }
}

/// The address that `start` printed: alone for version 2 of the task service, or in a JSON object.
fn address(printed: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Bootstrap {
        address: String,
    }
    let printed = printed.trim();
    let address = if printed.starts_with('{') {
        serde_json::from_str::<Bootstrap>(printed).ok()?.address
    } else {
        printed.to_owned()
    };
    address.starts_with("unix://").then_some(address)
}

/// A shim that answers.
pub(crate) struct Shim {
    /// Its task service.
    pub(crate) tasks: Tasks,
    /// Where it is.
    pub(crate) record: ShimRecord,
    process: ProcessHandle,
}

impl Shim {
    /// The one at `address`, if it answers in time.
    pub(crate) async fn reach(address: &str) -> Option<Self> {
        timeout(ANSWER, Self::connect(address)).await.ok()?.ok()
    }

    /// Connects to the service at `address` and finds out which process it is.
    pub(crate) async fn connect(address: &str) -> Result<Self, ShimError> {
        let tasks = Tasks::connect(address)
            .await
            .map_err(|source| ShimError::Connect {
                address: address.to_owned(),
                source,
            })?;
        let pid = tasks.shim_pid().await.map_err(|source| ShimError::Silent {
            address: address.to_owned(),
            source,
        })?;
        let process =
            ProcessHandle::open(pid).map_err(|source| ShimError::Watch { pid, source })?;
        Ok(Self {
            tasks,
            record: ShimRecord {
                address: address.to_owned(),
                process: ProcessRecord {
                    pid,
                    start_time: process.start_time(),
                },
            },
            process,
        })
    }

    /// Waits until its process has ended. Cancelling this loses nothing.
    pub(crate) async fn ended(&self) {
        self.process.ended().await;
    }

    /// Tells it to end, and kills it if it does not.
    pub(crate) async fn end(&self) -> Result<(), ShimError> {
        // A shim that cannot be told is killed below.
        let _ = timeout(END_TIMEOUT, self.tasks.shutdown()).await;
        if timeout(END_TIMEOUT, self.ended()).await.is_ok() {
            return Ok(());
        }
        self.kill().await
    }

    /// Kills it; everything that it had started dies with it.
    pub(crate) async fn kill(&self) -> Result<(), ShimError> {
        self.process.kill();
        timeout(END_TIMEOUT, self.ended())
            .await
            .map_err(|_| ShimError::Stuck {
                pid: self.record.process.pid,
            })
    }
}

/// The process that has this number.
pub(crate) fn process_record(pid: u32) -> io::Result<ProcessRecord> {
    Ok(ProcessRecord {
        pid,
        start_time: start_time(pid)?,
    })
}

/// Kills the recorded process if it still is that one, whether it answers or not.
pub(crate) async fn kill_recorded(record: ProcessRecord) -> Result<(), ShimError> {
    let pid = record.pid;
    let Ok(process) = ProcessHandle::open(pid) else {
        return Ok(());
    };
    if process.start_time() != record.start_time {
        return Ok(());
    }
    process.kill();
    timeout(END_TIMEOUT, process.ended())
        .await
        .map_err(|_| ShimError::Stuck { pid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_alone_or_in_json_is_read() {
        let plain = "unix:///run/s/1\n";
        assert_eq!(address(plain).as_deref(), Some("unix:///run/s/1"));
        let json = r#"{"version":3,"address":"unix:///run/s/1","protocol":"ttrpc"}"#;
        assert_eq!(address(json).as_deref(), Some("unix:///run/s/1"));
        for text in ["", "{}", "hello", r#"{"address":"x"}"#] {
            assert_eq!(address(text), None, "{text}");
        }
    }

    #[tokio::test]
    async fn recorded_shim_whose_number_was_reused_is_left_alone() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id().unwrap();
        let mut record = ProcessRecord {
            pid,
            start_time: ProcessHandle::open(pid).unwrap().start_time() + 1,
        };
        kill_recorded(record).await.unwrap();
        assert!(child.try_wait().unwrap().is_none());
        record.start_time -= 1;
        kill_recorded(record).await.unwrap();
        assert!(!child.wait().await.unwrap().success());
    }
}
