//! Places in the shared folder, which are gone to by descriptors.
//!
//! The guest sees that folder's tree. Should it ever get to change it, nothing of the host's is reached by it all the same: no link is followed,
//! nothing is left by `..`, and no mount is entered (openat2(2)).

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, mkdirat, mknodat, unlinkat};
use rustix::io::Errno;

/// What is made is passed through by any user of the guest's.
const FOLDER_MODE: Mode = Mode::from_raw_mode(0o755);
const FILE_MODE: Mode = Mode::from_raw_mode(0o644);

fn open(folder: BorrowedFd<'_>, path: impl AsRef<Path>, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::openat2(folder, path.as_ref(), flags, Mode::empty(), resolve);
    Ok(opened?)
}

fn is_there(errno: Errno) -> Result<(), Errno> {
    match errno {
        Errno::EXIST => Ok(()),
        errno => Err(errno),
    }
}

/// Makes the place `path`, below `root`, with the folders above it, and opens it (`O_PATH`). A file must not be there yet.
pub(super) fn make(root: BorrowedFd<'_>, path: &Path, is_folder: bool) -> io::Result<OwnedFd> {
    let mut at = open(root, ".", OFlags::PATH | OFlags::DIRECTORY)?;
    let mut names = path.iter().peekable();
    while let Some(name) = names.next() {
        at = if is_folder || names.peek().is_some() {
            mkdirat(&at, name, FOLDER_MODE).or_else(is_there)?;
            open(at.as_fd(), name, OFlags::PATH | OFlags::DIRECTORY)?
        } else {
            mknodat(&at, name, FileType::RegularFile, FILE_MODE, 0)?;
            open(at.as_fd(), name, OFlags::PATH)?
        };
    }
    Ok(at)
}

/// By what a call that takes no descriptor finds what one is for.
pub(super) fn path_of(place: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", place.as_raw_fd()).into()
}

/// Opens the folder in which `path`, below `root`, is; with the name that it has there.
pub(super) fn parent<'a>(root: BorrowedFd<'_>, path: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    Ok((open(root, folder, OFlags::PATH | OFlags::DIRECTORY)?, name))
}

/// Removes `name`, which is in `folder`, with what is in it; being none is no error. Something that is mounted there stays, and is an error.
pub(super) fn remove(folder: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let opened = open(folder, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
    for entry in Dir::read_from(&opened)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            remove(opened.as_fd(), OsStr::from_bytes(name))?;
        }
    }
    Ok(unlinkat(folder, name, AtFlags::REMOVEDIR)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn opened(folder: &Path) -> OwnedFd {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        rustix::fs::open(folder, flags, Mode::empty()).unwrap()
    }

    #[test]
    fn place_is_made_with_what_is_above_it() {
        let folder = tempfile::tempdir().unwrap();
        let root = opened(folder.path());
        make(root.as_fd(), Path::new("c1/mounts/0"), true).unwrap();
        make(root.as_fd(), Path::new("c1/mounts/0"), true).unwrap();
        let file = make(root.as_fd(), Path::new("c1/mounts/1"), false).unwrap();
        assert!(folder.path().join("c1/mounts/0").is_dir());
        assert_eq!(
            fs::read_link(path_of(&file)).unwrap(),
            folder.path().join("c1/mounts/1")
        );
        let again = make(root.as_fd(), Path::new("c1/mounts/1"), false);
        assert_eq!(again.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        remove(root.as_fd(), OsStr::new("c1")).unwrap();
        remove(root.as_fd(), OsStr::new("c1")).unwrap();
        assert!(!folder.path().join("c1").exists());
    }

    #[test]
    fn no_link_is_followed_and_nothing_is_above_the_root() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(other.path().join("kept")).unwrap();
        let root = opened(folder.path());
        symlink(other.path(), folder.path().join("link")).unwrap();
        for path in ["link/made", "link", "../made"] {
            assert!(make(root.as_fd(), Path::new(path), true).is_err(), "{path}");
        }
        assert!(make(root.as_fd(), Path::new("link/made"), false).is_err());
        assert!(parent(root.as_fd(), Path::new("link/kept")).is_err());
        remove(root.as_fd(), OsStr::new("link")).unwrap();
        assert!(!folder.path().join("link").is_symlink());
        let left: Vec<_> = fs::read_dir(other.path()).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }
}
