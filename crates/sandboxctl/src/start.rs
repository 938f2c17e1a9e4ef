//! `sandboxctl start`, `restart` and `attach`.

use std::fs;

use crate::app::App;
use crate::attach::{Attachment, PassedSignals, Step, Wanted, is_hang_up};
use crate::cli::{AttachArgs, RestartArgs, StartArgs};
use crate::container::{Attended, Container, Containers, Status};
use crate::launch::Launch;
use crate::look::{Seen, look};
use crate::run::{self, DEATH_FILE, RunError};
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
    let container = settle::find(app, containers, wanted).await?;
    let live = container.record.status.is_live();
    let launch = Launch::load(&container.folder).map_err(|error| run_error(error.into()))?;
    let streams = attach.map_or_else(Wanted::default, |args| Wanted {
        stdin: args.interactive && launch.stdin,
        stdout: true,
        stderr: !launch.terminal,
        terminal: launch.terminal,
        keys: run::keys(args.detach_keys.as_ref()),
        signals: PassedSignals::of_guest(launch.terminal),
        ends_with_reader: false,
    });
    if live {
        // As docker has it: it runs, and that is what was wanted.
        return match attach {
            None => Ok(0),
            Some(_) => follow(app, &container, &launch, streams, signals).await,
        };
    }
    let Some(mut attended) = stop::hold(containers, &container).await? else {
        return Err(StopError::Gone {
            name: wanted.to_owned(),
        });
    };
    make_ready(&mut attended)?;
    let detached = attach.is_none();
    run::follow(
        app,
        attended,
        run::FirstClient {
            wanted: streams,
            detached,
        },
        signals,
        &mut Timeline::default(),
        |_| (),
    )
    .await
    .map_err(run_error)
}

/// Removes what the last time left that would be taken for news.
fn make_ready(attended: &mut Attended) -> Result<(), StopError> {
    let folder = attended.folder().to_owned();
    for name in [DEATH_FILE, "timeline.json"] {
        // What is not there needs no removing.
        let _ = fs::remove_file(folder.join(name));
    }
    attended.update(|record| {
        record.status = Status::Creating;
        record.oom_killed = false;
        record.shim = None;
    })?;
    Ok(())
}

/// Stops and starts containers.
pub(crate) async fn restart(app: &App, args: &RestartArgs) -> Result<(), StopError> {
    let containers = app.containers()?;
    let mut signals = Signals::catch().map_err(|error| run_error(RunError::Signals(error)))?;
    let mut failures = Vec::new();
    for wanted in &args.containers {
        let restarted = async {
            stop::stop_one(app, &containers, wanted, args.signal, args.time).await?;
            start_one(app, &containers, wanted, None, &mut signals).await
        };
        match restarted.await {
            Ok(_) => table::line(wanted),
            Err(error) => failures.push(error),
        }
    }
    stop::conclude(failures, args.containers.len(), "restarted")
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
