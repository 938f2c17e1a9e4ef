//! Volumes that a guest is about to fill from its container's image
//! ([`FILL_OPTION`](sandbox_protocol::extensions::FILL_OPTION)): one guest at a time.
//!
//! Guests cannot lock each other out, so the host does: the folder of a volume in which nothing is is locked (flock(2)) from before
//! the agent is asked to make the container until it has answered. Who comes meanwhile waits, and then finds what the first has put there.
//! A volume in which there is something is not filled, and so not locked. A killed shim's locks go with its descriptors.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use sandbox_protocol::extensions::FILL_FOLDER;
use tokio::time::{Duration, Instant, sleep};

/// How often a lock is asked for that somebody else has.
const PAUSE: Duration = Duration::from_millis(20);

/// Why a volume cannot be filled now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeLockError {
    /// Somebody else did not let it go.
    #[error(
        "the new volume at {} is locked, and has been for {} s: another container that began with it fills it from its image, or hangs; try again later, or see with `lslocks` who holds it", path.display(), waited.as_secs()
    )]
    Busy {
        /// Its folder.
        path: PathBuf,
        /// For how long it was waited for.
        waited: Duration,
    },
    /// The system refused.
    #[error("cannot {action} the volume at {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Its folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VolumeLockError {
    let path = path.to_owned();
    move |source| VolumeLockError::Io {
        action,
        path,
        source,
    }
}

/// The volumes that nobody else fills while this lives.
#[derive(Debug, Default)]
pub(super) struct VolumeLocks {
    _folders: Vec<File>,
}

impl VolumeLocks {
    /// Locks those of `volumes` in which there is nothing, one folder once, in an order that is the same for all; for each it waits for `limit`
    /// at most. What is no folder is passed over.
    ///
    /// # Errors
    /// [`VolumeLockError`]; none is locked then.
    pub(super) async fn take(
        volumes: &[PathBuf],
        limit: Duration,
    ) -> Result<Self, VolumeLockError> {
        let mut found = Vec::new();
        for path in volumes {
            if let Some(folder) = open(path)? {
                let metadata = folder.metadata().map_err(failed("look at", path))?;
                found.push(((metadata.dev(), metadata.ino()), path, folder));
            }
        }
        found.sort_by_key(|&(inode, ..)| inode);
        found.dedup_by_key(|&mut (inode, ..)| inode);
        let mut folders = Vec::new();
        for (_, path, folder) in found {
            lock(&folder, path, limit).await?;
            // Only now it is known that nobody fills it.
            if is_empty(path).map_err(failed("look into", path))? {
                folders.push(folder);
            }
        }
        Ok(Self { _folders: folders })
    }
}

fn open(path: &Path) -> Result<Option<File>, VolumeLockError> {
    let folder = File::options()
        .read(true)
        .custom_flags(rustix::fs::OFlags::DIRECTORY.bits().cast_signed())
        .open(path);
    match folder {
        Ok(folder) => Ok(Some(folder)),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(None),
        Err(error) => Err(failed("open", path)(error)),
    }
}

async fn lock(folder: &File, path: &Path, limit: Duration) -> Result<(), VolumeLockError> {
    let began = Instant::now();
    loop {
        match folder.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(failed("lock", path)(error)),
            Err(TryLockError::WouldBlock) if began.elapsed() >= limit => {
                return Err(VolumeLockError::Busy {
                    path: path.to_owned(),
                    waited: limit,
                });
            }
            Err(TryLockError::WouldBlock) => sleep(PAUSE).await,
        }
    }
}

/// Whether there is nothing but what a fill that was cut off may have left.
fn is_empty(path: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(path)? {
        if entry?.file_name() != FILL_FOLDER {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn empty_volume_is_one_fillers_at_a_time() {
        let volume = tempfile::tempdir().unwrap();
        // A half that a killed guest left is not content.
        fs::create_dir(volume.path().join(FILL_FOLDER)).unwrap();
        // Twice in one container.
        let volumes = [volume.path().to_owned(), volume.path().join(".")];
        let first = VolumeLocks::take(&volumes, SHORT).await.unwrap();
        let second = VolumeLocks::take(&volumes, SHORT).await.unwrap_err();
        assert!(matches!(second, VolumeLockError::Busy { .. }), "{second}");

        let (waiting, ()) = tokio::join!(
            VolumeLocks::take(&volumes, Duration::from_secs(60)),
            async move {
                sleep(SHORT).await;
                fs::write(volume.path().join("content"), "").unwrap();
                drop(first);
                // It lives until the other has looked.
                sleep(SHORT * 2).await;
            }
        );
        assert!(waiting.unwrap()._folders.is_empty());
    }

    #[tokio::test]
    async fn volume_with_content_and_what_is_no_folder_are_not_locked() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let volumes = [folder.path().to_owned(), file];
        let first = VolumeLocks::take(&volumes, SHORT).await.unwrap();
        let second = VolumeLocks::take(&volumes, SHORT).await.unwrap();
        assert!(first._folders.is_empty() && second._folders.is_empty());
    }
}
