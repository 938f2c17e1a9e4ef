//! How a container is started, also again: what is written down when it is made, and the process that then attends it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::app::App;
use crate::container::{Attended, Container};
use crate::logs::LogOptions;
use crate::network::NetworkPlan;
use crate::shim::{RootMount, ShimProgram};
use crate::state_file::{self, StateFileError};

/// Its name in the container's folder.
const FILE: &str = "launch.json";
/// What the configuration of the container's shim is called there.
pub(crate) const CONFIG_FILE: &str = "sandbox.toml";
/// What is called there that says when the phases of a start were reached.
pub(crate) const TIMELINE_FILE: &str = "timeline.json";
/// What the attendant's socket is called, beside the shim's.
const SOCKET: &str = "attach";

/// Why a container cannot be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    #[error(transparent)]
    File(#[from] StateFileError),
    /// The attendant is a process.
    #[error("cannot start the process that attends the container")]
    Attendant(#[source] io::Error),
}

/// How a container is started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Launch {
    pub(crate) shim_program: PathBuf,
    /// The folder of the shim's socket, of the attendant's, and of that for events.
    pub(crate) socket_dir: PathBuf,
    pub(crate) rootfs: Vec<RootMount>,
    /// It has an input.
    pub(crate) stdin: bool,
    /// The end of a client's input is the end of its own, unless it has a terminal (docker's `StdinOnce`).
    #[serde(default)]
    pub(crate) stdin_once: bool,
    /// It has a terminal.
    pub(crate) terminal: bool,
    pub(crate) log: LogOptions,
    /// What it is attached to.
    #[serde(default)]
    pub(crate) network: Option<NetworkPlan>,
}

impl Launch {
    /// Writes it into the container's folder.
    pub(crate) fn save(&self, folder: &Path) -> Result<(), LaunchError> {
        let text = serde_json::to_vec(self);
        Ok(state_file::write(&folder.join(FILE), text)?)
    }

    /// Reads it from the container's folder.
    pub(crate) fn load(folder: &Path) -> Result<Self, LaunchError> {
        let remedy = "remove the container with `sandboxctl rm`";
        Ok(state_file::read(&folder.join(FILE), remedy)?)
    }

    /// The shim's program for this container.
    pub(crate) fn shim(&self, container: &Container) -> ShimProgram {
        ShimProgram {
            program: self.shim_program.clone(),
            id: container.record.id.to_string(),
            bundle: container.folder.clone(),
            config: container.folder.join(CONFIG_FILE),
        }
    }

    /// Where the attendant listens.
    pub(crate) fn attach_socket(&self) -> PathBuf {
        self.socket_dir.join(SOCKET)
    }

    /// Where the attendant takes events.
    pub(crate) fn events_socket(&self) -> PathBuf {
        self.socket_dir.join("events")
    }

    /// Where the shim writes when the phases of a start were reached.
    pub(crate) fn timeline(container: &Container) -> PathBuf {
        container.folder.join(TIMELINE_FILE)
    }
}

/// Starts the process that starts and attends the container. It has the container's lock from now on, and `owner` as
/// its first client.
pub(crate) fn attend(app: &App, attended: Attended, owner: UnixStream) -> Result<(), LaunchError> {
    let folder = attended.folder().to_owned();
    let open = |name: &str| {
        File::options()
            .append(true)
            .create(true)
            .open(folder.join(name))
    };
    let program = std::env::current_exe().map_err(LaunchError::Attendant)?;
    let mut command = Command::new(program);
    app.pass_on(&mut command);
    command
        .arg("attend")
        .arg(attended.container.record.id.as_str())
        .current_dir("/")
        // Where it finds its first client and the lock; it has no use for the streams themselves.
        .stdin(Stdio::from(OwnedFd::from(owner)))
        .stdout(Stdio::from(attended.into_lock()))
        .stderr(open("log").map_err(LaunchError::Attendant)?);
    command.spawn().map(drop).map_err(LaunchError::Attendant)
}
