//! Reading a layer's tar, entry by entry, into a [`Tree`].

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use tar::{Entry, EntryType};

use super::compression::Decompressed;
use super::error::LayerError;
use super::limits::{Limit, Limits};
use super::meter::{Meter, Metered};
use super::tree::{Metadata, Node, Tree};

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names with this prefix are aufs' own notes and no part of an image.
const WHITEOUT_META_PREFIX: &[u8] = b".wh..wh.";
const PAX_XATTR: &str = "SCHILY.xattr.";
const PAX_SPARSE: &str = "GNU.sparse.";
/// The largest symbolic link (`PATH_MAX` without its terminator).
const MAX_LINK_TARGET: usize = 4095;
/// What ext4 can hold, the store's most likely file system; later times are cut so that the result is everywhere the same.
const MAX_MTIME: i64 = 0x3_7fff_ffff;
/// Numbers that fit the kernel's device number (12 and 20 bits).
const MAX_MAJOR: u32 = (1 << 12) - 1;
const MAX_MINOR: u32 = (1 << 20) - 1;
const COPY_BYTES: usize = 128 << 10;
/// How much of a name goes into a message.
const PRINTED_BYTES: usize = 200;

/// A name of the tar, cut and fit for a message.
pub(super) fn printable(bytes: &[u8]) -> String {
    match bytes.get(..PRINTED_BYTES) {
        Some(start) if bytes.len() > PRINTED_BYTES => {
            format!("{}…", String::from_utf8_lossy(start))
        }
        _ => String::from_utf8_lossy(bytes).into_owned(),
    }
}

/// Unpacks the tar from `stream` into the empty folder `root`. Reads to the end of the tar, not of the stream.
///
/// Needs root, because owners and device nodes are kept. Nobody else may touch `root` meanwhile.
///
/// # Errors
/// See [`LayerError`]; what was unpacked until then stays in `root`.
pub fn unpack(stream: &mut dyn Read, root: &Path, limits: &Limits) -> Result<(), LayerError> {
    let meter = Meter::new(limits.bytes, limits.header_bytes);
    let mut archive = tar::Archive::new(Metered::padded(stream, &meter));
    let mut unpacking = Unpacking {
        tree: Tree::new(root)?,
        limits,
        entries: 0,
        devices: 0,
        content_left: limits.bytes,
        meter: Rc::clone(&meter),
    };
    let malformed = |entries| move |source| LayerError::Tar { entries, source };
    let mut entries = archive.entries().map_err(malformed(0))?;
    while let Some(entry) = meter.headers(|| entries.next()) {
        let mut entry = entry.map_err(|source| unpacking.read_error("", source))?;
        if unpacking.entries >= limits.entries {
            return Err(over(Limit::Entries(limits.entries), &entry.path_bytes()));
        }
        unpacking.entry(&mut entry)?;
        // Content that has no place, such as a folder's: passed over under the limit for contents.
        unpacking.copy(&mut entry, &mut io::sink(), "pass over")?;
        unpacking.entries += 1;
    }
    unpacking.tree.finish()
}

/// Decompresses a layer's blob, as its first bytes say, and unpacks it as [`unpack`] does.
///
/// # Errors
/// As [`unpack`].
pub fn unpack_blob(blob: impl Read, root: &Path, limits: &Limits) -> Result<(), LayerError> {
    let malformed = |source| LayerError::Tar { entries: 0, source };
    let mut stream = Decompressed::new(blob).map_err(malformed)?;
    unpack(&mut stream, root, limits)
}

fn over(limit: Limit, path: &[u8]) -> LayerError {
    LayerError::Limit {
        limit,
        path: printable(path),
    }
}

struct Unpacking<'a> {
    tree: Tree,
    limits: &'a Limits,
    entries: u64,
    devices: u64,
    content_left: u64,
    meter: Rc<Meter>,
}

/// What a name in the tar asks for.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    Root,
    Entry(PathBuf),
    Whiteout(PathBuf),
    Opaque(PathBuf),
    /// Nothing.
    Note,
}

impl Unpacking<'_> {
    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), LayerError> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let name = entry.path_bytes().into_owned();
        let path = match classify(&name, self.limits)? {
            Target::Note => return Ok(()),
            Target::Whiteout(path) => return self.tree.whiteout(&path),
            Target::Opaque(path) => return self.tree.opaque(&path),
            Target::Root => {
                let metadata = self.metadata(entry, &name)?;
                return if kind == EntryType::Directory {
                    self.tree.set_root(&metadata)
                } else {
                    Err(LayerError::BadName {
                        path: printable(&name),
                    })
                };
            }
            Target::Entry(path) => path,
        };
        // Before POSIX a folder was told by the slash at the end of its name.
        let old_folder = kind.is_file() && name.ends_with(b"/");
        match kind {
            EntryType::Directory => {
                let metadata = self.metadata(entry, &name)?;
                self.tree.folder(&path, &metadata)
            }
            _ if old_folder => {
                let metadata = self.metadata(entry, &name)?;
                self.tree.folder(&path, &metadata)
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let metadata = self.metadata(entry, &name)?;
                let mut file = self.tree.file(&path)?;
                self.copy(entry, &mut file.file, "write")?;
                file.finish(&metadata)
            }
            EntryType::Symlink => {
                let metadata = self.metadata(entry, &name)?;
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                if target.is_empty() || target.len() > MAX_LINK_TARGET || target.contains(&0) {
                    return Err(LayerError::LinkLength {
                        path: printable(&name),
                        len: target.len(),
                    });
                }
                self.tree
                    .symlink(&path, OsStr::from_bytes(&target), &metadata)
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                let target = confined(&target, self.limits)?;
                self.tree.hard_link(&path, &target)
            }
            EntryType::Fifo | EntryType::Char | EntryType::Block => {
                let metadata = self.metadata(entry, &name)?;
                let node = self.node(entry, &name)?;
                self.tree.node(&path, node, &metadata)
            }
            other => Err(LayerError::UnsupportedEntry {
                path: printable(&name),
                kind: char::from(other.as_byte()),
            }),
        }
    }

    fn node<R: Read>(&mut self, entry: &Entry<'_, R>, name: &[u8]) -> Result<Node, LayerError> {
        if entry.header().entry_type() == EntryType::Fifo {
            return Ok(Node::Fifo);
        }
        self.devices += 1;
        if self.devices > self.limits.devices {
            return Err(over(Limit::Devices(self.limits.devices), name));
        }
        let number = |what, value: io::Result<Option<u32>>, limit| match value {
            Ok(Some(value)) if value <= limit => Ok(value),
            Ok(value) => Err(LayerError::Number {
                path: printable(name),
                what,
                value: value.unwrap_or_default().into(),
            }),
            Err(source) => Err(self.read_error_plain(source)),
        };
        let major = number(
            "device major number",
            entry.header().device_major(),
            MAX_MAJOR,
        )?;
        let minor = number(
            "device minor number",
            entry.header().device_minor(),
            MAX_MINOR,
        )?;
        Ok(if entry.header().entry_type() == EntryType::Char {
            Node::Char(major, minor)
        } else {
            Node::Block(major, minor)
        })
    }

    fn metadata<R: Read>(
        &self,
        entry: &mut Entry<'_, R>,
        name: &[u8],
    ) -> Result<Metadata, LayerError> {
        let malformed = |source| self.read_error_plain(source);
        let header = entry.header();
        let id = |what, value: u64| match u32::try_from(value) {
            // The last is the kernel's "do not change".
            Ok(id) if id != u32::MAX => Ok(id),
            _ => Err(LayerError::Number {
                path: printable(name),
                what,
                value,
            }),
        };
        let uid = id("owner", header.uid().map_err(malformed)?)?;
        let gid = id("group", header.gid().map_err(malformed)?)?;
        let mode = header.mode().map_err(malformed)? & 0o7777;
        let seconds = header.mtime().map_err(malformed)?;
        // One before 1970 is a negative number, in GNU's binary form, and read as a large one.
        let mut mtime = (seconds.cast_signed(), 0);
        let mut xattrs: Vec<(OsString, Vec<u8>)> = Vec::new();
        let mut xattr_bytes = 0_usize;
        if let Some(records) = entry.pax_extensions().map_err(malformed)? {
            for record in records {
                let record = record.map_err(malformed)?;
                let Ok(key) = record.key() else { continue };
                if key.starts_with(PAX_SPARSE) {
                    return Err(LayerError::PaxSparse {
                        path: printable(name),
                    });
                } else if key == "mtime" {
                    mtime = record.value().ok().and_then(parse_time).unwrap_or(mtime);
                } else if let Some(attribute) =
                    key.strip_prefix(PAX_XATTR).filter(|name| is_kept(name))
                {
                    let value = record.value_bytes();
                    xattr_bytes = xattr_bytes
                        .saturating_add(attribute.len())
                        .saturating_add(value.len());
                    if xattr_bytes > self.limits.xattr_bytes {
                        return Err(over(Limit::XattrBytes(self.limits.xattr_bytes), name));
                    }
                    xattrs.push((attribute.into(), value.to_vec()));
                }
            }
        }
        // One order, whatever the tar's: the order in which attributes are set is that in which they are listed.
        xattrs.sort();
        mtime.0 = mtime.0.clamp(0, MAX_MTIME);
        Ok(Metadata {
            uid,
            gid,
            mode,
            mtime,
            xattrs,
        })
    }

    /// Copies an entry's contents under the limit for contents.
    fn copy<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        to: &mut dyn io::Write,
        action: &'static str,
    ) -> Result<(), LayerError> {
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            let n = match entry.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(self.read_error(&printable(&entry.path_bytes()), source)),
            };
            self.content_left = self
                .content_left
                .checked_sub(n as u64)
                .ok_or_else(|| over(Limit::Bytes(self.limits.bytes), &entry.path_bytes()))?;
            to.write_all(buffer.get(..n).unwrap_or_default())
                .map_err(|source| LayerError::Write {
                    action,
                    path: printable(&entry.path_bytes()),
                    source,
                })?;
        }
    }

    /// What a failed read means: a limit, or a broken tar.
    fn read_error(&self, path: &str, source: io::Error) -> LayerError {
        match self.meter.tripped() {
            Some(limit) => over(limit, path.as_bytes()),
            None => self.read_error_plain(source),
        }
    }

    fn read_error_plain(&self, source: io::Error) -> LayerError {
        LayerError::Tar {
            entries: self.entries,
            // The text may hold bytes of the tar, which are not for a terminal.
            source: io::Error::new(
                source.kind(),
                printable(source.to_string().escape_debug().to_string().as_bytes()),
            ),
        }
    }
}

/// Whether an extended attribute is part of an image, rather than of the machine it was made on.
fn is_kept(name: &str) -> bool {
    !name.contains('\0')
        && (name.starts_with("user.")
            || (name.starts_with("trusted.") && !name.starts_with("trusted.overlay."))
            || matches!(
                name,
                "security.capability" | "system.posix_acl_access" | "system.posix_acl_default"
            ))
}

/// A PAX time: decimal seconds, with any number of digits after the point.
fn parse_time(text: &str) -> Option<(i64, u32)> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().ok()?;
    if seconds < 0 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Some((0, 0));
    }
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    Some((seconds, digits.parse().ok()?))
}

/// What a name asks for; refuses names that no file can have.
fn classify(name: &[u8], limits: &Limits) -> Result<Target, LayerError> {
    let path = confined(name, limits)?;
    let Some(last) = path.file_name().map(OsStr::as_bytes) else {
        return Ok(Target::Root);
    };
    let parent = path.parent().unwrap_or(Path::new("")).to_owned();
    if last == WHITEOUT_OPAQUE {
        return Ok(Target::Opaque(parent));
    }
    if last.starts_with(WHITEOUT_META_PREFIX) {
        return Ok(Target::Note);
    }
    match last.strip_prefix(WHITEOUT_PREFIX) {
        None => Ok(Target::Entry(path)),
        Some(b"" | b"." | b"..") => Err(LayerError::BadName {
            path: printable(name),
        }),
        Some(hidden) => Ok(Target::Whiteout(parent.join(OsStr::from_bytes(hidden)))),
    }
}

/// A name as a path relative to the layer's root, without `.` and `..`.
fn confined(name: &[u8], limits: &Limits) -> Result<PathBuf, LayerError> {
    if name.len() > limits.path_bytes {
        return Err(over(Limit::PathBytes(limits.path_bytes), name));
    }
    if name.is_empty() || name.contains(&0) {
        return Err(LayerError::BadName {
            path: printable(name),
        });
    }
    let given = PathBuf::from(OsString::from_vec(name.to_vec()));
    let mut path = PathBuf::new();
    for component in given.components() {
        match component {
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            Component::ParentDir => {
                return Err(LayerError::Upwards {
                    path: printable(name),
                });
            }
            Component::Normal(part) if part.len() > limits.name_bytes => {
                return Err(over(Limit::NameBytes(limits.name_bytes), name));
            }
            Component::Normal(part) => path.push(part),
        }
    }
    Ok(path)
}

#[cfg(test)]
mod tests;
