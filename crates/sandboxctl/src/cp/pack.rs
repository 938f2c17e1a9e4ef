//! Files of this host as an archive for a container.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _, Write};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use super::{CpError, local, place};
use crate::cli::CpArgs;

/// What is to be copied.
pub(super) struct Packed {
    path: PathBuf,
    metadata: Metadata,
    /// What it is called.
    pub(super) own_name: OsString,
    /// Only what is in the folder.
    pub(super) contents: bool,
}

impl Packed {
    /// Looks at what is at a path. A symbolic link is copied as one, unless it is to be followed.
    pub(super) fn find(path: &Path, args: &CpArgs) -> Result<Self, CpError> {
        let text = path.to_string_lossy();
        let contents = place::asks_for_contents(&text);
        let follow = args.follow_link || contents || text.ends_with('/');
        let metadata = if follow {
            fs::metadata(path)
        } else {
            fs::symlink_metadata(path)
        }
        .map_err(local("read", path))?;
        // `..` and `.` are called what they stand for.
        let own_name = match path.file_name() {
            Some(name) => name.to_owned(),
            None => fs::canonicalize(path)
                .map_err(local("find", path))?
                .file_name()
                .unwrap_or_default()
                .to_owned(),
        };
        Ok(Self {
            path: path.to_owned(),
            contents: contents || own_name.is_empty(),
            metadata,
            own_name,
        })
    }

    pub(super) fn is_folder(&self) -> bool {
        self.metadata.is_dir()
    }

    /// Writes the archive, with `name` for what was found; none for only what is in the folder. Gives the number of
    /// entries.
    pub(super) fn write(
        self,
        name: Option<&OsStr>,
        keep_owners: bool,
        to: impl Write,
    ) -> Result<u64, CpError> {
        let mut archive = Builder::new(io::BufWriter::with_capacity(128 << 10, to));
        let mut entries = 0;
        let root = name.map_or_else(|| PathBuf::from("."), PathBuf::from);
        // Last in, first out: a folder comes before what is in it.
        let mut waiting = vec![(self.path, root, Some(self.metadata))];
        while let Some((path, name, metadata)) = waiting.pop() {
            let metadata = match metadata {
                Some(metadata) => metadata,
                None => fs::symlink_metadata(&path).map_err(local("read", &path))?,
            };
            // The folder whose contents are copied stays as it is in the container.
            if name.as_os_str() != "." {
                append(&mut archive, &path, &name, &metadata, keep_owners)?;
                entries += 1;
            }
            if metadata.is_dir() {
                for entry in fs::read_dir(&path).map_err(local("list", &path))? {
                    let entry = entry.map_err(local("list", &path))?;
                    waiting.push((entry.path(), name.join(entry.file_name()), None));
                }
            }
        }
        let mut buffered = archive.into_inner().map_err(CpError::Archive)?;
        buffered.flush().map_err(CpError::Archive)?;
        Ok(entries)
    }
}

fn append(
    archive: &mut Builder<impl Write>,
    path: &Path,
    name: &Path,
    metadata: &Metadata,
    keep_owners: bool,
) -> Result<(), CpError> {
    let mut header = Header::new_gnu();
    header.set_metadata(metadata);
    if !keep_owners {
        header.set_uid(0);
        header.set_gid(0);
    }
    let kind = metadata.file_type();
    if kind.is_symlink() {
        let target = fs::read_link(path).map_err(local("read", path))?;
        header.set_size(0);
        return archive
            .append_link(&mut header, name, target)
            .map_err(CpError::Archive);
    }
    if kind.is_file() {
        let file = File::open(path).map_err(local("open", path))?;
        // The header's size is kept, whatever happens to the file meanwhile.
        let size = metadata.len();
        let content = file.take(size).chain(io::repeat(0)).take(size);
        return archive
            .append_data(&mut header, name, content)
            .map_err(CpError::Archive);
    }
    header.set_size(0);
    if kind.is_dir() {
        return archive
            .append_data(&mut header, name, io::empty())
            .map_err(CpError::Archive);
    }
    // A socket is nothing without the process behind it.
    if kind.is_socket() {
        return Ok(());
    }
    let device = metadata.rdev();
    let number = |part: u64| u32::try_from(part).unwrap_or_default();
    header.set_entry_type(if kind.is_fifo() {
        EntryType::Fifo
    } else if kind.is_char_device() {
        EntryType::Char
    } else {
        EntryType::Block
    });
    header
        .set_device_major(number(nix::sys::stat::major(device)))
        .and_then(|()| header.set_device_minor(number(nix::sys::stat::minor(device))))
        .and_then(|()| archive.append_data(&mut header, name, io::empty()))
        .map_err(CpError::Archive)
}
