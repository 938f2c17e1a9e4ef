//! An archive out of a container, unpacked here. Nothing in it is trusted.
//!
//! Every path is resolved by the kernel below the one folder that was asked for, through no symbolic link
//! (`openat2` with `RESOLVE_BENEATH` and `RESOLVE_NO_SYMLINKS`): neither `..`, nor a link that an earlier entry made, nor
//! one that was there before leads anywhere else. What it is called here is the caller's to say, never the archive's: one
//! whose first entry is not called as what was asked for is refused ([`Asked`]). Devices are neither made nor replaced,
//! set-user-ID bits and owners are kept only when that is asked for, and what describes an entry is read up to a bound.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, chmodat,
    chownat, fchmod, linkat, mkdirat, openat, openat2, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use super::{CpError, local, place};

/// The most bytes that describe one entry: long names, attributes.
const MAX_DESCRIPTION_BYTES: u64 = 1 << 20;
/// The most bytes of paths that are remembered for their folders' times, which is some 500,000 folders. The times of what
/// is beyond are those of the unpacking.
const MAX_FOLDER_PATHS_BYTES: usize = 64 << 20;
/// A sparse file is written in pieces of this size, where there is something in them.
const SPARSE_PIECE_BYTES: usize = 64 << 10;

/// What was asked for, by which an archive is held to its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    /// What the first entry is called, alone; none for `.`, which is where a path without a name leads.
    archive_name: Option<OsString>,
    /// What that becomes in a folder here: as it was asked for, also where links were followed from there.
    own_name: Option<OsString>,
}

impl Asked {
    /// The archive of what is at `followed`, where the links at `path` led.
    pub(super) fn new(path: &str, followed: &str) -> Self {
        Self {
            archive_name: place::name(followed).map(OsString::from),
            own_name: place::name(path).map(OsString::from),
        }
    }

    /// Whether an archive whose first entry is called so is that of what was asked for.
    fn is_called(&self, first: &Path) -> bool {
        names(first).is_some_and(|names| names.iter().eq(self.archive_name.as_ref()))
    }
}

/// How it is unpacked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options {
    /// Only what is in the folder.
    pub(super) contents: bool,
    pub(super) keep_owners: bool,
    /// A first entry that is a symbolic link is to be followed.
    pub(super) follow: bool,
}

/// What the first entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Folder,
    Other,
}

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unpacked {
    /// It was passed on as it came.
    Streamed,
    Done {
        entries: u64,
        left_out: u64,
    },
    /// Nothing was unpacked: it is a symbolic link that is to be followed.
    Link(String),
    /// There was no entry.
    Empty,
}

/// Lets a reader read only so much, while that is set.
struct Bounded<R> {
    inner: R,
    left: Rc<Cell<Option<u64>>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(left) = self.left.get() else {
            return self.inner.read(buffer);
        };
        if left == 0 {
            return Err(io::Error::other("the description of an entry is too long"));
        }
        let most = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = self
            .inner
            .read(buffer.get_mut(..most).unwrap_or_default())?;
        self.left.set(Some(left.saturating_sub(count as u64)));
        Ok(count)
    }
}

/// What the first entry is, and where it leads to if it is a symbolic link; nothing if there is none.
pub(super) fn first(from: impl Read) -> Option<(Kind, Option<String>)> {
    let left = Rc::new(Cell::new(Some(MAX_DESCRIPTION_BYTES)));
    let mut archive = Archive::new(Bounded { inner: from, left });
    let entry = archive.entries().ok()?.next()?.ok()?;
    let kind = match entry.header().entry_type() {
        EntryType::Directory => Kind::Folder,
        _ => Kind::Other,
    };
    Some((kind, link_target(&entry)))
}

fn link_target<R: Read>(entry: &Entry<'_, R>) -> Option<String> {
    (entry.header().entry_type() == EntryType::Symlink).then(|| {
        let target = entry.link_name_bytes().unwrap_or_default();
        String::from_utf8_lossy(&target).into_owned()
    })
}

/// Unpacks what comes to `to`, by docker's rules.
pub(super) fn unpack(
    from: impl Read,
    to: &Path,
    asked: &Asked,
    options: Options,
) -> Result<Unpacked, CpError> {
    let left = Rc::new(Cell::new(None));
    let mut archive = Archive::new(Bounded {
        inner: from,
        left: Rc::clone(&left),
    });
    let mut entries = archive.entries().map_err(CpError::Archive)?;
    let mut unpacking: Option<Unpacking> = None;
    loop {
        left.set(Some(MAX_DESCRIPTION_BYTES));
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(CpError::Archive)?;
        left.set(None);
        let unpacking = match &mut unpacking {
            Some(unpacking) => unpacking,
            none => {
                let path = entry_path(&entry);
                if !asked.is_called(&path) {
                    return Err(CpError::OtherName {
                        asked: asked.archive_name.as_deref().map_or_else(
                            || ".".to_owned(),
                            |name| name.to_string_lossy().into_owned(),
                        ),
                        entry: shown(&path),
                    });
                }
                if let Some(target) = link_target(&entry).filter(|_| options.follow) {
                    return Ok(Unpacked::Link(target));
                }
                none.insert(Unpacking::begin(&entry, to, asked, options)?)
            }
        };
        unpacking.entry(&mut entry)?;
        // What is left of it would count as the next one's description.
        io::copy(&mut entry, &mut io::sink()).map_err(CpError::Archive)?;
    }
    match unpacking {
        Some(unpacking) => unpacking.finish(),
        None => Ok(Unpacked::Empty),
    }
}

/// Where entries go.
struct Unpacking {
    root: OwnedFd,
    root_path: PathBuf,
    /// The first name of every entry, as the archive has it; none for `.`.
    archive_name: Option<OsString>,
    /// The first name here; none to leave it out.
    own_name: Option<OsString>,
    keep_owners: bool,
    entries: u64,
    left_out: u64,
    /// Folders' times are set at the end, because each new entry changes them.
    folder_times: BTreeMap<PathBuf, u64>,
    /// The bytes of their paths.
    folder_paths_bytes: usize,
}

fn names(path: &Path) -> Option<Vec<OsString>> {
    let mut found = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => found.push(name.to_owned()),
            Component::CurDir => {}
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(found)
}

fn entry_path<R: Read>(entry: &Entry<'_, R>) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(&entry.path_bytes()))
}

/// A name out of an archive, as far as it is told.
fn shown(path: &Path) -> String {
    path.to_string_lossy().chars().take(200).collect()
}

fn escape(path: &Path) -> CpError {
    CpError::Escape { entry: shown(path) }
}

impl Unpacking {
    /// Decides by the first entry, and by what is at `to`.
    fn begin<R: Read>(
        first: &Entry<'_, R>,
        to: &Path,
        asked: &Asked,
        options: Options,
    ) -> Result<Self, CpError> {
        let is_folder = first.header().entry_type() == EntryType::Directory;
        let shown = to.display().to_string();
        // The caller's own links are followed.
        let (root_path, own_name) = match (fs::metadata(to), is_folder) {
            (Ok(found), true) if found.is_dir() && options.contents => (to.to_owned(), None),
            (Ok(found), _) if found.is_dir() => (to.to_owned(), asked.own_name.clone()),
            (Ok(_), true) => return Err(CpError::OntoFile { path: shown }),
            (Ok(_), false) => beside(&fs::canonicalize(to).map_err(local("find", to))?)?,
            (Err(_), false) if shown.ends_with('/') => {
                return Err(CpError::NoFolder { path: shown });
            }
            (Err(_), _) => beside(to)?,
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, &root_path, flags, Mode::empty())
            .map_err(|error| local("open", &root_path)(error.into()))?;
        Ok(Self {
            root,
            root_path,
            archive_name: asked.archive_name.clone(),
            own_name,
            keep_owners: options.keep_owners,
            entries: 0,
            left_out: 0,
            folder_times: BTreeMap::new(),
            folder_paths_bytes: 0,
        })
    }

    /// The place here of a path in the archive; empty for the root itself.
    fn place(&self, path: &Path) -> Result<PathBuf, CpError> {
        let mut parts = names(path).ok_or_else(|| escape(path))?.into_iter();
        if let Some(expected) = &self.archive_name
            && parts.next().as_ref() != Some(expected)
        {
            return Err(escape(path));
        }
        Ok(self.own_name.iter().cloned().chain(parts).collect())
    }

    /// The folder of a place, open.
    fn folder(&self, place: &Path) -> Result<OwnedFd, CpError> {
        let parent = match place.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        openat2(
            &self.root,
            parent,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
        )
        .map_err(|error| match error {
            Errno::LOOP | Errno::XDEV | Errno::NOTDIR => escape(place),
            error => self.failed("open the folder of", place)(error),
        })
    }

    fn failed(&self, action: &'static str, place: &Path) -> impl FnOnce(Errno) -> CpError {
        let path = self.root_path.join(place);
        move |error| local(action, &path)(error.into())
    }

    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), CpError> {
        let path = entry_path(entry);
        let place = self.place(&path)?;
        let kind = entry.header().entry_type();
        let Some(name) = place.file_name().map(OsStr::to_owned) else {
            // The folder that was asked for is there.
            return Ok(());
        };
        let folder = self.folder(&place)?;
        match kind {
            EntryType::Directory => self.make_folder(&folder, &name, &place, entry)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.make_file(&folder, &name, &place, entry)?;
            }
            EntryType::Symlink => {
                self.clear(&folder, &name, &place)?;
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                symlinkat(OsStr::from_bytes(&target), &folder, &name)
                    .map_err(self.failed("link", &place))?;
                if self.keep_owners {
                    self.own(&folder, &name, &place, entry)?;
                }
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                let target = self.place(Path::new(OsStr::from_bytes(&target)))?;
                let target_name = target.file_name().ok_or_else(|| escape(&path))?;
                let from = self.folder(&target)?;
                if target != place {
                    self.clear(&folder, &name, &place)?;
                    // A link is linked, not followed.
                    linkat(&from, target_name, &folder, &name, AtFlags::empty())
                        .map_err(self.failed("link", &place))?;
                }
            }
            EntryType::XGlobalHeader => return Ok(()),
            _ => {
                self.left_out += 1;
                return Ok(());
            }
        }
        self.entries += 1;
        Ok(())
    }

    /// Removes what is there, if it is a file or a symbolic link: a device, fifo or socket is here for something else.
    fn clear(&self, folder: &OwnedFd, name: &OsStr, place: &Path) -> Result<(), CpError> {
        match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => match FileType::from_raw_mode(found.st_mode) {
                FileType::RegularFile | FileType::Symlink | FileType::Directory => {}
                _ => {
                    return Err(CpError::OntoSpecial {
                        path: self.root_path.join(place).display().to_string(),
                    });
                }
            },
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(self.failed("read", place)(error)),
        }
        match unlinkat(folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(self.failed("replace", place)(error)),
        }
    }

    fn mode<R: Read>(&self, entry: &Entry<'_, R>) -> Mode {
        let kept = if self.keep_owners { 0o7777 } else { 0o777 };
        Mode::from_bits_truncate(entry.header().mode().unwrap_or(0o600) & kept)
    }

    fn own<R: Read>(
        &self,
        folder: &OwnedFd,
        name: &OsStr,
        place: &Path,
        entry: &Entry<'_, R>,
    ) -> Result<(), CpError> {
        let number = |value: io::Result<u64>| {
            value
                .ok()
                .and_then(|id| u32::try_from(id).ok())
                // The last is the kernel's "do not change".
                .filter(|id| *id != u32::MAX)
                .unwrap_or(0)
        };
        let (uid, gid) = (number(entry.header().uid()), number(entry.header().gid()));
        chownat(
            folder,
            name,
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(self.failed("set the owner of", place))
    }

    fn make_folder<R: Read>(
        &mut self,
        folder: &OwnedFd,
        name: &OsStr,
        place: &Path,
        entry: &Entry<'_, R>,
    ) -> Result<(), CpError> {
        match mkdirat(folder, name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let found = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(self.failed("read", place))?;
                if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
                    return Err(escape(place));
                }
            }
            Err(error) => return Err(self.failed("make the folder", place)(error)),
        }
        if self.keep_owners {
            self.own(folder, name, place, entry)?;
        }
        // It was just seen to be a folder, and this host's own processes are not against us.
        chmodat(folder, name, self.mode(entry), AtFlags::empty())
            .map_err(self.failed("set the mode of", place))?;
        self.remember_time(place, entry.header().mtime().unwrap_or(0));
        Ok(())
    }

    fn remember_time(&mut self, place: &Path, mtime: u64) {
        if let Some(known) = self.folder_times.get_mut(place) {
            *known = mtime;
            return;
        }
        let bytes = self.folder_paths_bytes + place.as_os_str().len();
        if bytes <= MAX_FOLDER_PATHS_BYTES {
            self.folder_paths_bytes = bytes;
            self.folder_times.insert(place.to_owned(), mtime);
        }
    }

    fn make_file<R: Read>(
        &self,
        folder: &OwnedFd,
        name: &OsStr,
        place: &Path,
        entry: &mut Entry<'_, R>,
    ) -> Result<(), CpError> {
        self.clear(folder, name, place)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(folder, name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(self.failed("create", place))?;
        let mut file = File::from(fd);
        let copied = match entry.header().entry_type() {
            EntryType::GNUSparse => copy_sparse(entry, &mut file),
            _ => io::copy(entry, &mut file).map(|_| ()),
        };
        copied.map_err(local("write", &self.root_path.join(place)))?;
        // A change of owner clears the set-user-ID bit: it comes first.
        if self.keep_owners {
            self.own(folder, name, place, entry)?;
        }
        fchmod(&file, self.mode(entry)).map_err(self.failed("set the mode of", place))?;
        let mtime = entry.header().mtime().unwrap_or(0);
        rustix::fs::futimens(&file, &times(mtime)).map_err(self.failed("set the time of", place))
    }

    fn finish(self) -> Result<Unpacked, CpError> {
        for (place, mtime) in self.folder_times.iter().rev() {
            let folder = self.folder(place)?;
            let name = place.file_name().unwrap_or_default();
            utimensat(&folder, name, &times(*mtime), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(self.failed("set the time of", place))?;
        }
        Ok(Unpacked::Done {
            entries: self.entries,
            left_out: self.left_out,
        })
    }
}

/// Writes a file with its holes. A size that the file system does not have is refused before anything is written.
fn copy_sparse<R: Read>(entry: &mut Entry<'_, R>, file: &mut File) -> io::Result<()> {
    file.set_len(entry.size())?;
    let mut piece = vec![0; SPARSE_PIECE_BYTES];
    loop {
        let count = match entry.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let read = piece.get(..count).unwrap_or_default();
        if read.iter().all(|byte| *byte == 0) {
            file.seek(SeekFrom::Current(i64::try_from(count).unwrap_or(0)))?;
        } else {
            file.write_all(read)?;
        }
    }
}

fn times(seconds: u64) -> Timestamps {
    let time = Timespec {
        tv_sec: i64::try_from(seconds).unwrap_or(0),
        tv_nsec: 0,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// The folder that a path is in, and its name there.
fn beside(path: &Path) -> Result<(PathBuf, Option<OsString>), CpError> {
    let name = path.file_name().ok_or_else(|| CpError::NoFolder {
        path: path.display().to_string(),
    })?;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    Ok((folder, Some(name.to_owned())))
}

#[cfg(test)]
mod tests;
