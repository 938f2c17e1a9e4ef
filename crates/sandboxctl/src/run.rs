//! `sandboxctl run`: from a command line to an exit code.
//!
//! ```text
//! plan        checks everything that can be checked; nothing is made
//! register    the container's folder appears, with a name
//! fill        lease on the layers, writable layer, OCI configuration, fifos
//! launch      the shim runs and answers
//! Create      the sandbox boots, the container exists        a signal before Start undoes everything
//! Start       the container's process runs                   a signal from here on is the container's
//! Wait        until it has ended
//! drain       until its outputs have been read to their ends
//! Delete, Shutdown
//! ```
//!
//! A run that does not get as far as the process leaves nothing behind. Afterwards `--rm` decides
//! whether the container's folder stays.

mod attend;
mod error;
mod prepare;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sandbox_image::Store;
use sandbox_types::timeline::Phase;
use serde::Deserialize;

use crate::app::App;
use crate::cli::RunArgs;
use crate::container::{Attended, Containers, Status, now};
use crate::report;
use crate::signals::Signals;
use crate::stdio::Fifos;
use crate::timings::Timeline;
use attend::Session;
pub(crate) use error::RunError;
use prepare::Bundle;

/// How a container's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    /// The exit code of `sandboxctl`.
    pub(crate) code: u8,
}

/// Runs a container in the foreground.
pub(crate) async fn run(
    app: &App,
    args: &RunArgs,
    mut timeline: Timeline,
) -> Result<Ended, RunError> {
    let mut signals = Signals::catch().map_err(RunError::Signals)?;
    if let Some(path) = &args.cidfile
        && path.exists()
    {
        return Err(RunError::CidfileExists { path: path.clone() });
    }
    let plan = prepare::plan(app, args)?;
    let containers = app.containers()?;
    let mut made = Made {
        attended: prepare::register(&containers, &plan, args)?,
        containers,
        store: plan.store.clone(),
        sockets: plan.config.socket_dir.clone(),
    };
    let bundle = match prepare::fill(&made.attended, &plan, args) {
        Ok(bundle) => bundle,
        Err(error) => {
            made.forget_sockets();
            made.discard();
            return Err(error);
        }
    };
    timeline.mark(Phase::ImageReady);
    let result = launch_and_attend(args, &mut made, &bundle, &mut signals, &mut timeline).await;
    Fifos::remove(made.attended.folder());
    made.conclude(&result, args.rm);
    if args.timings {
        eprint!("{}", timeline.render());
    }
    result.map_err(|failure| failure.error)
}

/// A run that failed, and how far it had come.
struct Failure {
    error: RunError,
    started: bool,
}

async fn launch_and_attend(
    args: &RunArgs,
    made: &mut Made,
    bundle: &Bundle,
    signals: &mut Signals,
    timeline: &mut Timeline,
) -> Result<Ended, Failure> {
    let early = |error| Failure {
        error,
        started: false,
    };
    let shim = match bundle.shim.start().await {
        Ok(shim) => shim,
        Err(error) => {
            clear_away(bundle).await;
            return Err(early(error.into()));
        }
    };
    timeline.mark(Phase::ShimStarted);
    let record = shim.record.clone();
    let mut session = Session::new(shim, bundle, args);
    let noted = made.attended.update(|state| state.shim = Some(record));
    let begun = match noted {
        Ok(()) => session.begin(signals).await,
        Err(error) => Err(error.into()),
    };
    if let Err(error) = begun {
        session.abandon().await;
        clear_away(bundle).await;
        return Err(early(error));
    }
    let noted = made
        .attended
        .update(|state| state.status = Status::Running { started: now() });
    if let Err(error) = noted {
        report::warn(&error);
    }
    if let Some(path) = &args.cidfile
        && let Err(error) = prepare::write_cidfile(path, &made.attended.container.record.id)
    {
        report::warn(&error);
    }
    let result = session.attend(signals).await;
    // What the shim saw itself says more than what was seen from here.
    timeline.merge_file(&bundle.timeline);
    for (phase, at) in session.marks() {
        timeline.mark_at(phase, at);
    }
    timeline.mark(Phase::Exited);
    if result.is_err() || session.finish().await.is_err() {
        session.abandon().await;
        clear_away(bundle).await;
    }
    result.map_err(|error| Failure {
        error,
        started: true,
    })
}

/// Has the shim's program remove what a shim that is gone left.
async fn clear_away(bundle: &Bundle) {
    if let Err(error) = bundle.shim.delete().await {
        report::warn(&error);
    }
}

/// A container that was registered.
struct Made {
    attended: Attended,
    containers: Containers,
    store: Store,
    sockets: PathBuf,
}

impl Made {
    /// Removes the folder of the shim's socket.
    fn forget_sockets(&self) {
        // It is not there when the run did not come that far.
        let _ = fs::remove_dir_all(&self.sockets);
    }

    /// Removes the container: it never ran, or is not to stay.
    fn discard(&self) {
        let container = &self.attended.container;
        if let Err(error) = self.containers.remove(container) {
            report::warn(&error);
        }
        if let Err(error) = self.store.release(&container.record.id) {
            report::warn(&error);
        }
    }

    /// Notes how the run ended, or removes the container.
    fn conclude(&mut self, result: &Result<Ended, Failure>, remove: bool) {
        self.forget_sockets();
        let finished = now();
        let status = match result {
            Err(failure) if !failure.started => return self.discard(),
            _ if remove => return self.discard(),
            Ok(ended) => Status::Exited {
                code: ended.code.into(),
                finished,
            },
            Err(failure) => Status::Failed {
                reason: failure.error.reason(),
                finished,
            },
        };
        let noted = self.attended.update(|state| {
            state.status = status;
            state.shim = None;
        });
        if let Err(error) = noted {
            report::warn(&error);
        }
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
        let text = fs::read(folder.join("death.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

/// How long a container whose process has ended may keep an output open without writing to it.
const DRAIN_IDLE: Duration = Duration::from_secs(10);
