//! `sandboxctl kill` and `sandboxctl rm`.

use std::time::Duration;

use sandbox_runtime::config::{ConfigError, sibling_program};
use tokio::time::timeout;

use crate::app::{App, AppError};
use crate::cli::{KillArgs, RmArgs};
use crate::container::{Container, ContainerError, Containers};
use crate::look::{Seen, look};
use crate::report;
use crate::shim::{PROGRAM, RpcError, Shim, ShimError, ShimProgram, kill_recorded};
use crate::table;

/// `SIGKILL`.
const KILL: u32 = 9;
/// How long the `sandboxctl run` of a killed container has to end it.
const CONCLUDE: Duration = Duration::from_secs(20);

/// Why a container was not killed or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StopError {
    #[error(transparent)]
    App(#[from] AppError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error(transparent)]
    Shim(#[from] ShimError),
    /// The shim did not pass the signal on.
    #[error("cannot kill container {name}")]
    Kill { name: String, source: RpcError },
    /// There is nothing to send a signal to.
    #[error("container {name} is not running, it has {state}; see `sandboxctl ps -a`")]
    NotRunning { name: String, state: String },
    /// It still runs.
    #[error(
        "container {name} is {state}; end it first with `sandboxctl kill {name}`, or remove it with `sandboxctl rm -f {name}`"
    )]
    StillLive { name: String, state: &'static str },
    /// Another process does not let go of it.
    #[error("container {name} is held by another sandboxctl, which did not end within {} s", CONCLUDE.as_secs())]
    Held { name: String },
    /// Several went wrong; each was reported.
    #[error("{failed} of {all} containers were not {done}")]
    Several {
        failed: usize,
        all: usize,
        done: &'static str,
    },
}

/// Sends a signal to containers.
pub(crate) async fn kill(app: &App, args: &KillArgs) -> Result<(), StopError> {
    let containers = app.containers()?;
    let mut failures = Vec::new();
    for wanted in &args.containers {
        match kill_one(&containers, wanted, args.signal).await {
            Ok(()) => table::line(wanted),
            Err(error) => failures.push(error),
        }
    }
    conclude(failures, args.containers.len(), "killed")
}

async fn kill_one(containers: &Containers, wanted: &str, signal: u32) -> Result<(), StopError> {
    let container = containers.find(wanted)?;
    let (seen, shim) = look(&container).await;
    let name = container.record.name.to_string();
    match (&seen, shim) {
        (Seen::Running { .. } | Seen::Paused, Some(shim)) => shim
            .tasks
            .kill(container.record.id.as_str(), signal, false)
            .await
            .map_err(|source| StopError::Kill { name, source }),
        _ => Err(StopError::NotRunning {
            name,
            state: seen.word().to_owned(),
        }),
    }
}

/// Removes containers.
pub(crate) async fn rm(app: &App, args: &RmArgs) -> Result<(), StopError> {
    let containers = app.containers()?;
    let mut failures = Vec::new();
    for wanted in &args.containers {
        match rm_one(app, &containers, wanted, args.force).await {
            Ok(()) => table::line(wanted),
            Err(error) => failures.push(error),
        }
    }
    conclude(failures, args.containers.len(), "removed")
}

/// One failure is the error; of several each is reported.
fn conclude(mut failures: Vec<StopError>, all: usize, done: &'static str) -> Result<(), StopError> {
    match (failures.pop(), failures.is_empty()) {
        (None, _) => Ok(()),
        (Some(only), true) => Err(only),
        (Some(last), false) => {
            failures.push(last);
            for error in &failures {
                report::error(error);
            }
            Err(StopError::Several {
                failed: failures.len(),
                all,
                done,
            })
        }
    }
}

async fn rm_one(
    app: &App,
    containers: &Containers,
    wanted: &str,
    force: bool,
) -> Result<(), StopError> {
    let container = containers.find(wanted)?;
    let (seen, shim) = look(&container).await;
    if seen.is_live() && !force {
        return Err(StopError::StillLive {
            name: container.record.name.to_string(),
            state: seen.word(),
        });
    }
    end(&container, shim, seen.is_live()).await?;
    if !container.folder.exists() {
        // The run that attended it has removed it.
        return Ok(());
    }
    if container.record.shim.is_some() {
        clear_away(app, &container).await?;
    }
    containers.remove(&container)?;
    app.store()?
        .release(&container.record.id)
        .map_err(AppError::from)?;
    Ok(())
}

/// Ends what runs of a container. Where a `sandboxctl run` attends it, that one is left to conclude.
async fn end(container: &Container, shim: Option<Shim>, live: bool) -> Result<(), StopError> {
    if live && let Some(shim) = &shim {
        // One that does not listen is killed with its shim.
        let _ = shim
            .tasks
            .kill(container.record.id.as_str(), KILL, true)
            .await;
    }
    if container.is_attended() && !released(container).await? {
        if let Some(record) = &container.record.shim {
            kill_recorded(record).await?;
        }
        if !released(container).await? {
            return Err(StopError::Held {
                name: container.record.name.to_string(),
            });
        }
    }
    match (shim, &container.record.shim) {
        (Some(shim), _) if container.folder.exists() => Ok(shim.end().await?),
        (None, Some(record)) => Ok(kill_recorded(record).await?),
        _ => Ok(()),
    }
}

/// Waits until nobody attends the container; whether that came to be.
async fn released(container: &Container) -> Result<bool, StopError> {
    let folder = container.folder.clone();
    // The thread is left behind when it takes too long; it ends with the process.
    let waiting = tokio::task::spawn_blocking(move || match std::fs::File::open(&folder) {
        Ok(file) => file.lock().is_ok(),
        // The folder is gone.
        Err(_) => true,
    });
    Ok(matches!(timeout(CONCLUDE, waiting).await, Ok(Ok(true))))
}

/// Has the shim's program remove what a shim that is gone left.
async fn clear_away(app: &App, container: &Container) -> Result<(), StopError> {
    let id = container.record.id.to_string();
    let program = ShimProgram {
        program: sibling_program(PROGRAM)?,
        id: id.clone(),
        bundle: container.folder.clone(),
        config: container.folder.join("sandbox.toml"),
    };
    program.delete().await?;
    // Not there if the run concluded.
    let _ = std::fs::remove_dir_all(App::socket_dir(&app.configuration()?, &id));
    Ok(())
}
