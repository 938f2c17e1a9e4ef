//! `sandboxctl exec`: another process in a running container.
//!
//! It is a matter between us and the shim; the container's attendant only hears of it. A process that nobody waits for
//! (`-d`) has a name by which the attendant knows that it is to forget it. Of any other the attendant is told who attends it, by a
//! connection: where that ends before the process does (the keys, an output that nobody takes, a `SIGKILL`) the process is the attendant's from then on.

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{BoxBuilder, LinuxCapabilitiesBuilder, Process, Spec};
use sandbox_protocol::bundle::SPEC_FILE;
use tokio::time::{Duration, Instant, sleep};

use crate::app::{App, AppError};
use crate::attach::protocol::{self, Request};
use crate::attach::{input_end, is_hang_up, next_resize};
use crate::cli::ExecArgs;
use crate::container::{Container, ContainerError};
use crate::launch::Launch;
use crate::look::{Seen, UnansweringError, look};
use crate::names;
use crate::run::{self, RunError};
use crate::settle::{self, SettleError};
use crate::shim::{RpcError, RpcFailure, Shim};
use crate::signals::{Resizes, Signals};
use crate::spec::SpecError;
use crate::stdio::{
    Fifos, Input, InputEnd, OutputEnd, Outputs, duplicate, exec_folder, open_fifo, open_input_fifo,
};
use crate::terminal::{self, RawMode};

/// How the identifiers of processes begin that nobody waits for.
pub(crate) const DETACHED: &str = "detached-";
/// 128 and `SIGPIPE`.
const BROKEN_PIPE: u8 = 141;
/// How long an output may stay open without anything coming once its process has ended.
const DRAIN_IDLE: Duration = Duration::from_secs(10);

/// Why a process was not added, or not waited for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecError {
    #[error(transparent)]
    App(#[from] AppError),
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error(transparent)]
    Settle(#[from] SettleError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// There is nothing to add it to.
    #[error(
        "container {name} is not running, it is {state}; start it with `sandboxctl start {name}`"
    )]
    NotRunning { name: String, state: &'static str },
    /// It would not run.
    #[error("container {name} is paused; let it go on first with `sandboxctl unpause {name}`")]
    Paused { name: String },
    /// A terminal was asked for, and standard input is none.
    #[error("the input device is not a TTY; leave out -t, or run it in a terminal")]
    NotATerminal,
    /// Its configuration is not what was written.
    #[error("cannot read the configuration of container {name}")]
    Configuration {
        name: String,
        source: oci_spec::OciSpecError,
    },
    /// A description cannot be made.
    #[error("cannot describe the process")]
    Describe(#[from] oci_spec::OciSpecError),
    /// A file or a stream.
    #[error("cannot {action}")]
    Io {
        action: &'static str,
        source: io::Error,
    },
    /// As `run` says it.
    #[error(transparent)]
    Program(#[from] Box<RunError>),
    #[error(transparent)]
    Rpc(#[from] RpcError),
    #[error(transparent)]
    Unanswering(#[from] UnansweringError),
    /// The container went away under it.
    #[error("container {name} ended before the process did")]
    ContainerEnded { name: String },
}

impl ExecError {
    /// What `sandboxctl` exits with, as docker does.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Program(error) => error.exit_code(),
            _ => 125,
        }
    }
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> ExecError {
    move |source| ExecError::Io { action, source }
}

/// Runs a process in a container; its exit code is ours.
pub(crate) async fn exec(app: &App, args: &ExecArgs) -> Result<u8, ExecError> {
    if args.tty && args.interactive && !args.detach && !terminal::on_stdin() {
        return Err(ExecError::NotATerminal);
    }
    let mut signals = Signals::catch().map_err(failed("catch signals"))?;
    let container = settle::find(app, &app.containers()?, &args.container).await?;
    let name = container.record.name.to_string();
    let shim = match look(&container).await {
        (Seen::Running { .. }, Some(shim)) => shim,
        (Seen::Paused, _) => return Err(ExecError::Paused { name }),
        (Seen::Unanswering { .. }, _) => return Err(UnansweringError { name }.into()),
        (seen, _) => {
            return Err(ExecError::NotRunning {
                name,
                state: seen.word(),
            });
        }
    };
    let process = describe(&container, args)?;
    let random = names::random_id().map_err(failed("read /dev/urandom"))?;
    if args.detach {
        let exec = format!("{DETACHED}{}", names::short(&random));
        let id = container.record.id.as_str();
        shim.tasks.exec(id, &exec, &process, None).await?;
        let started = shim.tasks.start(id, &exec).await;
        return match started {
            Ok(()) => Ok(0),
            Err(error) => {
                let _ = shim.tasks.delete(id, &exec).await;
                Err(explain(error, args, &container))
            }
        };
    }
    let exec = names::short(&random);
    let folder = exec_folder(&container.folder, exec)
        .ok_or(io::Error::from(io::ErrorKind::InvalidInput))
        .map_err(failed("name the process"))?;
    let mut running = Running {
        folder,
        exec: exec.to_owned(),
        container: &container,
        shim,
        args,
    };
    let attended = running.announce()?;
    let result = match running.run(&process, &mut signals).await {
        // The connection ends here, and not the process.
        Ok(End::Left(code)) => return Ok(code),
        Ok(End::Lost(source)) => {
            return Err(failed("write the process's output; the process goes on")(
                source,
            ));
        }
        Ok(End::Code(code)) => Ok(code),
        Err(error) => Err(error),
    };
    let deleted = running
        .shim
        .tasks
        .delete(container.record.id.as_str(), &running.exec)
        .await;
    let remains = deleted.is_err_and(|error| {
        !matches!(error.failure, RpcFailure::NotFound | RpcFailure::Unanswered)
    });
    if !remains {
        let _ = fs::remove_dir_all(&running.folder);
        // Else the attendant sees to it.
        let _ = protocol::send(&attended, &Request::Released);
    }
    result
}

/// The container's own process, but for what the command line says.
fn describe(container: &Container, args: &ExecArgs) -> Result<Process, ExecError> {
    let path = container.folder.join(SPEC_FILE);
    let spec = Spec::load(&path).map_err(|source| ExecError::Configuration {
        name: container.record.name.to_string(),
        source,
    })?;
    let mut process = spec.process().clone().unwrap_or_default();
    process.set_args(Some(args.command.clone()));
    process.set_terminal(Some(args.tty));
    process.set_console_size(None);
    if args.tty {
        let (columns, rows) = terminal::size();
        let size = BoxBuilder::default().width(columns).height(rows).build()?;
        process.set_console_size(Some(size));
    }
    let environment = process.env().clone().unwrap_or_default();
    let environment =
        crate::spec::exec_environment(args.tty, &environment, &args.env_file, &args.env)?;
    process.set_env(Some(environment));
    if let Some(folder) = &args.workdir {
        process.set_cwd(PathBuf::from(folder));
    }
    if let Some(user) = &args.user {
        let user = crate::spec::exec_user(process.user(), user)?;
        process.set_user(user);
    }
    if args.privileged {
        let all = crate::spec::all_capabilities();
        let all = LinuxCapabilitiesBuilder::default()
            .bounding(all.clone())
            .effective(all.clone())
            .permitted(all.clone())
            .inheritable(std::collections::HashSet::new())
            .ambient(std::collections::HashSet::new())
            .build()?;
        process.set_capabilities(Some(all));
    }
    Ok(process)
}

fn explain(error: RpcError, args: &ExecArgs, container: &Container) -> ExecError {
    match error.failure {
        RpcFailure::Program(failure) => ExecError::Program(Box::new(RunError::Program {
            failure,
            program: args.command.first().cloned().unwrap_or_default(),
            image: container.record.image.clone(),
            message: error.message,
        })),
        RpcFailure::Unanswered => ExecError::ContainerEnded {
            name: container.record.name.to_string(),
        },
        _ => error.into(),
    }
}

/// How attending a process ended.
enum End {
    /// With the process; this is what to exit with.
    Code(u8),
    /// The process goes on without us, because the keys were typed that mean that, or nobody takes what it writes; this is what to exit with.
    Left(u8),
    /// The process goes on without us: what it writes cannot be passed on.
    Lost(io::Error),
}

struct Running<'a> {
    folder: PathBuf,
    exec: String,
    container: &'a Container,
    shim: Shim,
    args: &'a ExecArgs,
}

impl Running<'_> {
    fn id(&self) -> &str {
        self.container.record.id.as_str()
    }

    /// Tells the container's attendant that the process is ours, as long as what this gives lives.
    fn announce(&self) -> Result<UnixStream, ExecError> {
        Launch::load(&self.container.folder)
            .map_err(io::Error::other)
            .and_then(|launch| protocol::attend_exec(&launch.attach_socket(), &self.exec))
            .map_err(failed("tell the container's attendant of the process"))
    }

    async fn run(&mut self, process: &Process, signals: &mut Signals) -> Result<End, ExecError> {
        let args = self.args;
        fs::create_dir_all(&self.folder).map_err(failed("make the folder of its streams"))?;
        let fifos = Fifos::create(&self.folder, args.interactive, !args.tty)
            .map_err(failed("make its streams"))?;
        let mut outputs = Outputs::new();
        copy(&mut outputs, &fifos.stdout, io::stdout(), "stdout")?;
        if let Some(path) = &fifos.stderr {
            copy(&mut outputs, path, io::stderr(), "stderr")?;
        }
        let tasks = self.shim.tasks.clone();
        tasks
            .exec(self.id(), &self.exec, process, Some(&fifos))
            .await
            .map_err(|error| explain(error, args, self.container))?;
        let mut raw_mode = (args.tty && args.interactive)
            .then(RawMode::enter)
            .transpose()
            .map_err(failed("use the terminal"))?;
        let keys = raw_mode
            .as_ref()
            .and_then(|_| run::keys(args.detach_keys.as_ref()));
        let mut input = match &fifos.stdin {
            Some(path) => Some(
                open_input_fifo(path)
                    .and_then(|to| Input::copy(duplicate(io::stdin())?, to, keys))
                    .map_err(failed("pass input on"))?,
            ),
            None => None,
        };
        if let Err(error) = tasks.start(self.id(), &self.exec).await {
            drop(raw_mode.take());
            return Err(explain(error, args, self.container));
        }
        let result = self.attend(&mut outputs, &mut input, signals).await;
        drop(raw_mode);
        result
    }

    async fn attend(
        &self,
        outputs: &mut Outputs,
        input: &mut Option<Input>,
        signals: &mut Signals,
    ) -> Result<End, ExecError> {
        let tasks = &self.shim.tasks;
        let mut resizes = None;
        if self.args.tty {
            resizes = Resizes::catch().ok();
            self.resize().await;
        }
        let wait = tasks.wait(self.id(), &self.exec);
        tokio::pin!(wait);
        let status = loop {
            tokio::select! {
                status = &mut wait => break status,
                signal = signals.next() => {
                    // It may have ended.
                    let _ = tasks.kill_exec(self.id(), &self.exec, signal).await;
                }
                () = next_resize(&mut resizes) => self.resize().await,
                end = outputs.next_end(), if outputs.are_open() => {
                    if let OutputEnd::Broken(error) = end {
                        return Ok(match is_hang_up(&error) {
                            true => End::Left(BROKEN_PIPE),
                            false => End::Lost(error),
                        });
                    }
                }
                end = input_end(input) => {
                    *input = None;
                    match end {
                        Some(InputEnd::Complete(held)) => {
                            let _ = tasks.close_stdin(self.id(), &self.exec).await;
                            drop(held);
                        }
                        Some(InputEnd::Detached) => return Ok(End::Left(0)),
                        Some(InputEnd::Lost) | None => {}
                    }
                }
            }
        };
        let broken = drain(outputs, signals).await;
        let status = status.map_err(|error| explain(error, self.args, self.container))?;
        match broken {
            Some(error) if is_hang_up(&error) => Ok(End::Code(BROKEN_PIPE)),
            Some(source) => Err(failed("write what the process wrote last")(source)),
            None => Ok(End::Code(u8::try_from(status).unwrap_or(u8::MAX))),
        }
    }

    async fn resize(&self) {
        let (columns, rows) = terminal::size();
        // A wrong size is no reason to stop.
        let _ = self
            .shim
            .tasks
            .resize(self.id(), &self.exec, columns, rows)
            .await;
    }
}

fn copy(
    outputs: &mut Outputs,
    fifo: &Path,
    to: impl std::os::fd::AsFd,
    name: &str,
) -> Result<(), ExecError> {
    let copied = || -> io::Result<()> {
        let to = File::from(duplicate(to)?);
        outputs.copy(open_fifo(fifo)?, to, name)
    };
    copied().map_err(failed("connect its streams"))
}

/// Waits until the outputs have ended; gives the error if one could not be written.
async fn drain(outputs: &mut Outputs, signals: &mut Signals) -> Option<io::Error> {
    let began = Instant::now();
    while outputs.are_open() {
        let idle = outputs.idle().min(began.elapsed());
        if idle >= DRAIN_IDLE {
            return None;
        }
        let left = (DRAIN_IDLE - idle).max(Duration::from_millis(10));
        tokio::select! {
            end = outputs.next_end() => if let OutputEnd::Broken(error) = end {
                return Some(error);
            },
            _ = signals.next() => return None,
            () = sleep(left) => {}
        }
    }
    None
}
