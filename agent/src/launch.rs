//! The agent's side of [`crate::helper`].

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::MemfdFlags;
use rustix::io::FdFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::pipe::PipeFlags;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use crate::helper::{self, Action, CONTAINER_NAME, Failure, Order, Report};
use crate::reaper::{ExitStatus, Reaper};
use crate::spec::Confinement;
use crate::stdio::Inherited;

/// The most that is read of a report pipe, in bytes.
const MAX_REPORT_BYTES: u64 = 64 * 1024;
/// How long a helper, or a started process until its execve, may take.
const LIMIT: Duration = Duration::from_secs(100);

/// Why a process could not be made or started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    /// A system call of the agent's failed.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: &'static str,
        #[source]
        source: io::Error,
    },
    /// The helper, or the process in the container, said why.
    #[error("{}", .0.message)]
    Failed(Failure),
    /// The helper ended without a word.
    #[error("the helper that makes the container's process died")]
    Died,
    /// It took too long.
    #[error("the container's process was not ready within {LIMIT:?}")]
    TimedOut,
    /// The order could not be written down.
    #[error("cannot write the helper's order")]
    Order(#[from] serde_json::Error),
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> LaunchError {
    move |source| LaunchError::Io { what, source }
}

/// What is to be launched.
#[derive(Debug)]
pub(crate) struct Launch {
    /// What the helper is to do.
    pub(crate) action: Action,
    /// Bundle and state of the container.
    pub(crate) folder: PathBuf,
    /// Descriptors 0, 1 and 2 of the process; `None` with a terminal.
    pub(crate) stdio: Option<Inherited>,
    /// What the executor applies.
    pub(crate) confinement: Confinement,
}

/// A process that a helper has made.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) pid: i32,
    /// Its exit.
    pub(crate) exited: oneshot::Receiver<ExitStatus>,
    /// What it says until its execve.
    pub(crate) report: ReportPipe,
    /// The master of its terminal, if it has one.
    pub(crate) terminal: Option<OwnedFd>,
}

/// Read end of a report pipe.
#[derive(Debug)]
pub(crate) struct ReportPipe(BufReader<tokio::io::Take<pipe::Receiver>>);

impl ReportPipe {
    /// The next report; `None` at the end.
    async fn next(&mut self) -> Result<Option<Report>, LaunchError> {
        let mut line = String::new();
        let read = self.0.read_line(&mut line);
        let read = tokio::time::timeout(LIMIT, read)
            .await
            .map_err(|_| LaunchError::TimedOut)?;
        match read.map_err(failed("read the helper's report"))? {
            0 => Ok(None),
            _ => Ok(Some(serde_json::from_str(&line)?)),
        }
    }

    /// Until the program runs.
    pub(crate) async fn executed(mut self) -> Result<(), LaunchError> {
        while let Some(report) = self.next().await? {
            if let Report::Failed(failure) = report {
                return Err(LaunchError::Failed(failure));
            }
        }
        Ok(())
    }
}

/// Runs a helper until it has made the process.
pub(crate) async fn launch(launch: Launch, reaper: &Reaper) -> Result<Launched, LaunchError> {
    let console = match launch.stdio {
        Some(_) => None,
        None => Some(Console::listen(&launch.folder)?),
    };
    let (read, write) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|e| failed("make a pipe")(e.into()))?;
    let mut report = ReportPipe(BufReader::new(
        pipe::Receiver::from_owned_fd(read)
            .map_err(failed("make a pipe"))?
            .take(MAX_REPORT_BYTES),
    ));
    // Exits are kept from now on: the process may end before its pid is known here.
    let _guard = reaper.expect_unknown();
    spawn(launch, write, console.as_ref())?;
    match report.next().await? {
        Some(Report::Created { pid }) => Ok(Launched {
            pid,
            exited: reaper.wait(pid),
            report,
            terminal: console.map(Console::receive).transpose()?,
        }),
        Some(Report::Failed(failure)) => {
            // The helper still cleans up; it has when its end of the pipe closes.
            while report.next().await?.is_some() {}
            Err(LaunchError::Failed(failure))
        }
        None => Err(LaunchError::Died),
    }
}

/// Spawns the helper. Nobody waits for it here; the reaper does.
fn spawn(launch: Launch, report: OwnedFd, console: Option<&Console>) -> Result<(), LaunchError> {
    let order = Order {
        action: launch.action,
        folder: launch.folder,
        report_fd: report.as_raw_fd(),
        stdio: launch
            .stdio
            .as_ref()
            .map(|stdio| stdio.each_ref().map(|fd| fd.as_raw_fd())),
        console_socket: console.map(|console| console.path.clone()),
        confinement: launch.confinement,
    };
    let mut text = File::from(
        rustix::fs::memfd_create("order", MemfdFlags::CLOEXEC)
            .map_err(|e| failed("make a memory file")(e.into()))?,
    );
    text.write_all(&serde_json::to_vec(&order)?)
        .and_then(|()| text.rewind())
        .map_err(failed("write the helper's order"))?;
    // The agent has one thread, so no other process can be spawned while these are inheritable.
    let mut inheritable = vec![report];
    inheritable.extend(launch.stdio.into_iter().flatten());
    for fd in &inheritable {
        rustix::io::fcntl_setfd(fd.as_fd(), FdFlags::empty())
            .map_err(|e| failed("pass a descriptor on")(e.into()))?;
    }
    Command::new("/proc/self/exe")
        .arg(helper::ARGUMENT)
        .env_clear()
        .stdin(Stdio::from(text))
        .stdout(Stdio::null())
        .spawn()
        .map_err(failed("run the helper"))?;
    Ok(())
}

/// The socket over which libcontainer hands the terminal's master out of the container.
#[derive(Debug)]
struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    fn listen(folder: &Path) -> Result<Self, LaunchError> {
        let what = "make the console socket";
        let path = folder.join("console.sock");
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed(what)(error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(failed(what))?;
        // The helper has connected and sent before it reports; if it has not, there is nothing to wait for.
        listener.set_nonblocking(true).map_err(failed(what))?;
        Ok(Self { listener, path })
    }

    fn receive(self) -> Result<OwnedFd, LaunchError> {
        let what = "receive the terminal";
        let (connection, _) = self.listener.accept().map_err(failed(what))?;
        connection.set_nonblocking(true).map_err(failed(what))?;
        receive_fd(&connection).map_err(failed(what))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn receive_fd(connection: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut text = [0u8; 64];
    rustix::net::recvmsg(
        connection,
        &mut [io::IoSliceMut::new(&mut text)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    ancillary
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no descriptor came with it"))
}

/// Tells a created container's process to go on to its program.
pub(crate) fn signal_start(folder: &Path) -> Result<(), LaunchError> {
    let socket = folder.join(CONTAINER_NAME).join("notify.sock");
    let mut stream =
        UnixStream::connect(socket).map_err(failed("reach the container's process"))?;
    stream
        .write_all(b"start container")
        .map_err(failed("start the container's process"))
}
