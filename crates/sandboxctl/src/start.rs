//! `sandboxctl start`, `restart` and `attach`.

use std::fs;

use sandbox_protocol::bundle::DEATH_FILE;

use crate::app::App;
use crate::attach::{Attachment, PassedSignals, Step, Wanted, is_hang_up};
use crate::cli::{AttachArgs, RestartArgs, StartArgs};
use crate::container::{Attended, Container, Containers, Status};
use crate::launch::{Launch, TIMELINE_FILE};
use crate::look::{Seen, UnansweringError, look};
use crate::run::{self, RunError};
use crate::settle;
use crate::signals::{self, Signals};
use crate::stop::{self, StopError};
use crate::table;
use crate::terminal;
use crate::timings::Timeline;

/// Starts containers; the exit code is that of the one that is attached.
pub(crate) async fn start(app: &App, args: &StartArgs) -> Result<u8, StopError> {
    let attached = args.attach || args.interactive;
    let containers = app.containers()?;
    let mut signals = Signals::catch().map_err(|error| run_error(RunError::Signals(error)))?;
    let mut failures = Vec::new();
    let mut code = 0;
    if attached && args.containers.len() > 1 {
        return Err(run_error(RunError::OneToAttach));
    }
    for wanted in &args.containers {
        let attach = attached.then_some(args);
        match start_one(app, &containers, wanted, attach, &mut signals).await {
            Ok(its) if attached => code = its,
            Ok(_) => table::line(wanted),
            Err(error) => failures.push(error),
        }
    }
    stop::conclude(failures, args.containers.len(), "started")?;
    Ok(code)
}

fn run_error(error: RunError) -> StopError {
    StopError::Run(Box::new(error))
}

async fn start_one(
    app: &App,
    containers: &Containers,
    wanted: &str,
    attach: Option<&StartArgs>,
    signals: &mut Signals,
) -> Result<u8, StopError> {
    let found = settle::find(app, containers, wanted).await?;
    let startable = Startable::of(app, containers, found, attach.is_none()).await?;
    let startable = startable.ok_or_else(|| StopError::Gone {
        name: wanted.to_owned(),
    })?;
    let (container, attended) = match startable {
        // As docker has it: it runs, and that is what was wanted.
        Startable::Runs(_) if attach.is_none() => return Ok(0),
        Startable::Runs(container) => (container, None),
        Startable::Held(attended) => (attended.container.clone(), Some(attended)),
    };
    let launch = Launch::load(&container.folder).map_err(|error| run_error(error.into()))?;
    let wanted = attach.map_or_else(Wanted::default, |args| Wanted {
        stdin: args.interactive && launch.stdin,
        stdout: true,
        stderr: !launch.terminal,
        terminal: launch.terminal,
        keys: run::keys(args.detach_keys.as_ref()),
        signals: PassedSignals::of_guest(launch.terminal),
        ends_with_reader: false,
    });
    let Some(mut attended) = attended else {
        return follow(app, &container, &launch, wanted, signals).await;
    };
    make_ready(&mut attended)?;
    let detached = attach.is_none();
    run::follow(
        app,
        attended,
        run::FirstClient { wanted, detached },
        signals,
        &mut Timeline::default(),
        |_| (),
    )
    .await
    .map_err(run_error)
}

/// A container that is to be started.
enum Startable {
    /// Somebody has started it.
    Runs(Container),
    /// It is ours to start.
    Held(Attended),
}

impl Startable {
    /// Waits for whoever is starting, ending or copying from the container; none if it is gone then. For who does not attach, a
    /// container that was started since it was asked for is one that runs, also if it has ended again.
    async fn of(
        app: &App,
        containers: &Containers,
        mut container: Container,
        detached: bool,
    ) -> Result<Option<Self>, StopError> {
        let before = container.record.started;
        loop {
            if detached {
                let Some(now) = stop::until_started(container).await else {
                    return Ok(None);
                };
                container = now;
            }
            match look(&container).await.0 {
                Seen::Running { .. } | Seen::Creating => return Ok(Some(Self::Runs(container))),
                Seen::Paused => {
                    return Err(StopError::WrongState {
                        action: "start",
                        name: container.record.name.to_string(),
                        state: "paused; let it go on with `sandboxctl unpause`",
                    });
                }
                _ => {}
            }
            let next = match stop::hold(containers, &container).await {
                Ok(Some(attended)) => {
                    let record = &attended.container.record;
                    if !record.status.is_live() {
                        return Ok(Some(match detached && record.started != before {
                            true => Self::Runs(attended.container),
                            false => Self::Held(attended),
                        }));
                    }
                    // Whoever attended it was killed meanwhile.
                    let abandoned = attended.container.clone();
                    drop(attended);
                    settle::settle(app, containers, abandoned).await?
                }
                Ok(None) => None,
                // Somebody else was faster.
                Err(StopError::StillLive { .. }) => container.reload(),
                Err(error) => return Err(error),
            };
            match next {
                Some(next) => container = next,
                None => return Ok(None),
            }
        }
    }
}

/// Removes what the last time left that would be taken for news.
fn make_ready(attended: &mut Attended) -> Result<(), StopError> {
    let folder = attended.folder().to_owned();
    for name in [DEATH_FILE, TIMELINE_FILE] {
        // What is not there needs no removing.
        let _ = fs::remove_file(folder.join(name));
    }
    attended.update(|record| {
        record.status = Status::Creating;
        record.oom_killed = false;
        record.shim = None;
        record.restarting = false;
    })?;
    Ok(())
}

/// Stops and starts containers.
pub(crate) async fn restart(app: &App, args: &RestartArgs) -> Result<(), StopError> {
    let containers = app.containers()?;
    let mut signals = Signals::catch().map_err(|error| run_error(RunError::Signals(error)))?;
    let mut failures = Vec::new();
    for wanted in &args.containers {
        match restart_one(app, &containers, wanted, args, &mut signals).await {
            Ok(()) => table::line(wanted),
            Err(error) => failures.push(error),
        }
    }
    stop::conclude(failures, args.containers.len(), "restarted")
}

async fn restart_one(
    app: &App,
    containers: &Containers,
    wanted: &str,
    args: &RestartArgs,
    signals: &mut Signals,
) -> Result<(), StopError> {
    let mut container = settle::find(app, containers, wanted).await?;
    container.update(|record| record.restarting = true)?;
    // By its identifier: it is this one that was marked.
    let id = container.record.id.to_string();
    let restarted = async {
        stop::stop_one(app, containers, &id, args.signal, args.time).await?;
        start_one(app, containers, &id, None, signals).await
    }
    .await;
    if restarted.is_err() {
        // It may be gone; and a start that came so far has cleared it.
        let _ = container.update(|record| record.restarting = false);
    }
    restarted.map(drop)
}

/// Attaches to a running container.
pub(crate) async fn attach(app: &App, args: &AttachArgs) -> Result<u8, StopError> {
    let mut signals = Signals::catch().map_err(|error| run_error(RunError::Signals(error)))?;
    let container = settle::find(app, &app.containers()?, &args.container).await?;
    let name = container.record.name.to_string();
    match look(&container).await.0 {
        Seen::Running { .. } | Seen::Creating => {}
        Seen::Paused => {
            return Err(StopError::WrongState {
                action: "attach to",
                name,
                state: "paused; let it go on first with `sandboxctl unpause`",
            });
        }
        Seen::Unanswering { .. } => return Err(UnansweringError { name }.into()),
        seen => {
            return Err(StopError::NotRunning {
                name,
                state: seen.word().to_owned(),
            });
        }
    }
    let launch = Launch::load(&container.folder).map_err(|error| run_error(error.into()))?;
    // docker refuses this one whether the container reads its input or not, and `start -ai` never.
    if launch.terminal && !args.no_stdin && !terminal::on_stdin() {
        return Err(StopError::NotATerminal { name });
    }
    let wanted = Wanted {
        stdin: !args.no_stdin && launch.stdin,
        stdout: true,
        stderr: !launch.terminal,
        terminal: launch.terminal,
        keys: run::keys(args.detach_keys.as_ref()),
        signals: if args.sig_proxy {
            PassedSignals::of_guest(launch.terminal)
        } else {
            PassedSignals::None
        },
        ends_with_reader: false,
    };
    follow(app, &container, &launch, wanted, &mut signals).await
}

/// Is one more client of a running container, to its end.
async fn follow(
    app: &App,
    container: &Container,
    launch: &Launch,
    wanted: Wanted,
    received: &mut Signals,
) -> Result<u8, StopError> {
    let streams = |source| {
        run_error(RunError::Stdio {
            stream: "streams",
            source,
        })
    };
    let mut attachment = Attachment::connect(&launch.attach_socket(), wanted).map_err(streams)?;
    loop {
        return match attachment.next(received).await {
            Step::Started => continue,
            Step::Ended(outcome) => match outcome.error {
                Some(said) => Err(run_error(RunError::Attendant {
                    said,
                    code: outcome.code,
                })),
                None => Ok(outcome.code),
            },
            Step::Unwritten(error) if is_hang_up(&error) => Ok(run::BROKEN_PIPE),
            Step::Unwritten(error) => Err(run_error(RunError::Output(error))),
            Step::Detached => Ok(0),
            Step::Interrupted(signal) => Ok(signals::exit_code(signal)),
            Step::Lost(_) => {
                settle::settle(app, &app.containers()?, container.clone()).await?;
                Err(run_error(RunError::AttendantDied))
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::tests::made;

    /// What becomes of a start of an ended container, if another was started last at this time meanwhile.
    async fn beside_another(detached: bool, started: u64) -> Startable {
        let root = tempfile::tempdir().unwrap();
        let app = App::new(root.path(), None).unwrap();
        let containers = app.containers().unwrap();
        let mut other = made(&containers);
        let ended = |started| {
            move |record: &mut crate::container::Record| {
                record.started = Some(started);
                record.status = Status::Exited {
                    code: 0,
                    finished: started,
                };
            }
        };
        other.update(ended(1)).unwrap();
        let container = other.container.clone();
        let starting = tokio::spawn(async move {
            let startable = Startable::of(&app, &containers, container, detached).await;
            startable.unwrap().unwrap()
        });
        tokio::task::yield_now().await;
        assert!(!starting.is_finished());
        other.update(ended(started)).unwrap();
        drop(other);
        starting.await.unwrap()
    }

    #[tokio::test]
    async fn container_that_another_started_meanwhile_is_not_started_twice() {
        let startable = beside_another(true, 2).await;
        assert!(matches!(startable, Startable::Runs(_)));
    }

    #[tokio::test]
    async fn container_that_nobody_started_is_started_once_it_is_let_go() {
        let startable = beside_another(true, 1).await;
        assert!(matches!(startable, Startable::Held(_)));
        // Who attaches wants to see it run.
        let startable = beside_another(false, 2).await;
        assert!(matches!(startable, Startable::Held(_)));
    }
}
