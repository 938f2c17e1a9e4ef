//! The files of an image on disk: in a folder or in a tar.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use super::error::{ImportError, Part};
use crate::extent::Extent;
use crate::layer::{Compression, Decompressed, Limits, Meter, Metered, sniff};
use crate::store::MAX_METADATA_BYTES;

/// The most files that an archive may hold; an image has one for each blob and a few more.
const MAX_FILES: usize = 100_000;
/// How many links in an archive may lead from one to the next. Old docker archives have links between equal layers.
const MAX_LINKS: usize = 8;

/// Where an image's files are.
pub(super) enum Files {
    Folder(PathBuf),
    Tar(TarFiles),
}

/// A tar whose files are read in place.
pub(super) struct TarFiles {
    tar: File,
    members: HashMap<String, Member>,
}

enum Member {
    File { offset: u64, size: u64 },
    Link(String),
}

/// An open file of an image.
pub(super) struct OpenFile {
    pub(super) reader: Box<dyn Read>,
    pub(super) size: u64,
}

fn read_error(action: &'static str, path: &Path) -> impl Fn(io::Error) -> ImportError {
    let path = path.to_owned();
    move |source| ImportError::Read {
        action,
        path: path.clone(),
        source,
    }
}

impl Files {
    /// Looks at what `path` is. A compressed archive is decompressed into the folder `work`.
    pub(super) fn open(path: &Path, work: &Path, limits: &Limits) -> Result<Self, ImportError> {
        let no_image = |reason: &str| ImportError::NotAnImage {
            path: path.to_owned(),
            reason: reason.to_owned(),
        };
        let metadata = std::fs::metadata(path).map_err(read_error("read", path))?;
        if metadata.is_dir() {
            return Ok(Self::Folder(path.to_owned()));
        }
        if !metadata.is_file() {
            return Err(no_image("it is neither a file nor a folder"));
        }
        if metadata.len() == 0 {
            return Err(no_image("the file is empty"));
        }
        let file = File::open(path).map_err(read_error("open", path))?;
        let mut start = [0; 4];
        let n = file
            .read_at(&mut start, 0)
            .map_err(read_error("read", path))?;
        let compression = sniff(start.get(..n).unwrap_or_default());
        let tar = match compression {
            Compression::Plain => file,
            Compression::Gzip | Compression::Zstd => decompress(&file, path, work, limits)?,
        };
        let members = match index(&tar, limits) {
            Ok(members) if members.is_empty() => return Err(no_image("it is not a tar archive")),
            Ok(members) => members,
            // What the error says may be bytes of the file.
            Err(_) => return Err(no_image("it is not a whole tar archive")),
        };
        Ok(Self::Tar(TarFiles { tar, members }))
    }

    /// Opens the file `name`; `None` if there is none of that name.
    pub(super) fn get(&self, name: &str) -> io::Result<Option<OpenFile>> {
        match self {
            Self::Folder(folder) => open_in_folder(folder, name),
            Self::Tar(tar) => tar.get(name),
        }
    }

    /// The whole contents of a small file.
    pub(super) fn read(
        &self,
        part: Part,
        name: &str,
        shown: &str,
    ) -> Result<Option<Vec<u8>>, ImportError> {
        let failed = read_error("read the image's file", Path::new(name));
        let Some(file) = self.get(name).map_err(&failed)? else {
            return Ok(None);
        };
        if file.size > MAX_METADATA_BYTES {
            return Err(ImportError::TooLarge {
                part,
                name: shown.to_owned(),
                limit: MAX_METADATA_BYTES,
            });
        }
        let mut bytes = Vec::new();
        file.reader
            .take(MAX_METADATA_BYTES)
            .read_to_end(&mut bytes)
            .map_err(&failed)?;
        Ok(Some(bytes))
    }
}

fn open_in_folder(folder: &Path, name: &str) -> io::Result<Option<OpenFile>> {
    // Names come from the image: only plain ones are looked up.
    let plain = Path::new(name)
        .components()
        .all(|component| matches!(component, Component::Normal(_)));
    if !plain {
        return Ok(None);
    }
    // Not blocking, in case it is a FIFO; this has no effect on files.
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = match OpenOptions::new()
        .read(true)
        .custom_flags(nonblocking)
        .open(folder.join(name))
    {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok(None);
    }
    Ok(Some(OpenFile {
        reader: Box::new(file),
        size: metadata.len(),
    }))
}

impl TarFiles {
    fn get(&self, name: &str) -> io::Result<Option<OpenFile>> {
        let mut name = name;
        for _ in 0..=MAX_LINKS {
            match self.members.get(name) {
                None => return Ok(None),
                Some(Member::Link(target)) => name = target,
                Some(Member::File { offset, size }) => {
                    return Ok(Some(OpenFile {
                        reader: Box::new(Extent {
                            file: self.tar.try_clone()?,
                            position: *offset,
                            end: offset.saturating_add(*size),
                        }),
                        size: *size,
                    }));
                }
            }
        }
        Ok(None)
    }
}

fn decompress(file: &File, path: &Path, work: &Path, limits: &Limits) -> Result<File, ImportError> {
    let failed = read_error("decompress", path);
    let mut reader = Decompressed::new(file).map_err(&failed)?.take(limits.bytes);
    let mut tar = tempfile::tempfile_in(work).map_err(read_error("create a file in", work))?;
    let count = io::copy(&mut reader, &mut tar).map_err(&failed)?;
    if count == limits.bytes {
        return Err(ImportError::NotAnImage {
            path: path.to_owned(),
            reason: format!("it has more than {count} bytes when decompressed"),
        });
    }
    Ok(tar)
}

/// Where each file of a tar is. Of several with one name the last counts.
fn index(tar: &File, limits: &Limits) -> io::Result<HashMap<String, Member>> {
    let meter = Meter::new(u64::MAX, limits.header_bytes);
    let mut reader = tar;
    reader.seek(SeekFrom::Start(0))?;
    let mut archive =
        tar::Archive::new(Metered::new(BufReader::with_capacity(512, reader), &meter));
    let mut members = HashMap::new();
    let mut entries = archive.entries_with_seek()?;
    while let Some(entry) = meter.headers(|| entries.next()) {
        let entry = entry?;
        if members.len() >= MAX_FILES {
            return Err(io::Error::other(format!("more than {MAX_FILES} files")));
        }
        let Some(name) = normal(&entry.path()?, Path::new("")) else {
            continue;
        };
        let kind = entry.header().entry_type();
        let member = if kind.is_file() {
            Member::File {
                offset: entry.raw_file_position(),
                size: entry.size(),
            }
        } else if kind.is_symlink() || kind.is_hard_link() {
            let base = Path::new(&name).parent().unwrap_or(Path::new(""));
            let base = if kind.is_symlink() {
                base
            } else {
                Path::new("")
            };
            match entry.link_name()?.and_then(|target| normal(&target, base)) {
                Some(target) => Member::Link(target),
                None => continue,
            }
        } else {
            continue;
        };
        members.insert(name, member);
    }
    Ok(members)
}

/// A name in an archive without `.` and `..`; `None` if it leads out or is not text.
fn normal(path: &Path, base: &Path) -> Option<String> {
    let mut name = base.to_owned();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(part) => name.push(part),
            Component::ParentDir => {
                if !name.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    name.into_os_string().into_string().ok()
}
