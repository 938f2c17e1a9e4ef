//! Files of a container as a tar archive, out of it and into it.
//!
//! These run in the container, so the container's root is all they can reach. Kept are: modes, owners, times,
//! symbolic and hard links, devices and fifos, holes of sparse files, names and links of any length, and extended
//! attributes of the kinds in [`ATTRIBUTES`]. Sockets are left out, as they are in any archive.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use rustix::fs::{OFlags, XattrFlags};
use rustix::io::Errno;
use sandbox_types::WithCauses;
use tar::{Archive, Builder, EntryType, Header};

use super::{Program, complain};

mod special;

/// Extended attributes that are archived, by the beginning of their names. Others are the file system's own.
const ATTRIBUTES: [&[u8]; 3] = [b"user.", b"security.capability", b"system.posix_acl_"];
/// How a pax header names an extended attribute.
const PAX_ATTRIBUTE: &str = "SCHILY.xattr.";
/// The most that a file's list of attributes, and one attribute's value, may have (`XATTR_LIST_MAX`,
/// `XATTR_SIZE_MAX`).
const MAX_ATTRIBUTE_BYTES: usize = 64 * 1024;
/// Bytes in a block of `st_blocks` (stat(2)).
const STAT_BLOCK: u64 = 512;

/// Why an archive could not be made or unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    /// There must be one argument.
    #[error("one path is to be named, not {count}")]
    Arguments {
        /// How many there are.
        count: usize,
    },
    /// A file could not be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A file could not be written.
    #[error("cannot write {path}")]
    Write {
        /// Which.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The archive itself could not be written.
    #[error("cannot write the archive")]
    Output(#[source] io::Error),
    /// The archive itself could not be read.
    #[error("cannot read the archive")]
    Input(#[source] io::Error),
    /// An entry's name leads elsewhere.
    #[error("{path} in the archive leads out of the folder that it is unpacked in")]
    Outside {
        /// Its name.
        path: PathBuf,
    },
}

fn end(program: Program, result: Result<(), ArchiveError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(program, &WithCauses(&error).to_string());
            ExitCode::FAILURE
        }
    }
}

fn only(arguments: &[OsString]) -> Result<&Path, ArchiveError> {
    match arguments {
        [path] => Ok(Path::new(path)),
        _ => Err(ArchiveError::Arguments {
            count: arguments.len(),
        }),
    }
}

pub(super) fn read_main(arguments: &[OsString]) -> ExitCode {
    let result = only(arguments).and_then(|path| read(path, io::stdout().lock()));
    end(Program::ArchiveRead, result)
}

pub(super) fn write_main(arguments: &[OsString]) -> ExitCode {
    let result = only(arguments).and_then(|folder| write(folder, io::stdin().lock()));
    end(Program::ArchiveWrite, result)
}

/// Writes the file or folder at `path`, called by its last component, to `output`.
fn read(path: &Path, output: impl Write) -> Result<(), ArchiveError> {
    let name = match path.components().next_back() {
        Some(Component::Normal(name)) => PathBuf::from(name),
        _ => PathBuf::from("."),
    };
    read_as(path, name, output)
}

/// Writes what is in the folder at `path` to `output`.
pub(crate) fn archive_content(path: &Path, output: impl Write) -> Result<(), ArchiveError> {
    read_as(path, PathBuf::from("."), output)
}

fn read_as(path: &Path, name: PathBuf, output: impl Write) -> Result<(), ArchiveError> {
    let mut archive = Builder::new(BufWriter::with_capacity(256 * 1024, output));
    let mut links = HashMap::new();
    // Last in, first out: a folder comes before what is in it.
    let mut waiting = vec![(path.to_owned(), name)];
    while let Some((path, name)) = waiting.pop() {
        let failed = |source| ArchiveError::Read {
            path: path.clone(),
            source,
        };
        let metadata = fs::symlink_metadata(&path).map_err(failed)?;
        if metadata.is_dir() {
            let mut inside = Vec::new();
            for entry in fs::read_dir(&path).map_err(failed)? {
                let file = entry.map_err(failed)?.file_name();
                inside.push((path.join(&file), name.join(&file)));
            }
            inside.sort_unstable_by(|a, b| b.cmp(a));
            waiting.extend(inside);
        }
        append(&mut archive, &mut links, &path, &name, &metadata)?;
    }
    let mut output = archive.into_inner().map_err(ArchiveError::Output)?;
    output.flush().map_err(ArchiveError::Output)
}

/// Files with several names that are in the archive already, by device and inode.
type Links = HashMap<(u64, u64), PathBuf>;

fn append(
    archive: &mut Builder<impl Write>,
    links: &mut Links,
    path: &Path,
    name: &Path,
    metadata: &Metadata,
) -> Result<(), ArchiveError> {
    let kind = metadata.file_type();
    if kind.is_socket() {
        return Ok(());
    }
    let mut header = Header::new_gnu();
    header.set_metadata(metadata);
    if !kind.is_dir() && metadata.nlink() > 1 {
        let inode = (metadata.dev(), metadata.ino());
        if let Some(first) = links.get(&inode) {
            header.set_entry_type(EntryType::Link);
            header.set_size(0);
            return archive
                .append_link(&mut header, name, first)
                .map_err(ArchiveError::Output);
        }
        links.insert(inode, name.to_owned());
    }
    let failed = |source| ArchiveError::Read {
        path: path.to_owned(),
        source,
    };
    let attributes = attributes(path).map_err(failed)?;
    let headers = attributes
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_slice()));
    if !attributes.is_empty() {
        archive
            .append_pax_extensions(headers)
            .map_err(ArchiveError::Output)?;
    }
    if kind.is_symlink() {
        let target = fs::read_link(path).map_err(failed)?;
        header.set_size(0);
        return archive
            .append_link(&mut header, name, target)
            .map_err(ArchiveError::Output);
    }
    if !kind.is_file() {
        header.set_size(0);
        if kind.is_char_device() || kind.is_block_device() {
            let device = metadata.rdev();
            let numbers = (rustix::fs::major(device), rustix::fs::minor(device));
            header
                .set_device_major(numbers.0)
                .and_then(|()| header.set_device_minor(numbers.1))
                .map_err(ArchiveError::Output)?;
        }
        return archive
            .append_data(&mut header, name, io::empty())
            .map_err(ArchiveError::Output);
    }
    // A fifo may have come in its place, or a link to one.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut file = File::options()
        .read(true)
        .custom_flags(i32::try_from(flags.bits()).unwrap_or(0))
        .open(path)
        .map_err(failed)?;
    let size = metadata.len();
    let sparse = metadata.blocks().saturating_mul(STAT_BLOCK) < size;
    let written = if sparse {
        archive.append_file(name, &mut file)
    } else {
        archive.append_data(&mut header, name, Exactly { file, left: size })
    };
    written.map_err(failed)
}

/// As many bytes of a file as it had when it was looked at, whatever becomes of it: the archive says how many come.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let most = buffer.len().min(most);
        let Some(buffer) = buffer.get_mut(..most).filter(|buffer| !buffer.is_empty()) else {
            return Ok(0);
        };
        let mut read = self.file.read(buffer)?;
        if read == 0 {
            buffer.fill(0);
            read = buffer.len();
        }
        self.left = self.left.saturating_sub(u64::try_from(read).unwrap_or(0));
        Ok(read)
    }
}

/// The extended attributes of a file that are archived, by the names of their pax headers.
fn attributes(path: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut list = vec![0u8; MAX_ATTRIBUTE_BYTES];
    let length = match rustix::fs::llistxattr(path, &mut list) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => return Ok(Vec::new()),
        Err(errno) => return Err(errno.into()),
    };
    let names = list.get(..length).unwrap_or_default();
    let mut found = Vec::new();
    for name in names.split(|&byte| byte == 0) {
        let Ok(text) = std::str::from_utf8(name) else {
            continue;
        };
        if !ATTRIBUTES.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let mut value = vec![0u8; MAX_ATTRIBUTE_BYTES];
        match rustix::fs::lgetxattr(path, text, &mut value) {
            Ok(length) => {
                value.truncate(length);
                found.push((format!("{PAX_ATTRIBUTE}{text}"), value));
            }
            // Removed since, or not for this user.
            Err(Errno::NODATA | Errno::PERM | Errno::ACCESS) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(found)
}

/// Unpacks the archive from `input` into `folder`.
pub(crate) fn write(folder: &Path, mut input: impl Read) -> Result<(), ArchiveError> {
    let failed = |source| ArchiveError::Write {
        path: folder.to_owned(),
        source,
    };
    let metadata = fs::metadata(folder).map_err(failed)?;
    if !metadata.is_dir() {
        return Err(failed(Errno::NOTDIR.into()));
    }
    let mut archive = Archive::new(&mut input);
    archive.set_preserve_permissions(true);
    archive.set_preserve_mtime(true);
    archive.set_preserve_ownerships(rustix::process::geteuid().is_root());
    let mut folders = Vec::new();
    for entry in archive.entries().map_err(ArchiveError::Input)? {
        let entry = entry.map_err(ArchiveError::Input)?;
        if entry.header().entry_type() == EntryType::Directory {
            // Last: a folder may be read-only, and its time changes with what is put in it.
            folders.push(entry);
        } else {
            unpack(folder, entry)?;
        }
    }
    // The innermost first.
    folders.sort_by(|a, b| b.path_bytes().cmp(&a.path_bytes()));
    for entry in folders {
        unpack(folder, entry)?;
    }
    // The writer is not to be told that nobody reads: padding may follow the archive's end.
    io::copy(&mut input, &mut io::sink()).map_err(ArchiveError::Input)?;
    Ok(())
}

fn unpack(folder: &Path, mut entry: tar::Entry<'_, impl Read>) -> Result<(), ArchiveError> {
    let path = entry.path().map_err(ArchiveError::Input)?.into_owned();
    let outside = || ArchiveError::Outside { path: path.clone() };
    let failed = |source| ArchiveError::Write {
        path: path.clone(),
        source,
    };
    let mut attributes = Vec::new();
    if let Some(extensions) = entry.pax_extensions().map_err(ArchiveError::Input)? {
        for extension in extensions.flatten() {
            if let Some(name) = extension.key_bytes().strip_prefix(PAX_ATTRIBUTE.as_bytes())
                && ATTRIBUTES.iter().any(|prefix| name.starts_with(prefix))
            {
                attributes.push((name.to_owned(), extension.value_bytes().to_owned()));
            }
        }
    }
    let kind = entry.header().entry_type();
    if kind.is_fifo() || kind.is_character_special() || kind.is_block_special() {
        let target = special::place(folder, &path)
            .map_err(failed)?
            .ok_or_else(outside)?;
        special::make(&target, entry.header()).map_err(failed)?;
    } else if kind.is_hard_link() && special::is_linked(folder, &entry).map_err(failed)? {
        return Ok(());
    } else if !entry.unpack_in(folder).map_err(failed)? {
        return Err(outside());
    }
    let target = folder.join(special::inner(&path));
    for (name, value) in attributes {
        let name = std::ffi::OsStr::from_bytes(&name);
        match rustix::fs::lsetxattr(&target, name, &value, XattrFlags::empty()) {
            // Not every file system has them, and not everyone may set them.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
