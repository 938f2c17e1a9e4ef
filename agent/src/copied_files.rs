//! Small files of the caller's, copied into the guest for the bind mounts of a container's spec.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::PathBuf;

use sandbox_protocol::agent::File;
use sandbox_protocol::extensions::MAX_COPIED_FILE_BYTES;

use crate::guest_path::{GuestPath, GuestPathError};

/// Why a file could not be copied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// The host named a path outside the agent's folder.
    #[error(transparent)]
    Path(#[from] GuestPathError),
    /// It is too large.
    #[error("{path} has {length} bytes; a file that is copied may have {MAX_COPIED_FILE_BYTES}")]
    TooLarge {
        /// Which.
        path: String,
        /// Its size.
        length: usize,
    },
    /// It could not be written.
    #[error("cannot write {path}")]
    Write {
        /// Which.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Files that are removed with the container.
#[derive(Debug, Default)]
pub(crate) struct CopiedFiles {
    paths: Vec<PathBuf>,
}

impl CopiedFiles {
    /// Makes a file, which must not be there.
    pub(crate) fn add(&mut self, file: &File) -> Result<(), FileError> {
        let path = GuestPath::new(&file.path)?;
        let path = path.as_path();
        let length = file.content.len();
        if u64::try_from(length).unwrap_or(u64::MAX) > MAX_COPIED_FILE_BYTES {
            return Err(FileError::TooLarge {
                path: file.path.clone(),
                length,
            });
        }
        let failed = |source| FileError::Write {
            path: path.to_owned(),
            source,
        };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        let mut created = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        self.paths.push(path.to_owned());
        created.write_all(&file.content).map_err(failed)?;
        chown(path, Some(file.uid), Some(file.gid)).map_err(failed)?;
        // After the change of owner, which takes the set-user-id bits away.
        let mode = fs::Permissions::from_mode(file.mode & 0o7777);
        created.set_permissions(mode).map_err(failed)
    }

    /// Removes them.
    pub(crate) fn remove(&mut self) {
        for path in self.paths.drain(..) {
            if let Err(error) = fs::remove_file(&path) {
                crate::log!("cannot remove {}: {error}", path.display());
            }
        }
    }
}

impl Drop for CopiedFiles {
    fn drop(&mut self) {
        self.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_outside_the_run_directory_or_too_large_is_refused_before_anything_is_done() {
        let mut files = CopiedFiles::default();
        let outside = File {
            path: "/etc/passwd".to_owned(),
            ..File::default()
        };
        assert!(matches!(files.add(&outside), Err(FileError::Path(_))));
        let large = File {
            path: "/run/sandbox/x".to_owned(),
            content: vec![0; 1024 * 1024 + 1],
            ..File::default()
        };
        assert!(matches!(files.add(&large), Err(FileError::TooLarge { .. })));
        assert!(files.paths.is_empty());
    }
}
