//! What the image has at the place of a new volume, copied into it (docker's rule): a caller asks for it by
//! [`FILL_OPTION`](sandbox_protocol::extensions::FILL_OPTION) on the bind.
//!
//! A volume in which there is anything is left as it is. Copied is what an archive keeps ([`crate::programs`]), and owner and mode of the
//! folder itself. It happens before the container is made, so nothing of it runs yet, but other sandboxes may write to the volume
//! meanwhile: each side of the copy is therefore a thread whose root is the container's root, or the volume, out of which no
//! link leads.
//!
//! ```text
//! copy        into FILL_FOLDER, a folder in the volume     nothing of anybody else's is touched
//! settle      move what is in it into the volume           not if somebody has put something there meanwhile; never over anything
//!             remove it                                    in any case
//! ```
//!
//! So a copy that fails, or is cut off, leaves nothing that the next start takes for the whole, and takes nothing away. That no two
//! guests fill one volume at once is the host's care: the shim locks it.

use std::fs::{self, DirBuilder, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::thread::{self, Scope, ScopedJoinHandle};

use nix::sched::CloneFlags;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use sandbox_protocol::extensions::FILL_FOLDER;

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
        if !is_empty(&self.volume).map_err(self.failed("look into"))? {
            return Ok(());
        }
        let found = within(root, || fs::metadata(&self.place))?
            .map_err(self.failed("find the image's files of"))?;
        let folder = match found {
            Ok(metadata) if metadata.is_dir() => metadata,
            // The image has nothing there.
            _ => return Ok(()),
        };
        within(&self.volume, || begin(&staging()))?
            .flatten()
            .map_err(self.failed("begin to fill"))?;
        let copied = self.copy(root);
        self.settle(copied, &folder)
    }

    /// Has the copy be the volume's content, and removes what is not to be.
    fn settle(&self, copied: Result<(), FillError>, folder: &Metadata) -> Result<(), FillError> {
        let done = copied.and_then(|()| {
            let moved = || {
                if !is_empty(Path::new("/"))? {
                    return Ok(());
                }
                move_content(&staging(), Path::new("/"))?;
                chown("/", Some(folder.uid()), Some(folder.gid()))?;
                fs::set_permissions("/", Permissions::from_mode(folder.mode() & 0o7777))
            };
            within(&self.volume, moved)?
                .flatten()
                .map_err(self.failed("put the copy into"))
        });
        match within(&self.volume, || remove_all(&staging())) {
            Ok(Ok(Ok(()))) => {}
            _ => crate::log!("what was copied stays in {}", self.volume.display()),
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
                unpack_archive(&staging(), output)
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

/// Where a copy is made, in the volume's own root.
fn staging() -> PathBuf {
    Path::new("/").join(FILL_FOLDER)
}

/// Whether there is nothing in a volume but a copy that is not whole.
fn is_empty(volume: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(volume)? {
        if entry?.file_name() != FILL_FOLDER {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes the folder for the copy, in the place of one that was cut off.
fn begin(staging: &Path) -> io::Result<()> {
    match fs::symlink_metadata(staging) {
        Ok(found) if found.is_dir() => remove_all(staging)?,
        Ok(_) => fs::remove_file(staging)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    DirBuilder::new().mode(0o700).create(staging)
}

/// Removes a folder with what is in it, in as many passes as it takes: one passes over some where places in a folder change with what is removed
/// from it, as on a tmpfs of the host's (before Linux 6.6).
fn remove_all(folder: &Path) -> io::Result<()> {
    const PASSES: usize = 64;
    for _ in 1..PASSES {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            done => return done,
        }
    }
    fs::remove_dir_all(folder)
}

/// Moves what is in a folder to another, where nothing is replaced: what has a name there already stays behind.
fn move_content(from: &Path, to: &Path) -> io::Result<()> {
    // All of them first: where in a folder one is may change with what is moved out of it, and some would be passed over.
    let names: Vec<_> = fs::read_dir(from)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<_, _>>()?;
    for name in names {
        let (old, new) = (from.join(&name), to.join(&name));
        match renameat_with(CWD, &old, CWD, &new, RenameFlags::NOREPLACE) {
            Ok(()) | Err(Errno::EXIST) => {}
            // A file system that knows no flags.
            Err(Errno::INVAL) if fs::symlink_metadata(&new).is_err() => fs::rename(&old, &new)?,
            Err(errno) => return Err(errno.into()),
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

    #[test]
    fn copy_that_fails_takes_nothing_of_others_away() {
        let (folder, fill) = fill("/data");
        let data = folder.path().join("root/data");
        fs::create_dir(&data).unwrap();
        fs::write(data.join("file"), "the image's").unwrap();
        let copied_half = || {
            let half = fill.volume.join(FILL_FOLDER);
            fs::create_dir(&half).unwrap();
            fs::write(half.join("file"), "half").unwrap();
        };
        copied_half();
        fs::write(fill.volume.join("live"), "of another").unwrap();
        let image = fs::metadata(&data).unwrap();
        fill.settle(Err(FillError::Lost), &image).unwrap_err();
        let names = || -> Vec<_> {
            let entries = fs::read_dir(&fill.volume).unwrap();
            entries.map(|entry| entry.unwrap().file_name()).collect()
        };
        assert_eq!(names(), ["live"]);
        // Nor does one that comes to its end.
        copied_half();
        fill.settle(Ok(()), &image).unwrap();
        assert_eq!(names(), ["live"]);
        // What a killed guest left of a copy is not taken for the whole.
        fs::remove_file(fill.volume.join("live")).unwrap();
        copied_half();
        fill.run(&folder.path().join("root")).unwrap();
        assert_eq!(names(), ["file"]);
        let content = fs::read_to_string(fill.volume.join("file")).unwrap();
        assert_eq!(content, "the image's");
    }

    #[test]
    fn what_has_the_name_already_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        for (side, content) in [(&from, "new"), (&to, "old")] {
            fs::create_dir(side).unwrap();
            fs::write(side.join("both"), content).unwrap();
        }
        fs::write(from.join("one"), "").unwrap();
        move_content(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("both")).unwrap(), "old");
        assert!(to.join("one").exists() && from.join("both").exists());
    }
}
