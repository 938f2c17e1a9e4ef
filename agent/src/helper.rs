//! The short-lived process that makes a container, or adds a process to one, with libcontainer.
//!
//! libcontainer clones without exec, which is not safe in a process that has other threads or a runtime, so the
//! agent re-executes itself as `sandbox-agent helper` for each. The helper reads an [`Order`] from its
//! standard input, has libcontainer make the processes as the *agent's* children (`CLONE_PARENT`), and says
//! what happened on a pipe:
//!
//! ```text
//! agent                   helper                    init (in the container)
//!   |-- order (memfd) ------>|-- clone ... clone ------->|
//!   |                        |                           | checks the program ----> report: failed
//!   |<-- report: created ----|  exits                    | waits for the start signal
//!   |-- start signal (notify socket) ------------------->| filters, capabilities, execve
//!   |<-- report: failed, or end-of-file: the program runs|
//! ```
//!
//! The pipe closes with a successful execve, so its end is the start's success.

mod cause;
mod destinations;
mod executor;
mod hooks;
mod limits;
mod mounts;
mod profile;
mod program;
mod subgroup;

use std::io::{Read as _, Write as _};
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::container::{Container, ContainerStatus};
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use oci_spec::runtime::{Process, Spec};
use sandbox_protocol::bundle::SPEC_FILE;
use sandbox_types::WithCauses;
use serde::{Deserialize, Serialize};

use self::destinations::DestinationError;
use self::executor::AgentExecutor;
use crate::spec::Confinement;
use crate::users::{self, UserError};

/// First argument of the program when it is to be the helper.
pub(crate) const ARGUMENT: &str = "helper";
/// Name that libcontainer knows every container by; its folder tells them apart.
pub(crate) const CONTAINER_NAME: &str = "c";
/// How the names of the files begin that libcontainer makes for a process that is added.
const ADDED_PREFIX: &[u8] = b"tenant-";
/// The longest message in a [`Report`], in bytes: a report is one write that a pipe takes whole (`PIPE_BUF`).
const MAX_MESSAGE_BYTES: usize = 1024;
/// Open files that a container's process may have if its spec does not say: soft and hard.
const DEFAULT_NOFILE: (u64, u64) = (1024, 1_048_576);

/// What to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Action {
    /// Make the container whose bundle is in `folder`.
    Create,
    /// Add the process that this file describes.
    Add(PathBuf),
}

/// The agent's instructions. Descriptor numbers are those of the helper.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    /// What to do.
    pub(crate) action: Action,
    /// Bundle and state of the container.
    pub(crate) folder: PathBuf,
    /// Write end of the report pipe.
    pub(crate) report_fd: RawFd,
    /// The process's stdin, stdout and stderr; `None` with a terminal.
    pub(crate) stdio: Option<[RawFd; 3]>,
    /// Where the terminal is to be sent.
    pub(crate) console_socket: Option<PathBuf>,
    /// What the executor applies.
    pub(crate) confinement: Confinement,
}

/// What happened; one JSON object a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The process is there.
    Created {
        /// As the guest's first pid namespace numbers it.
        pid: i32,
    },
    /// It is not, or its program could not be run.
    Failed(Failure),
}

/// Why a process could not be made or its program not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// Which kind.
    pub(crate) kind: FailureKind,
    /// The whole chain of errors.
    pub(crate) message: String,
}

/// Kinds of [`Failure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FailureKind {
    /// There is no such program.
    ProgramNotFound,
    /// It cannot be executed.
    ProgramNotExecutable,
    /// What was asked for makes no sense.
    Invalid,
    /// Anything else.
    Setup,
}

/// Write end of the report pipe.
#[derive(Debug, Clone)]
struct Reporter(Arc<OwnedFd>);

impl Reporter {
    fn send(&self, report: &Report) {
        let Ok(mut line) = serde_json::to_vec(report) else {
            return;
        };
        line.push(b'\n');
        // Nobody is left to tell if this fails: the agent sees the end of the pipe.
        let _ = rustix::io::write(&self.0, &line);
    }

    fn fail(&self, kind: FailureKind, mut message: String) {
        let mut end = message.len().min(MAX_MESSAGE_BYTES);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        self.send(&Report::Failed(Failure { kind, message }));
    }
}

/// The helper's `main`.
pub(crate) fn main() -> ExitCode {
    let mut text = Vec::new();
    let mut order: Order = match std::io::stdin()
        .read_to_end(&mut text)
        .map_err(|error| error.to_string())
        .and_then(|_| serde_json::from_slice(&text).map_err(|error| error.to_string()))
    {
        Ok(order) => order,
        Err(error) => {
            let _ = writeln!(
                std::io::stderr(),
                "sandbox-agent: helper: bad order: {error}"
            );
            return ExitCode::FAILURE;
        }
    };
    let report = Reporter(Arc::new(inherited(order.report_fd)));
    let nofile = rustix::process::Rlimit {
        current: Some(DEFAULT_NOFILE.0),
        maximum: Some(DEFAULT_NOFILE.1),
    };
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, nofile) {
        report.fail(
            FailureKind::Setup,
            format!("cannot set RLIMIT_NOFILE: {error}"),
        );
        return ExitCode::FAILURE;
    }
    let agent = match std::fs::File::open("/proc/self/exe") {
        Ok(agent) => OwnedFd::from(agent),
        Err(error) => {
            report.fail(
                FailureKind::Setup,
                format!("cannot open the agent's binary: {error}"),
            );
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = prepare(&mut order) {
        report.fail(FailureKind::Invalid, WithCauses(&error).to_string());
        return ExitCode::FAILURE;
    }
    let cause = cause::record();
    match run(order, &report, agent) {
        Ok(pid) => {
            report.send(&Report::Created { pid });
            ExitCode::SUCCESS
        }
        Err(error) => {
            // The executor's own report, if there is one, came first and counts.
            let mut message = WithCauses(&error).to_string();
            if let Some(cause) = cause.and_then(|cause| cause.read()) {
                message = format!("{message}: {cause}");
            }
            report.fail(FailureKind::Setup, message);
            ExitCode::FAILURE
        }
    }
}

/// Why what was asked for makes no sense in this container.
#[derive(Debug, thiserror::Error)]
enum PrepareError {
    /// The user or group is not known there.
    #[error(transparent)]
    User(#[from] UserError),
    /// A limit is refused.
    #[error(transparent)]
    Limit(#[from] limits::LimitError),
    /// A mount leads nowhere.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// The agent's own description of the process cannot be used.
    #[error("the description of the process cannot be read or written")]
    Process(#[from] std::io::Error),
    /// It is no such object.
    #[error("the description of the process cannot be understood")]
    Json(#[from] serde_json::Error),
    /// It is no spec.
    #[error("the spec cannot be read or written")]
    Spec(#[from] oci_spec::OciSpecError),
    /// libcontainer's state of the container cannot be read.
    #[error("the state of the container cannot be read")]
    Container(#[from] LibcontainerError),
}

/// Looks the user up and the places of mounts, and makes room for limits. Here and not in the agent: a file system that a
/// container has mounted itself may make whoever reads its files wait.
fn prepare(order: &mut Order) -> Result<(), PrepareError> {
    limits::make_room(&order.confinement.rlimits)?;
    match &order.action {
        Action::Create => {
            let path = order.folder.join(SPEC_FILE);
            let mut spec = Spec::load(&path)?;
            let root = spec.root().as_ref().map(|root| root.path().clone());
            let Some(root) = root else { return Ok(()) };
            let propagation = &mut order.confinement.propagation;
            let mut changed = destinations::find(&mut spec, propagation, &root)?;
            if let Some(process) = spec.process_mut() {
                changed |= users::resolve(process.user_mut(), &root)?;
            }
            if changed {
                spec.save(&path)?;
            }
        }
        Action::Add(path) => {
            let mut process: Process = serde_json::from_slice(&std::fs::read(path)?)?;
            let first = first_process(&order.folder)?;
            let root = PathBuf::from(format!("/proc/{first}/root"));
            if users::resolve(process.user_mut(), &root)? {
                std::fs::write(path, serde_json::to_vec(&process)?)?;
            }
        }
    }
    Ok(())
}

fn run(order: Order, report: &Reporter, agent: OwnedFd) -> Result<i32, LibcontainerError> {
    let users = match order.action {
        Action::Create => None,
        Action::Add(_) => user_namespace(&order.folder)?,
    };
    let mut builder = ContainerBuilder::new(CONTAINER_NAME.to_owned(), SyscallType::Linux)
        .with_root_path(&order.folder)?
        .with_console_socket(order.console_socket)
        .with_executor(AgentExecutor::new(
            report.clone(),
            order.confinement,
            agent,
            users,
        ));
    if let Some([stdin, stdout, stderr]) = order.stdio {
        builder = builder
            .with_stdin(inherited(stdin))
            .with_stdout(inherited(stdout))
            .with_stderr(inherited(stderr));
    }
    match order.action {
        Action::Create => {
            let container = builder
                .as_init(&order.folder)
                .with_systemd(false)
                .as_sibling(true)
                .build()?;
            container
                .pid()
                .map(|pid| pid.as_raw())
                .ok_or_else(|| LibcontainerError::Other("the container has no process".to_owned()))
        }
        Action::Add(process) => {
            mark_running(&order.folder)?;
            let first = first_process(&order.folder)?;
            let added = builder
                .as_tenant()
                .with_detach(true)
                .as_sibling(true)
                .with_sub_cgroup(subgroup::of(first, &order.folder))
                .with_process(Some(process))
                .build();
            forget_sockets(&order.folder.join(CONTAINER_NAME));
            Ok(added?.as_raw())
        }
    }
}

/// The pid of a container's first process.
fn first_process(folder: &Path) -> Result<i32, LibcontainerError> {
    let container = Container::load(folder.join(CONTAINER_NAME))?;
    Ok(container.pid().map(|pid| pid.as_raw()).unwrap_or_default())
}

/// The user namespace of a container that has one of its own. libcontainer leaves added processes in the guest's, so
/// the executor joins it.
fn user_namespace(folder: &Path) -> Result<Option<OwnedFd>, LibcontainerError> {
    let first = first_process(folder)?;
    let path = format!("/proc/{first}/ns/user");
    let link = |path: &str| std::fs::read_link(path).map_err(LibcontainerError::OtherIO);
    if link(&path)? == link("/proc/self/ns/user")? {
        return Ok(None);
    }
    let namespace = std::fs::File::open(&path).map_err(LibcontainerError::OtherIO)?;
    Ok(Some(namespace.into()))
}

/// The agent starts containers itself, so libcontainer's state does not know yet that this one runs.
fn mark_running(folder: &Path) -> Result<(), LibcontainerError> {
    let mut container = Container::load(folder.join(CONTAINER_NAME))?;
    if container.status() == ContainerStatus::Created {
        container.set_status(ContainerStatus::Running).save()?;
    }
    Ok(())
}

/// Removes what libcontainer leaves of each added process in the container's folder: the socket by which it told the
/// process to go on, and the link to the one that took its terminal. Both have been used by now, and no two processes
/// are added to one container at once.
fn forget_sockets(folder: &Path) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(ADDED_PREFIX) {
            // One that stays is tried again with the next process.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Takes a descriptor that the agent left open for this process.
#[expect(
    unsafe_code,
    reason = "an inherited descriptor is only known by its number"
)]
fn inherited(fd: RawFd) -> OwnedFd {
    // SAFETY: the agent opened `fd` for this process and named it in the order once; nothing else here has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_added_processes_are_removed_and_the_containers_kept() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "tenant-notify-1.sock",
            "tenant-notify--2f.sock",
            "notify.sock",
        ] {
            std::os::unix::net::UnixListener::bind(folder.path().join(name)).unwrap();
        }
        std::os::unix::fs::symlink("/gone", folder.path().join("tenant-tty-1.sock")).unwrap();
        forget_sockets(folder.path());
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 1);
        assert!(folder.path().join("notify.sock").exists());
    }

    #[test]
    fn report_with_a_long_message_is_one_line_that_a_pipe_takes_whole() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let report = Reporter(Arc::new(write));
        report.fail(FailureKind::Setup, "\u{e4}\n\"".repeat(4000));
        drop(report);
        let mut text = String::new();
        std::fs::File::from(read).read_to_string(&mut text).unwrap();
        assert!(text.len() <= 4096 && text.ends_with('\n'));
        assert_eq!(text.lines().count(), 1);
        assert!(matches!(
            serde_json::from_str(&text).unwrap(),
            Report::Failed(Failure {
                kind: FailureKind::Setup,
                ..
            })
        ));
    }
}
