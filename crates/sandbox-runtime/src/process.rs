//! Child processes that cannot outlive what they were started for.
//!
//! A jailed one begins in a process namespace of its own, as its first process, without our environment; the rest of its
//! jail is entered by the program itself, or by one that becomes it ([`sandbox_types::jail`]).
//!
//! Every child is told to die with the thread that spawned it, leads a process group of its own (so that what it
//! forks is reached too, and a terminal's Ctrl-C does not reach it), and is killed when its handle is dropped.

#![expect(
    unsafe_code,
    reason = "a child's parent-death signal can only be set between fork and exec"
)]

mod stat;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{PidfdFlags, pidfd_open};
use sandbox_types::jail::JailConfig;
use sandbox_types::monitor::VIOLATION_EXIT_CODE;
use tokio::process::Child;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::console::{Console, Tail, copy_into_console, copy_into_tail};

pub(crate) use stat::ProcessStat;
pub use stat::start_time;

/// What is kept of a child's standard error, in bytes.
const STDERR_TAIL_BYTES: usize = 8 * 1024;
/// Descriptors are passed from this number up, so that none meets the fixed ones of a program's interface.
const FIRST_PASSED_FD: RawFd = 10;
/// How long a dead child's output is waited for: something that it forked may still hold the pipe.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

/// Why a program could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// A descriptor could not be prepared for it.
    #[error("cannot prepare descriptors for {name}")]
    Descriptors {
        /// Its name.
        name: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It has no process namespace of its own.
    #[error(
        "cannot start {name} in a process namespace of its own; the runtime needs root with CAP_SYS_ADMIN, and a kernel \
         with CONFIG_PID_NS. `jail = false` in the configuration does without the jail"
    )]
    Namespace {
        /// Its name.
        name: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It could not be executed.
    #[error("cannot start {name} ({})", program.display())]
    Exec {
        /// Its name.
        name: &'static str,
        /// The file.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The jail of a program that is to be started.
#[derive(Debug)]
struct Jailing {
    config: JailConfig,
    /// What becomes its description, once it is known which descriptors are passed.
    file: File,
    /// Its number in the child.
    fd: RawFd,
    /// What enters the jail and then becomes the program, with its arguments; without one the program does itself.
    launcher: Option<(PathBuf, Vec<OsString>)>,
}

impl Jailing {
    /// Writes the description.
    fn describe(&mut self, mappings: &[FdMapping]) -> io::Result<()> {
        let own = [self.fd, self.config.parent_fd];
        self.config.keep_fds = mappings
            .iter()
            .map(|mapping| mapping.child_fd)
            .filter(|fd| !own.contains(fd))
            .collect();
        self.file.write_all(&serde_json::to_vec(&self.config)?)?;
        self.file.rewind()
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProcessEnd {
    /// It exited.
    Exited(i32),
    /// A signal killed it.
    Killed(i32),
    /// The kernel would not say.
    Unknown,
}

impl ProcessEnd {
    /// Whether it made a system call that it may not make.
    pub(crate) fn is_violation(self) -> bool {
        self == Self::Exited(VIOLATION_EXIT_CODE.into()) || self == Self::Killed(nix::libc::SIGSYS)
    }

    fn from_status(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Exited(code),
            (None, Some(signal)) => Self::Killed(signal),
            (None, None) => Self::Unknown,
        }
    }
}

impl std::fmt::Display for ProcessEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit code {code}"),
            Self::Killed(signal) => write!(
                f,
                "killed by signal {signal}{}",
                crate::event::signal_name(*signal)
            ),
            Self::Unknown => f.write_str("for an unknown reason"),
        }
    }
}

/// A program to start.
pub(crate) struct Launch {
    name: &'static str,
    program: PathBuf,
    args: Vec<OsString>,
    mappings: Vec<FdMapping>,
    console: Option<Console>,
    jailing: Option<Jailing>,
    network: Option<OwnedFd>,
}

impl Launch {
    pub(crate) fn new(name: &'static str, program: PathBuf) -> Self {
        Self {
            name,
            program,
            args: Vec::new(),
            mappings: Vec::new(),
            console: None,
            jailing: None,
            network: None,
        }
    }

    pub(crate) fn arg(&mut self, arg: impl Into<OsString>) -> &mut Self {
        self.args.push(arg.into());
        self
    }

    /// Passes a descriptor on; returns the number under which the child has it.
    pub(crate) fn pass(&mut self, fd: impl AsFd) -> Result<RawFd, SpawnError> {
        let copy = rustix::io::fcntl_dupfd_cloexec(fd, FIRST_PASSED_FD).map_err(|errno| {
            SpawnError::Descriptors {
                name: self.name,
                source: errno.into(),
            }
        })?;
        // The same number on both sides: the child only loses the close-on-exec flag.
        let number = copy.as_raw_fd();
        self.mappings.push(FdMapping {
            parent_fd: copy,
            child_fd: number,
        });
        Ok(number)
    }

    /// Passes a descriptor on under a number that the program's interface fixes.
    pub(crate) fn pass_as(&mut self, fd: OwnedFd, number: RawFd) -> &mut Self {
        self.mappings.push(FdMapping {
            parent_fd: fd,
            child_fd: number,
        });
        self
    }

    /// Jails it. It is a program of ours that enters the jail itself: its command, which is to be its only argument so
    /// far, is followed by what names the jail. `sandbox` is the sandbox's folder, for whoever lists processes.
    pub(crate) fn jail(&mut self, jail: JailConfig, sandbox: &Path) -> Result<(), SpawnError> {
        let arguments = self.prepare_jail(jail, sandbox)?;
        self.args.extend(arguments);
        Ok(())
    }

    /// Jails it. It is a foreign program; `monitor` enters the jail and becomes it.
    pub(crate) fn jail_by(
        &mut self,
        monitor: &Path,
        jail: JailConfig,
        sandbox: &Path,
    ) -> Result<(), SpawnError> {
        let mut arguments = vec!["jailed".into()];
        arguments.extend(self.prepare_jail(jail, sandbox)?);
        arguments.push("--".into());
        if let Some(jailing) = &mut self.jailing {
            jailing.launcher = Some((monitor.to_owned(), arguments));
        }
        Ok(())
    }

    fn prepare_jail(
        &mut self,
        mut config: JailConfig,
        sandbox: &Path,
    ) -> Result<Vec<OsString>, SpawnError> {
        let name = self.name;
        let failed = |errno: rustix::io::Errno| SpawnError::Descriptors {
            name,
            source: errno.into(),
        };
        let file = memfd_create("sandbox-jail", MemfdFlags::CLOEXEC).map_err(failed)?;
        let file = File::from(file);
        let fd = self.pass(&file)?;
        config.parent_fd = self.pass(own_pidfd().map_err(failed)?)?;
        self.jailing = Some(Jailing {
            config,
            file,
            fd,
            launcher: None,
        });
        let number = fd.to_string().into();
        Ok(vec![
            "--jail".into(),
            number,
            "--sandbox".into(),
            sandbox.into(),
        ])
    }

    /// Has it begin in a network namespace, in which its jail leaves it.
    pub(crate) fn begin_in_network(&mut self, namespace: impl AsFd) -> Result<(), SpawnError> {
        // Not one of the low numbers, which are replaced in the child before it is used.
        let copy = rustix::io::fcntl_dupfd_cloexec(namespace, FIRST_PASSED_FD);
        self.network = Some(copy.map_err(|errno| SpawnError::Descriptors {
            name: self.name,
            source: errno.into(),
        })?);
        if let Some(jailing) = &mut self.jailing {
            jailing.config.keeps_network = true;
        }
        Ok(())
    }

    /// Keeps the tail of its standard output as the guest's console.
    pub(crate) fn console(&mut self, console: Console) -> &mut Self {
        self.console = Some(console);
        self
    }

    /// Starts it. Must run on a thread that lives as long as the child should.
    pub(crate) fn spawn(mut self) -> Result<Process, SpawnError> {
        let name = self.name;
        let prepare_error = |source: io::Error| SpawnError::Descriptors { name, source };
        let namespace_error = |source: io::Error| SpawnError::Namespace { name, source };
        let is_jailed = self.jailing.is_some();
        if let Some(mut jailing) = self.jailing.take() {
            jailing.describe(&self.mappings).map_err(prepare_error)?;
            if let Some((launcher, mut arguments)) = jailing.launcher {
                arguments.push(std::mem::replace(&mut self.program, launcher).into());
                arguments.append(&mut self.args);
                self.args = arguments;
            }
        }
        // The pipe on which the standard library learns of a failed exec takes the lowest free number, which must
        // not be one that is about to be replaced in the child.
        let _occupied = occupy_low_descriptors().map_err(prepare_error)?;
        let parent = own_pidfd().map_err(|errno| prepare_error(errno.into()))?;
        let mut command = std::process::Command::new(&self.program);
        command
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(if self.console.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stderr(Stdio::piped())
            .process_group(0);
        command
            .fd_mappings(self.mappings)
            .map_err(|collision| prepare_error(io::Error::other(collision)))?;
        if is_jailed {
            command.env_clear();
        }
        die_with_parent(&mut command, parent);
        if let Some(network) = self.network {
            enter_network(&mut command, network);
        }
        let mut command = tokio::process::Command::from(command);
        command.kill_on_drop(true);
        let namespace = match is_jailed {
            true => Some(ChildNamespace::make().map_err(namespace_error)?),
            false => None,
        };
        let spawned = command.spawn();
        // First of all: until then no thread can be started.
        if let Some(namespace) = namespace {
            namespace.leave().map_err(namespace_error)?;
        }
        let mut child = spawned.map_err(|source| SpawnError::Exec {
            name,
            program: self.program,
            source,
        })?;
        let stderr = Arc::new(Tail::new(STDERR_TAIL_BYTES));
        let mut readers = Vec::new();
        if let Some(pipe) = child.stderr.take() {
            readers.push(tokio::spawn(copy_into_tail(pipe, Arc::clone(&stderr))));
        }
        if let (Some(pipe), Some(console)) = (child.stdout.take(), self.console) {
            readers.push(tokio::spawn(copy_into_console(pipe, console)));
        }
        Ok(Process {
            name,
            pid: child.id().unwrap_or_default(),
            child,
            stderr,
            readers,
            end: None,
        })
    }
}

/// Fills the free descriptor numbers below [`FIRST_PASSED_FD`] for as long as the result lives.
fn occupy_low_descriptors() -> io::Result<Vec<File>> {
    let mut held = Vec::new();
    loop {
        let file = File::open("/dev/null")?;
        if file.as_raw_fd() >= FIRST_PASSED_FD {
            return Ok(held);
        }
        held.push(file);
    }
}

/// A descriptor of this process. It can be asked whether the process has ended from within every process namespace.
fn own_pidfd() -> rustix::io::Result<OwnedFd> {
    pidfd_open(rustix::process::getpid(), PidfdFlags::empty())
}

/// A process namespace for the next child of the calling thread (pid_namespaces(7)), which is to be ended by
/// [`Self::leave`]: the thread can start no thread in the meantime.
struct ChildNamespace {
    own: File,
}

impl ChildNamespace {
    fn make() -> io::Result<Self> {
        let own = File::open("/proc/thread-self/ns/pid")?;
        unshare(CloneFlags::CLONE_NEWPID)?;
        Ok(Self { own })
    }

    /// What the thread starts from now on is in its own namespace.
    fn leave(self) -> io::Result<()> {
        Ok(setns(&self.own, CloneFlags::CLONE_NEWPID)?)
    }
}

/// `parent` is a descriptor of this process.
fn die_with_parent(command: &mut std::process::Command, parent: OwnedFd) {
    let hook = move || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        // It may have died before the signal was set.
        let mut fds = [PollFd::new(&parent, PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        if poll(&mut fds, Some(&now))? > 0 {
            return Err(io::Error::from_raw_os_error(nix::libc::ESRCH));
        }
        Ok(())
    };
    // SAFETY: the hook makes two system calls and allocates nothing, so it may run between fork and exec.
    unsafe { command.pre_exec(hook) };
}

/// Has the child begin in a network namespace.
fn enter_network(command: &mut std::process::Command, namespace: OwnedFd) {
    let hook = move || Ok(setns(&namespace, CloneFlags::CLONE_NEWNET)?);
    // SAFETY: the hook makes one system call and allocates nothing, so it may run between fork and exec.
    unsafe { command.pre_exec(hook) };
}

/// A running, or ended, child.
#[derive(Debug)]
pub(crate) struct Process {
    name: &'static str,
    pid: u32,
    child: Child,
    stderr: Arc<Tail>,
    readers: Vec<JoinHandle<()>>,
    end: Option<ProcessEnd>,
}

impl Process {
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// How much processor time it has had so far, its guest's included; none once it has ended.
    pub(crate) fn processor_time(&self) -> Option<Duration> {
        let pid = i32::try_from(self.child.id()?).ok()?;
        let clock = nix::time::clock_getcpuclockid(Pid::from_raw(pid)).ok()?;
        Some(clock.now().ok()?.into())
    }

    /// Adds a task that reads what the process says, and ends when it does.
    pub(crate) fn attach(&mut self, reader: JoinHandle<()>) {
        self.readers.push(reader);
    }

    /// What it said last on standard error.
    pub(crate) fn last_words(&self) -> String {
        self.stderr.lines(5).join("; ")
    }

    /// Whether it has ended, asked of the kernel.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end and until its output has been read. Cancel-safe; may be called again.
    pub(crate) async fn wait(&mut self) -> ProcessEnd {
        if let Some(end) = self.end {
            return end;
        }
        let end = match self.child.wait().await {
            Ok(status) => ProcessEnd::from_status(status),
            Err(_) => ProcessEnd::Unknown,
        };
        let drained = futures::future::join_all(self.readers.iter_mut());
        let _late = tokio::time::timeout(DRAIN_TIMEOUT, drained).await;
        self.readers.clear();
        self.end = Some(end);
        end
    }

    /// As [`Self::wait`], but no longer than until `deadline`. Says whether it has ended. One that was killed while it waits for a file
    /// system that does not answer ends when that does, which may be never.
    pub(crate) async fn wait_until(&mut self, deadline: Instant) -> bool {
        let ended = tokio::time::timeout_at(deadline, self.wait()).await.is_ok();
        if !ended {
            tracing::error!(
                "{} (process {}) was killed and has not ended; it is left",
                self.name,
                self.pid
            );
        }
        ended
    }

    /// Kills it and everything in its process group.
    pub(crate) fn kill(&mut self) {
        self.kill_group();
        // Already gone is as good.
        let _ = self.child.start_kill();
    }

    /// Until the child has been waited for, the number is nobody else's.
    fn kill_group(&self) {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid {
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill_group();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn shell(script: &str) -> Launch {
        let mut launch = Launch::new("sh", "/bin/sh".into());
        launch.arg("-c").arg(script);
        launch
    }

    #[tokio::test]
    async fn process_exit_code_and_last_words_are_kept() {
        let mut process = shell("echo one >&2; echo two >&2; exit 7").spawn().unwrap();
        assert_eq!(process.wait().await, ProcessEnd::Exited(7));
        assert_eq!(process.last_words(), "one; two");
        assert_eq!(process.wait().await, ProcessEnd::Exited(7));
    }

    #[tokio::test]
    async fn process_that_works_has_processor_time_until_it_ends() {
        let mut process = shell("while :; do :; done").spawn().unwrap();
        let enough = Duration::from_millis(20);
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while process.processor_time().unwrap() < enough {
            assert!(std::time::Instant::now() < deadline);
            tokio::task::yield_now().await;
        }
        process.kill();
        process.wait().await;
        assert_eq!(process.processor_time(), None);
    }

    #[tokio::test]
    async fn process_that_is_killed_takes_its_children_along() {
        let folder = tempfile::tempdir().unwrap();
        let console = Console::create(folder.path()).unwrap();
        let mut launch = shell("sleep 1000 & echo $!; wait");
        launch.console(console.clone());
        let mut process = launch.spawn().unwrap();
        let grandchild = loop {
            if let Some(line) = console.tail().pop() {
                break line;
            }
            tokio::task::yield_now().await;
        };
        process.kill();
        assert_eq!(process.wait().await, ProcessEnd::Killed(9));
        // It was killed with the others, and dies in its own time.
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        loop {
            let stat = std::fs::read_to_string(format!("/proc/{grandchild}/stat"));
            let stat = stat.unwrap_or_default();
            if stat.is_empty() || stat.contains(") Z ") {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "{stat}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn descriptors_arrive_under_their_numbers() {
        let (read, mut write) = io::pipe().unwrap();
        write.write_all(b"fixed\n").unwrap();
        drop(write);
        let (read2, mut write2) = io::pipe().unwrap();
        write2.write_all(b"passed\n").unwrap();
        drop(write2);
        let folder = tempfile::tempdir().unwrap();
        let console = Console::create(folder.path()).unwrap();
        let mut launch = Launch::new("sh", "/bin/sh".into());
        let number = launch.pass(&read2).unwrap();
        launch
            .arg("-c")
            .arg(format!("cat <&3; cat /proc/self/fd/{number}"))
            .pass_as(read.into(), 3)
            .console(console.clone());
        let mut process = launch.spawn().unwrap();
        assert_eq!(process.wait().await, ProcessEnd::Exited(0));
        assert_eq!(console.tail(), ["fixed", "passed"]);
    }

    #[tokio::test(start_paused = true)]
    async fn process_that_does_not_end_is_waited_for_until_the_deadline() {
        let mut process = shell("sleep 1000").spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        assert!(!process.wait_until(deadline).await);
        assert!(Instant::now() >= deadline);
        process.kill();
        tokio::time::resume();
        let deadline = Instant::now() + Duration::from_secs(60);
        assert!(process.wait_until(deadline).await);
    }

    #[tokio::test]
    async fn program_that_is_missing_is_an_error_with_its_path() {
        let error = Launch::new("it", "/nonexistent/program".into())
            .spawn()
            .unwrap_err();
        assert!(error.to_string().contains("/nonexistent/program"));
    }
}
