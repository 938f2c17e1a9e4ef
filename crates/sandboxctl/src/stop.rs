//! The verbs that end containers, hold them up, or remove them.

mod hold;
mod wait;

use std::path::Path;
use std::time::Duration;

use crate::app::{App, AppError};
use crate::ask;
use crate::cli::{KillArgs, NamesArgs, PruneArgs, RenameArgs, RmArgs, StopArgs};
use crate::container::{ContainerError, Containers};
use crate::look::{Seen, UnansweringError, look};
use crate::report;
use crate::run::RunError;
use crate::settings::Settings;
use crate::settle::{self, AnonymousVolumes, SettleError};
use crate::shim::{RpcError, ShimError};
use crate::signals::KILL;
use crate::table;
use crate::values;
use hold::{CONCLUDE, RELEASE, ends_within};
pub(crate) use hold::{Executioner, end, hold, until_started};
pub(crate) use wait::wait;

/// `SIGTERM`.
const TERM: u32 = 15;
/// How many seconds a container has to end that was asked to, as docker has it.
const STOP_SECONDS: i64 = 10;

/// Why a container was not killed or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StopError {
    #[error(transparent)]
    App(#[from] AppError),
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error(transparent)]
    Settle(#[from] SettleError),
    #[error(transparent)]
    Shim(#[from] ShimError),
    #[error(transparent)]
    Run(#[from] Box<RunError>),
    #[error(transparent)]
    Unanswering(#[from] UnansweringError),
    /// It was removed meanwhile.
    #[error("container {name} was removed meanwhile; see `sandboxctl ps -a`")]
    Gone { name: String },
    /// It did not end.
    #[error("container {name} did not end, although it was killed; see `sandboxctl rm -f {name}`")]
    DidNotEnd { name: String },
    /// It cannot be paused or resumed.
    #[error("cannot {action} container {name}: it is {state}")]
    WrongState {
        action: &'static str,
        name: String,
        state: &'static str,
    },
    /// The shim could not.
    #[error("cannot {action} container {name}")]
    Call {
        action: &'static str,
        name: String,
        source: RpcError,
    },
    /// The shim did not pass the signal on.
    #[error("cannot kill container {name}")]
    Kill { name: String, source: RpcError },
    /// There is nothing to send a signal to.
    #[error("container {name} is not running, it is {state}; see `sandboxctl ps -a`")]
    NotRunning { name: String, state: String },
    /// The container has a terminal, and standard input is none.
    #[error(
        "the input device is not a TTY, and container {name} has one; use --no-stdin, or attach from a terminal"
    )]
    NotATerminal { name: String },
    /// It still runs.
    #[error(
        "container {name} is {state}; end it first with `sandboxctl kill {name}`, or remove it with `sandboxctl rm -f {name}`"
    )]
    StillLive { name: String, state: &'static str },
    /// It has ended, nobody told with what, and it is written nowhere.
    #[error(
        "container {name} is gone, and what it exited with is not known; see `sandboxctl events --since 1h --filter event=die`"
    )]
    NoExitCode { name: String },
    /// Another process does not let go of it.
    #[error("container {name} is held by another sandboxctl, which did not let go within {} s", RELEASE.as_secs())]
    Held { name: String },
    #[error(transparent)]
    Several(#[from] report::Several),
}

/// Asks containers to end, and kills those that do not in time.
pub(crate) async fn stop(app: &App, args: &StopArgs) -> Result<(), StopError> {
    let containers = app.containers()?;
    let all = args.containers.iter().map(|wanted| async {
        let stopped = stop_one(app, &containers, wanted, args.signal, args.time).await;
        stopped.map(|()| table::line(wanted))
    });
    let results = futures::future::join_all(all).await;
    let failures = results.into_iter().filter_map(Result::err).collect();
    conclude(failures, args.containers.len(), "stopped")
}

/// Ends one that runs; one that does not is as it should be.
pub(crate) async fn stop_one(
    app: &App,
    containers: &Containers,
    wanted: &str,
    signal: Option<u32>,
    seconds: Option<i64>,
) -> Result<(), StopError> {
    let container = settle::find(app, containers, wanted).await?;
    let Some(container) = until_started(container).await else {
        return Ok(());
    };
    // What has ended is as it should be; whether it is cleared away is for who starts or removes it.
    if !container.record.status.is_live() {
        return Ok(());
    }
    let (seen, shim) = look(&container).await;
    let name = container.record.name.to_string();
    let id = container.record.id.as_str();
    let settings = Settings::load(&container.folder).ok().map(|s| s.config);
    let signal = signal
        .or_else(|| values::signal(settings.as_ref()?.stop_signal.as_deref()?).ok())
        .unwrap_or(TERM);
    let seconds = seconds
        .or_else(|| settings.as_ref()?.stop_timeout)
        .unwrap_or(STOP_SECONDS);
    // None is for ever.
    let time = u64::try_from(seconds).ok().map(Duration::from_secs);
    let (Seen::Running { .. } | Seen::Paused, Some(shim)) = (&seen, shim) else {
        // It has ended, or may have: its attendant says so soon, however little time it is given.
        let time = time.map(|time| time.max(RELEASE));
        return match ends_within(time, &container).await {
            true => Ok(()),
            false => Err(UnansweringError { name }.into()),
        };
    };
    // One that has just ended needs no signal.
    let _ = shim.tasks.kill(id, signal, false).await;
    if seen == Seen::Paused {
        let _ = shim.tasks.resume(id).await;
    }
    if !ends_within(time, &container).await {
        let _ = shim.tasks.kill(id, KILL, true).await;
        if !ends_within(Some(CONCLUDE), &container).await {
            return Err(StopError::DidNotEnd { name });
        }
    }
    app.journal().note(&container.record, "stop", &[]);
    Ok(())
}

/// Freezes containers.
pub(crate) async fn pause(app: &App, args: &NamesArgs) -> Result<(), StopError> {
    let containers = app.containers()?;
    let mut failures = Vec::new();
    for wanted in &args.containers {
        match hold_up(app, &containers, wanted, true).await {
            Ok(()) => table::line(wanted),
            Err(error) => failures.push(error),
        }
    }
    conclude(failures, args.containers.len(), "paused")
}

/// Lets frozen containers go on.
pub(crate) async fn unpause(app: &App, args: &NamesArgs) -> Result<(), StopError> {
    let containers = app.containers()?;
    let mut failures = Vec::new();
    for wanted in &args.containers {
        match hold_up(app, &containers, wanted, false).await {
            Ok(()) => table::line(wanted),
            Err(error) => failures.push(error),
        }
    }
    conclude(failures, args.containers.len(), "unpaused")
}

async fn hold_up(
    app: &App,
    containers: &Containers,
    wanted: &str,
    pause: bool,
) -> Result<(), StopError> {
    let container = settle::find(app, containers, wanted).await?;
    let name = container.record.name.to_string();
    let id = container.record.id.as_str();
    let action = if pause { "pause" } else { "unpause" };
    let done = match (look(&container).await, pause) {
        ((Seen::Running { .. }, Some(shim)), true) => shim.tasks.pause(id).await,
        ((Seen::Paused, Some(shim)), false) => shim.tasks.resume(id).await,
        ((Seen::Unanswering { .. }, _), _) => return Err(UnansweringError { name }.into()),
        ((seen, _), _) => {
            return Err(StopError::WrongState {
                action,
                name,
                state: seen.word(),
            });
        }
    };
    done.map_err(|source| StopError::Call {
        action,
        name,
        source,
    })
}

/// Gives a container another name.
pub(crate) fn rename(app: &App, args: &RenameArgs) -> Result<(), StopError> {
    let containers = app.containers()?;
    let container = containers.find(&args.container)?;
    containers.rename(&container, &args.name)?;
    if let Some(renamed) = container.reload() {
        let old = [("oldName", container.record.name.to_string())];
        app.journal().note(&renamed.record, "rename", &old);
    }
    Ok(())
}

/// Removes every container that does not run.
pub(crate) async fn prune(app: &App, args: &PruneArgs) -> Result<(), StopError> {
    if !args.force && !ask::confirmed("This removes all containers that do not run.") {
        return Ok(());
    }
    let containers = app.containers()?;
    let mut reclaimed = 0;
    let (mut removed, mut failures) = (Vec::new(), Vec::new());
    for container in settle::all(app, &containers).await? {
        if container.record.status.is_live() {
            continue;
        }
        let size = allocated(&container.folder);
        // One that somebody has just started is left alone.
        if let Ok(Some(attended)) = containers.take(&container)
            && !attended.container.record.status.is_live()
        {
            match settle::remove(app, &containers, &attended, AnonymousVolumes::Kept) {
                Ok(()) => {
                    reclaimed += size;
                    removed.push(container.record.id.to_string());
                }
                Err(error) => failures.push(error.into()),
            }
        }
    }
    if !removed.is_empty() {
        table::line("Deleted Containers:");
        removed.iter().for_each(|id| table::line(id));
        table::line("");
    }
    table::line(&format!(
        "Total reclaimed space: {}",
        table::bytes(reclaimed)
    ));
    let all = removed.len() + failures.len();
    conclude(failures, all, "removed")
}

/// What a container's files take on the disk, in bytes.
fn allocated(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .map(|file| file.blocks() * 512)
        .sum()
}

/// Sends a signal to containers.
pub(crate) async fn kill(app: &App, args: &KillArgs) -> Result<(), StopError> {
    let containers = app.containers()?;
    let mut failures = Vec::new();
    for wanted in &args.containers {
        match kill_one(app, &containers, wanted, args.signal).await {
            Ok(()) => table::line(wanted),
            Err(error) => failures.push(error),
        }
    }
    conclude(failures, args.containers.len(), "killed")
}

async fn kill_one(
    app: &App,
    containers: &Containers,
    wanted: &str,
    signal: u32,
) -> Result<(), StopError> {
    let container = settle::find(app, containers, wanted).await?;
    let (seen, shim) = look(&container).await;
    let name = container.record.name.to_string();
    match (&seen, shim) {
        (Seen::Running { .. } | Seen::Paused, Some(shim)) => {
            let id = container.record.id.as_str();
            let sent = shim.tasks.kill(id, signal, false).await;
            sent.map_err(|source| StopError::Kill {
                name: name.clone(),
                source,
            })?;
            let note = [("signal", signal.to_string())];
            app.journal().note(&container.record, "kill", &note);
            // As docker has it: this signal is the end, and what comes next finds a container that has ended.
            if signal == KILL && !ends_within(Some(CONCLUDE), &container).await {
                return Err(StopError::DidNotEnd { name });
            }
            Ok(())
        }
        (Seen::Unanswering { .. }, _) => Err(UnansweringError { name }.into()),
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
        match rm_one(app, &containers, wanted, args).await {
            Ok(()) => table::line(wanted),
            // As docker has it: with -f what is not there is as it should be, which is said.
            Err(error) if args.force && error.is_not_found() => report::error(&error),
            Err(error) => failures.push(error),
        }
    }
    conclude(failures, args.containers.len(), "removed")
}

/// Ends a verb for containers.
pub(crate) fn conclude(failures: Vec<StopError>, all: usize, done: &str) -> Result<(), StopError> {
    report::conclude(failures, all, &format!("containers were not {done}"))
}

async fn rm_one(
    app: &App,
    containers: &Containers,
    wanted: &str,
    args: &RmArgs,
) -> Result<(), StopError> {
    let container = match settle::find(app, containers, wanted).await {
        Err(SettleError::Container(ContainerError::Damaged { .. })) if args.force => {
            return settle::remove_damaged(app, containers, wanted, args.volumes.into()).await;
        }
        found => found?,
    };
    let (seen, shim) = look(&container).await;
    if args.force && container.record.status.is_live() {
        end(&container, Executioner::of(&seen, shim)).await?;
    } else if seen.is_live() {
        return Err(StopError::StillLive {
            name: container.record.name.to_string(),
            state: seen.word(),
        });
    }
    let Some(attended) = hold(containers, &container).await? else {
        // Its attendant, or somebody else, has removed it.
        return Ok(());
    };
    let record = &attended.container.record;
    // Who attended it was killed before that was cleared away.
    if record.status.is_live() || record.shim.is_some() {
        settle::end_shim(app, &attended.container).await?;
    }
    if args.force {
        settle::abandon_network(&attended.container);
    }
    let volumes = args.volumes || record.auto_remove;
    Ok(settle::remove(app, containers, &attended, volumes.into())?)
}

impl StopError {
    /// Whether there is no such container.
    fn is_not_found(&self) -> bool {
        let (Self::Container(error) | Self::Settle(SettleError::Container(error))) = self else {
            return false;
        };
        matches!(error, ContainerError::NotFound { .. })
    }

    /// What `sandboxctl` exits with.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Run(error) => error.exit_code(),
            _ => 125,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_container_that_is_not_there_is_not_found() {
        let missing = || ContainerError::NotFound {
            name: "a".to_owned(),
            near: Vec::new(),
        };
        assert!(StopError::from(missing()).is_not_found());
        assert!(StopError::from(SettleError::from(missing())).is_not_found());
        let held = StopError::Held {
            name: "a".to_owned(),
        };
        assert!(!held.is_not_found());
    }
}
