//! Where a container's mounts go, looked up in its root before libcontainer makes them.
//!
//! libcontainer makes what is missing at a destination, but not what a link of the image leads to
//! (`/etc/resolv.conf -> ../run/systemd/resolve/stub-resolv.conf`). So links are followed here as runc follows them: an
//! absolute one begins at the root, `..` does not lead out of it, and what is not there is taken for a folder that will be.
//! libcontainer goes by the path that was found, and stays in the root with it whatever is changed there meanwhile.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::in_root;
use crate::spec::{MountPropagation, is_bind};

/// The most links that are followed to one destination, as runc has it.
const MAX_LINKS: usize = 255;
/// The part of a file's mode that a file system in memory can be given.
const MODE_BITS: u32 = 0o7777;

/// Why a mount cannot go where it is to.
#[derive(Debug, thiserror::Error)]
pub(super) enum DestinationError {
    /// Links that lead to each other.
    #[error("mount {destination}: more than {MAX_LINKS} links lead there in the container's root")]
    Links {
        /// As the spec has it.
        destination: PathBuf,
    },
    /// libcontainer would make devices and links where the guest's own path leads, outside of the root.
    #[error(
        "/dev of the container's root is a link to {target:?}; it must be a folder, or not there"
    )]
    DeviceLink {
        /// As the link has it.
        target: PathBuf,
    },
    /// Something in the root could not be looked at.
    #[error("cannot look at {path} in the container's root")]
    Look {
        /// In the container.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A container's root, as its mounts come to lie on it.
struct Root {
    folder: OwnedFd,
    /// In their order, with the places where they go.
    mounts: Vec<Mount>,
}

/// Gives every mount of the spec the place in `root` that its destination leads to, and says the same of `propagation`. A
/// file system in memory gets the mode of the folder that it covers, unless the spec says one (runc's rule). Whether the spec was
/// changed.
pub(super) fn find(
    spec: &mut Spec,
    propagation: &mut [MountPropagation],
    root: &Path,
) -> Result<bool, DestinationError> {
    let mounts = spec.mounts().clone().unwrap_or_default();
    let before = mounts.clone();
    let mut root = Root::open(root)?;
    if let Some(target) = link(&root.folder, Path::new("/dev"))? {
        return Err(DestinationError::DeviceLink { target });
    }
    for mut mount in mounts {
        let asked = mount.destination().clone();
        let place = root.follow(&asked)?;
        if let Some(mode) = root.mode_for(&mount, &place)? {
            let mut options = mount.options().clone().unwrap_or_default();
            options.push(format!("mode={mode:04o}"));
            mount.set_options(Some(options));
        }
        for other in propagation.iter_mut() {
            if other.destination == asked {
                other.destination.clone_from(&place);
            }
        }
        mount.set_destination(place);
        root.mounts.push(mount);
    }
    let changed = root.mounts != before;
    if changed {
        spec.set_mounts(Some(root.mounts));
    }
    Ok(changed)
}

impl Root {
    fn open(root: &Path) -> Result<Self, DestinationError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(CWD, root, flags, Mode::empty());
        Ok(Self {
            folder: folder.map_err(cannot_look(Path::new("/")))?,
            mounts: Vec::new(),
        })
    }

    /// The place that `destination` leads to. What an earlier mount covers is not in the root: of a path that comes to one, the
    /// rest is taken as it is.
    fn follow(&self, destination: &Path) -> Result<PathBuf, DestinationError> {
        let mut place = PathBuf::from("/");
        let mut left = names(destination);
        let mut links = 0_usize;
        while let Some(name) = left.pop() {
            if name == ".." {
                place.pop();
                continue;
            }
            // The root itself begins anew.
            let next = place.join(&name);
            let target = match self.covering(&next) {
                Some(_) => None,
                None => link(&self.folder, &next)?,
            };
            let Some(target) = target else {
                place = next;
                continue;
            };
            links = links.saturating_add(1);
            if links > MAX_LINKS {
                let destination = destination.to_owned();
                return Err(DestinationError::Links { destination });
            }
            left.extend(names(&target));
        }
        Ok(place)
    }

    /// The mount on which `place` is.
    fn covering(&self, place: &Path) -> Option<&Mount> {
        let mut mounts = self.mounts.iter().rev();
        mounts.find(|mount| place.starts_with(mount.destination()))
    }

    /// The mode that a mount has to be given.
    fn mode_for(&self, mount: &Mount, place: &Path) -> Result<Option<u32>, DestinationError> {
        let options = mount.options().as_deref().unwrap_or_default();
        let says = options.iter().any(|option| option.starts_with("mode="));
        if mount.typ().as_deref() != Some("tmpfs") || is_bind(mount) || says {
            return Ok(None);
        }
        match self.covering(place) {
            None => mode(&self.folder, place),
            Some(below) if is_bind(below) => {
                let source = below.source().as_deref().unwrap_or(Path::new(""));
                let flags = OFlags::PATH | OFlags::CLOEXEC;
                let opened = rustix::fs::openat(CWD, source, flags, Mode::empty());
                let opened = opened.map_err(cannot_look(below.destination()))?;
                mode(
                    &opened,
                    place.strip_prefix(below.destination()).unwrap_or(place),
                )
            }
            // A file system that begins with nothing, or is the kernel's.
            Some(_) => Ok(None),
        }
    }
}

fn cannot_look(path: &Path) -> impl FnOnce(Errno) -> DestinationError {
    let path = path.to_owned();
    move |errno| DestinationError::Look {
        path,
        source: errno.into(),
    }
}

/// The names of a path, the last first: the root is one too.
fn names(path: &Path) -> Vec<OsString> {
    let parts = path.components().rev();
    parts
        .filter(|part| !matches!(part, Component::CurDir | Component::Prefix(_)))
        .map(|part| part.as_os_str().to_owned())
        .collect()
}

/// What is at `path` below `folder`, which nothing leads out of; a link is not followed in the end.
fn look(folder: &OwnedFd, path: &Path) -> Result<Option<OwnedFd>, DestinationError> {
    let inner = match path.strip_prefix("/").unwrap_or(path) {
        inner if inner == OsStr::new("") => Path::new("."),
        inner => inner,
    };
    in_root::open(folder, inner, OFlags::PATH | OFlags::NOFOLLOW).map_err(|source| {
        DestinationError::Look {
            path: path.to_owned(),
            source,
        }
    })
}

/// Where the link at `path` leads, if there is one.
fn link(folder: &OwnedFd, path: &Path) -> Result<Option<PathBuf>, DestinationError> {
    let Some(found) = look(folder, path)? else {
        return Ok(None);
    };
    let stat = rustix::fs::fstat(&found).map_err(cannot_look(path))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        return Ok(None);
    }
    let target = rustix::fs::readlinkat(&found, "", Vec::new()).map_err(cannot_look(path))?;
    Ok(Some(OsString::from_vec(target.into_bytes()).into()))
}

/// The mode of the folder at `path`, if there is one.
fn mode(folder: &OwnedFd, path: &Path) -> Result<Option<u32>, DestinationError> {
    let Some(found) = look(folder, path)? else {
        return Ok(None);
    };
    let stat = rustix::fs::fstat(&found).map_err(cannot_look(path))?;
    let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    Ok(is_folder.then_some(stat.st_mode & MODE_BITS))
}

#[cfg(test)]
mod tests;
