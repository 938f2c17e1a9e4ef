//! `sandboxctl run` and `create`: from a command line to a container, and to its exit code.
//!
//! ```text
//! plan        checks everything that can be checked; nothing is made
//! register    the container's folder appears, with a name
//! fill        lease on the layers, writable layer, OCI configuration            `create` ends here
//! attend      the attendant is started; from here on it is what runs the container, and we are its client
//!             (crate::attendant) shim, Create, Start, until the end, Delete, Shutdown
//! ```
//!
//! A signal before the process runs undoes everything, also while the image is pulled; from then on it is the container's. A run that does not get as
//! far as the process leaves nothing behind. Afterwards `--rm` decides whether the container's folder stays.

mod error;
mod prepare;

use std::fs;
use std::path::Path;

use sandbox_protocol::bundle::DEATH_FILE;
use sandbox_types::ContainerId;
use sandbox_types::timeline::Phase;
use serde::Deserialize;
use tokio::task::JoinHandle;

use crate::app::App;
use crate::attach::{Attachment, PassedSignals, Step, Wanted, is_hang_up};
use crate::cli::{CreateArgs, MakeArgs, RunArgs};
use crate::container::{Attended, Containers, Status};
use crate::launch;
use crate::report;
use crate::settle::{self, AnonymousVolumes};
use crate::signals::{self, Signals};
use crate::stdio::{DEFAULT_DETACH_KEYS, DetachKeys};
use crate::table;
use crate::timings::Timeline;
pub(crate) use error::RunError;
use prepare::FoundImage;

/// 128 and `SIGPIPE`: how a program ends whose output nobody reads.
pub(crate) const BROKEN_PIPE: u8 = 141;

/// Runs a container, in the foreground unless it is detached.
pub(crate) async fn run(app: &App, args: &RunArgs, mut timeline: Timeline) -> Result<u8, RunError> {
    let mut signals = Signals::catch().map_err(RunError::Signals)?;
    let containers = app.containers()?;
    let kind = Kind {
        begins: match args.detach {
            true => Begins::Detached,
            false => Begins::Attached,
        },
        remove: args.rm,
    };
    let cidfile = prepare::check_caller(&args.create, kind)?;
    let found = image(app, &args.create, &mut signals).await?;
    let attended = make(app, &containers, &args.create, kind, found)?;
    timeline.mark(Phase::ImageReady);
    let id = attended.container.record.id.clone();
    let wanted = Wanted {
        stdin: args.create.interactive && !args.detach,
        stdout: !args.detach,
        stderr: !args.detach && !args.create.tty,
        terminal: args.create.tty && !args.detach,
        keys: keys(args.detach_keys.as_ref()),
        signals: PassedSignals::All,
        ends_with_reader: !args.detach,
    };
    let started = |id: &ContainerId| {
        if let Some(cidfile) = &cidfile
            && let Err(error) = cidfile.write(id)
        {
            report::warn(&error);
        }
    };
    let code = follow(
        app,
        attended,
        FirstClient {
            wanted,
            detached: args.detach,
        },
        &mut signals,
        &mut timeline,
        started,
    )
    .await?;
    if args.detach {
        table::line(id.as_str());
    }
    if let Some(form) = args.timings {
        eprint!("{}", timeline.render(form));
    }
    Ok(code)
}

/// Docker's keys, unless others are wanted.
pub(crate) fn keys(wanted: Option<&DetachKeys>) -> Option<DetachKeys> {
    wanted
        .cloned()
        .or_else(|| DetachKeys::parse(DEFAULT_DETACH_KEYS).ok())
}

/// How whoever starts a container attends it.
pub(crate) struct FirstClient {
    /// The streams it takes part in.
    pub(crate) wanted: Wanted,
    /// It goes when the container runs, instead of staying to its end.
    pub(crate) detached: bool,
}

/// Has a container attended, and is its first client.
pub(crate) async fn follow(
    app: &App,
    attended: Attended,
    client: FirstClient,
    received: &mut Signals,
    timeline: &mut Timeline,
    started: impl Fn(&ContainerId),
) -> Result<u8, RunError> {
    let container = attended.container.clone();
    let streams = |source| RunError::Stdio {
        stream: "streams",
        source,
    };
    let (mut attachment, theirs) = Attachment::owner(client.wanted).map_err(streams)?;
    launch::attend(app, attended, theirs)?;
    loop {
        match attachment.next(received).await {
            Step::Started => {
                started(&container.record.id);
                if client.detached {
                    return Ok(0);
                }
            }
            Step::Ended(outcome) => {
                timeline.merge(&outcome.marks);
                return match outcome.error {
                    Some(said) => Err(RunError::Attendant {
                        said,
                        code: outcome.code,
                    }),
                    None => Ok(outcome.code),
                };
            }
            Step::Unwritten(error) if is_hang_up(&error) => return Ok(BROKEN_PIPE),
            Step::Unwritten(error) => return Err(RunError::Output(error)),
            Step::Detached => return Ok(0),
            Step::Interrupted(signal) => return Ok(signals::exit_code(signal)),
            Step::Lost(signal) => {
                let _ = settle::settle(app, &app.containers()?, container).await?;
                return Err(match signal {
                    Some(signal) => RunError::Interrupted { signal },
                    None => RunError::AttendantDied,
                });
            }
        }
    }
}

/// Makes a container without starting it.
pub(crate) fn create(app: &App, args: &CreateArgs) -> Result<(), RunError> {
    let kind = Kind {
        begins: Begins::Later,
        remove: args.rm,
    };
    let cidfile = prepare::check_caller(&args.create, kind)?;
    // Signals end this process as they end others: nothing that was begun is anybody's yet.
    let found = prepare::find_image(app, &args.create.program.image, &args.create.pull)?;
    let containers = app.containers()?;
    let mut attended = make(app, &containers, &args.create, kind, found)?;
    let id = attended.container.record.id.clone();
    if let Some(cidfile) = cidfile
        && let Err(error) = cidfile.write(&id)
    {
        discard(app, &containers, &attended);
        return Err(error);
    }
    attended.update(|record| {
        record.status = Status::Created;
        record.keep = true;
    })?;
    table::line(id.as_str());
    Ok(())
}

/// What kind of container is made.
#[derive(Debug, Clone, Copy)]
struct Kind {
    begins: Begins,
    remove: bool,
}

/// How a container begins that is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begins {
    /// With our streams.
    Attached,
    /// By itself.
    Detached,
    /// By somebody's `start`.
    Later,
}

/// The image, unless a signal comes first. What a pull has not finished by then lies apart in the store, and the next
/// command that looks there clears it away.
async fn image(app: &App, args: &MakeArgs, signals: &mut Signals) -> Result<FoundImage, RunError> {
    let (app, wanted, options) = (app.clone(), args.program.image.clone(), args.pull.clone());
    // A thread of its own, which ends with the process: it waits for the registry and cannot be asked to stop.
    let finding = tokio::task::spawn_blocking(move || prepare::find_image(&app, &wanted, &options));
    interruptible(finding, signals).await
}

/// The work's result, unless a signal comes first.
async fn interruptible<T>(
    work: JoinHandle<Result<T, RunError>>,
    signals: &mut Signals,
) -> Result<T, RunError> {
    tokio::select! {
        biased;
        result = work => match result {
            Ok(result) => result,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        },
        signal = signals.next() => Err(RunError::Interrupted { signal }),
    }
}

/// Makes the container's folder with everything in it.
fn make(
    app: &App,
    containers: &Containers,
    args: &MakeArgs,
    kind: Kind,
    found: FoundImage,
) -> Result<Attended, RunError> {
    let plan = prepare::plan(app, args, kind, found)?;
    let attended = prepare::register(containers, &plan, args, kind)?;
    if let Err(error) = prepare::fill(&attended, &plan, args) {
        // It is not there when that did not come so far.
        let _ = fs::remove_dir_all(&plan.config.socket_dir);
        discard(app, containers, &attended);
        return Err(error);
    }
    app.journal()
        .note(&attended.container.record, "create", &[]);
    Ok(attended)
}

/// Removes a container that is of no use.
fn discard(app: &App, containers: &Containers, attended: &Attended) {
    if let Err(error) = settle::remove(app, containers, attended, AnonymousVolumes::Removed) {
        report::warn(&error);
    }
}

/// What the shim wrote about the end of a sandbox that nobody asked for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Death {
    /// One line.
    pub(crate) cause: String,
    /// The console's last lines.
    #[serde(default)]
    pub(crate) console_tail: Vec<String>,
}

impl Death {
    /// Reads it from a container's folder, if there is one.
    pub(crate) fn read(folder: &Path) -> Option<Self> {
        let text = fs::read(folder.join(DEATH_FILE)).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_a_signal_interrupts_is_not_waited_for() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let (forever, never) = std::sync::mpsc::channel::<()>();
        let result = runtime.block_on(async {
            let mut signals = Signals::catch().unwrap();
            let work = tokio::task::spawn_blocking(move || {
                let _ = never.recv();
                Ok(())
            });
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGUSR2).unwrap();
            interruptible(work, &mut signals).await
        });
        drop(forever);
        assert!(matches!(result, Err(RunError::Interrupted { signal: 12 })));
    }
}
