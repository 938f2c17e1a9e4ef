//! The user that the processes of one sandbox run as: a number from a range of the configuration, which no account has.
//!
//! A number is claimed by a lock on its byte of a file (fcntl(2), open file description locks). The kernel frees the lock when the
//! last descriptor of the claim is closed, so that a shim that is killed leaves no claim behind, and nothing is kept of
//! who has which. The processes of a killed shim are killed with it and may end a moment later than the claim does; claims
//! therefore begin at a random number, not at the one that has just become free.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::config::UserRange;

/// Where the locks of all sandboxes of the host are.
pub(crate) const LOCKS: &str = "/run/sandbox-users.lock";

/// Why a sandbox has no user of its own.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Only root can become another user.
    #[error(
        "the processes of a sandbox are jailed under a user of their own, which takes root; run it with sudo, or do without the jail with `jail = false` in the configuration"
    )]
    NotRoot,
    /// The file of the locks cannot be used.
    #[error("cannot {action} {}, in which sandboxes claim their users", path.display())]
    Locks {
        /// What was tried.
        action: &'static str,
        /// Where it is.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Every number is claimed.
    #[error(
        "all {} users from {} are in use by running sandboxes; make the range `jail_users` larger", range.count, range.first
    )]
    Exhausted {
        /// The range.
        range: UserRange,
    },
}

/// A user that no other live sandbox has, for as long as this lives.
#[derive(Debug)]
pub(crate) struct UserClaim {
    id: u32,
    _lock: File,
}

impl UserClaim {
    /// Claims a number of the range.
    pub(crate) fn make(range: UserRange) -> Result<Self, IdentityError> {
        if !rustix::process::geteuid().is_root() {
            return Err(IdentityError::NotRoot);
        }
        let mut random = [0; 4];
        // Where there is none, the first that is free does as well.
        let _ = getrandom(&mut random, GetRandomFlags::NONBLOCK);
        Self::make_from(range, u32::from_ne_bytes(random), Path::new(LOCKS))
    }

    /// `start` is where in the range it begins to look.
    fn make_from(range: UserRange, start: u32, path: &Path) -> Result<Self, IdentityError> {
        let failed = |action| {
            move |source| IdentityError::Locks {
                action,
                path: path.to_owned(),
                source,
            }
        };
        let lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map_err(failed("open"))?;
        for step in 0..range.count {
            let offset = (u64::from(start) + u64::from(step)) % u64::from(range.count);
            // Less than `count`, and the range ends within the numbers that there are.
            let id = range.first + u32::try_from(offset).unwrap_or(0);
            match fcntl(&lock, FcntlArg::F_OFD_SETLK(&byte(id))) {
                Ok(_) => return Ok(Self { id, _lock: lock }),
                Err(Errno::EAGAIN | Errno::EACCES) => {}
                Err(errno) => return Err(failed("lock a byte of")(errno.into())),
            }
        }
        Err(IdentityError::Exhausted { range })
    }

    /// The number, of the user and of the group.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }
}

/// A lock on one byte.
fn byte(id: u32) -> libc::flock {
    libc::flock {
        l_type: F_WRITE,
        l_whence: WHENCE_START,
        l_start: id.into(),
        l_len: 1,
        l_pid: 0,
    }
}

/// `F_WRLCK` and `SEEK_SET`, which the structure has as `short`.
const F_WRITE: libc::c_short = 1;
const WHENCE_START: libc::c_short = 0;
const _: () = assert!(libc::F_WRLCK == 1 && libc::SEEK_SET == 0);

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: UserRange = UserRange {
        first: 1_900_000_000,
        count: 3,
    };

    #[test]
    fn claims_differ_until_none_is_left_and_are_free_again_when_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let claim = |start| UserClaim::make_from(RANGE, start, &path);
        let second = claim(1).unwrap();
        assert_eq!(second.id(), RANGE.first + 1);
        let third = claim(1).unwrap();
        assert_eq!(third.id(), RANGE.first + 2);
        // Round the end.
        let first = claim(u32::MAX - 1).unwrap();
        assert_eq!(first.id(), RANGE.first);
        let error = claim(0).unwrap_err();
        assert!(matches!(error, IdentityError::Exhausted { .. }), "{error}");
        assert!(error.to_string().contains("`jail_users`"));
        drop(third);
        assert_eq!(claim(0).unwrap().id(), RANGE.first + 2);
    }

    #[test]
    fn claim_of_a_killed_process_is_free_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let one = UserRange { count: 1, ..RANGE };
        let claim = UserClaim::make_from(one, 0, &path).unwrap();
        // A child that has the description too, and nothing else of ours.
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .stdin(claim._lock.try_clone().unwrap())
            .spawn()
            .unwrap();
        drop(claim);
        assert!(UserClaim::make_from(one, 0, &path).is_err());
        child.kill().unwrap();
        child.wait().unwrap();
        UserClaim::make_from(one, 0, &path).unwrap();
    }

    #[test]
    fn locks_that_cannot_be_opened_are_named() {
        let error = UserClaim::make_from(RANGE, 0, Path::new("/nonexistent/lock")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/lock"), "{error}");
    }
}
