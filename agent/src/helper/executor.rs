//! The last steps of a container's process, in the container's namespaces: it finds its program, gives up its
//! privileges and executes it.
//!
//! libcontainer leaves the system call filter out of processes that are added to a container, so the agent
//! takes filter and capabilities out of the spec and applies them here, for the first process and for added
//! ones alike. Until then the process holds all capabilities, but runs only the agent's code: nothing here may
//! load or run anything that the container supplies, name services included.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libcontainer::capabilities;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use libseccomp::{ScmpAction, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sched::CloneFlags;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, sigprocmask};
use oci_spec::runtime::{Capabilities, LinuxCapabilities, Process, Spec};
use rustix::fs::{Gid, Uid};
use rustix::termios::Winsize;
use sandbox_types::WithCauses;

use super::profile::{Filter, ProfileError};
use super::program::{environment, find_program};
use super::{FailureKind, Reporter, hooks, limits, mounts};
use crate::spec::Confinement;

/// What one of the agent's own programs is called in its arguments.
const AGENT_NAME: &str = "sandbox-agent";
/// Device number of `/dev/null` (kernel `Documentation/admin-guide/devices.txt`).
const DEV_NULL: (u32, u32) = (1, 3);

/// Runs the program of a container's process.
#[derive(Clone)]
pub(super) struct AgentExecutor {
    report: Reporter,
    confinement: Confinement,
    /// The agent's binary.
    agent: Arc<OwnedFd>,
    /// A user namespace that is yet to be joined.
    users: Option<Arc<OwnedFd>>,
}

/// A program that cannot be run.
pub(super) struct Refusal {
    pub(super) kind: FailureKind,
    pub(super) message: String,
}

impl AgentExecutor {
    pub(super) fn new(
        report: Reporter,
        confinement: Confinement,
        agent: OwnedFd,
        users: Option<OwnedFd>,
    ) -> Self {
        Self {
            report,
            confinement,
            agent: Arc::new(agent),
            users: users.map(Arc::new),
        }
    }

    /// Returns only if it fails.
    fn run(&self, spec: &Spec) -> Result<std::convert::Infallible, Refusal> {
        let process = process_of(spec)?;
        let own = self.confinement.program;
        let path = self.path(process)?;
        let strings = |items: Vec<String>| {
            items
                .into_iter()
                .map(CString::new)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|_| setup("an argument or variable contains a zero byte"))
        };
        let mut arguments = process.args().clone().unwrap_or_default();
        if let Some(own) = own {
            arguments.splice(0..0, [AGENT_NAME.to_owned(), own.word().to_owned()]);
        }
        let arguments = strings(arguments)?;
        let variables = strings(environment(process))?;

        reset_signals().map_err(|errno| setup(format!("cannot reset signals: {errno}")))?;
        self.confine(process)?;
        if let Some(hooks) = &self.confinement.hooks {
            hooks::run(hooks, &environment(process))
                .map_err(|error| setup(WithCauses(&error).to_string()))?;
        }
        match &path {
            Some(path) => execute(path, &arguments, &variables),
            None => execute_own(&self.agent, &arguments, &variables),
        }
    }

    /// The command's path; `None` where one of the agent's own programs runs. Its command is looked for all the
    /// same.
    fn path(&self, process: &Process) -> Result<Option<PathBuf>, Refusal> {
        match self.confinement.program {
            None => find_program(process).map(Some),
            Some(own) if own.runs_a_command() => find_program(process).map(|_| None),
            Some(_) => Ok(None),
        }
    }

    /// A filter can be installed with `CAP_SYS_ADMIN` or with no-new-privileges set (seccomp(2)). With the
    /// latter it comes last, so that it need not allow what dropping capabilities takes.
    fn confine(&self, process: &Process) -> Result<(), Refusal> {
        let filter = self.filter()?;
        let install = || match &filter {
            Some(filter) => filter.install().map_err(cannot_install),
            None => Ok(()),
        };
        limits::apply(&self.confinement.rlimits)
            .map_err(|error| setup(WithCauses(&error).to_string()))?;
        let filters_last = process.no_new_privileges() == Some(true);
        refuse_vsock().map_err(|error| setup(format!("cannot refuse AF_VSOCK: {error}")))?;
        if !filters_last {
            install()?;
        }
        let sets = every_set(self.confinement.capabilities.as_ref());
        let syscall = SyscallType::Linux.create_syscall();
        capabilities::drop_privileges(&sets, syscall.as_ref())
            .map_err(|error| setup(format!("cannot drop capabilities: {error}")))?;
        if filters_last {
            install()?;
        }
        Ok(())
    }

    fn filter(&self) -> Result<Option<Filter>, Refusal> {
        let profile = self.confinement.seccomp.as_ref();
        let filter = profile.map(Filter::new).transpose();
        filter.map_err(cannot_install)
    }

    fn prepare(&self, spec: &Spec) -> Result<(), Refusal> {
        let process = process_of(spec)?;
        if let Some(namespace) = &self.users {
            join_users(namespace, process)
                .map_err(|error| setup(format!("cannot join the container's users: {error}")))?;
        }
        let folder = self.confinement.folder.as_deref();
        if let Some(folder) = folder {
            make_folder(folder).map_err(cannot_begin_in(folder))?;
        }
        self.make_read_only()?;
        // Only now: what covers the folder is to be where the process is.
        if let Some(folder) = folder {
            std::env::set_current_dir(folder).map_err(cannot_begin_in(folder))?;
        }
        self.path(process)?;
        for mount in &self.confinement.propagation {
            mounts::propagate(mount).map_err(|errno| {
                let destination = mount.destination.display();
                setup(format!(
                    "cannot set the propagation of {destination}: {errno}"
                ))
            })?;
        }
        for folder in &self.confinement.device_folders {
            protect(folder)
                .map_err(|error| setup(format!("cannot protect {}: {error}", folder.display())))?;
        }
        prepare_stdio(process)
    }

    fn make_read_only(&self) -> Result<(), Refusal> {
        if self.confinement.root_read_only {
            mounts::make_read_only(Path::new("/"))
                .map_err(|errno| setup(format!("cannot make the root read-only: {errno}")))?;
        }
        for place in &self.confinement.read_only {
            mounts::cover_read_only(place).map_err(|errno| {
                setup(format!(
                    "cannot make {} read-only: {errno}",
                    place.display()
                ))
            })?;
        }
        Ok(())
    }
}

impl Executor for AgentExecutor {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        self.prepare(spec).map_err(|refusal| {
            self.report.fail(refusal.kind, refusal.message.clone());
            ExecutorValidationError::ArgValidationError(refusal.message)
        })
    }

    /// The environment is made for execve and nothing here reads it.
    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let Err(refusal) = self.run(spec);
        self.report.fail(refusal.kind, refusal.message.clone());
        Err(ExecutorError::Other(refusal.message))
    }
}

fn cannot_install(error: ProfileError) -> Refusal {
    setup(format!(
        "cannot install the seccomp profile: {}",
        WithCauses(&error)
    ))
}

fn cannot_begin_in(folder: &Path) -> impl FnOnce(std::io::Error) -> Refusal {
    let folder = folder.display();
    let begin = format!("cannot begin in {folder}, the container's working directory");
    move |error| setup(format!("{begin}: {error}"))
}

/// Gives a folder that everybody may write to the permissions that an ordinary umask would have left it.
fn protect(folder: &Path) -> std::io::Result<()> {
    let metadata = fs::symlink_metadata(folder)?;
    if metadata.is_dir() && metadata.permissions().mode() & 0o7777 == 0o777 {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Makes the folder that a container begins in, as root of the container, if it is not there (as runc does, and
/// `docker run --workdir` with it).
fn make_folder(folder: &Path) -> std::io::Result<()> {
    let mut missing = Vec::new();
    for ancestor in folder.ancestors() {
        match fs::metadata(ancestor) {
            Ok(_) => break,
            Err(error) if error.kind() == ErrorKind::NotFound => missing.push(ancestor),
            Err(error) => return Err(error),
        }
    }
    for path in missing.into_iter().rev() {
        fs::create_dir(path)?;
        // Neither the process's umask nor its user is to decide.
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        std::os::unix::fs::chown(path, Some(0), Some(0))?;
    }
    Ok(())
}

/// Returns only if it fails.
fn execute(
    program: &Path,
    arguments: &[CString],
    variables: &[CString],
) -> Result<std::convert::Infallible, Refusal> {
    let path = CString::new(program.as_os_str().as_encoded_bytes())
        .map_err(|_| setup("the program's name contains a zero byte"))?;
    match nix::unistd::execve(&path, arguments, variables) {
        Err(errno) => Err(Refusal {
            kind: FailureKind::ProgramNotExecutable,
            message: match errno {
                Errno::ENOENT => format!(
                    "cannot execute {}: its interpreter is not in the container",
                    program.display()
                ),
                _ => format!("cannot execute {}: {}", program.display(), errno.desc()),
            },
        }),
        Ok(never) => Ok(never),
    }
}

/// Executes the agent's binary, which no path of the container leads to. Returns only if it fails.
fn execute_own(
    agent: &OwnedFd,
    arguments: &[CString],
    variables: &[CString],
) -> Result<std::convert::Infallible, Refusal> {
    let by_descriptor =
        nix::unistd::execveat(agent, c"", arguments, variables, AtFlags::AT_EMPTY_PATH);
    // A filter may know execve only.
    let link = CString::new(format!("/proc/self/fd/{}", agent.as_raw_fd()))
        .map_err(|_| setup("the agent's descriptor has no name"))?;
    match by_descriptor.or_else(|_| nix::unistd::execve(&link, arguments, variables)) {
        Err(errno) => Err(setup(format!(
            "cannot execute the agent's own program: {}",
            errno.desc()
        ))),
        Ok(never) => Ok(never),
    }
}

fn setup(message: impl Into<String>) -> Refusal {
    Refusal {
        kind: FailureKind::Setup,
        message: message.into(),
    }
}

fn process_of(spec: &Spec) -> Result<&Process, Refusal> {
    spec.process()
        .as_ref()
        .ok_or_else(|| setup("the spec has no process"))
}

/// Joins a user namespace and becomes the process's user there, with all capabilities in that namespace and none
/// outside it.
fn join_users(namespace: &OwnedFd, process: &Process) -> Result<(), Box<dyn std::error::Error>> {
    let user = process.user();
    nix::sched::setns(namespace, CloneFlags::CLONE_NEWUSER)?;
    let groups: Vec<_> = user.additional_gids().iter().flatten().collect();
    let groups: Vec<_> = groups
        .into_iter()
        .map(|&gid| nix::unistd::Gid::from_raw(gid))
        .collect();
    nix::unistd::setgroups(&groups)?;
    nix::sys::prctl::set_keepcaps(true)?;
    let gid = nix::unistd::Gid::from_raw(user.gid());
    nix::unistd::setresgid(gid, gid, gid)?;
    let uid = nix::unistd::Uid::from_raw(user.uid());
    nix::unistd::setresuid(uid, uid, uid)?;
    nix::sys::prctl::set_keepcaps(false)?;
    let syscall = SyscallType::Linux.create_syscall();
    capabilities::reset_effective(syscall.as_ref())?;
    Ok(())
}

/// Gives the process's own user its standard streams, so that it can open `/dev/stdout` again, and the terminal
/// its size.
fn prepare_stdio(process: &Process) -> Result<(), Refusal> {
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let uid = process.user().uid();
    for stream in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
        give(stream, uid)
            .map_err(|errno| setup(format!("cannot change the owner of a stream: {errno}")))?;
    }
    if let (Some(true), Some(size)) = (process.terminal(), process.console_size()) {
        let size = Winsize {
            ws_row: u16::try_from(size.height()).unwrap_or(u16::MAX),
            ws_col: u16::try_from(size.width()).unwrap_or(u16::MAX),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(stdin.as_fd(), size)
            .map_err(|errno| setup(format!("cannot set the terminal's size: {errno}")))?;
    }
    Ok(())
}

fn give(stream: BorrowedFd<'_>, uid: u32) -> Result<(), rustix::io::Errno> {
    let stat = rustix::fs::fstat(stream)?;
    let device = (
        rustix::fs::major(stat.st_rdev),
        rustix::fs::minor(stat.st_rdev),
    );
    if stat.st_uid == uid || device == DEV_NULL {
        return Ok(());
    }
    match rustix::fs::fchown(stream, Some(Uid::from_raw(uid)), None::<Gid>) {
        // In a user namespace that the stream's owner is not part of, nobody can own it.
        Err(rustix::io::Errno::PERM | rustix::io::Errno::INVAL) => Ok(()),
        result => result,
    }
}

/// Undoes what the Rust runtime did to SIGPIPE; a program inherits ignored signals through execve.
#[expect(
    unsafe_code,
    reason = "signal(2) can install handlers, which is unsafe"
)]
fn reset_signals() -> Result<(), Errno> {
    // SAFETY: the default action is no handler.
    unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigDfl) }?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}

/// A container must not reach the host's or the agent's vsock ports, whatever its profile allows. io_uring makes
/// sockets without the system call that a filter could look at, so there is none in containers.
fn refuse_vsock() -> Result<(), libseccomp::error::SeccompError> {
    let family = u64::try_from(nix::libc::AF_VSOCK).unwrap_or(u64::MAX);
    let mut filter = ScmpFilterContext::new(ScmpAction::Allow)?;
    filter.set_ctl_nnp(false)?;
    // Other system call tables have other ways to make a socket. The guest kernel has none of them.
    filter.set_act_badarch(ScmpAction::Errno(nix::libc::ENOSYS))?;
    filter.add_rule_conditional(
        ScmpAction::Errno(nix::libc::EAFNOSUPPORT),
        ScmpSyscall::from_name("socket")?,
        &[ScmpArgCompare::new(
            0,
            ScmpCompareOp::MaskedEqual(0xffff_ffff),
            family,
        )],
    )?;
    filter.add_rule(
        ScmpAction::Errno(nix::libc::EPERM),
        ScmpSyscall::from_name("io_uring_setup")?,
    )?;
    filter.load()
}

/// All five sets, as the spec has it: a set that is not there is empty.
fn every_set(sets: Option<&LinuxCapabilities>) -> LinuxCapabilities {
    let set = |of: fn(&LinuxCapabilities) -> &Option<Capabilities>| {
        Some(sets.and_then(|sets| of(sets).clone()).unwrap_or_default())
    };
    let mut all = LinuxCapabilities::default();
    all.set_bounding(set(LinuxCapabilities::bounding))
        .set_effective(set(LinuxCapabilities::effective))
        .set_permitted(set(LinuxCapabilities::permitted))
        .set_inheritable(set(LinuxCapabilities::inheritable))
        .set_ambient(set(LinuxCapabilities::ambient));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn folder_is_made_with_those_above_it() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("a/b");
        make_folder(&folder).unwrap();
        make_folder(&folder).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(
            (mode(&root.path().join("a")), mode(&folder)),
            (0o755, 0o755)
        );
        fs::write(root.path().join("file"), "").unwrap();
        assert!(make_folder(&root.path().join("file/below")).is_err());
    }

    #[test]
    #[expect(unsafe_code, reason = "io_uring_setup has no wrapper")]
    fn vsock_socket_is_refused_by_either_way() {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
        // Filters are a thread's own, and stay with it.
        let seen = std::thread::spawn(|| {
            rustix::thread::set_no_new_privs(true).unwrap();
            let make = |family| socket(family, SockType::Stream, SockFlag::empty(), None).map(drop);
            // The control: before the filter, io_uring is refused for another reason or not at all.
            // SAFETY: without parameters, there is nothing that the call could write to.
            let ring = || unsafe {
                nix::libc::syscall(nix::libc::SYS_io_uring_setup, 1, std::ptr::null_mut::<u8>())
            };
            let before = (ring(), Errno::last());
            refuse_vsock().unwrap();
            let after = (ring(), Errno::last());
            (
                make(AddressFamily::Vsock),
                make(AddressFamily::Unix),
                before,
                after,
            )
        });
        let (vsock, unix, before, after) = seen.join().unwrap();
        assert_eq!(vsock, Err(Errno::EAFNOSUPPORT));
        assert_eq!(unix, Ok(()));
        assert_ne!(before.1, Errno::EPERM);
        assert_eq!(after, (-1, Errno::EPERM));
    }

    #[test]
    fn capability_set_that_is_absent_is_empty() {
        let some = serde_json::from_value(json!({"bounding": ["CAP_KILL"]})).unwrap();
        let all = every_set(Some(&some));
        assert_eq!(all.bounding().as_ref().unwrap().len(), 1);
        for set in [
            all.effective(),
            all.permitted(),
            all.inheritable(),
            all.ambient(),
        ] {
            assert_eq!(set.as_ref().map(|set| set.len()), Some(0));
        }
        assert_eq!(
            every_set(None).bounding().as_ref().map(|set| set.len()),
            Some(0)
        );
    }
}
