//! The jails of a sandbox's processes ([`sandbox_types::jail`]).
//!
//! | process | root | user, capabilities | entered |
//! | --- | --- | --- | --- |
//! | monitor, vsock back end | empty, but for the folder of the guest's ports | the sandbox's, none | by itself |
//! | QEMU | the system's programs and libraries, the guest's kernel, `/dev/null` | the sandbox's, none | by `sandbox-vmm jailed` |
//! | virtiofsd | its own, which is the shared folder | root, with what serving files takes | by `sandbox-vmm jailed` |
//!
//! Everything else that they need is handed over as open descriptors.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::process::{Gid, Uid};
use rustix::thread::CapabilitySet;
use sandbox_types::jail::{JailAccess, JailConfig, JailLimits, JailMount, JailRoot};

use crate::config::Config;
use crate::identity::{IdentityError, UserClaim};

/// The folder of a sandbox's own over which its processes make their roots.
const PLACE: &str = "jail";
/// Where the guest's ports are in the root of who serves the vsock device.
const PORTS: &str = "/ports";
/// Where QEMU finds the guest's kernel.
const KERNEL: &str = "/kernel";
const NULL: &str = "/dev/null";
/// Descriptors: the vsock device has a thousand connections at most, the monitor makes room for 512.
const OPEN_FILES: u64 = 4096;
/// Threads: of QEMU up to 64 for disks, and in all programs one for each processor and device.
const PROCESSES: u64 = 1024;
/// What a program of the system's needs of the host, beside itself.
const SYSTEM: [&str; 6] = [
    "/usr",
    "/lib",
    "/lib64",
    "/bin",
    "/etc/ld.so.cache",
    "/nix/store",
];

/// What virtiofsd keeps of root. First what it serves files with, then what it makes its own root with and gives up
/// thereafter.
const VIRTIOFSD: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::SETPCAP);

/// What it has beside that to open files by handles, instead of keeping a descriptor of each file that the guest knows.
const BY_HANDLE: CapabilitySet = CapabilitySet::DAC_READ_SEARCH;

/// Why there is no jail.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// It has no user.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A folder or socket could not be prepared.
    #[error("cannot {action} {} for the jail of the sandbox", path.display())]
    Prepare {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// QEMU could not read the kernel as another user.
    #[error(
        "the guest kernel {} cannot be read by others, as whom QEMU runs in its jail; allow it (chmod o+r)", path.display()
    )]
    Unreadable {
        /// Which.
        path: PathBuf,
    },
}

/// What the jails of one sandbox have in common. The user is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct SandboxJail {
    user: UserClaim,
    place: PathBuf,
    ports: PathBuf,
}

impl SandboxJail {
    /// Claims a user and makes what is needed in the sandbox's folder. None where the configuration does without.
    pub(crate) fn make(
        config: &Config,
        dir: &Path,
        ports: &Path,
    ) -> Result<Option<Self>, JailError> {
        if !config.jail {
            tracing::warn!(
                "`jail = false`: what runs the guest runs as root, with the host's files and network"
            );
            return Ok(None);
        }
        let user = UserClaim::make(config.jail_users)?;
        let place = dir.join(PLACE);
        fs::create_dir(&place).map_err(|source| JailError::Prepare {
            action: "make the folder",
            path: place.clone(),
            source,
        })?;
        Ok(Some(Self {
            user,
            place,
            ports: ports.to_owned(),
        }))
    }

    /// Lets the jailed processes connect to a socket of the runtime's.
    pub(crate) fn admit(&self, socket: &Path) -> Result<(), JailError> {
        let id = self.user.id();
        let failed = |source| JailError::Prepare {
            action: "hand over the socket",
            path: socket.to_owned(),
            source,
        };
        fs::set_permissions(socket, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        let (user, group) = (Uid::from_raw(id), Gid::from_raw(id));
        rustix::fs::chown(socket, Some(user), Some(group)).map_err(|errno| failed(errno.into()))
    }

    /// Where `ports`, a path in the folder of the guest's ports, is for who serves them.
    pub(crate) fn inside(&self, ports: &Path) -> PathBuf {
        let name = ports.strip_prefix(&self.ports).unwrap_or(ports);
        Path::new(PORTS).join(name)
    }

    /// For the monitor, which writes the guest's disks. When it knows them, it sees to it itself that no file becomes longer.
    pub(crate) fn monitor(&self) -> JailConfig {
        let ports = JailMount {
            source: self.ports.clone(),
            target: PORTS.into(),
            access: JailAccess::Connect,
        };
        self.unprivileged(vec![ports], Vec::new(), None)
    }

    /// For the vsock device beside QEMU, which writes no file.
    pub(crate) fn vsock_backend(&self) -> JailConfig {
        let mut jail = self.monitor();
        jail.limits.file_bytes = Some(0);
        jail
    }

    /// For QEMU; also where it then finds the kernel.
    pub(crate) fn qemu(
        &self,
        program: &Path,
        kernel: &Path,
    ) -> Result<(JailConfig, PathBuf), JailError> {
        let readable = fs::metadata(kernel).map(|kernel| kernel.permissions().mode() & 0o004 != 0);
        if !readable.map_err(|source| JailError::Prepare {
            action: "look at",
            path: kernel.to_owned(),
            source,
        })? {
            return Err(JailError::Unreadable {
                path: kernel.to_owned(),
            });
        }
        let mut mounts = vec![
            JailMount {
                source: kernel.to_owned(),
                target: KERNEL.into(),
                access: JailAccess::Read,
            },
            // By which it finds out how files are locked.
            JailMount {
                source: NULL.into(),
                target: NULL.into(),
                access: JailAccess::Device,
            },
        ];
        let mut links = Vec::new();
        let own = (!is_below(program, &SYSTEM)).then(|| prefix(program));
        for path in SYSTEM.iter().map(Path::new).chain(own.as_deref()) {
            match fs::read_link(path) {
                Ok(target) => links.push((path.to_owned(), target)),
                Err(_) if path.exists() => mounts.push(JailMount {
                    source: path.to_owned(),
                    target: path.to_owned(),
                    access: JailAccess::Execute,
                }),
                Err(_) => {}
            }
        }
        Ok((self.unprivileged(mounts, links, None), KERNEL.into()))
    }

    fn unprivileged(
        &self,
        mounts: Vec<JailMount>,
        links: Vec<(PathBuf, PathBuf)>,
        file_bytes: Option<u64>,
    ) -> JailConfig {
        JailConfig {
            user: Some(self.user.id()),
            root: Some(JailRoot {
                place: self.place.clone(),
                mounts,
                links,
            }),
            capabilities: 0,
            limits: JailLimits {
                open_files: OPEN_FILES,
                processes: Some(PROCESSES),
                file_bytes,
            },
            keeps_network: false,
            parent_fd: -1,
            keep_fds: Vec::new(),
        }
    }

    /// For virtiofsd, which serves files of every user, and makes its own root and namespaces.
    pub(crate) fn virtiofsd(&self, open_files: u64, file_handles: bool) -> JailConfig {
        let capabilities = if file_handles {
            VIRTIOFSD.union(BY_HANDLE)
        } else {
            VIRTIOFSD
        };
        JailConfig {
            user: None,
            root: None,
            capabilities: capabilities.bits(),
            limits: JailLimits {
                open_files,
                processes: None,
                file_bytes: None,
            },
            keeps_network: false,
            parent_fd: -1,
            keep_fds: Vec::new(),
        }
    }
}

fn is_below(path: &Path, folders: &[&str]) -> bool {
    folders.iter().any(|folder| path.starts_with(folder))
}

/// `PREFIX` of `PREFIX/bin/PROGRAM`.
fn prefix(program: &Path) -> PathBuf {
    let folder = program.parent().unwrap_or(program);
    match folder.parent() {
        // Not the host's whole root.
        Some(prefix) if prefix.parent().is_some() => prefix.to_owned(),
        _ => folder.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_of_a_program_is_never_the_whole_root() {
        assert_eq!(
            prefix(Path::new("/opt/qemu/bin/qemu")),
            Path::new("/opt/qemu")
        );
        assert_eq!(prefix(Path::new("/opt/qemu")), Path::new("/opt"));
        assert_eq!(prefix(Path::new("/bin/qemu")), Path::new("/bin"));
        assert!(is_below(Path::new("/usr/bin/qemu"), &SYSTEM));
        assert!(!is_below(Path::new("/usrlocal/bin/qemu"), &SYSTEM));
    }
}
