//! Waiting until something in a folder changes (inotify(7)).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};

/// How long to wait at most: what was killed changes no file.
const AT_MOST: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// A folder that is watched.
#[derive(Debug)]
pub(crate) struct Watch {
    descriptor: OwnedFd,
}

impl Watch {
    /// Watches from now on.
    pub(crate) fn new(folder: &Path) -> io::Result<Self> {
        let descriptor = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let what =
            WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVE | WatchFlags::MOVE_SELF;
        add_watch(&descriptor, folder, what)?;
        Ok(Self { descriptor })
    }

    /// Waits until something has changed since the last time, or a second has passed.
    pub(crate) fn wait(&self) -> io::Result<()> {
        self.changes_within(&AT_MOST).map(drop)
    }

    /// Whether something changes, or has since the last time, before the time has passed or a signal comes.
    fn changes_within(&self, limit: &Timespec) -> io::Result<bool> {
        let mut watched = [PollFd::new(&self.descriptor, PollFlags::IN)];
        let changed = match poll(&mut watched, Some(limit)) {
            Ok(ready) => ready > 0,
            Err(rustix::io::Errno::INTR) => false,
            Err(error) => return Err(error.into()),
        };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut changes = Reader::new(&self.descriptor, &mut buffer);
        // To the end of what is there, which is an error of its own kind.
        while changes.next().is_ok() {}
        Ok(changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn change_before_the_wait_is_not_missed() {
        let folder = tempfile::tempdir().unwrap();
        let watch = Watch::new(folder.path()).unwrap();
        fs::write(folder.path().join("a"), "x").unwrap();
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        assert!(watch.changes_within(&at_once).unwrap());
        assert!(!watch.changes_within(&at_once).unwrap());
    }
}
