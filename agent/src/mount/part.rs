//! A part of what is to be bound: what is at a path below it, as a process would find it whose root it is.
//!
//! Containers write there meanwhile, so that every step is taken from a descriptor of that root, out of which no link leads.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{PermissionsExt as _, fchown};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use sandbox_protocol::agent::Part;

use crate::in_root;

/// Why a part cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot open or make {path:?} in {root}")]
pub(crate) struct PartError {
    root: String,
    path: String,
    #[source]
    source: io::Error,
}

/// A part that is there.
pub(super) struct Found {
    /// Keeps what it is, whatever becomes of its name.
    descriptor: OwnedFd,
    /// Whether it is a folder.
    pub(super) is_folder: bool,
}

impl Found {
    /// By what mount(2) finds it, as long as this lives.
    pub(super) fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.descriptor.as_raw_fd())
    }
}

/// Opens `part` of the folder `root`, and makes it if there is nothing.
pub(super) fn open(root: &str, part: &Part) -> Result<Found, PartError> {
    let opened = File::open(root).and_then(|folder| open_below(&folder, part));
    opened.map_err(|source| PartError {
        root: root.to_owned(),
        path: part.path.clone(),
        source,
    })
}

fn open_below(root: &File, part: &Part) -> io::Result<Found> {
    let mut reached = PathBuf::new();
    let mut descriptor = root.as_fd().try_clone_to_owned()?;
    for component in Path::new(&part.path).components() {
        let Component::Normal(name) = component else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        reached.push(name);
        descriptor = match in_root::open(root, &reached, OFlags::PATH)? {
            Some(found) => found,
            None => make(root, &descriptor, &reached, name.as_ref(), part)?,
        };
    }
    let stat = rustix::fs::fstat(&descriptor)?;
    Ok(Found {
        descriptor,
        is_folder: FileType::from_raw_mode(stat.st_mode) == FileType::Directory,
    })
}

/// Makes the folder `name` in `parent`, which is to be at `path` of the root.
fn make(
    root: &File,
    parent: &OwnedFd,
    path: &Path,
    name: &Path,
    part: &Part,
) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        // A container was faster.
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let folder = in_root::open(root, path, OFlags::RDONLY | OFlags::DIRECTORY)?
        .ok_or(io::ErrorKind::NotFound)?;
    let folder = File::from(folder);
    fchown(&folder, Some(part.uid), Some(part.gid))?;
    folder.set_permissions(Permissions::from_mode(part.mode & 0o7777))?;
    Ok(folder.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    fn part(path: &str) -> Part {
        Part {
            path: path.to_owned(),
            mode: 0o2770,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            ..Part::default()
        }
    }

    #[test]
    fn part_that_is_missing_is_made_and_one_that_is_there_stays() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_str().unwrap();
        let found = open(root, &part("a/b")).unwrap();
        assert!(found.is_folder);
        let made = folder.path().join("a/b");
        assert_eq!(fs::metadata(&made).unwrap().mode() & 0o7777, 0o2770);
        let same = fs::metadata(found.path()).unwrap();
        assert_eq!(same.ino(), fs::metadata(&made).unwrap().ino());

        fs::write(made.join("file"), "").unwrap();
        assert!(!open(root, &part("a/b/file")).unwrap().is_folder);
        let error = open(root, &part("a/b/file/below")).err().unwrap();
        assert_eq!(error.source.kind(), io::ErrorKind::NotADirectory);
    }

    #[test]
    fn no_link_leads_out_of_the_root() {
        let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let root = folder.path().to_str().unwrap();
        symlink(outside.path(), folder.path().join("out")).unwrap();
        symlink("/inside", folder.path().join("in")).unwrap();
        fs::create_dir(folder.path().join("inside")).unwrap();
        // What the link names does not exist with this root.
        assert!(open(root, &part("out")).is_err());
        assert!(open(root, &part("out/new")).is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        let found = open(root, &part("in")).unwrap();
        let inside = fs::metadata(folder.path().join("inside")).unwrap();
        assert_eq!(fs::metadata(found.path()).unwrap().ino(), inside.ino());
        for path in ["..", "/etc", "a/../b"] {
            let error = open(root, &part(path)).err().unwrap();
            assert_eq!(error.source.kind(), io::ErrorKind::InvalidInput, "{path}");
        }
    }
}
