//! Who has a sandbox's folder: a lock on the folder itself (flock(2)).
//!
//! The server of a sandbox has it from the making of the folder until it has been removed again, and whoever clears away what a
//! killed server has left has it meanwhile. The kernel frees the lock with the last descriptor of it, which is closed in every program
//! that is executed: where the lock can be had, the server is dead, whatever number it had and in whose process namespace.
//!
//! A folder that was removed can be made anew under its name; the lock of the old one is nobody's then. So a lock counts only while the
//! name leads to what is locked.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, fstat, lstat, open};
use rustix::io::Errno;

/// How long others who clear the same folder away are waited for: they are quick, unless a process does not die. containerd gives a
/// `delete` 5 s.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it is looked whether they are done.
const PAUSE: Duration = Duration::from_millis(5);

/// The claim to a sandbox's folder, as long as this lives.
#[derive(Debug)]
pub struct FolderClaim {
    _lock: OwnedFd,
}

/// What came of asking for a folder.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// It is ours.
    Taken(FolderClaim),
    /// It is somebody else's.
    Held,
    /// There is none.
    Missing,
}

impl FolderClaim {
    /// Asks for the folder once.
    pub(crate) fn try_take(dir: &Path) -> io::Result<Attempt> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = match open(dir, flags, Mode::empty()) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return Ok(Attempt::Missing),
            Err(errno) => return Err(errno.into()),
        };
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(Attempt::Held),
            Err(errno) => return Err(errno.into()),
        }
        let locked = fstat(&folder)?;
        match lstat(dir) {
            Ok(named) if (named.st_dev, named.st_ino) == (locked.st_dev, locked.st_ino) => {
                Ok(Attempt::Taken(Self { _lock: folder }))
            }
            // Made anew by somebody else.
            Ok(_) => Ok(Attempt::Held),
            Err(Errno::NOENT) => Ok(Attempt::Missing),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Asks for the folder, and waits a while for who has it.
    pub(crate) fn take(dir: &Path) -> io::Result<Attempt> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Self::try_take(dir)? {
                Attempt::Held if Instant::now() < deadline => std::thread::sleep(PAUSE),
                attempt => return Ok(attempt),
            }
        }
    }

    /// Claims what a killed server has left. None where there is nothing, or where somebody has it who does not let it go within a while: a
    /// server that hangs, or a process that does not die.
    #[must_use]
    pub fn of_left(dir: &Path) -> Option<Self> {
        match Self::take(dir) {
            Ok(Attempt::Taken(claim)) => Some(claim),
            Ok(Attempt::Held | Attempt::Missing) => None,
            Err(error) => {
                tracing::warn!("cannot lock {}: {error}", dir.display());
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn is_held(dir: &Path) -> bool {
        matches!(FolderClaim::try_take(dir).unwrap(), Attempt::Held)
    }

    /// A program that another test starts has our descriptors for a moment, and so what has just been given up.
    fn claim(dir: &Path) -> FolderClaim {
        FolderClaim::of_left(dir).unwrap()
    }

    #[test]
    fn folder_is_claimed_by_one_at_a_time() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("box");
        assert!(matches!(
            FolderClaim::try_take(&dir).unwrap(),
            Attempt::Missing
        ));
        assert!(FolderClaim::of_left(&dir).is_none());
        std::fs::create_dir(&dir).unwrap();
        let first = claim(&dir);
        assert!(is_held(&dir));
        drop(first);
        drop(claim(&dir));
    }

    #[test]
    fn claim_of_a_removed_folder_is_none_of_the_one_made_after_it() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("box");
        std::fs::create_dir(&dir).unwrap();
        let old = claim(&dir);
        std::fs::remove_dir(&dir).unwrap();
        std::fs::create_dir(&dir).unwrap();
        let new = claim(&dir);
        drop(old);
        assert!(is_held(&dir));
        drop(new);
        drop(claim(&dir));
    }

    #[test]
    fn claim_of_a_killed_process_is_free_again() {
        let parent = tempfile::tempdir().unwrap();
        let ours = claim(parent.path());
        // A child that has the description too, and nothing else of ours.
        let mut child = Command::new("sleep")
            .arg("1000")
            .stdin(ours._lock.try_clone().unwrap())
            .spawn()
            .unwrap();
        drop(ours);
        assert!(is_held(parent.path()));
        child.kill().unwrap();
        child.wait().unwrap();
        drop(claim(parent.path()));
    }

    #[test]
    fn claim_is_waited_for() {
        let parent = tempfile::tempdir().unwrap();
        let first = claim(parent.path());
        std::thread::scope(|scope| {
            let second = scope.spawn(|| FolderClaim::of_left(parent.path()));
            drop(first);
            assert!(second.join().unwrap().is_some());
        });
    }
}
