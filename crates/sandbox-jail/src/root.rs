//! A root with nothing in it but what is named (pivot_root(2)).

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, umask};
use rustix::process::{chdir, pivot_root};
use sandbox_types::jail::{JailAccess, JailMount, JailRoot};

use crate::JailError;

/// Enough for mount points and links.
const TMPFS: &str = "mode=0755,size=64k,nr_inodes=128";
/// What every mount in it has.
const FLAGS: MsFlags = MsFlags::MS_BIND
    .union(MsFlags::MS_REMOUNT)
    .union(MsFlags::MS_RDONLY)
    .union(MsFlags::MS_NOSUID);

/// For `map_err`.
fn failed<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> JailError {
    move |error| JailError::Root {
        action,
        path: path.to_owned(),
        source: error.into(),
    }
}

/// Makes the root and changes to it; of the host's file system nothing else is left. The process must be in a mount
/// namespace of its own.
///
/// # Errors
/// [`JailError::Root`].
pub fn enter(root: &JailRoot) -> Result<(), JailError> {
    let place = root.place.as_path();
    let none = None::<&str>;
    umask(Mode::from_bits_truncate(0o022));
    // Nothing of what follows is seen outside.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(failed("make the mounts its own, below", Path::new("/")))?;
    let hard = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("jail"), place, Some("tmpfs"), hard, Some(TMPFS))
        .map_err(failed("mount its root on", place))?;
    for entry in &root.mounts {
        bind(place, entry)?;
    }
    for (link, to) in &root.links {
        let link = inside(place, link);
        make_parent(&link)?;
        symlink(to, &link).map_err(failed("make the link", &link))?;
    }
    mount(
        none,
        place,
        none,
        hard | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY,
        none,
    )
    .map_err(failed("protect its root at", place))?;
    chdir(place).map_err(failed("enter", place))?;
    // The old root comes to lie over the new one, from where it is taken off (pivot_root(2), NOTES).
    pivot_root(".", ".").map_err(failed("change its root to", place))?;
    umount2(".", MntFlags::MNT_DETACH)
        .map_err(failed("leave the root of", Path::new("the host")))?;
    chdir("/").map_err(failed("enter", Path::new("/")))
}

/// The place of a path of the root's, while that is still below `place`.
fn inside(place: &Path, path: &Path) -> PathBuf {
    place.join(path.strip_prefix("/").unwrap_or(path))
}

fn make_parent(path: &Path) -> Result<(), JailError> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent).map_err(failed("make the folder", parent)),
        None => Ok(()),
    }
}

fn bind(place: &Path, entry: &JailMount) -> Result<(), JailError> {
    let source = entry.source.as_path();
    let target = inside(place, &entry.target);
    let kind = fs::metadata(source).map_err(failed("look at", source))?;
    if kind.is_dir() {
        fs::create_dir_all(&target).map_err(failed("make the folder", &target))?;
    } else {
        make_parent(&target)?;
        fs::File::create_new(&target).map_err(failed("make the file", &target))?;
    }
    let none = None::<&str>;
    mount(Some(source), &target, none, MsFlags::MS_BIND, none).map_err(failed("mount", source))?;
    let flags = match entry.access {
        JailAccess::Connect | JailAccess::Read => MsFlags::MS_NOEXEC | MsFlags::MS_NODEV,
        JailAccess::Execute => MsFlags::MS_NODEV,
        JailAccess::Device => MsFlags::MS_NOEXEC,
    };
    mount(none, &target, none, FLAGS | flags, none).map_err(failed("protect", source))
}
