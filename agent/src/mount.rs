//! Building a container's file system: the host's [`Mount`] steps, carried out with the kernel's new mount API
//! (fsopen(2) and friends), whose option list has no length limit as a whole.

mod loop_device;
mod options;
mod part;
pub(crate) mod pmem;
mod verity;

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    UnmountFlags,
};
use sandbox_protocol::agent::{Directory, Mount, mount::Source};

use self::loop_device::{Access, LoopError};
use self::options::{MountOptions, lower_directories};
pub(crate) use self::part::PartError;
use self::pmem::{Partition, PmemError};
pub(crate) use self::verity::VerityError;
use crate::guest_path::{GuestPath, GuestPathError};

/// The most bytes read of one of the kernel's messages about a mount.
const MAX_MOUNT_LOG_BYTES: usize = 1024;

/// Why a step could not be carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MountError {
    /// The host named a path outside the agent's folder.
    #[error(transparent)]
    Path(#[from] GuestPathError),
    /// The step names no source.
    #[error("the mount on {target} has no source")]
    NoSource {
        /// Where it was to go.
        target: String,
    },
    /// No block device has this serial number.
    #[error("no block device has the serial {serial:?}; there are {present:?}")]
    NoDevice {
        /// The serial asked for.
        serial: String,
        /// Those that were found.
        present: Vec<String>,
    },
    /// The part of the persistent memory device cannot be had.
    #[error(transparent)]
    Pmem(#[from] PmemError),
    /// A directory could not be made.
    #[error("cannot make directory {path}")]
    Directory {
        /// Which.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The kernel refused one step of the mount.
    #[error(transparent)]
    Kernel(Box<KernelRefusal>),
    /// What is read cannot be held to its hash tree.
    #[error(transparent)]
    Verity(#[from] VerityError),
    /// There is no such part of what is to be bound.
    #[error(transparent)]
    Part(#[from] PartError),
    /// A file with a file system cannot be a block device.
    #[error(transparent)]
    Loop(#[from] LoopError),
    /// The file that is to be one cannot be opened.
    #[error("cannot open the image {path}")]
    Image {
        /// Where.
        path: String,
        #[source]
        source: io::Error,
    },
    /// `/sys/block` could not be read.
    #[error("cannot list the block devices")]
    Devices(#[source] io::Error),
}

/// The kernel refused one step of a mount.
#[derive(Debug, thiserror::Error)]
#[error("cannot mount {from} ({fstype}) on {target}: {step}{log}")]
pub(crate) struct KernelRefusal {
    /// What was to be mounted.
    from: String,
    /// Its type; `bind` for a bind.
    fstype: String,
    /// Where.
    target: PathBuf,
    /// Which call.
    step: String,
    /// What the kernel said about it, if anything.
    log: String,
    #[source]
    source: io::Error,
}

/// What has been mounted, to be unmounted in reverse order.
#[derive(Debug, Default)]
pub(crate) struct Mounted {
    /// With the partitions that were made for them.
    targets: Vec<(PathBuf, Option<Partition>)>,
    has_share: bool,
}

impl Mounted {
    /// Carries out one step.
    pub(crate) fn add(&mut self, step: &Mount) -> Result<(), MountError> {
        for directory in &step.mkdir {
            make_directory(directory)?;
        }
        let target = GuestPath::new(&step.target)?;
        let mut partition = None;
        let source = match &step.source {
            Some(Source::Pmem(range)) => partition.insert(Partition::make(range)?).node(),
            Some(Source::BlockSerial(serial)) => block_device(Path::new("/sys/block"), serial)?,
            Some(Source::ShareTag(text) | Source::Literal(text)) => text.clone(),
            _ => {
                return Err(MountError::NoSource {
                    target: step.target.clone(),
                });
            }
        };
        // Only until it is mounted: the mount keeps the device.
        let verified = match step.verity.as_ref() {
            Some(verity) => Some(verity::open(&source, verity)?),
            None => None,
        };
        let source = verified
            .as_ref()
            .map_or(source, |device| device.path.clone());
        let options = MountOptions::parse(&step.options);
        // A file, unlike EROFS, ext4 does not take for a device. Only until it is mounted, again.
        let looped = match &step.source {
            Some(Source::Literal(path)) if step.fstype == "ext4" => {
                Some(block_device_of_file(path, options.read_only)?)
            }
            _ => None,
        };
        let source = looped.as_ref().map_or(source, |(path, _)| path.clone());
        // Only until it is bound, too.
        let part = match step.part.as_ref() {
            Some(part) => Some(part::open(&source, part)?),
            None => None,
        };
        let source = part.as_ref().map_or(source, part::Found::path);
        let target = target.as_path();
        let is_folder = part.as_ref().is_none_or(|part| part.is_folder);
        make_target(target, is_folder).map_err(|source| MountError::Directory {
            path: target.to_owned(),
            source,
        })?;
        let attempt = Attempt {
            from: &source,
            fstype: if options.bind { "bind" } else { &step.fstype },
            target,
        };
        if options.bind {
            attempt.bind(&options)?;
        } else {
            attempt.mount(&options)?;
        }
        self.targets.push((target.to_owned(), partition));
        self.has_share |= matches!(step.source, Some(Source::ShareTag(_)));
        if !options.propagation.is_empty() {
            rustix::mount::mount_change(target, options.propagation)
                .map_err(|errno| attempt.refused("mount_change", errno, None))?;
        }
        Ok(())
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.targets.len()
    }

    /// Whether one of them is at `target`.
    pub(crate) fn has(&self, target: &str) -> bool {
        let mut targets = self.targets.iter();
        targets.any(|(path, _)| path == Path::new(target))
    }

    /// Takes the mounts of another.
    pub(crate) fn append(&mut self, mut other: Self) {
        self.targets.append(&mut other.targets);
        self.has_share |= other.has_share;
    }

    /// Whether something of the host's file system was mounted.
    pub(crate) fn has_share(&self) -> bool {
        self.has_share
    }

    /// Unmounts everything, last first. What is still busy is detached.
    pub(crate) fn unmount(&mut self) {
        while let Some((target, partition)) = self.targets.pop() {
            if rustix::mount::unmount(&target, UnmountFlags::NOFOLLOW).is_err()
                && let Err(error) =
                    rustix::mount::unmount(&target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
            {
                crate::log!("cannot unmount {}: {error}", target.display());
            }
            // Of what is still busy it stays, and its number and place are taken.
            drop(partition);
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.unmount();
    }
}

/// One mount under way, for the text of its errors.
struct Attempt<'a> {
    from: &'a str,
    fstype: &'a str,
    target: &'a Path,
}

impl Attempt<'_> {
    fn refused(&self, step: &str, errno: Errno, context: Option<BorrowedFd<'_>>) -> MountError {
        MountError::Kernel(Box::new(KernelRefusal {
            from: self.from.to_owned(),
            fstype: self.fstype.to_owned(),
            target: self.target.to_owned(),
            step: step.to_owned(),
            log: context.map(kernel_log).unwrap_or_default(),
            source: errno.into(),
        }))
    }

    fn mount(&self, options: &MountOptions) -> Result<(), MountError> {
        let context = rustix::mount::fsopen(self.fstype, FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(|errno| self.refused("fsopen", errno, None))?;
        let context = context.as_fd();
        let refused = |step: String| move |errno: Errno| self.refused(&step, errno, Some(context));
        rustix::mount::fsconfig_set_string(context, "source", self.from)
            .map_err(refused("source".to_owned()))?;
        if options.read_only {
            rustix::mount::fsconfig_set_flag(context, "ro").map_err(refused("ro".to_owned()))?;
        }
        for (key, value) in &options.data {
            let step = || refused(format!("option {key}"));
            match value {
                // One string has at most 255 bytes, so the layers go one by one.
                Some(value) if self.fstype == "overlay" && key == "lowerdir" => {
                    for layer in lower_directories(value) {
                        rustix::mount::fsconfig_set_string(context, "lowerdir+", layer)
                            .map_err(step())?;
                    }
                }
                Some(value) => {
                    rustix::mount::fsconfig_set_string(context, key, value).map_err(step())?
                }
                None => rustix::mount::fsconfig_set_flag(context, key).map_err(step())?,
            }
        }
        rustix::mount::fsconfig_create(context).map_err(refused("create".to_owned()))?;
        let mount =
            rustix::mount::fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, options.attributes)
                .map_err(refused("fsmount".to_owned()))?;
        rustix::mount::move_mount(
            mount.as_fd(),
            "",
            CWD,
            self.target,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .map_err(refused("move_mount".to_owned()))
    }

    fn bind(&self, options: &MountOptions) -> Result<(), MountError> {
        let bind = if options.recursive {
            rustix::mount::mount_bind_recursive(self.from, self.target)
        } else {
            rustix::mount::mount_bind(self.from, self.target)
        };
        bind.map_err(|errno| self.refused("bind", errno, None))?;
        if options.attributes.is_empty() {
            return Ok(());
        }
        let flags = mount_flags(options.attributes) | MountFlags::BIND;
        rustix::mount::mount_remount(self.target, flags, "").map_err(|errno| {
            // Half a bind (writable where it should not be) is worse than none.
            let refused = self.refused("remount", errno, None);
            if let Err(error) = rustix::mount::unmount(self.target, UnmountFlags::DETACH) {
                crate::log!("cannot unmount {}: {error}", self.target.display());
            }
            refused
        })
    }
}

fn mount_flags(attributes: MountAttrFlags) -> MountFlags {
    [
        (MountAttrFlags::MOUNT_ATTR_RDONLY, MountFlags::RDONLY),
        (MountAttrFlags::MOUNT_ATTR_NOSUID, MountFlags::NOSUID),
        (MountAttrFlags::MOUNT_ATTR_NODEV, MountFlags::NODEV),
        (MountAttrFlags::MOUNT_ATTR_NOEXEC, MountFlags::NOEXEC),
        (MountAttrFlags::MOUNT_ATTR_NOATIME, MountFlags::NOATIME),
        (
            MountAttrFlags::MOUNT_ATTR_NODIRATIME,
            MountFlags::NODIRATIME,
        ),
    ]
    .into_iter()
    .filter(|(attribute, _)| attributes.contains(*attribute))
    .fold(MountFlags::empty(), |flags, (_, flag)| flags | flag)
}

/// The messages that the kernel left in the mount context (fsopen(2), "Message retrieval").
fn kernel_log(context: BorrowedFd<'_>) -> String {
    let mut text = String::new();
    let mut buffer = [0u8; 256];
    while text.len() < MAX_MOUNT_LOG_BYTES {
        match rustix::io::read(context, &mut buffer) {
            Ok(length) if length > 0 => {
                let message = buffer.get(..length).unwrap_or_default();
                text.push_str("; ");
                text.push_str(String::from_utf8_lossy(message).trim());
            }
            _ => break,
        }
    }
    text
}

/// Makes what is mounted on, if it is not there.
fn make_target(target: &Path, is_folder: bool) -> io::Result<()> {
    if is_folder {
        return fs::create_dir_all(target);
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    let file = fs::File::options().append(true).create(true).open(target);
    file.map(drop)
}

fn make_directory(directory: &Directory) -> Result<(), MountError> {
    let path = GuestPath::new(&directory.path)?;
    let path = path.as_path();
    let failed = |source| MountError::Directory {
        path: path.to_owned(),
        source,
    };
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    let mode = directory.mode & 0o7777;
    DirBuilder::new().mode(mode).create(path).map_err(failed)?;
    // The mode given to mkdir goes through the umask.
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)?;
    chown(path, Some(directory.uid), Some(directory.gid)).map_err(failed)
}

/// A block device of an image file, and what keeps it.
fn block_device_of_file(path: &str, read_only: bool) -> Result<(String, fs::File), MountError> {
    let access = if read_only {
        Access::ReadOnly
    } else {
        Access::Writable
    };
    let image = fs::File::options()
        .read(true)
        .write(!read_only)
        .open(path)
        .map_err(|source| MountError::Image {
            path: path.to_owned(),
            source,
        })?;
    Ok(loop_device::attach(&image, path, access)?)
}

/// `/dev` node of the block device whose serial number is `serial`.
fn block_device(sys_block: &Path, serial: &str) -> Result<String, MountError> {
    let mut present = Vec::new();
    for entry in fs::read_dir(sys_block).map_err(MountError::Devices)? {
        let entry = entry.map_err(MountError::Devices)?;
        let Ok(text) = fs::read_to_string(entry.path().join("serial")) else {
            continue; // not every kind of device has one
        };
        // The device pads its 20 bytes with zeros.
        let found = text.trim_end_matches(['\n', '\0']).trim();
        if found == serial {
            return Ok(format!("/dev/{}", entry.file_name().to_string_lossy()));
        }
        present.push(found.to_owned());
    }
    Err(MountError::NoDevice {
        serial: serial.to_owned(),
        present,
    })
}

/// A mount of the agent's own, at boot.
pub(crate) fn mount_own(
    fstype: &str,
    target: &str,
    attributes: MountAttrFlags,
    data: &[&str],
) -> Result<(), MountError> {
    let mut options = MountOptions::parse(&data.iter().map(|&w| w.to_owned()).collect::<Vec<_>>());
    options.attributes |= attributes;
    Attempt {
        from: fstype,
        fstype,
        target: Path::new(target),
    }
    .mount(&options)
}

/// Forgets names that nobody uses. Those of a shared folder are held open on the host for as long as they are known
/// here, and with them what the host has deleted (kernel `Documentation/admin-guide/sysctl/vm.rst`, "drop_caches").
pub(crate) fn forget_unused_names() {
    if let Err(error) = fs::write("/proc/sys/vm/drop_caches", "2") {
        crate::log!("cannot drop the cached names: {error}");
    }
}

/// Makes nothing that is mounted below `/` visible elsewhere.
pub(crate) fn make_private() -> io::Result<()> {
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_device_is_found_by_its_serial() {
        let sys = tempfile::tempdir().unwrap();
        for (name, serial) in [
            ("vda", Some("guest-root")),
            ("vdb", Some("layer-1")),
            ("ram0", None),
        ] {
            fs::create_dir(sys.path().join(name)).unwrap();
            if let Some(serial) = serial {
                fs::write(sys.path().join(name).join("serial"), serial).unwrap();
            }
        }
        assert_eq!(block_device(sys.path(), "layer-1").unwrap(), "/dev/vdb");
        assert!(matches!(
            block_device(sys.path(), "layer"),
            Err(MountError::NoDevice { .. })
        ));
    }

    #[test]
    fn mount_outside_the_run_directory_is_refused_before_anything_is_done() {
        let mut mounted = Mounted::default();
        let step = Mount {
            source: Some(Source::Literal("tmpfs".to_owned())),
            fstype: "tmpfs".to_owned(),
            target: "/run/sandbox/../../etc".to_owned(),
            ..Mount::default()
        };
        assert!(matches!(mounted.add(&step), Err(MountError::Path(_))));
        assert!(mounted.targets.is_empty());
    }
}
