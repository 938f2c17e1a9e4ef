//! Mounts on the host: the roots that reach the guest through virtio-fs.

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A mount to make on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostMount {
    /// `overlay` or `bind`.
    pub fstype: String,
    /// Source, as in mount(8).
    pub source: String,
    /// Options, as in fstab.
    pub options: Vec<String>,
    /// Where, on the host.
    pub target: PathBuf,
}

/// A mount on the host failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {} ({fstype} of {source_name})", target.display())]
pub struct HostMountError {
    action: &'static str,
    target: PathBuf,
    fstype: String,
    source_name: String,
    #[source]
    source: io::Error,
}

/// Options of fstab told apart into flags, and data for the file system.
#[derive(Debug, PartialEq, Eq)]
struct MountOptions {
    flags: MsFlags,
    data: String,
}

/// Flag options, whether they set or clear, as containerd's `core/mount` has them.
fn flag(option: &str) -> Option<(bool, MsFlags)> {
    Some(match option {
        "async" => (false, MsFlags::MS_SYNCHRONOUS),
        "atime" => (false, MsFlags::MS_NOATIME),
        "bind" => (true, MsFlags::MS_BIND),
        "defaults" => (true, MsFlags::empty()),
        "dev" => (false, MsFlags::MS_NODEV),
        "diratime" => (false, MsFlags::MS_NODIRATIME),
        "dirsync" => (true, MsFlags::MS_DIRSYNC),
        "exec" => (false, MsFlags::MS_NOEXEC),
        "mand" => (true, MsFlags::MS_MANDLOCK),
        "noatime" => (true, MsFlags::MS_NOATIME),
        "nodev" => (true, MsFlags::MS_NODEV),
        "nodiratime" => (true, MsFlags::MS_NODIRATIME),
        "noexec" => (true, MsFlags::MS_NOEXEC),
        "nomand" => (false, MsFlags::MS_MANDLOCK),
        "norelatime" => (false, MsFlags::MS_RELATIME),
        "nostrictatime" => (false, MsFlags::MS_STRICTATIME),
        "nosuid" => (true, MsFlags::MS_NOSUID),
        "rbind" => (true, MsFlags::MS_BIND.union(MsFlags::MS_REC)),
        "relatime" => (true, MsFlags::MS_RELATIME),
        "remount" => (true, MsFlags::MS_REMOUNT),
        "ro" => (true, MsFlags::MS_RDONLY),
        "rw" => (false, MsFlags::MS_RDONLY),
        "strictatime" => (true, MsFlags::MS_STRICTATIME),
        "suid" => (false, MsFlags::MS_NOSUID),
        "sync" => (true, MsFlags::MS_SYNCHRONOUS),
        _ => return None,
    })
}

fn parse_options(options: &[String]) -> MountOptions {
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    for option in options {
        match flag(option) {
            Some((true, bits)) => flags |= bits,
            Some((false, bits)) => flags &= !bits,
            None => data.push(option.as_str()),
        }
    }
    MountOptions {
        flags,
        data: data.join(","),
    }
}

impl HostMount {
    /// Whether nothing can be written through it.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        parse_options(&self.options)
            .flags
            .contains(MsFlags::MS_RDONLY)
    }

    /// Mounts it, private: what is mounted below it later goes nowhere else.
    ///
    /// # Errors
    /// [`HostMountError`]; nothing is mounted then.
    pub fn mount(&self) -> Result<(), HostMountError> {
        let MountOptions { mut flags, data } = parse_options(&self.options);
        self.make_target().map_err(|e| self.error("make", e))?;
        let is_bind = self.fstype == "bind" || self.fstype == "rbind";
        if is_bind {
            flags |= MsFlags::MS_BIND;
        }
        let first_flags = if is_bind {
            flags & (MsFlags::MS_BIND | MsFlags::MS_REC)
        } else {
            flags
        };
        mount(
            Some(self.source.as_str()),
            &self.target,
            (!is_bind).then_some(self.fstype.as_str()),
            first_flags,
            (!is_bind && !data.is_empty()).then_some(data.as_str()),
        )
        .map_err(|e| self.error("mount", e.into()))?;
        self.finish(is_bind, flags).inspect_err(|_| {
            // The mount is of no use half-done; what comes back from undoing it would hide the cause.
            let _ = unmount(&self.target);
        })
    }

    /// A file is bound onto a file.
    fn make_target(&self) -> io::Result<()> {
        if !Path::new(&self.source).is_file() {
            return std::fs::create_dir_all(&self.target);
        }
        if let Some(parent) = self.target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        // What may be there is left as it is.
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.target)
            .map(drop)
    }

    fn finish(&self, is_bind: bool, flags: MsFlags) -> Result<(), HostMountError> {
        mount(
            None::<&str>,
            &self.target,
            None::<&str>,
            MsFlags::MS_PRIVATE | MsFlags::MS_REC,
            None::<&str>,
        )
        .map_err(|e| self.error("make private", e.into()))?;
        // A bind takes its other flags only when remounted (mount(2)).
        let rest = flags - (MsFlags::MS_BIND | MsFlags::MS_REC);
        if is_bind && !rest.is_empty() {
            mount(
                None::<&str>,
                &self.target,
                None::<&str>,
                MsFlags::MS_REMOUNT | MsFlags::MS_BIND | rest,
                None::<&str>,
            )
            .map_err(|e| self.error("remount", e.into()))?;
        }
        Ok(())
    }

    fn error(&self, action: &'static str, source: io::Error) -> HostMountError {
        HostMountError {
            action,
            target: self.target.clone(),
            fstype: self.fstype.clone(),
            source_name: self.source.clone(),
            source,
        }
    }
}

/// Undoes every mount at `target`; one that is busy is detached. No mount there is no error.
pub(crate) fn unmount(target: &Path) -> io::Result<bool> {
    let mut undone = false;
    loop {
        let result = match umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
            Err(nix::Error::EBUSY) => {
                umount2(target, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH)
            }
            other => other,
        };
        match result {
            Ok(()) => undone = true,
            // Not a mount point (any more), or not there at all.
            Err(nix::Error::EINVAL | nix::Error::ENOENT) => return Ok(undone),
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn options(list: &[&str]) -> Vec<String> {
        list.iter().map(|&s| s.to_owned()).collect()
    }

    #[test]
    fn options_are_told_apart_into_flags_and_data() {
        let parsed = parse_options(&options(&[
            "ro",
            "nosuid",
            "lowerdir=/a:/b",
            "index=off",
            "rbind",
        ]));
        assert_eq!(
            parsed.flags,
            MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_BIND | MsFlags::MS_REC
        );
        assert_eq!(parsed.data, "lowerdir=/a:/b,index=off");
    }

    #[test]
    fn options_later_flag_wins() {
        assert!(parse_options(&options(&["ro", "rw"])).flags.is_empty());
        assert_eq!(
            parse_options(&options(&["rw", "ro"])).flags,
            MsFlags::MS_RDONLY
        );
    }

    #[test]
    fn unmount_of_what_is_not_mounted_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone");
        // Without privilege the kernel says EPERM before it looks.
        match unmount(&gone) {
            Ok(undone) => assert!(!undone),
            Err(e) => assert_eq!(e.kind(), io::ErrorKind::PermissionDenied),
        }
    }

    proptest! {
        #[test]
        fn options_that_are_no_flag_are_all_data(list in prop::collection::vec("[a-z]{1,6}=[a-z/]{0,6}", 0..6)) {
            let parsed = parse_options(&list);
            prop_assert!(parsed.flags.is_empty());
            prop_assert_eq!(parsed.data, list.join(","));
        }
    }
}
