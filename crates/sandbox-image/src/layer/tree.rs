//! The folder that a layer is unpacked into, and the only code that writes there.
//!
//! No path of the tar is ever given to the kernel: [`super::walk`] finds the folder of each entry, and what happens there
//! happens relative to its descriptor, to a single name that is not followed.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Stat, Timespec, Timestamps, XattrFlags, chmodat, chownat,
    linkat, lsetxattr, mkdirat, mknodat, openat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::error::LayerError;
use super::walk::{Folder, Missing, Place, Walk, cut, folder_flags, write_error};

const OPAQUE: (&str, &[u8]) = ("trusted.overlay.opaque", b"y");
/// The modes of folders that no entry describes, where 0755 would break an image.
const KNOWN_MODES: [(&str, u32); 3] = [("tmp", 0o1777), ("var/tmp", 0o1777), ("root", 0o700)];

/// Owner, mode, time and attributes of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Metadata {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Permissions with setuid, setgid and sticky bits.
    pub(super) mode: u32,
    /// Seconds since 1970 and nanoseconds.
    pub(super) mtime: (i64, u32),
    pub(super) xattrs: Vec<(OsString, Vec<u8>)>,
}

impl Metadata {
    fn implicit(path: &Path) -> Self {
        let known = KNOWN_MODES
            .iter()
            .find(|(known, _)| Path::new(known) == path);
        Self {
            uid: 0,
            gid: 0,
            mode: known.map_or(0o755, |(_, mode)| *mode),
            mtime: (0, 0),
            xattrs: Vec::new(),
        }
    }
}

/// A device node's kind and numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    Fifo,
    Char(u32, u32),
    Block(u32, u32),
}

/// A tree being unpacked.
pub(super) struct Tree {
    root: OwnedFd,
    root_path: PathBuf,
    /// Every folder's modification time, set at the end because each new entry changes it.
    folder_times: BTreeMap<PathBuf, (i64, u32)>,
    /// The folder of the last entry, by its path in the tar. It stays right until something is removed.
    last: Option<(PathBuf, Folder)>,
}

impl Tree {
    /// Unpacks into the empty folder `root`, which nobody else may touch meanwhile.
    pub(super) fn new(root: &Path) -> Result<Self, LayerError> {
        let fd =
            openat(CWD, root, folder_flags(), Mode::empty()).map_err(write_error("open", root))?;
        let mut tree = Self {
            root: fd,
            root_path: root.to_owned(),
            folder_times: BTreeMap::new(),
            last: None,
        };
        tree.set_root(&Metadata::implicit(Path::new("")))?;
        Ok(tree)
    }

    /// What the tar says about the root folder itself.
    pub(super) fn set_root(&mut self, metadata: &Metadata) -> Result<(), LayerError> {
        let place = self.root_place()?;
        describe(&place, metadata, FileType::Directory)?;
        self.folder_times.insert(PathBuf::new(), metadata.mtime);
        Ok(())
    }

    /// Makes or describes the folder `path`.
    pub(super) fn folder(&mut self, path: &Path, metadata: &Metadata) -> Result<(), LayerError> {
        let place = self.place(path)?;
        let existing = kind(&place, path)?;
        if existing
            .as_ref()
            .is_none_or(|stat| type_of(stat) != FileType::Directory)
        {
            let hides_lower = existing.as_ref().is_some_and(is_whiteout);
            self.make_folder(&place, path)?;
            if hides_lower {
                set_xattr(&place, OPAQUE.0.as_ref(), OPAQUE.1)?;
            }
        }
        describe(&place, metadata, FileType::Directory)?;
        self.folder_times.insert(place.path(), metadata.mtime);
        Ok(())
    }

    /// Makes the file `path`; the caller writes its contents, then calls [`NewFile::finish`].
    pub(super) fn file(&mut self, path: &Path) -> Result<NewFile, LayerError> {
        let place = self.vacant(path)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&place.folder, &place.name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(write_error("create", path))?;
        Ok(NewFile {
            file: File::from(fd),
            place,
        })
    }

    /// Makes the symbolic link `path` with the text `target`, whatever it points to.
    pub(super) fn symlink(
        &mut self,
        path: &Path,
        target: &OsStr,
        metadata: &Metadata,
    ) -> Result<(), LayerError> {
        let place = self.vacant(path)?;
        symlinkat(target, &place.folder, &place.name).map_err(write_error("link", path))?;
        describe(&place, metadata, FileType::Symlink)
    }

    /// Gives the entry `target` the further name `path`.
    pub(super) fn hard_link(&mut self, path: &Path, target: &Path) -> Result<(), LayerError> {
        let missing = || LayerError::LinkTarget {
            path: cut(path),
            target: cut(target),
        };
        let from = self.find(target)?.ok_or_else(missing)?;
        let stat = kind(&from, target)?.ok_or_else(missing)?;
        if type_of(&stat) == FileType::Directory {
            return Err(LayerError::LinkToFolder {
                path: cut(path),
                target: cut(target),
            });
        }
        let to = self.place(path)?;
        // A name linked to itself is already what it shall be.
        if from.path() == to.path() {
            return Ok(());
        }
        self.clear(&to, path)?;
        // Clearing a folder may have taken the target with it.
        match linkat(
            &from.folder,
            &from.name,
            &to.folder,
            &to.name,
            AtFlags::empty(),
        ) {
            Err(Errno::NOENT) => Err(missing()),
            result => result.map_err(write_error("link", path)),
        }
    }

    /// Makes a FIFO or device node.
    pub(super) fn node(
        &mut self,
        path: &Path,
        node: Node,
        metadata: &Metadata,
    ) -> Result<(), LayerError> {
        let place = self.vacant(path)?;
        let (kind, device) = match node {
            Node::Fifo => (FileType::Fifo, 0),
            Node::Char(major, minor) => {
                (FileType::CharacterDevice, rustix::fs::makedev(major, minor))
            }
            Node::Block(major, minor) => (FileType::BlockDevice, rustix::fs::makedev(major, minor)),
        };
        mknodat(
            &place.folder,
            &place.name,
            kind,
            Mode::RUSR | Mode::WUSR,
            device,
        )
        .map_err(write_error("make the device node", path))?;
        describe(&place, metadata, kind)
    }

    /// Hides `path` of the layers below. What this layer itself has there stays; a folder then hides what is below it.
    pub(super) fn whiteout(&mut self, path: &Path) -> Result<(), LayerError> {
        let place = self.place(path)?;
        match kind(&place, path)? {
            Some(stat) if type_of(&stat) == FileType::Directory => {
                set_xattr(&place, OPAQUE.0.as_ref(), OPAQUE.1)
            }
            Some(_) => Ok(()),
            None => {
                let metadata = Metadata {
                    mode: 0,
                    ..Metadata::implicit(path)
                };
                self.node(path, Node::Char(0, 0), &metadata)
            }
        }
    }

    /// Hides everything that the layers below have in the folder `path`.
    pub(super) fn opaque(&mut self, path: &Path) -> Result<(), LayerError> {
        let place = if path.as_os_str().is_empty() {
            self.root_place()?
        } else {
            let place = self.place(path)?;
            if kind(&place, path)?.is_none_or(|stat| type_of(&stat) != FileType::Directory) {
                self.folder(path, &Metadata::implicit(path))?;
            }
            place
        };
        set_xattr(&place, OPAQUE.0.as_ref(), OPAQUE.1)
    }

    /// Sets the folders' times. Nothing may be added after.
    pub(super) fn finish(self) -> Result<(), LayerError> {
        for (path, mtime) in &self.folder_times {
            if path.as_os_str().is_empty() {
                utimensat(&self.root, ".", &times(*mtime), AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(write_error("set the time of", path))?;
                continue;
            }
            let place = self.find_real(path)?;
            utimensat(
                &place.folder,
                &place.name,
                &times(*mtime),
                AtFlags::SYMLINK_NOFOLLOW,
            )
            .map_err(write_error("set the time of", path))?;
        }
        Ok(())
    }

    fn root_place(&self) -> Result<Place, LayerError> {
        let name = OsString::from(".");
        let folder = self
            .root
            .try_clone()
            .map_err(|source| dup_error(Path::new("/"), source))?;
        Ok(Place {
            folder,
            folder_path: PathBuf::new(),
            name,
        })
    }

    /// The place of `path` with nothing there.
    fn vacant(&mut self, path: &Path) -> Result<Place, LayerError> {
        let place = self.place(path)?;
        self.clear(&place, path)?;
        Ok(place)
    }

    /// Removes what is at a place.
    fn clear(&mut self, place: &Place, path: &Path) -> Result<(), LayerError> {
        let Some(stat) = kind(place, path)? else {
            return Ok(());
        };
        self.last = None;
        if type_of(&stat) != FileType::Directory {
            return unlinkat(&place.folder, &place.name, AtFlags::empty())
                .map_err(write_error("replace", path));
        }
        let real = place.path();
        std::fs::remove_dir_all(self.root_path.join(&real)).map_err(|source| {
            LayerError::Write {
                action: "replace the folder",
                path: cut(path),
                source,
            }
        })?;
        let gone: Vec<PathBuf> = self
            .folder_times
            .range(real.clone()..)
            .map(|(folder, _)| folder)
            .take_while(|folder| folder.starts_with(&real))
            .cloned()
            .collect();
        for folder in gone {
            self.folder_times.remove(&folder);
        }
        Ok(())
    }

    fn make_folder(&mut self, place: &Place, path: &Path) -> Result<(), LayerError> {
        self.clear(place, path)?;
        mkdirat(&place.folder, &place.name, Mode::RWXU)
            .map_err(write_error("make the folder", path))?;
        let real = place.path();
        let metadata = Metadata::implicit(&real);
        describe(place, &metadata, FileType::Directory)?;
        self.folder_times.insert(real, metadata.mtime);
        Ok(())
    }

    /// The place that `path` names, with every folder on the way made.
    fn place(&mut self, path: &Path) -> Result<Place, LayerError> {
        let parent = path.parent().unwrap_or(Path::new(""));
        let name = path.file_name().unwrap_or_default().to_owned();
        if let Some((cached, folder)) = &self.last
            && cached == parent
        {
            return folder.place(name).map_err(|source| dup_error(path, source));
        }
        let mut walk = Walk::new(&self.root, path);
        walk.go(parent, Missing::Make)?;
        let (folder, made) = walk.finish()?;
        for (folder, hides_lower) in made {
            let place = self.find_real(&folder)?;
            describe(&place, &Metadata::implicit(&folder), FileType::Directory)?;
            if hides_lower {
                set_xattr(&place, OPAQUE.0.as_ref(), OPAQUE.1)?;
            }
            self.folder_times.insert(folder, (0, 0));
        }
        let place = folder
            .place(name)
            .map_err(|source| dup_error(path, source))?;
        self.last = Some((parent.to_owned(), folder));
        Ok(place)
    }

    /// The place that `path` names; `None` if a folder on the way does not exist.
    fn find(&self, path: &Path) -> Result<Option<Place>, LayerError> {
        let mut walk = Walk::new(&self.root, path);
        if !walk.go(path.parent().unwrap_or(Path::new("")), Missing::Stop)? {
            return Ok(None);
        }
        let (folder, _) = walk.finish()?;
        let name = path.file_name().unwrap_or_default().to_owned();
        folder
            .place(name)
            .map(Some)
            .map_err(|source| dup_error(path, source))
    }

    /// A place whose real path is known to exist.
    fn find_real(&self, real: &Path) -> Result<Place, LayerError> {
        self.find(real)?
            .ok_or_else(|| write_error("find", real)(Errno::NOENT))
    }
}

fn dup_error(path: &Path, source: io::Error) -> LayerError {
    LayerError::Write {
        action: "open the folder of",
        path: cut(path),
        source,
    }
}

fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// What is at a place, not following a symbolic link.
fn kind(place: &Place, path: &Path) -> Result<Option<Stat>, LayerError> {
    match statat(&place.folder, &place.name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(write_error("examine", path)(error)),
    }
}

fn type_of(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

pub(super) fn is_whiteout(stat: &Stat) -> bool {
    type_of(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Sets owner, mode, attributes and time, in the order in which none undoes another: a change of owner clears setuid
/// and capabilities.
fn describe(place: &Place, metadata: &Metadata, kind: FileType) -> Result<(), LayerError> {
    let path = place.path();
    let (folder, name) = (&place.folder, &place.name);
    chownat(
        folder,
        name,
        Some(Uid::from_raw(metadata.uid)),
        Some(Gid::from_raw(metadata.gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .map_err(write_error("set the owner of", &path))?;
    if kind != FileType::Symlink {
        // The name is of something just made or examined here, and is no link: it can be followed.
        chmodat(
            folder,
            name,
            Mode::from_bits_truncate(metadata.mode),
            AtFlags::empty(),
        )
        .map_err(write_error("set the mode of", &path))?;
    }
    for (attribute, value) in &metadata.xattrs {
        // The kernel keeps user attributes for files and folders only (xattr(7)).
        let ordinary = matches!(kind, FileType::RegularFile | FileType::Directory);
        if ordinary || !attribute.as_bytes().starts_with(b"user.") {
            set_xattr(place, attribute, value)?;
        }
    }
    utimensat(
        folder,
        name,
        &times(metadata.mtime),
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .map_err(write_error("set the time of", &path))
}

fn set_xattr(place: &Place, attribute: &OsStr, value: &[u8]) -> Result<(), LayerError> {
    // There is no lsetxattrat before Linux 6.13; the descriptor's own link in /proc stands for the folder.
    let target = Path::new("/proc/self/fd")
        .join(place.folder.as_raw_fd().to_string())
        .join(&place.name);
    lsetxattr(&target, attribute, value, XattrFlags::empty()).map_err(|source| LayerError::Xattr {
        path: cut(&place.path()),
        name: attribute.to_string_lossy().into_owned(),
        source: source.into(),
    })
}

/// A file whose contents are being written.
pub(super) struct NewFile {
    pub(super) file: File,
    place: Place,
}

impl NewFile {
    pub(super) fn finish(self, metadata: &Metadata) -> Result<(), LayerError> {
        describe(&self.place, metadata, FileType::RegularFile)
    }
}
