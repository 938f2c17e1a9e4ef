//! What the image has at the place of a new volume, copied into it (docker's rule): a caller asks for it by
//! [`FILL_OPTION`](sandbox_protocol::extensions::FILL_OPTION) on the bind.
//!
//! A volume in which there is anything is left as it is. Copied is what an archive keeps ([`crate::programs`]), and owner and mode of the
//! folder itself. It happens before the container is made, so nothing of it runs yet, but other sandboxes may write to the volume
//! meanwhile: each side of the copy is therefore a thread whose root is the container's root, or the volume, out of which no
//! link leads. If it fails, what was copied is removed again, so that the next start does not take half for the whole.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::thread::{self, Scope, ScopedJoinHandle};

use nix::sched::CloneFlags;

use crate::programs::{ArchiveError, archive_content, unpack_archive};

/// A volume to fill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fill {
    /// Its folder, in the guest.
    pub(crate) volume: PathBuf,
    /// Where it will be, in the container.
    pub(crate) place: PathBuf,
}

/// Why a volume could not be filled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FillError {
    /// One side could not be looked at or changed.
    #[error("cannot {action} the volume for {place}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where it will be in the container.
        place: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The copy failed.
    #[error("cannot copy what the image has at {place} into the new volume for it")]
    Copy {
        /// Where it will be in the container.
        place: PathBuf,
        #[source]
        source: Box<ArchiveError>,
    },
    /// A thread of the copy ended without a word.
    #[error("the copying of an image's files into a volume was given up")]
    Lost,
}

/// Starts a thread with a root of its own.
fn rooted<'scope, 'env, T: Send + 'scope>(
    scope: &'scope Scope<'scope, 'env>,
    root: &'env Path,
    work: impl FnOnce() -> T + Send + 'scope,
) -> ScopedJoinHandle<'scope, io::Result<T>> {
    scope.spawn(move || {
        // Else the root of all threads would change.
        nix::sched::unshare(CloneFlags::CLONE_FS)?;
        rustix::process::chroot(root)?;
        rustix::process::chdir("/")?;
        Ok(work())
    })
}

/// Does `work` with another root.
fn within<T: Send>(
    root: &Path,
    work: impl FnOnce() -> T + Send,
) -> Result<io::Result<T>, FillError> {
    thread::scope(|scope| {
        rooted(scope, root, work)
            .join()
            .map_err(|_| FillError::Lost)
    })
}

impl Fill {
    fn failed(&self, action: &'static str) -> impl FnOnce(io::Error) -> FillError {
        let place = self.place.clone();
        move |source| FillError::Io {
            action,
            place,
            source,
        }
    }

    /// Fills the volume from a container's root, if nothing is in it and something is there.
    pub(crate) fn run(&self, root: &Path) -> Result<(), FillError> {
        let mut entries = fs::read_dir(&self.volume).map_err(self.failed("look into"))?;
        if entries.next().is_some() {
            return Ok(());
        }
        let found = within(root, || fs::metadata(&self.place))?
            .map_err(self.failed("find the image's files of"))?;
        let folder = match found {
            Ok(metadata) if metadata.is_dir() => metadata,
            // The image has nothing there.
            _ => return Ok(()),
        };
        let done = self.copy(root).and_then(|()| {
            let owned = || {
                chown("/", Some(folder.uid()), Some(folder.gid()))?;
                fs::set_permissions("/", Permissions::from_mode(folder.mode() & 0o7777))
            };
            within(&self.volume, owned)?
                .flatten()
                .map_err(self.failed("give an owner to"))
        });
        if done.is_err() {
            match within(&self.volume, clear) {
                Ok(Ok(Ok(()))) => {}
                _ => crate::log!("half of a volume stays in {}", self.volume.display()),
            }
        }
        done
    }

    fn copy(&self, root: &Path) -> Result<(), FillError> {
        let failed = |source| FillError::Copy {
            place: self.place.clone(),
            source: Box::new(source),
        };
        // Its content, not itself.
        let content = self.place.join(".");
        let (output, input) = io::pipe().map_err(self.failed("begin to fill"))?;
        let (read, written) = thread::scope(|scope| {
            let reader = rooted(scope, root, move || archive_content(&content, input));
            let writer = rooted(scope, &self.volume, move || {
                unpack_archive(Path::new("/"), output)
            });
            (reader.join(), writer.join())
        });
        let entered = self.failed("enter the root of");
        let (read, written) = (
            read.map_err(|_| FillError::Lost)?,
            written.map_err(|_| FillError::Lost)?,
        );
        // A writer that fails leaves the reader with a broken pipe: its reason counts.
        match (written, read) {
            (Ok(Ok(())), Ok(Ok(()))) => Ok(()),
            (Ok(Err(error)), _) | (Ok(Ok(())), Ok(Err(error))) => Err(failed(error)),
            (Err(error), _) | (_, Err(error)) => Err(entered(error)),
        }
    }
}

/// Removes everything below the root.
fn clear() -> io::Result<()> {
    for entry in fs::read_dir("/")? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    // These take root, as chroot(2) does.

    fn fill(place: &str) -> (tempfile::TempDir, Fill) {
        let folder = tempfile::tempdir().unwrap();
        for name in ["root", "volume", "outside"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let fill = Fill {
            volume: folder.path().join("volume"),
            place: place.into(),
        };
        (folder, fill)
    }

    #[test]
    fn volume_gets_content_owner_and_mode_of_the_images_folder() {
        let (folder, fill) = fill("/data");
        let data = folder.path().join("root/data");
        fs::create_dir_all(data.join("sub")).unwrap();
        fs::write(data.join("sub/file"), "content").unwrap();
        symlink("sub/file", data.join("link")).unwrap();
        chown(data.join("sub/file"), Some(7), Some(8)).unwrap();
        chown(&data, Some(5), Some(6)).unwrap();
        fs::set_permissions(&data, Permissions::from_mode(0o1770)).unwrap();
        fill.run(&folder.path().join("root")).unwrap();
        let volume = fs::metadata(&fill.volume).unwrap();
        assert_eq!(
            (volume.uid(), volume.gid(), volume.mode() & 0o7777),
            (5, 6, 0o1770)
        );
        let file = fs::metadata(fill.volume.join("link")).unwrap();
        assert_eq!((file.uid(), file.gid(), file.len()), (7, 8, 7));
        // Again: it is not empty any more.
        fs::write(data.join("new"), "").unwrap();
        fill.run(&folder.path().join("root")).unwrap();
        assert!(!fill.volume.join("new").exists());
    }

    #[test]
    fn volume_stays_empty_where_the_image_has_no_folder() {
        let (folder, fill) = fill("/data");
        fill.run(&folder.path().join("root")).unwrap();
        fs::write(folder.path().join("root/data"), "a file").unwrap();
        fill.run(&folder.path().join("root")).unwrap();
        assert_eq!(fs::read_dir(&fill.volume).unwrap().count(), 0);
    }

    #[test]
    fn links_of_the_image_lead_nowhere_but_into_its_root() {
        let (folder, fill) = fill("/data");
        let outside = folder.path().join("outside");
        fs::write(outside.join("secret"), "").unwrap();
        // By its path outside, which is not there within the root.
        symlink(&outside, folder.path().join("root/data")).unwrap();
        fill.run(&folder.path().join("root")).unwrap();
        assert_eq!(fs::read_dir(&fill.volume).unwrap().count(), 0);
    }
}
