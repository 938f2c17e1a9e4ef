//! Files of this host as an archive for a container: with their hard links among each other, and the capabilities of programs, as docker copies them.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _, Write};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
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
        let mut links = Links::new();
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
                append(
                    &mut archive,
                    &mut links,
                    &path,
                    &name,
                    &metadata,
                    keep_owners,
                )?;
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

/// Files with several names that are in the archive already, by device and inode.
type Links = HashMap<(u64, u64), PathBuf>;

/// What an attribute's name is preceded by in a pax header.
const PAX_ATTRIBUTE: &str = "SCHILY.xattr.";
/// The attribute with a program's capabilities (capabilities(7)), and the most that it has (`struct vfs_ns_cap_data`).
const CAPABILITY: &str = "security.capability";
const MAX_CAPABILITY_BYTES: usize = 24;

/// Writes a file's capabilities in front of it, if it has any.
fn append_capability(
    archive: &mut Builder<impl Write>,
    path: &Path,
    file: &File,
) -> Result<(), CpError> {
    let mut value = [0; MAX_CAPABILITY_BYTES];
    let value = match rustix::fs::fgetxattr(file, CAPABILITY, &mut value) {
        Ok(length) => value.get(..length).unwrap_or_default(),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(()),
        Err(errno) => return Err(local("read", path)(errno.into())),
    };
    let name = format!("{PAX_ATTRIBUTE}{CAPABILITY}");
    archive
        .append_pax_extensions([(name.as_str(), value)])
        .map_err(CpError::Archive)
}

fn append(
    archive: &mut Builder<impl Write>,
    links: &mut Links,
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
    if !kind.is_dir() && metadata.nlink() > 1 {
        let inode = (metadata.dev(), metadata.ino());
        if let Some(first) = links.get(&inode) {
            header.set_entry_type(EntryType::Link);
            header.set_size(0);
            return archive
                .append_link(&mut header, name, first)
                .map_err(CpError::Archive);
        }
        links.insert(inode, name.to_owned());
    }
    if kind.is_file() {
        let file = File::open(path).map_err(local("open", path))?;
        append_capability(archive, path, &file)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use tar::Archive;

    fn packed(path: &Path) -> Vec<u8> {
        let packed = Packed {
            path: path.to_owned(),
            metadata: fs::symlink_metadata(path).unwrap(),
            own_name: "tree".into(),
            contents: false,
        };
        let mut bytes = Vec::new();
        packed
            .write(Some(OsStr::new("tree")), false, &mut bytes)
            .unwrap();
        bytes
    }

    #[test]
    fn second_name_of_a_file_is_a_hard_link_to_the_first() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "content").unwrap();
        fs::hard_link(folder.path().join("a"), folder.path().join("b")).unwrap();
        fs::write(folder.path().join("alone"), "content").unwrap();
        let bytes = packed(folder.path());
        let mut files = Vec::new();
        let mut linked = Vec::new();
        for entry in Archive::new(bytes.as_slice()).entries().unwrap() {
            let entry = entry.unwrap();
            let path = entry.path().unwrap().into_owned();
            match entry.header().entry_type() {
                EntryType::Regular => files.push(path),
                EntryType::Link => {
                    assert_eq!(entry.header().size().unwrap(), 0);
                    linked.push((path, entry.link_name().unwrap().unwrap().into_owned()));
                }
                _ => {}
            }
        }
        let [(second, first)] = &linked[..] else {
            panic!("{linked:?}");
        };
        assert!(files.contains(first) && files.len() == 2 && second != first);
    }

    #[test]
    fn capabilities_of_a_program_come_along() {
        // `VFS_CAP_REVISION_2`, `CAP_NET_BIND_SERVICE`. Setting them takes root.
        const VALUE: &[u8] = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        fs::write(&program, "").unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&program, CAPABILITY, VALUE, flags).unwrap();
        let bytes = packed(&program);
        let mut archive = Archive::new(bytes.as_slice());
        let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
        let extension = entry.pax_extensions().unwrap().unwrap().next().unwrap();
        let extension = extension.unwrap();
        let name = extension.key().unwrap();
        assert_eq!(name, "SCHILY.xattr.security.capability");
        assert_eq!(extension.value_bytes(), VALUE);
    }
}
