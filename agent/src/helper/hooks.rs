//! `startContainer` hooks (OCI runtime spec, "POSIX-platform Hooks"): programs of the container's that run just before
//! its own, in its namespaces and confined as it is.

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use oci_spec::runtime::Hook;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::spec::StartHooks;

/// How long a hook may take that does not say.
const LIMIT: Duration = Duration::from_secs(60);

/// Why the hooks failed, and with them the start.
#[derive(Debug, thiserror::Error)]
pub(super) enum HookError {
    /// It could not be run.
    #[error("cannot run the startContainer hook {path}")]
    Run {
        /// Which.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It failed.
    #[error("the startContainer hook {path} failed: {status}")]
    Failed {
        /// Which.
        path: PathBuf,
        /// How.
        status: ExitStatus,
    },
    /// It took too long.
    #[error("the startContainer hook {path} was not done within {limit:?}")]
    TimedOut {
        /// Which.
        path: PathBuf,
        /// How long it may take.
        limit: Duration,
    },
}

/// Runs them, one after the other, with the container's variables unless they have their own; the first that fails
/// ends it.
pub(super) fn run(hooks: &StartHooks, variables: &[String]) -> Result<(), HookError> {
    let mut state = hooks.state.clone();
    state["pid"] = std::process::id().into();
    for hook in &hooks.hooks {
        let failed = |source| HookError::Run {
            path: hook.path().clone(),
            source,
        };
        let mut child = command(hook, variables, &state.to_string())
            .and_then(|mut command| command.spawn())
            .map_err(failed)?;
        let seconds = hook
            .timeout()
            .and_then(|seconds| u64::try_from(seconds).ok());
        let limit = seconds
            .filter(|&s| s > 0)
            .map_or(LIMIT, Duration::from_secs);
        let status = match ends(&child, limit).map_err(failed)? {
            true => child.wait().map_err(failed)?,
            false => {
                // A hook that does not die of it holds the start up no longer.
                let _ = child.kill();
                return Err(HookError::TimedOut {
                    path: hook.path().clone(),
                    limit,
                });
            }
        };
        if !status.success() {
            return Err(HookError::Failed {
                path: hook.path().clone(),
                status,
            });
        }
    }
    Ok(())
}

fn command(hook: &Hook, variables: &[String], state: &str) -> io::Result<Command> {
    let mut stdin = File::from(rustix::fs::memfd_create("state", MemfdFlags::CLOEXEC)?);
    stdin.write_all(state.as_bytes())?;
    stdin.rewind()?;
    let mut command = Command::new(hook.path());
    command.stdin(Stdio::from(stdin)).env_clear();
    if let Some((name, arguments)) = hook.args().as_deref().and_then(<[_]>::split_first) {
        command.arg0(name).args(arguments);
    }
    for variable in hook.env().as_deref().unwrap_or(variables) {
        if let Some((name, value)) = variable.split_once('=') {
            command.env(name, value);
        }
    }
    Ok(command)
}

/// Whether it ends within the limit.
fn ends(child: &Child, limit: Duration) -> io::Result<bool> {
    let end = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let limit = Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: 0,
    };
    let ended = poll(&mut [PollFd::new(&end, PollFlags::IN)], Some(&limit))?;
    Ok(ended > 0)
}
