//! Landlock (Linux: Documentation/userspace-api/landlock.rst): what is not allowed beneath a path is refused, whoever the
//! file belongs to. Descriptors that are open already are not touched by it. A kernel without it is no error.
#![expect(unsafe_code, reason = "landlock's system calls have no wrappers")]

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use rustix::fs::{Mode, OFlags};
use sandbox_types::jail::{JailAccess, JailMount};

use crate::JailError;

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Landlock {
    /// In force, with this version of the interface.
    InForce {
        /// The version.
        abi: u32,
    },
    /// The kernel has none, or it is switched off.
    Absent,
    /// The jail was to do without.
    NotAsked,
}

// include/uapi/linux/landlock.h
const EXECUTE: u64 = 1 << 0;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
/// Rights over files, by the first version that knows them: 1 to 13 bits, `REFER`, `TRUNCATE`, `IOCTL_DEV`.
const FILES: [(u32, u64); 4] = [(1, (1 << 13) - 1), (2, 1 << 13), (3, 1 << 14), (5, 1 << 15)];
/// `BIND_TCP` and `CONNECT_TCP`.
const NETWORK: [(u32, u64); 1] = [(4, 0b11)];
/// `ABSTRACT_UNIX_SOCKET` and `SIGNAL`.
const SCOPES: [(u32, u64); 1] = [(6, 0b11)];
const CREATE_RULESET_VERSION: u32 = 1;
const RULE_PATH_BENEATH: libc::c_int = 1;

/// `struct landlock_ruleset_attr`. What a kernel does not know must be zero or not handed over.
#[repr(C)]
#[derive(Debug, Default)]
struct RulesetAttr {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneathAttr {
    allowed_access: u64,
    parent_fd: i32,
}

impl RulesetAttr {
    /// Everything that this version can refuse.
    fn all(abi: u32) -> Self {
        let known = |rights: &[(u32, u64)]| {
            let known = rights.iter().filter(|(since, _)| *since <= abi);
            known.fold(0, |all, (_, bits)| all | bits)
        };
        Self {
            handled_access_fs: known(&FILES),
            handled_access_net: known(&NETWORK),
            scoped: known(&SCOPES),
        }
    }

    /// How many bytes of it this version takes.
    fn size(abi: u32) -> usize {
        let fields = match abi {
            0..=3 => 1,
            4..=5 => 2,
            _ => 3,
        };
        fields * size_of::<u64>()
    }
}

/// For `map_err`.
fn failed(action: &'static str) -> impl FnOnce(io::Error) -> JailError {
    move |source| JailError::Landlock { action, source }
}

/// Refuses the process everything but what these mounts are for. It must have no-new-privileges.
///
/// # Errors
/// [`JailError::Landlock`].
pub fn restrict(mounts: &[JailMount]) -> Result<Landlock, JailError> {
    let Some(abi) = version().map_err(failed("ask for Landlock's version"))? else {
        return Ok(Landlock::Absent);
    };
    let attr = RulesetAttr::all(abi);
    // SAFETY: the structure lives through the call and has at least the size that is given; the kernel only reads it.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const attr,
            RulesetAttr::size(abi),
            0,
        )
    };
    let fd = i32::try_from(checked(fd).map_err(failed("make a Landlock ruleset"))?)
        .map_err(|_| failed("make a Landlock ruleset")(io::ErrorKind::InvalidData.into()))?;
    // SAFETY: the kernel has just made it for us.
    let ruleset = unsafe { OwnedFd::from_raw_fd(fd) };
    for mount in mounts {
        allow(&ruleset, mount).map_err(failed("allow a path in Landlock"))?;
    }
    // SAFETY: no memory is handed over.
    let result = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) };
    checked(result).map_err(failed("put Landlock in force"))?;
    Ok(Landlock::InForce { abi })
}

/// The version of the interface, if there is Landlock.
///
/// # Errors
/// When the kernel answers what it should not.
pub fn version() -> io::Result<Option<u32>> {
    let none = std::ptr::null::<RulesetAttr>();
    // SAFETY: with this flag the kernel takes no structure.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            none,
            0_usize,
            CREATE_RULESET_VERSION,
        )
    };
    match checked(version) {
        Ok(version) => Ok(u32::try_from(version).ok()),
        // Not built in; built in and not switched on; hidden by a filter of whoever runs the runtime.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENOSYS | libc::EOPNOTSUPP | libc::EPERM)
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn allow(ruleset: &OwnedFd, mount: &JailMount) -> io::Result<()> {
    let access = match mount.access {
        // No right of Landlock's is needed to connect.
        JailAccess::Connect => return Ok(()),
        JailAccess::Read => READ_FILE | READ_DIR,
        JailAccess::Execute => READ_FILE | READ_DIR | EXECUTE,
        JailAccess::Device => READ_FILE | WRITE_FILE,
    };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let path = rustix::fs::open(&mount.target, flags, Mode::empty())?;
    let is_folder = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&path)?.st_mode).is_dir();
    let attr = PathBeneathAttr {
        allowed_access: if is_folder {
            access
        } else {
            access & !READ_DIR
        },
        parent_fd: path.as_raw_fd(),
    };
    // SAFETY: the structure lives through the call; the kernel only reads it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            ruleset.as_raw_fd(),
            RULE_PATH_BENEATH,
            &raw const attr,
            0,
        )
    };
    checked(result).map(drop)
}

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_those_of_the_version() {
        let first = RulesetAttr::all(1);
        assert_eq!((first.handled_access_fs, first.scoped), (0x1fff, 0));
        assert_eq!(RulesetAttr::size(1), 8);
        let sixth = RulesetAttr::all(6);
        assert_eq!(
            (
                sixth.handled_access_fs,
                sixth.handled_access_net,
                sixth.scoped
            ),
            (0xffff, 3, 3)
        );
        assert_eq!(RulesetAttr::size(6), size_of::<RulesetAttr>());
    }
}
