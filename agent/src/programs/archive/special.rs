//! What the `tar` crate cannot unpack: devices and fifos, which it writes as empty files, and hard links in the place of something.

use std::fs::{self, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, makedev, mknodat, utimensat};
use tar::{EntryType, Header};

/// An entry's path as it is below the folder.
pub(super) fn inner(path: &Path) -> PathBuf {
    path.components()
        .filter(|component| matches!(component, Component::Normal(_)))
        .collect()
}

/// Where an entry is to be, once the folders above it are there; `None` if that is not within `folder`, or `folder` itself. Links on the way
/// are followed, as `tar` follows them.
pub(super) fn place(folder: &Path, path: &Path) -> io::Result<Option<PathBuf>> {
    if path.components().any(|part| part == Component::ParentDir) {
        return Ok(None);
    }
    let target = folder.join(inner(path));
    let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
        return Ok(None);
    };
    let folder = folder.canonicalize()?;
    let mut there = parent;
    while let (Err(_), Some(above)) = (there.symlink_metadata(), there.parent()) {
        there = above;
    }
    if target == folder || !there.canonicalize()?.starts_with(&folder) {
        return Ok(None);
    }
    fs::create_dir_all(parent)?;
    Ok(Some(parent.canonicalize()?.join(name)))
}

/// Makes the device or fifo that `header` describes, in the place of what is no folder.
pub(super) fn make(target: &Path, header: &Header) -> io::Result<()> {
    let kind = match header.entry_type() {
        EntryType::Char => FileType::CharacterDevice,
        EntryType::Block => FileType::BlockDevice,
        _ => FileType::Fifo,
    };
    let device = match kind {
        FileType::Fifo => 0,
        _ => {
            let (major, minor) = (header.device_major()?, header.device_minor()?);
            makedev(major.unwrap_or_default(), minor.unwrap_or_default())
        }
    };
    remove(target)?;
    mknodat(CWD, target, kind, Mode::RUSR | Mode::WUSR, device)?;
    if rustix::process::geteuid().is_root() {
        let number = |id: io::Result<u64>| u32::try_from(id?).map_err(io::Error::other);
        lchown(
            target,
            Some(number(header.uid())?),
            Some(number(header.gid())?),
        )?;
    }
    fs::set_permissions(target, Permissions::from_mode(header.mode()? & 0o7777))?;
    let time = Timespec {
        tv_sec: i64::try_from(header.mtime()?).unwrap_or(i64::MAX),
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    Ok(utimensat(CWD, target, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Makes room for a hard link. Whether it is there already.
pub(super) fn is_linked(folder: &Path, entry: &tar::Entry<'_, impl Read>) -> io::Result<bool> {
    let Some(first) = entry.link_name()? else {
        return Ok(false);
    };
    // What leads out, or is missing, is refused by `tar`.
    let (Some(target), Some(first)) = (place(folder, &entry.path()?)?, place(folder, &first)?)
    else {
        return Ok(false);
    };
    let (Ok(old), Ok(first)) = (target.symlink_metadata(), first.symlink_metadata()) else {
        return Ok(false);
    };
    if (old.dev(), old.ino()) == (first.dev(), first.ino()) {
        return Ok(true);
    }
    remove(&target)?;
    Ok(false)
}

/// Removes what is no folder.
fn remove(target: &Path) -> io::Result<()> {
    match fs::remove_file(target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
