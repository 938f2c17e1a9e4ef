//! Files that are replaced as a whole.

use std::io;
use std::path::{Path, PathBuf};

/// Replaces `path` so that a reader sees the old or the new contents, never half. It is not waited for the disk.
///
/// # Errors
/// As of the system.
pub fn write_atomically(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    std::fs::write(&new, contents)?;
    std::fs::rename(&new, path)
}
