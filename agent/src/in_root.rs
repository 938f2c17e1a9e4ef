//! Files of a container, as its own processes would find them: below its root, which no link leads out of.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Opens what is at `path` below `root`; `None` if there is nothing.
///
/// # Errors
/// As openat2(2) has them, but for `ENOENT` and `ENOTDIR`.
pub(crate) fn open(root: impl AsFd, path: &Path, flags: OFlags) -> io::Result<Option<OwnedFd>> {
    let opened = rustix::fs::openat2(
        root,
        path,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    );
    match opened {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// The first `most` bytes of a regular file. It must have been opened with `O_NONBLOCK`: a fifo is not to be waited for.
///
/// # Errors
/// What is no regular file is [`io::ErrorKind::InvalidInput`].
pub(crate) fn read_regular(file: File, most: u64) -> io::Result<Vec<u8>> {
    let stat = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn link_leads_to_what_it_names_below_the_root() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "content").unwrap();
        symlink("/file", folder.path().join("link")).unwrap();
        symlink("/etc/passwd", folder.path().join("out")).unwrap();
        let root = File::open(folder.path()).unwrap();
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let found = open(&root, Path::new("link"), flags).unwrap().unwrap();
        assert_eq!(read_regular(found.into(), 4).unwrap(), b"cont");
        for missing in ["out", "none", "file/below"] {
            assert!(open(&root, Path::new(missing), flags).unwrap().is_none());
        }
        let folder = open(&root, Path::new("."), flags).unwrap().unwrap();
        let error = read_regular(folder.into(), 4).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
