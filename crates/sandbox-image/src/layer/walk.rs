//! Finding the folder of an entry without ever leaving the tree.
//!
//! A path is taken apart and walked one component at a time from the tree's root, with descriptors and `O_NOFOLLOW`.
//! Symbolic links on the way are read and resolved here, as a chroot into the tree would. A component given to the kernel is
//! never empty, `.`, `..` or more than one name, so no step can lead out.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, readlinkat, statat, unlinkat};
use rustix::io::Errno;

use super::error::LayerError;
use super::limits::Limit;
use super::tree::is_whiteout;

/// As Linux' own bound (`MAXSYMLINKS`).
const MAX_LINKS: u32 = 40;
/// Folders inside one another. Bounds the descriptors that a walk holds, and the recursion of `mkfs.erofs`.
pub(super) const MAX_DEPTH: usize = 256;
/// Components of a path with those of the links on it.
const MAX_STEPS: usize = 4096;

/// What to do where a folder does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// Make it.
    Make,
    /// Give up.
    Stop,
}

/// An open folder.
pub(super) struct Folder {
    fd: OwnedFd,
    /// Its real path from the tree's root.
    path: PathBuf,
}

impl Folder {
    /// The name `name` in the folder.
    pub(super) fn place(&self, name: OsString) -> io::Result<Place> {
        Ok(Place {
            folder: self.fd.try_clone()?,
            folder_path: self.path.clone(),
            name,
        })
    }
}

/// A place in the tree: an open folder and a name in it.
pub(super) struct Place {
    pub(super) folder: OwnedFd,
    /// The folder's real path from the tree's root.
    pub(super) folder_path: PathBuf,
    pub(super) name: OsString,
}

impl Place {
    /// Its real path from the tree's root.
    pub(super) fn path(&self) -> PathBuf {
        self.folder_path.join(&self.name)
    }
}

/// A path of the tar, fit for a message.
pub(super) fn cut(path: &Path) -> String {
    super::unpack::printable(path.as_os_str().as_bytes())
}

pub(super) fn write_error<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl Fn(Errno) -> LayerError + 'a {
    move |source| LayerError::Write {
        action,
        path: cut(path),
        source: source.into(),
    }
}

pub(super) fn folder_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// A walk for the sake of one entry.
pub(super) struct Walk<'a> {
    entry: &'a Path,
    root: &'a OwnedFd,
    /// The folders from below the root to where the walk is.
    stack: Vec<Folder>,
    links: u32,
    /// Folders made on the way, and whether each took the place of a whiteout.
    made: Vec<(PathBuf, bool)>,
}

impl<'a> Walk<'a> {
    /// A walk that begins at the tree's root.
    pub(super) fn new(root: &'a OwnedFd, entry: &'a Path) -> Self {
        Self {
            entry,
            root,
            stack: Vec::new(),
            links: 0,
            made: Vec::new(),
        }
    }

    /// Walks along `path`. `false` if a folder is missing and that means to give up.
    pub(super) fn go(&mut self, path: &Path, missing: Missing) -> Result<bool, LayerError> {
        // What is still to be walked, next component last.
        let mut rest: Vec<OsString> = path.iter().rev().map(OsStr::to_owned).collect();
        let mut steps = 0;
        while let Some(component) = rest.pop() {
            steps += 1;
            if steps > MAX_STEPS || self.links > MAX_LINKS {
                return Err(LayerError::LinkLoop {
                    path: cut(self.entry),
                    limit: MAX_LINKS,
                });
            }
            match component.as_bytes() {
                b"." => {}
                b"/" => self.stack.clear(),
                b".." => drop(self.stack.pop()),
                _ => match self.open(&component) {
                    Ok(folder) => self.enter(folder, &component)?,
                    Err(Errno::NOENT) if missing == Missing::Stop => return Ok(false),
                    Err(Errno::NOENT) => self.make(&component, false)?,
                    // NOTDIR for most that is no folder; LOOP for a link, on some file systems.
                    Err(Errno::NOTDIR | Errno::LOOP) => {
                        if let Ok(target) = readlinkat(self.here(), &component, Vec::new()) {
                            self.links += 1;
                            let target = Path::new(OsStr::from_bytes(target.as_bytes()));
                            rest.extend(target.iter().rev().map(OsStr::to_owned));
                        } else if missing == Missing::Make && self.holds_whiteout(&component) {
                            unlinkat(self.here(), &component, AtFlags::empty())
                                .map_err(write_error("replace", self.entry))?;
                            self.make(&component, true)?;
                        } else {
                            return Err(LayerError::ParentNotFolder {
                                path: cut(self.entry),
                                parent: cut(&self.path_of(&component)),
                            });
                        }
                    }
                    Err(error) => return Err(write_error("find the folder of", self.entry)(error)),
                },
            }
        }
        Ok(true)
    }

    /// Where the walk ended, and the folders made on the way.
    pub(super) fn finish(mut self) -> Result<(Folder, Vec<(PathBuf, bool)>), LayerError> {
        let folder = match self.stack.pop() {
            Some(folder) => folder,
            None => Folder {
                fd: openat(self.root, ".", folder_flags(), Mode::empty())
                    .map_err(write_error("find the folder of", self.entry))?,
                path: PathBuf::new(),
            },
        };
        Ok((folder, self.made))
    }

    fn here(&self) -> &OwnedFd {
        self.stack.last().map_or(self.root, |folder| &folder.fd)
    }

    fn path_of(&self, component: &OsStr) -> PathBuf {
        self.stack.last().map_or_else(
            || PathBuf::from(component),
            |folder| folder.path.join(component),
        )
    }

    fn open(&self, component: &OsStr) -> Result<OwnedFd, Errno> {
        openat(self.here(), component, folder_flags(), Mode::empty())
    }

    fn enter(&mut self, fd: OwnedFd, component: &OsStr) -> Result<(), LayerError> {
        if self.stack.len() >= MAX_DEPTH {
            return Err(LayerError::Limit {
                limit: Limit::Depth(MAX_DEPTH),
                path: cut(self.entry),
            });
        }
        let path = self.path_of(component);
        self.stack.push(Folder { fd, path });
        Ok(())
    }

    fn make(&mut self, component: &OsStr, hides_lower: bool) -> Result<(), LayerError> {
        let fail = write_error("make the folder of", self.entry);
        mkdirat(self.here(), component, Mode::RWXU).map_err(&fail)?;
        let fd = self.open(component).map_err(&fail)?;
        self.made.push((self.path_of(component), hides_lower));
        self.enter(fd, component)
    }

    fn holds_whiteout(&self, component: &OsStr) -> bool {
        statat(self.here(), component, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| is_whiteout(&stat))
    }
}
