//! A container's attendant: the process that starts its shim, and stays with it to its end.
//!
//! `sandboxctl` itself, in a session of its own, started by `run` and `start`. To its shim it is what containerd is: it
//! calls the task service, and serves the one for events. It copies the container's output to the log and to
//! whoever is attached, writes down the state, and clears away what is left in the end. Whoever ran the command is its
//! first client and may go, killed or not, without the container noticing.
//!
//! ```text
//!              run, start
//!                  | control connection, lock of the container's folder
//!                  v
//!   attach ---> attendant ---> shim ---> machine
//!                  |    <events--
//!                  +---> log, state, journal
//! ```
//!
//! It holds the lock of the container's folder. If it is killed, the lock is free while the state says that the container
//! runs: whoever notices ends the container and clears it away ([`crate::settle`]).

mod clients;
mod events;
mod session;

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use sandbox_types::WithCauses;
use sandbox_types::timeline::Phase;

use crate::app::App;
use crate::attach::protocol::Outcome;
use crate::cli::AttendArgs;
use crate::container::{Attended, Container, Containers, Status, now};
use crate::journal::Journal;
use crate::launch::Launch;
use crate::logs::Log;
use crate::network;
use crate::report;
use crate::run::RunError;
use crate::settle::{self, AnonymousVolumes};
use crate::shim::process_record;
use crate::stdio::{Fifos, open_input_fifo};
use crate::timings::Timeline;
use clients::{Clients, ContainerInput};
use session::Session;

/// Why the attendant cannot do its work at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttendantError {
    /// Nobody but `run` and `start` is to start it.
    #[error("this verb is what run and start use; it was not started by them")]
    NotStarted(#[source] io::Error),
    #[error(transparent)]
    Run(#[from] Box<RunError>),
}

/// Starts and attends a container, whose lock is standard output, for the client on standard input.
pub(crate) async fn attend(app: &App, args: &AttendArgs) -> Result<u8, AttendantError> {
    let (owner, lock) = inherited().map_err(AttendantError::NotStarted)?;
    let mut attendant =
        Attendant::new(app, args, lock).map_err(|error| AttendantError::Run(Box::new(error)))?;
    let mut clients = match attendant.clients(owner) {
        Ok(clients) => clients,
        Err(error) => {
            // Nobody can be told; the state says it.
            attendant.conclude(&Err(early(error)));
            return Ok(1);
        }
    };
    let result = attendant.run(&mut clients).await;
    attendant.conclude(&result);
    let outcome = match &result {
        Ok(code) => Outcome {
            code: u8::try_from(*code).unwrap_or(u8::MAX),
            error: None,
            marks: attendant.timeline.into_marks(),
        },
        Err(failure) => Outcome {
            code: failure.error.exit_code(),
            error: Some(WithCauses(&failure.error).to_string()),
            marks: Vec::new(),
        },
    };
    clients.end(outcome);
    Ok(0)
}

/// Takes what it was started with from its standard streams, and leaves nothing there.
fn inherited() -> io::Result<(UnixStream, File)> {
    let owner = io::stdin().as_fd().try_clone_to_owned()?;
    let lock = io::stdout().as_fd().try_clone_to_owned()?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    let owner = UnixStream::from(owner);
    owner.local_addr()?;
    // What is typed at the caller's terminal is not for us.
    nix::unistd::setsid()?;
    Ok((owner, File::from(lock)))
}

/// A start that failed, and how far it had come.
struct Failure {
    error: RunError,
    started: bool,
}

fn early(error: impl Into<RunError>) -> Failure {
    Failure {
        error: error.into(),
        started: false,
    }
}

struct Attendant<'a> {
    app: &'a App,
    containers: Containers,
    attended: Attended,
    launch: Launch,
    fifos: Option<Fifos>,
    journal: Journal,
    timeline: Timeline,
    out_of_memory: bool,
}

impl<'a> Attendant<'a> {
    fn new(app: &'a App, args: &AttendArgs, lock: File) -> Result<Self, RunError> {
        let containers = app.containers()?;
        let container = containers.find(args.container.as_str())?;
        let mut attended = Attended::inherited(&container.folder, lock)?;
        let launch = Launch::load(attended.folder())?;
        let ourselves = process_record(std::process::id()).ok();
        attended.update(|record| record.attendant = ourselves)?;
        Ok(Self {
            app,
            containers,
            attended,
            launch,
            fifos: None,
            journal: app.journal(),
            timeline: Timeline::default(),
            out_of_memory: false,
        })
    }

    /// Makes what the container's streams go through.
    fn clients(&mut self, owner: UnixStream) -> Result<Clients, RunError> {
        let launch = &self.launch;
        let folder = self.attended.folder();
        let streams = |source| RunError::Stdio {
            stream: "streams",
            source,
        };
        fs::create_dir_all(&launch.socket_dir).map_err(streams)?;
        let fifos = Fifos::create(folder, launch.stdin, !launch.terminal).map_err(streams)?;
        let input = fifos.stdin.as_deref().map(open_input_fifo).transpose();
        self.fifos = Some(fifos);
        let input = input.map_err(streams)?.map(|fifo| ContainerInput {
            fifo,
            // A terminal has no end: what its program takes for one is a key.
            once: launch.stdin_once && !launch.terminal,
        });
        let clients = Clients::new(owner, input).map_err(streams)?;
        clients.open(&launch.attach_socket()).map_err(streams)?;
        Ok(clients)
    }

    /// From the shim's start to its end.
    async fn run(&mut self, clients: &mut Clients) -> Result<u32, Failure> {
        let container = self.attended.container.clone();
        let launch = self.launch.clone();
        let Some(fifos) = self.fifos.take() else {
            return Err(early(RunError::Stdio {
                stream: "streams",
                source: io::ErrorKind::NotFound.into(),
            }));
        };
        let log = Log::open(&container.folder, &launch.log).map_err(|source| {
            early(RunError::Files {
                action: "open the log in",
                path: container.folder.clone(),
                source,
            })
        })?;
        let (_service, events) = events::serve(&launch.events_socket())
            .await
            .map_err(|source| early(RunError::Events(source)))?;
        let program = launch.shim(&container);
        let events_socket = launch.events_socket();
        // Neither needs the other before the machine is made.
        let (shim, attached) = tokio::join!(
            program.start(Some(&events_socket)),
            self.attach_network(&container, &launch)
        );
        let shim = match (shim, attached) {
            (Ok(shim), Ok(())) => shim,
            (shim, attached) => {
                if let Ok(shim) = &shim
                    && let Err(error) = shim.kill().await
                {
                    report::warn(&error);
                }
                self.clear_away().await;
                return Err(match attached {
                    Err(error) => early(error),
                    Ok(()) => match shim {
                        Err(error) => early(error),
                        Ok(_) => early(RunError::AttendantDied),
                    },
                });
            }
        };
        self.timeline.mark(Phase::ShimStarted);
        let record = shim.record.clone();
        let noted = self.attended.update(|state| state.shim = Some(record));
        let journal = self.journal.clone();
        let mut session = Session::new(shim, &container, &launch, &fifos, journal, events);
        let begun = match noted {
            Ok(()) => {
                let broadcasts = clients.broadcasts(log.as_ref());
                session.begin(clients, broadcasts).await
            }
            Err(error) => Err(error.into()),
        };
        if let Err(error) = begun {
            session.abandon().await;
            self.clear_away().await;
            return Err(early(error));
        }
        self.started();
        clients.tell(crate::attach::protocol::Report::Started);
        self.sync_state();
        let result = session.attend(clients).await;
        // What the shim saw itself says more than what was seen from here.
        self.timeline.merge_file(&Launch::timeline(&container));
        for (phase, at) in session.marks() {
            self.timeline.mark_at(phase, at);
        }
        self.timeline.mark(Phase::Exited);
        if result.is_err() || session.finish().await.is_err() {
            session.abandon().await;
            self.clear_away().await;
        }
        self.out_of_memory = session.out_of_memory();
        result.map_err(|error| Failure {
            error,
            started: true,
        })
    }

    /// Attaches the container to its network, if it has one.
    async fn attach_network(&self, container: &Container, launch: &Launch) -> Result<(), RunError> {
        let Some(plan) = launch.network.clone() else {
            return Ok(());
        };
        let (app, folder) = (self.app.clone(), container.folder.clone());
        let id = container.record.id.clone();
        let work = move || network::attach::attach(&app, &folder, id.as_str(), &plan);
        match tokio::task::spawn_blocking(work).await {
            Ok(attached) => Ok(attached?),
            // It panicked, which was printed.
            Err(_) => Err(RunError::AttendantDied),
        }
    }

    fn started(&mut self) {
        let started = now();
        let noted = self.attended.update(|state| {
            state.status = Status::Running { started };
            state.started = Some(started);
            state.keep = true;
        });
        if let Err(error) = noted {
            report::warn(&error);
        }
        self.note("start", &[]);
    }

    /// Has the state of a container that stays brought to the disk, once nobody waits for the start any more.
    fn sync_state(&self) {
        let container = self.attended.container.clone();
        if container.record.auto_remove {
            return;
        }
        let sync = move || {
            if let Err(error) = container.sync_state() {
                report::warn(&error);
            }
        };
        // Without it only a crash of the host would be noticed.
        let _ = std::thread::Builder::new()
            .name("sync-state".to_owned())
            .spawn(sync);
    }

    fn note(&self, action: &str, more: &[(&str, String)]) {
        self.journal
            .note(&self.attended.container.record, action, more);
    }

    /// Has the shim's program remove what a shim that is gone left.
    async fn clear_away(&self) {
        let program = self.launch.shim(&self.attended.container);
        if let Err(error) = program.delete().await {
            report::warn(&error);
        }
    }

    /// Notes how it ended, or removes the container.
    fn conclude(&mut self, result: &Result<u32, Failure>) {
        settle::leave_network(&self.attended.container);
        let finished = now();
        let (status, code) = match result {
            Ok(code) => {
                let code = i32::try_from(*code).unwrap_or(i32::MAX);
                (Status::Exited { code, finished }, code)
            }
            Err(failure) => {
                let reason = failure.error.reason();
                let code = failure.error.container_code();
                let status = Status::Failed {
                    reason,
                    code,
                    finished,
                };
                (status, code)
            }
        };
        let out_of_memory = self.out_of_memory;
        let noted = self.attended.update(|state| {
            state.status = status;
            state.shim = None;
            state.attendant = None;
            state.oom_killed = out_of_memory;
        });
        if let Err(error) = noted {
            report::warn(&error);
        }
        let started = !matches!(result, Err(failure) if !failure.started);
        if started {
            self.note("die", &[("exitCode", code.to_string())]);
        }
        // Who does not find us any more finds what is written.
        settle::forget_sockets(&self.launch, self.attended.folder());
        let record = &self.attended.container.record;
        if record.goes_with_its_end() || !(started || record.keep) {
            self.discard();
        }
    }

    /// Removes the container.
    fn discard(&self) {
        let removed = settle::remove(
            self.app,
            &self.containers,
            &self.attended,
            AnonymousVolumes::Removed,
        );
        if let Err(error) = removed {
            report::warn(&error);
        }
    }
}
