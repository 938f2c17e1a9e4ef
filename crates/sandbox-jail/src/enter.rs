//! The whole jail, in its order.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::set_no_new_privs;
use sandbox_types::jail::JailConfig;

use crate::landlock::Landlock;
use crate::{capabilities, descriptors, landlock, limits, namespaces, parent, root, user};

/// Why a process is not in its jail. It must not go on then.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// A resource limit was refused.
    #[error("the jail cannot limit {what}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel gives no namespaces.
    #[error(
        "the jail cannot have namespaces of its own ({names}); the runtime needs CAP_SYS_ADMIN, and a kernel with all of \
         them. `jail = false` in the configuration does without the jail"
    )]
    Namespaces {
        /// Which were asked for.
        names: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The root could not be made or entered.
    #[error("the jail cannot {action} {}", path.display())]
    Root {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Descriptors could not be closed.
    #[error("the jail cannot close descriptors, which takes Linux 5.9 or newer")]
    Descriptors {
        /// What the kernel said.
        source: io::Error,
    },
    /// The user could not be changed.
    #[error(
        "the jail cannot become user {id}; the runtime needs CAP_SETUID and CAP_SETGID, and `jail_users` must be ids that \
         /proc/self/uid_map and gid_map have"
    )]
    User {
        /// Which.
        id: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// Capabilities could not be given up.
    #[error("the jail cannot give up capabilities ({action})")]
    Capabilities {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A property of the process could not be set.
    #[error("the jail cannot set {what}")]
    Process {
        /// Which.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Landlock is there and refused.
    #[error("the jail cannot {action}")]
    Landlock {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Whoever this was started for has ended.
    #[error("the process that the jail is for has ended")]
    ParentEnded,
}

/// For `map_err`.
pub(crate) fn process(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> JailError {
    move |errno| JailError::Process {
        what,
        source: errno.into(),
    }
}

/// Puts the calling process into its jail. It must have a single thread. `parent` is what
/// [`JailConfig::parent_fd`] names. Says what came of Landlock.
///
/// # Errors
/// [`JailError`]; the process is then half way, and is to end.
pub fn enter(config: &JailConfig, parent: OwnedFd) -> Result<Landlock, JailError> {
    limits::set(&config.limits)?;
    let all = config.root.is_some();
    namespaces::unshare(all, all && !config.keeps_network)?;
    if let Some(root) = &config.root {
        root::enter(root)?;
    }
    let mut keep = config.keep_fds.clone();
    keep.push(parent.as_raw_fd());
    descriptors::close_all_but(&keep)?;
    // The bounding set first, while there is the capability to do it.
    capabilities::bound(config.capabilities)?;
    if let Some(id) = config.user {
        user::become_user(id)?;
    }
    capabilities::give_up(match config.user {
        Some(_) => 0,
        None => config.capabilities,
    })?;
    set_no_new_privs(true).map_err(process("no-new-privileges"))?;
    let landlock = match &config.root {
        Some(root) => landlock::restrict(&root.mounts)?,
        None => Landlock::NotAsked,
    };
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(process("that it is not dumped"))?;
    // Last: another user has no parent-death signal any more (prctl(2)).
    parent::die_with(&parent)?;
    Ok(landlock)
}
