//! Making EROFS images with `mkfs.erofs`, and telling whole ones from damaged ones.
//!
//! Images are uncompressed and file data is never packed into inodes (`noinline_data`), so that a guest can map
//! every file's pages directly (DAX). `mkfs.erofs` writes the time of the build into the superblock, and the option that fixes it
//! (`-T`) would overwrite every file's own time too; so inodes are made in the extended form, which does not refer to the
//! superblock's time, and that time is set to zero afterwards.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where the superblock is (Linux `fs/erofs/erofs_fs.h`, `EROFS_SUPER_OFFSET`).
const SUPER_OFFSET: usize = 1024;
/// `EROFS_SUPER_MAGIC_V1`.
const MAGIC: u32 = 0xe0f5_e1e2;
/// `EROFS_FEATURE_COMPAT_SB_CHKSUM`.
const FEATURE_SB_CHECKSUM: u32 = 1;
/// The block size asked for; the checksum covers the first block from the superblock on.
const BLOCK_BYTES: usize = 4096;
const BLOCK_BITS: u8 = 12;

// `struct erofs_super_block`, offsets from its beginning.
const CHECKSUM: usize = 4;
const FEATURE_COMPAT: usize = 8;
const BLOCK_SIZE_BITS: usize = 12;
const BUILD_TIME: usize = 24;
const BUILD_TIME_LEN: usize = 12;
const BLOCKS: usize = 36;

const PROGRAM: &str = "mkfs.erofs";

/// Why an EROFS image could not be made or is not one.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// The program is not installed.
    #[error(
        "{PROGRAM} is not installed; it is in the package erofs-utils (`apt install erofs-utils`)"
    )]
    ProgramMissing,
    /// The program could not be run.
    #[error("cannot run {}", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The program failed.
    #[error("{} failed ({status}): {}", program.display(), output.trim_end())]
    Failed {
        /// The program.
        program: PathBuf,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The end of what it wrote.
        output: String,
    },
    /// The image could not be read or written.
    #[error("cannot {action} the EROFS image")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The file has no EROFS superblock with a right checksum.
    #[error("the EROFS superblock is damaged")]
    Superblock,
    /// The file is shorter than the file system in it.
    #[error("the file has {found} bytes instead of {expected}")]
    Length {
        /// By the superblock.
        expected: u64,
        /// The file.
        found: u64,
    },
}

/// Makes an EROFS image of the folder `tree` in the file `image`, with `uuid` as its identifier.
pub fn make(tree: &Path, image: &Path, uuid: [u8; 16]) -> Result<(), ErofsError> {
    let program = find_program(PROGRAM, std::env::var_os("PATH").as_deref())
        .ok_or(ErofsError::ProgramMissing)?;
    let output = Command::new(&program)
        .args(["--quiet", "-Eforce-inode-extended,noinline_data"])
        .arg(format!("-U{}", format_uuid(uuid)))
        .arg(image)
        .arg(tree)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .map_err(|source| ErofsError::Run {
            program: program.clone(),
            source,
        })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let tail: Vec<&str> = text.lines().rev().take(5).collect();
        return Err(ErofsError::Failed {
            program,
            status: output.status,
            output: tail.into_iter().rev().collect::<Vec<_>>().join("; "),
        });
    }
    let io = |action| move |source| ErofsError::Io { action, source };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(image)
        .map_err(io("open"))?;
    clear_build_time(&file)?;
    checked_size(&file)?;
    Ok(())
}

/// The size of an EROFS image whose superblock is right and which is not cut short.
pub(crate) fn checked_size(file: &File) -> Result<u64, ErofsError> {
    let block = first_block(file)?;
    if block.checksum != block.expected_checksum() {
        return Err(ErofsError::Superblock);
    }
    let found = file
        .metadata()
        .map_err(|source| ErofsError::Io {
            action: "examine",
            source,
        })?
        .len();
    let expected = u64::from(block.u32_at(BLOCKS)) << BLOCK_BITS;
    if found < expected {
        return Err(ErofsError::Length { expected, found });
    }
    Ok(found)
}

/// The first block from the superblock on, with the checksum taken out.
struct FirstBlock {
    bytes: [u8; BLOCK_BYTES - SUPER_OFFSET],
    checksum: u32,
}

impl FirstBlock {
    fn u32_at(&self, offset: usize) -> u32 {
        let mut value = [0; 4];
        if let Some(bytes) = self.bytes.get(offset..offset + 4) {
            value.copy_from_slice(bytes);
        }
        u32::from_le_bytes(value)
    }

    fn expected_checksum(&self) -> u32 {
        if self.u32_at(FEATURE_COMPAT) & FEATURE_SB_CHECKSUM == 0 {
            return self.checksum;
        }
        crc32c(&self.bytes)
    }
}

fn first_block(file: &File) -> Result<FirstBlock, ErofsError> {
    let mut bytes = [0; BLOCK_BYTES - SUPER_OFFSET];
    match file.read_exact_at(&mut bytes, SUPER_OFFSET as u64) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(ErofsError::Superblock);
        }
        result => result.map_err(|source| ErofsError::Io {
            action: "read",
            source,
        })?,
    }
    let mut block = FirstBlock { bytes, checksum: 0 };
    block.checksum = block.u32_at(CHECKSUM);
    block.bytes[CHECKSUM..CHECKSUM + 4].fill(0);
    if block.u32_at(0) != MAGIC || block.bytes[BLOCK_SIZE_BITS] != BLOCK_BITS {
        return Err(ErofsError::Superblock);
    }
    Ok(block)
}

fn clear_build_time(file: &File) -> Result<(), ErofsError> {
    let mut block = first_block(file)?;
    block.bytes[BUILD_TIME..BUILD_TIME + BUILD_TIME_LEN].fill(0);
    let checksum = block.expected_checksum().to_le_bytes();
    block.bytes[CHECKSUM..CHECKSUM + 4].copy_from_slice(&checksum);
    file.write_all_at(&block.bytes, SUPER_OFFSET as u64)
        .map_err(|source| ErofsError::Io {
            action: "write",
            source,
        })
}

/// CRC-32C as EROFS uses it: seeded with ones, not inverted at the end (`fs/erofs/super.c`).
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 {
                (crc >> 1) ^ POLYNOMIAL
            } else {
                crc >> 1
            }
        })
    })
}

/// A program in `PATH` or in the folders for system programs, which a user's `PATH` may lack.
pub(crate) fn find_program(name: &str, path: Option<&OsStr>) -> Option<PathBuf> {
    let folders: Vec<PathBuf> = path
        .map(|path| std::env::split_paths(path).collect())
        .unwrap_or_default();
    folders
        .into_iter()
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from))
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
}

fn format_uuid(bytes: [u8; 16]) -> String {
    let digits = hex::encode(bytes);
    let parts =
        [0..8, 8..12, 12..16, 16..20, 20..32].map(|range| digits.get(range).unwrap_or_default());
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_of_check_string_is_the_published_value() {
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn uuid_has_its_usual_form() {
        assert_eq!(
            format_uuid([0xab; 16]),
            "abababab-abab-abab-abab-abababababab"
        );
    }

    #[test]
    fn file_that_is_no_image_is_reported_as_damaged() {
        let file = tempfile::tempfile().unwrap();
        assert!(matches!(checked_size(&file), Err(ErofsError::Superblock)));
        file.set_len(8192).unwrap();
        assert!(matches!(checked_size(&file), Err(ErofsError::Superblock)));
    }

    #[test]
    fn program_that_is_nowhere_is_not_found() {
        assert_eq!(
            find_program(
                "no-such-program-anywhere",
                Some(OsStr::new("/bin:relative"))
            ),
            None
        );
    }
}
