//! `-v`, `--mount` and `--tmpfs`.

use std::fmt;
use std::path::PathBuf;

/// Why a mount was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MountError {
    /// Not in docker's form.
    #[error(
        "{value:?} is not a mount; write HOST-PATH:CONTAINER-PATH[:ro] or VOLUME:CONTAINER-PATH[:ro]"
    )]
    Volume { value: String },
    /// Neither a path nor a name.
    #[error(
        "{name:?} is neither a path of this host (which begins with / or .) nor the name of a volume (letters, digits, _, . and -, and first a letter or digit)"
    )]
    VolumeName { name: String },
    /// A volume without a name gets a random one.
    #[error("cannot make up a name for the volume at {path:?}: /dev/urandom cannot be read")]
    NoRandomName { path: String },
    /// An option of a volume that is not known.
    #[error("{option:?} is not an option of a mount; there are ro, rw, private and rprivate")]
    Option { option: String },
    /// Mounts that appear later do not pass the boundary.
    #[error(
        "{option:?}: mounts made later on one side are not seen on the other, because a virtual machine lies between; leave the option out"
    )]
    Propagation { option: String },
    /// A target that cannot be mounted on.
    #[error("{path:?} cannot be mounted on; write an absolute path in the container other than /")]
    Target { path: String },
    /// A source that names nothing.
    #[error("{path:?} is not an absolute path of this host")]
    Source { path: String },
    /// A type of `--mount` that is not known.
    #[error("{kind:?} is not a type of mount; there are bind, block, tmpfs and volume")]
    Type { kind: String },
    /// A field of `--mount` that is not known.
    #[error("{field:?} is not a field of a {kind} mount; there are {known}")]
    Field {
        field: String,
        kind: &'static str,
        known: &'static str,
    },
    /// A field with a value that is not one of it.
    #[error("{value:?} is not a value of {field}")]
    Value { field: String, value: String },
    /// A field that must be there.
    #[error("a {kind} mount needs {field}")]
    Missing {
        kind: &'static str,
        field: &'static str,
    },
    /// A quote without its partner.
    #[error("{value:?} has an unclosed quote")]
    Quote { value: String },
    /// Two at one place.
    #[error("{path:?} is mounted on twice")]
    Twice { path: String },
}

/// The longest name of a volume: that of a folder (`NAME_MAX`), less what it is called while it is made.
const MAX_NAME_BYTES: usize = 240;

/// The name of a volume: letters, digits, `_`, `.` and `-`, and first a letter or digit (docker `names.RestrictedNamePattern`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct VolumeName(String);

impl VolumeName {
    /// # Errors
    /// [`MountError::VolumeName`] for what is none.
    pub(crate) fn new(name: &str) -> Result<Self, MountError> {
        let good = name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.len() <= MAX_NAME_BYTES
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        match good {
            true => Ok(Self(name.to_owned())),
            false => Err(MountError::VolumeName {
                name: name.to_owned(),
            }),
        }
    }

    /// As it was written.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(&self.0)
    }
}

impl std::str::FromStr for VolumeName {
    type Err = MountError;

    fn from_str(name: &str) -> Result<Self, MountError> {
        Self::new(name)
    }
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A file or folder of this host.
    Host(PathBuf),
    /// A volume, which is made if it is not there.
    Volume(VolumeName),
    /// A volume that nobody named: it has a random name, and goes with the container where that is removed with its volumes.
    Anonymous(VolumeName),
}

/// What is done with the mounts below a bind's source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Submounts {
    /// They are there as well.
    Shown,
    /// They are left out.
    Hidden,
}

/// A file or folder of the host's, or a volume, in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bind {
    pub(crate) source: Source,
    pub(crate) target: String,
    pub(crate) read_only: bool,
    pub(crate) submounts: Submounts,
    /// Whether a missing source is made, as a folder: `-v` does so, `--mount` does not (docker).
    pub(crate) make_source: bool,
    /// Whether a volume in which nothing is gets what the image has at that place.
    pub(crate) fills: bool,
}

impl Bind {
    /// A new volume for the place `path` in the container, without a name of its own.
    pub(crate) fn anonymous(path: &str) -> Result<Self, MountError> {
        let wrong = || MountError::NoRandomName {
            path: path.to_owned(),
        };
        let id = crate::names::random_id().map_err(|_| wrong())?;
        Ok(Self {
            source: Source::Anonymous(VolumeName::new(&id)?),
            target: target(path)?,
            read_only: false,
            submounts: Submounts::Shown,
            make_source: false,
            fills: true,
        })
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Host(path) => write!(to, "{}:{}", path.display(), self.target)?,
            Source::Volume(name) | Source::Anonymous(name) => {
                write!(to, "{name}:{}", self.target)?;
            }
        }
        to.write_str(if self.read_only { ":ro" } else { "" })
    }
}

/// A file system in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tmpfs {
    pub(crate) target: String,
    pub(crate) options: Vec<String>,
}

/// The file system of a disk: an image file or a block device of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) source: PathBuf,
    pub(crate) target: String,
    pub(crate) read_only: bool,
    /// The file system's type; without one it is looked for.
    pub(crate) fstype: Option<DiskFileSystem>,
}

/// What the guest's kernel can mount from a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DiskFileSystem {
    Ext4,
    Erofs,
}

impl DiskFileSystem {
    const ALL: [Self; 2] = [Self::Ext4, Self::Erofs];

    /// As mount(8) calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Erofs => "erofs",
        }
    }

    /// Where on the disk, in bytes, it can be told by which bytes (`EXT4_SUPER_MAGIC` in the superblock at 1024, kernel
    /// `Documentation/filesystems/ext4/super.rst`; `EROFS_SUPER_MAGIC_V1`, kernel `fs/erofs/erofs_fs.h`).
    pub(crate) fn magic(self) -> (u64, &'static [u8]) {
        match self {
            Self::Ext4 => (1024 + 0x38, &[0x53, 0xef]),
            Self::Erofs => (1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
        }
    }

    /// All of them.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter()
    }
}

/// What `--mount` may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mount {
    Bind(Bind),
    Block(Block),
    Tmpfs(Tmpfs),
}

/// `HOST-PATH:CONTAINER-PATH[:OPTION,…]`, or the name of a volume in the place of the host's path, or the container's path alone.
pub(crate) fn volume(value: &str) -> Result<Bind, MountError> {
    let wrong = || MountError::Volume {
        value: value.to_owned(),
    };
    let parts: Vec<&str> = value.split(':').collect();
    let (source, to, options) = match parts.as_slice() {
        [path] if path.starts_with('/') => return Bind::anonymous(path),
        [source, to] => (*source, *to, ""),
        [source, to, options] => (*source, *to, *options),
        _ => return Err(wrong()),
    };
    if source.is_empty() {
        return Err(wrong());
    }
    let (source, make_source) = match source.starts_with(['/', '.']) {
        true => (Source::Host(host_path(source)?), true),
        false => (Source::Volume(VolumeName::new(source)?), false),
    };
    let (mut read_only, mut fills) = (false, true);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => read_only = true,
            "rw" => read_only = false,
            // Labels of SELinux are the host's affair, and the guest sees files through a process of the host's;
            // the others change nothing on Linux.
            "z" | "Z" | "private" | "rprivate" | "consistent" | "cached" | "delegated" => {}
            "nocopy" => fills = false,
            "shared" | "rshared" | "slave" | "rslave" => {
                return Err(MountError::Propagation {
                    option: option.to_owned(),
                });
            }
            other => {
                return Err(MountError::Option {
                    option: other.to_owned(),
                });
            }
        }
    }
    Ok(Bind {
        source,
        target: target(to)?,
        read_only,
        submounts: Submounts::Shown,
        make_source,
        fills,
    })
}

/// A path of the host's; a relative one is below the working directory.
fn host_path(path: &str) -> Result<PathBuf, MountError> {
    let wrong = || MountError::Source {
        path: path.to_owned(),
    };
    if path.contains('\0') {
        return Err(wrong());
    }
    std::path::absolute(path).map_err(|_| wrong())
}

/// A place in the container, without the parts of its path that say nothing.
pub(crate) fn target(path: &str) -> Result<String, MountError> {
    let wrong = || MountError::Target {
        path: path.to_owned(),
    };
    if !path.starts_with('/') || path.contains('\0') {
        return Err(wrong());
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    if parts.is_empty() {
        return Err(wrong());
    }
    Ok(format!("/{}", parts.join("/")))
}

/// `PATH[:OPTION,…]`. docker's own options come first, so that a later `exec` overrides its `noexec`.
pub(crate) fn tmpfs(value: &str) -> Result<Tmpfs, MountError> {
    let (path, options) = value.split_once(':').unwrap_or((value, ""));
    Ok(Tmpfs {
        target: target(path)?,
        options: tmpfs_options(options.split(',').filter(|option| !option.is_empty())),
    })
}

fn tmpfs_options<'a>(given: impl Iterator<Item = &'a str>) -> Vec<String> {
    fn subject(option: &str) -> &str {
        match option {
            "ro" | "rw" => "rw",
            other => {
                let key = other.split_once('=').map_or(other, |(key, _)| key);
                key.strip_prefix("no").unwrap_or(key)
            }
        }
    }
    let mut merged: Vec<String> = Vec::new();
    for option in ["noexec", "nosuid", "nodev"].into_iter().chain(given) {
        merged.retain(|kept| subject(kept) != subject(option));
        merged.push(option.to_owned());
    }
    merged
}

const BIND_FIELDS: &str =
    "source, target, readonly, bind-propagation, bind-recursive and bind-nonrecursive";
const BLOCK_FIELDS: &str = "source, target, readonly and fstype (ext4 or erofs)";
const VOLUME_FIELDS: &str = "source, target, readonly, volume-driver and volume-nocopy";
const TMPFS_FIELDS: &str = "target, readonly, tmpfs-size and tmpfs-mode";

/// `type=bind|block|tmpfs|volume,FIELD[=VALUE],…`, as a line of CSV (docker `opts.MountOpt`).
pub(crate) fn mount(value: &str) -> Result<Mount, MountError> {
    let fields = csv(value)?;
    let fields: Vec<(String, Option<&str>)> = fields
        .iter()
        .map(|field| match field.split_once('=') {
            Some((key, value)) => (key.trim().to_ascii_lowercase(), Some(value)),
            None => (field.trim().to_ascii_lowercase(), None),
        })
        .collect();
    let kind = fields
        .iter()
        .rev()
        .find(|(key, _)| key == "type")
        .and_then(|(_, kind)| *kind)
        .unwrap_or("volume");
    match kind {
        "bind" => bind_mount(&fields).map(Mount::Bind),
        "block" => block_mount(&fields).map(Mount::Block),
        "tmpfs" => tmpfs_mount(&fields).map(Mount::Tmpfs),
        "volume" => volume_mount(&fields).map(Mount::Bind),
        other => Err(MountError::Type {
            kind: other.to_owned(),
        }),
    }
}

type Field<'a> = (String, Option<&'a str>);

fn bad_value(field: &str, value: Option<&str>) -> MountError {
    MountError::Value {
        field: field.to_owned(),
        value: value.unwrap_or_default().to_owned(),
    }
}

/// A field that may stand for itself (Go's `strconv.ParseBool` otherwise).
fn flag((key, value): &Field<'_>) -> Result<bool, MountError> {
    match value {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        other => Err(bad_value(key, *other)),
    }
}

/// What all mounts have in common.
#[derive(Default)]
struct Common {
    target: Option<String>,
    read_only: bool,
}

impl Common {
    /// Takes a field that all of them have; whether it is one.
    fn take(&mut self, field: &Field<'_>) -> Result<bool, MountError> {
        let (key, value) = field;
        match (key.as_str(), *value) {
            ("type" | "consistency", _) => {}
            ("target" | "dst" | "destination", Some(path)) => self.target = Some(target(path)?),
            ("readonly" | "ro", _) => self.read_only = flag(field)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The target, which a mount of that `kind` must have.
    fn target(self, kind: &'static str) -> Result<String, MountError> {
        self.target.ok_or(MountError::Missing {
            kind,
            field: "target",
        })
    }
}

/// What mounts of a path of this host have in common.
#[derive(Default)]
struct FromHost {
    source: Option<PathBuf>,
    common: Common,
}

impl FromHost {
    /// Takes a field that all of them have; whether it is one.
    fn take(&mut self, field: &Field<'_>) -> Result<bool, MountError> {
        let (key, value) = field;
        match (key.as_str(), *value) {
            ("source" | "src", Some(path)) if !path.is_empty() => {
                self.source = Some(host_path(path)?);
            }
            ("source" | "src", value) => return Err(bad_value(key, value)),
            _ => return self.common.take(field),
        }
        Ok(true)
    }

    /// The source and the target, both of which a mount of that `kind` must have.
    fn ends(self, kind: &'static str) -> Result<(PathBuf, String), MountError> {
        let source = self.source.ok_or(MountError::Missing {
            kind,
            field: "source",
        })?;
        Ok((source, self.common.target(kind)?))
    }
}

fn bind_mount(fields: &[Field<'_>]) -> Result<Bind, MountError> {
    let mut host = FromHost::default();
    let mut submounts = Submounts::Shown;
    for field in fields {
        if host.take(field)? {
            continue;
        }
        let (key, value) = field;
        match (key.as_str(), *value) {
            ("bind-propagation", Some("private" | "rprivate")) => {}
            ("bind-propagation", Some(option)) => {
                return Err(MountError::Propagation {
                    option: option.to_owned(),
                });
            }
            ("bind-nonrecursive", _) => {
                if flag(field)? {
                    submounts = Submounts::Hidden;
                }
            }
            ("bind-recursive", Some("enabled" | "readonly" | "true" | "1")) => {
                submounts = Submounts::Shown;
            }
            ("bind-recursive", Some("disabled" | "false" | "0")) => {
                submounts = Submounts::Hidden;
            }
            // What is read-only is so as a whole: the host enforces it.
            ("bind-recursive", value) => return Err(bad_value(key, value)),
            _ => {
                return Err(MountError::Field {
                    field: key.clone(),
                    kind: "bind",
                    known: BIND_FIELDS,
                });
            }
        }
    }
    let read_only = host.common.read_only;
    let (source, target) = host.ends("bind")?;
    Ok(Bind {
        source: Source::Host(source),
        target,
        read_only,
        submounts,
        make_source: false,
        fills: false,
    })
}

fn block_mount(fields: &[Field<'_>]) -> Result<Block, MountError> {
    let mut host = FromHost::default();
    let mut fstype = None;
    for field in fields {
        if host.take(field)? {
            continue;
        }
        let (key, value) = field;
        match (key.as_str(), *value) {
            ("fstype", value) => {
                let known = DiskFileSystem::all().find(|known| value == Some(known.name()));
                fstype = Some(known.ok_or_else(|| bad_value(key, value))?);
            }
            _ => {
                return Err(MountError::Field {
                    field: key.clone(),
                    kind: "block",
                    known: BLOCK_FIELDS,
                });
            }
        }
    }
    let read_only = host.common.read_only;
    let (source, target) = host.ends("block")?;
    Ok(Block {
        source,
        target,
        read_only,
        fstype,
    })
}

fn volume_mount(fields: &[Field<'_>]) -> Result<Bind, MountError> {
    let mut common = Common::default();
    let (mut name, mut fills) = (None, true);
    for field in fields {
        if common.take(field)? {
            continue;
        }
        let (key, value) = field;
        match (key.as_str(), *value) {
            ("volume-driver", Some("local")) => {}
            ("volume-nocopy", _) => fills = !flag(field)?,
            ("source" | "src", Some(source)) => name = Some(VolumeName::new(source)?),
            ("source" | "src" | "volume-driver", value) => return Err(bad_value(key, value)),
            _ => {
                return Err(MountError::Field {
                    field: key.clone(),
                    kind: "volume",
                    known: VOLUME_FIELDS,
                });
            }
        }
    }
    let read_only = common.read_only;
    let target = common.target("volume")?;
    let source = match name {
        Some(name) => Source::Volume(name),
        None => Bind::anonymous(&target)?.source,
    };
    Ok(Bind {
        source,
        target,
        read_only,
        submounts: Submounts::Shown,
        make_source: false,
        fills,
    })
}

fn tmpfs_mount(fields: &[Field<'_>]) -> Result<Tmpfs, MountError> {
    let mut common = Common::default();
    let mut options = Vec::new();
    for field in fields {
        if common.take(field)? {
            continue;
        }
        let (key, value) = field;
        match (key.as_str(), *value) {
            ("tmpfs-size", Some(size)) => {
                let bytes = super::size(size).map_err(|_| bad_value(key, Some(size)))?;
                options.push(format!("size={bytes}"));
            }
            ("tmpfs-mode", Some(mode)) => {
                let bits = u32::from_str_radix(mode, 8)
                    .ok()
                    .filter(|bits| *bits <= 0o7777)
                    .ok_or_else(|| bad_value(key, Some(mode)))?;
                options.push(format!("mode={bits:o}"));
            }
            ("tmpfs-size" | "tmpfs-mode", None) => return Err(bad_value(key, None)),
            _ => {
                return Err(MountError::Field {
                    field: key.clone(),
                    kind: "tmpfs",
                    known: TMPFS_FIELDS,
                });
            }
        }
    }
    if common.read_only {
        options.push("ro".to_owned());
    }
    Ok(Tmpfs {
        target: common.target("tmpfs")?,
        options: tmpfs_options(options.iter().map(String::as_str)),
    })
}

/// The fields of one line of CSV (RFC 4180).
fn csv(line: &str) -> Result<Vec<String>, MountError> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut characters = line.chars().peekable();
    while let Some(c) = characters.next() {
        let Some(field) = fields.last_mut() else {
            break;
        };
        match c {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                field.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => field.push(c),
        }
    }
    if quoted {
        return Err(MountError::Quote {
            value: line.to_owned(),
        });
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn volume_is_a_host_path_and_a_target() {
        let bind = volume("/srv/data:/data//x/../y/:ro").unwrap();
        assert_eq!(bind.source, Source::Host("/srv/data".into()));
        assert_eq!(bind.target, "/data/y");
        assert!(bind.read_only && bind.make_source);
        let here = std::env::current_dir().unwrap();
        assert_eq!(
            volume("./a:/a").unwrap().source,
            Source::Host(here.join("a"))
        );
        assert!(!volume("/a:/a:rw,Z").unwrap().read_only);
    }

    #[test]
    fn volume_that_cannot_be_given_is_refused_with_a_reason() {
        for (text, part) in [
            ("da ta:/data", "nor the name of a volume"),
            ("_data:/data", "nor the name of a volume"),
            ("/a:/a:rshared", "virtual machine lies between"),
            ("/a:/a:fast", "is not an option"),
            ("/a:b", "cannot be mounted on"),
            ("/a:/", "cannot be mounted on"),
            ("/a:/..", "cannot be mounted on"),
            ("/a:/b:ro:x", "HOST-PATH"),
            (":/b", "HOST-PATH"),
            ("", "HOST-PATH"),
        ] {
            let error = volume(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn mount_is_the_file_system_of_a_disk() {
        let Mount::Block(block) =
            mount("type=block,src=/srv/d.img,dst=/d,ro,fstype=erofs").unwrap()
        else {
            panic!("no disk");
        };
        assert_eq!(block.source, Path::new("/srv/d.img"));
        assert_eq!((block.target.as_str(), block.read_only), ("/d", true));
        assert_eq!(block.fstype, Some(DiskFileSystem::Erofs));
    }

    #[test]
    fn mount_is_a_bind_or_a_tmpfs() {
        let Mount::Bind(bind) =
            mount("type=bind,source=/srv/a,target=/a,readonly,bind-recursive=disabled").unwrap()
        else {
            panic!("no bind");
        };
        assert!(bind.read_only && !bind.make_source);
        assert_eq!(bind.submounts, Submounts::Hidden);
        let Mount::Bind(bind) = mount("type=bind,\"src=/a,b\",dst=/a,ro=false").unwrap() else {
            panic!("no bind");
        };
        assert_eq!(bind.source, Source::Host("/a,b".into()));
        assert!(!bind.read_only);
        let Mount::Tmpfs(tmpfs) =
            mount("type=tmpfs,destination=/t,tmpfs-size=1m,tmpfs-mode=1770").unwrap()
        else {
            panic!("no tmpfs");
        };
        assert_eq!(
            tmpfs.options,
            ["noexec", "nosuid", "nodev", "size=1048576", "mode=1770"]
        );
    }

    #[test]
    fn volume_may_be_named_in_both_ways() {
        let short = volume("data:/data:ro").unwrap();
        assert_eq!(
            short.source,
            Source::Volume(VolumeName::new("data").unwrap())
        );
        assert!(short.read_only && !short.make_source);
        // Without a type, too (docker).
        assert_eq!(
            mount("src=data,dst=/data,ro").unwrap(),
            Mount::Bind(short.clone())
        );
        assert_eq!(short.to_string(), "data:/data:ro");
    }

    #[test]
    fn volume_may_have_no_name() {
        let anonymous = |bind: &Bind| match &bind.source {
            Source::Anonymous(name) => name.as_str().to_owned(),
            other => panic!("{other:?}"),
        };
        let short = volume("/data/").unwrap();
        assert_eq!((short.target.as_str(), short.fills), ("/data", true));
        assert_eq!(anonymous(&short).len(), 64);
        assert_ne!(anonymous(&short), anonymous(&volume("/data").unwrap()));
        let Mount::Bind(long) = mount("type=volume,target=/a,volume-nocopy,readonly").unwrap()
        else {
            panic!("no bind");
        };
        anonymous(&long);
        assert!(!long.fills && long.read_only);
        assert!(!volume("data:/data:nocopy").unwrap().fills);
        assert!(volume("/").is_err());
    }

    #[test]
    fn mount_that_is_wrong_is_refused_with_a_reason() {
        for (text, part) in [
            ("source=../a,target=/a", "nor the name of a volume"),
            ("type=volume,source=a", "needs target"),
            (
                "type=volume,source=a,target=/a,volume-driver=x",
                "not a value",
            ),
            ("type=volume,source=a,target=/a,volume-opt=x", "not a field"),
            (
                "type=npipe,target=/a",
                "there are bind, block, tmpfs and volume",
            ),
            ("type=block,target=/a", "needs source"),
            (
                "type=block,source=/a,target=/a,fstype=xfs",
                "\"xfs\" is not a value of fstype",
            ),
            (
                "type=block,source=/a,target=/a,size=1",
                "fstype (ext4 or erofs)",
            ),
            ("type=bind,target=/a", "needs source"),
            ("type=bind,source=/a", "needs target"),
            ("type=bind,source=/a,target=/a,fast", "not a field"),
            ("type=bind,source=/a,target=/a,ro=maybe", "not a value"),
            (
                "type=bind,source=/a,target=/a,bind-propagation=rslave",
                "lies between",
            ),
            ("type=tmpfs,target=/a,source=/b", "not a field"),
            ("type=tmpfs,tmpfs-size=1m", "a tmpfs mount needs target"),
            ("type=tmpfs,target=/a,tmpfs-mode=9", "not a value"),
            ("type=tmpfs,\"target=/a", "unclosed quote"),
        ] {
            let error = mount(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn tmpfs_has_dockers_options_below_its_own() {
        assert_eq!(
            tmpfs("/tmp:rw,exec,size=5m,size=6m").unwrap().options,
            ["nosuid", "nodev", "rw", "exec", "size=6m"]
        );
        assert_eq!(
            tmpfs("/tmp").unwrap().options,
            ["noexec", "nosuid", "nodev"]
        );
        assert_eq!(
            tmpfs("/tmp:ro,rw").unwrap().options,
            ["noexec", "nosuid", "nodev", "rw"]
        );
        assert!(tmpfs("tmp").is_err());
        assert_eq!(
            mount("type=tmpfs,ro,target=/tmp").unwrap(),
            Mount::Tmpfs(tmpfs("/tmp:ro").unwrap())
        );
    }

    proptest::proptest! {
        #[test]
        fn target_stays_below_the_root(path in "/[a-z./]{0,24}") {
            if let Ok(clean) = target(&path) {
                proptest::prop_assert!(clean.starts_with('/') && clean.len() > 1);
                proptest::prop_assert!(!clean.split('/').any(|part| part == ".." || part == "."));
            }
        }

        #[test]
        fn mount_never_panics(text in "\\PC{0,60}") {
            let _ = mount(&text);
            let _ = volume(&text);
            let _ = tmpfs(&text);
        }
    }
}
