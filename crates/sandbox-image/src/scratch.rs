//! The writable layer: a sparse, pre-formatted ext4 file, and cheap copies of it.
//!
//! A template is formatted once: that of the default size when the project is built, one of another when it is first asked
//! for. Starting a container only clones it. The clone shares the template's blocks where the file system can (XFS, btrfs);
//! elsewhere only the few hundred KiB that are not holes are copied.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{SeekFrom, ioctl_ficlone, seek};
use rustix::io::Errno;

use crate::layer::erofs::find_program;

const PROGRAM: &str = "mke2fs";
/// Identifier and hash seed of every writable layer. Fixed, so that the template is the same on every machine; the guest
/// mounts by device, never by identifier.
const UUID: &str = "5a6e0db0-5a6e-4db0-8a6e-0db05a6e0db0";
/// The smallest file system worth formatting: the smallest journal, 4 MiB, is no more than a quarter of it.
const MIN_BYTES: u64 = 16 << 20;
/// From here on there is room for a journal in which many changes go before they have to be written where they belong.
const ROOMY_BYTES: u64 = 256 << 20;
/// What a template is: part of its name, so that none of an earlier making is taken for one.
const KIND: &str = "journal";

/// Why a writable layer could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The size cannot hold a file system.
    #[error("a writable layer needs at least {MIN_BYTES} bytes, {size_bytes} were asked for")]
    TooSmall {
        /// What was asked for.
        size_bytes: u64,
    },
    /// The program is not installed.
    #[error("{PROGRAM} is not installed; it is in the package e2fsprogs (`apt install e2fsprogs`)")]
    ProgramMissing,
    /// The program failed.
    #[error("{} failed ({status}): {}", program.display(), output.trim_end())]
    Failed {
        /// The program.
        program: PathBuf,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it wrote.
        output: String,
    },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ScratchError {
    let path = path.to_owned();
    move |source| ScratchError::Io {
        action,
        path,
        source,
    }
}

/// Makes an empty ext4 file system of `size_bytes` in the new, sparse file `dest`, replacing what is there.
///
/// With a journal: a container can be started again from its writable layer after its guest, or the host, died in the middle of a write. The inode
/// tables and the journal are declared zeroed, which holes are, so that the guest does not write zeros over them in the background, and the journal
/// takes room on the host only as it is used.
///
/// # Errors
/// See [`ScratchError`]; nothing is left at `dest` then that was not there before.
pub fn create_template(dest: &Path, size_bytes: u64) -> Result<(), ScratchError> {
    if size_bytes < MIN_BYTES {
        return Err(ScratchError::TooSmall { size_bytes });
    }
    let program = find_program(PROGRAM, std::env::var_os("PATH").as_deref())
        .ok_or(ScratchError::ProgramMissing)?;
    let unfinished = beside(dest)?;
    unfinished
        .as_file()
        .set_len(size_bytes)
        .map_err(failed("set the size of", dest))?;
    let output = Command::new(&program)
        .args(["-t", "ext4", "-q", "-F", "-m", "0", "-b", "4096", "-U", UUID])
        .args(["-O", "has_journal,^resize_inode"])
        .arg("-J")
        .arg(format!("size={}", journal_mib(size_bytes)))
        .arg("-E")
        .arg(format!(
            "lazy_itable_init=1,lazy_journal_init=1,assume_storage_prezeroed=1,packed_meta_blocks=1,nodiscard,root_owner=0:0,hash_seed={UUID}"
        ))
        .arg(unfinished.path())
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .map_err(failed("run", &program))?;
    if !output.status.success() {
        return Err(ScratchError::Failed {
            program,
            status: output.status,
            output: String::from_utf8_lossy(&output.stderr).into_owned(),
        });
    }
    put_in_place(unfinished, dest)
}

/// The size of the journal of a file system, in MiB.
fn journal_mib(size_bytes: u64) -> u64 {
    if size_bytes < ROOMY_BYTES { 4 } else { 16 }
}

/// The template of `size_bytes` in `folder`, which are made where they are not there.
///
/// # Errors
/// See [`ScratchError`].
pub fn template(folder: &Path, size_bytes: u64) -> Result<PathBuf, ScratchError> {
    let path = folder.join(format!("{KIND}-{size_bytes}.ext4"));
    if !path.exists() {
        std::fs::create_dir_all(folder).map_err(failed("create", folder))?;
        create_template(&path, size_bytes)?;
    }
    Ok(path)
}

/// Copies the file `template` to `dest`, replacing what is there: sharing blocks where possible, else keeping its holes.
///
/// # Errors
/// See [`ScratchError`]; `dest` is then as it was before.
pub fn clone_template(template: &Path, dest: &Path) -> Result<(), ScratchError> {
    let source = File::open(template).map_err(failed("open", template))?;
    let unfinished = beside(dest)?;
    if ioctl_ficlone(unfinished.as_file(), &source).is_err() {
        // Not the same file system, or one that cannot share blocks.
        copy_sparse(&source, unfinished.as_file()).map_err(failed("copy the template to", dest))?;
    }
    put_in_place(unfinished, dest)
}

/// A new file in the folder of `dest`.
fn beside(dest: &Path) -> Result<tempfile::NamedTempFile, ScratchError> {
    let folder = match dest.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    tempfile::Builder::new()
        .prefix(".scratch-")
        .make_in(folder, |path| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)
        })
        .map_err(failed("create a file in", folder))
}

fn put_in_place(unfinished: tempfile::NamedTempFile, dest: &Path) -> Result<(), ScratchError> {
    unfinished
        .persist(dest)
        .map(drop)
        .map_err(|error| failed("create", dest)(error.error))
}

fn copy_sparse(source: &File, dest: &File) -> io::Result<()> {
    const CHUNK_BYTES: usize = 256 << 10;
    let size = source.metadata()?.len();
    dest.set_len(size)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut position = 0;
    while position < size {
        let start = match seek(source, SeekFrom::Data(position)) {
            Ok(start) => start,
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(source, SeekFrom::Hole(start))?.min(size);
        position = start;
        while position < end {
            let want =
                usize::try_from(end - position).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));
            let part = chunk.get_mut(..want).unwrap_or_default();
            source.read_exact_at(part, position)?;
            dest.write_all_at(part, position)?;
            position += want as u64;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    const HOLE: u64 = 64 << 20;

    #[test]
    fn sparse_copy_keeps_data_and_holes() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let file = File::create(&from).unwrap();
        file.set_len(3 * HOLE).unwrap();
        file.write_all_at(b"begin", 0).unwrap();
        file.write_all_at(&[7; 300_000], HOLE + 123).unwrap();
        clone_template(&from, &to).unwrap();
        let copy = File::open(&to).unwrap();
        let metadata = copy.metadata().unwrap();
        assert_eq!(metadata.len(), 3 * HOLE);
        assert!(
            metadata.blocks() * 512 < HOLE,
            "{} blocks",
            metadata.blocks()
        );
        let mut part = vec![0; 300_002];
        copy.read_exact_at(&mut part, HOLE + 122).unwrap();
        assert_eq!(
            (part[0], part[1], part[300_000], part[300_001]),
            (0, 7, 7, 0)
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn clone_of_missing_template_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let error =
            clone_template(&folder.path().join("none"), &folder.path().join("to")).unwrap_err();
        assert!(matches!(error, ScratchError::Io { action: "open", .. }));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn template_too_small_is_refused() {
        let error = create_template(Path::new("/nonexistent"), 4096).unwrap_err();
        assert!(matches!(error, ScratchError::TooSmall { size_bytes: 4096 }));
    }
}
