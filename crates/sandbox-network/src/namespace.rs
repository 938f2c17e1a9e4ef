//! Network namespaces, by path.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{fstatfs, statfs};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sandbox_netlink::{LinkChange, Netlink};

use crate::NetworkError;

/// What the calling process's own namespace is at.
const OURS: &str = "/proc/thread-self/ns/net";

/// A network namespace that stays as long as this does.
#[derive(Debug)]
pub struct Namespace {
    path: PathBuf,
    file: File,
}

/// Which namespace a path stood for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct NamespaceId {
    device: u64,
    inode: u64,
}

impl Namespace {
    /// Opens the namespace at `path`.
    ///
    /// # Errors
    /// [`NetworkError::Open`] or [`NetworkError::NotANamespace`].
    pub fn open(path: &Path) -> Result<Self, NetworkError> {
        let failed = |source| NetworkError::Open {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let magic = |file: &File| fstatfs(file).map(|found| found.f_type);
        let found = magic(&file).map_err(|errno| failed(errno.into()))?;
        let wanted = statfs(OURS).map_err(|errno| failed(errno.into()))?.f_type;
        if found != wanted {
            return Err(NetworkError::NotANamespace {
                path: path.to_owned(),
            });
        }
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Makes an empty namespace whose loopback interface is up, and keeps it at `path`, which must not be there yet
    /// (network_namespaces(7), ip-netns(8)).
    ///
    /// # Errors
    /// [`NetworkError::Make`]; nothing is left at `path` then.
    pub fn make(path: &Path) -> Result<(), NetworkError> {
        let failed = |source: io::Error| NetworkError::Make {
            action: "make",
            path: path.to_owned(),
            source,
        };
        File::create_new(path).map_err(failed)?;
        let made = on_a_thread(failed, || {
            begin_empty(failed)?;
            mount_bind(OURS, path).map_err(|errno| failed(errno.into()))
        });
        if made.is_err() {
            let _ = std::fs::remove_file(path);
        }
        made
    }

    /// Makes an empty namespace whose loopback interface is up. It has no name: it ends with the last descriptor of it and
    /// the last process in it. Its path is that of this process's descriptor.
    ///
    /// # Errors
    /// [`NetworkError::Make`].
    pub fn make_unnamed() -> Result<Self, NetworkError> {
        let failed = |source: io::Error| NetworkError::Make {
            action: "make",
            path: PathBuf::from(OURS),
            source,
        };
        let file = on_a_thread(failed, || {
            begin_empty(failed)?;
            File::open(OURS).map_err(failed)
        })?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        Ok(Self {
            path: path.into(),
            file,
        })
    }

    /// Removes what [`Self::make`] made; that it is gone is no error.
    ///
    /// # Errors
    /// [`NetworkError::Make`].
    pub fn remove(path: &Path) -> Result<(), NetworkError> {
        let failed = |source| NetworkError::Make {
            action: "remove",
            path: path.to_owned(),
            source,
        };
        match unmount(path, UnmountFlags::DETACH) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        }
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn id(&self) -> Result<NamespaceId, NetworkError> {
        id(&self.file).map_err(|source| NetworkError::Open {
            path: self.path.clone(),
            source,
        })
    }

    /// Whether it is the one of the calling thread.
    ///
    /// # Errors
    /// [`NetworkError::Open`].
    pub fn is_ours(&self) -> Result<bool, NetworkError> {
        let ours = File::open(OURS)
            .and_then(|file| id(&file))
            .map_err(|source| NetworkError::Open {
                path: OURS.into(),
                source,
            })?;
        Ok(ours == self.id()?)
    }

    /// Does something in the namespace, on a thread of its own that ends with it: no other thread is ever elsewhere.
    ///
    /// # Errors
    /// [`NetworkError::Enter`], or what `work` fails with.
    pub fn enter<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, NetworkError> + Send,
    ) -> Result<T, NetworkError> {
        let failed = |source| NetworkError::Enter {
            path: self.path.clone(),
            source,
        };
        on_a_thread(failed, || {
            move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(|errno| failed(errno.into()))?;
            work()
        })
    }

    /// One more descriptor of the same namespace.
    ///
    /// # Errors
    /// [`NetworkError::Open`].
    pub fn try_clone(&self) -> Result<Self, NetworkError> {
        let file = self.file.try_clone().map_err(|source| NetworkError::Open {
            path: self.path.clone(),
            source,
        })?;
        Ok(Self {
            path: self.path.clone(),
            file,
        })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Does something on a thread of its own, which may leave its namespace.
fn on_a_thread<T: Send>(
    failed: impl Fn(io::Error) -> NetworkError + Copy,
    work: impl FnOnce() -> Result<T, NetworkError> + Send,
) -> Result<T, NetworkError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)
            .map_err(failed)?;
        thread
            .join()
            .unwrap_or_else(|_| Err(failed(io::Error::other("the thread in it panicked"))))
    })
}

/// Puts the calling thread into a new namespace whose loopback interface is up.
fn begin_empty(failed: impl Fn(io::Error) -> NetworkError) -> Result<(), NetworkError> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))?;
    let mut netlink = Netlink::open()?;
    let up = LinkChange {
        up: Some(true),
        ..LinkChange::default()
    };
    for link in netlink.links()?.iter().filter(|link| link.is_loopback) {
        netlink.change_link(link.index, &up)?;
    }
    Ok(())
}

fn id(file: &File) -> io::Result<NamespaceId> {
    let metadata = file.metadata()?;
    Ok(NamespaceId {
        device: metadata.dev(),
        inode: metadata.ino(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_namespace_is_ours_and_files_are_none() {
        let ours = Namespace::open(Path::new("/proc/self/ns/net")).unwrap();
        assert!(ours.is_ours().unwrap());
        assert_eq!(ours.id().unwrap(), ours.id().unwrap());
        let error = Namespace::open(Path::new("/etc/hostname")).unwrap_err();
        assert!(matches!(error, NetworkError::NotANamespace { .. }));
        let error = Namespace::open(Path::new("/nonexistent")).unwrap_err();
        assert!(matches!(error, NetworkError::Open { .. }));
    }

    #[test]
    fn unnamed_namespace_is_another_one_and_is_found_by_its_path() {
        let unnamed = Namespace::make_unnamed().unwrap();
        assert!(!unnamed.is_ours().unwrap());
        let found = Namespace::open(unnamed.path()).unwrap();
        assert_eq!(found.id().unwrap(), unnamed.id().unwrap());
        let links = unnamed.enter(|| Ok(Netlink::open()?.links()?)).unwrap();
        assert!(links.len() == 1 && links[0].is_loopback, "{links:?}");
        let path = unnamed.path().to_owned();
        drop((unnamed, found));
        assert!(Namespace::open(&path).is_err());
    }
}
