//! Files of JSON in which is kept what is to be known later.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sandbox_runtime::files::write_atomically;
use serde::de::DeserializeOwned;

/// Why one cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateFileError {
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// It is not what was written.
    #[error("{} is damaged; {remedy}", path.display())]
    Damaged {
        path: PathBuf,
        remedy: &'static str,
        source: serde_json::Error,
    },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateFileError {
    let path = path.to_owned();
    move |source| StateFileError::Io {
        action,
        path,
        source,
    }
}

/// What is in a file. `remedy` is what to do where it is damaged.
pub(crate) fn read<T: DeserializeOwned>(
    path: &Path,
    remedy: &'static str,
) -> Result<T, StateFileError> {
    let text = fs::read(path).map_err(failed("read", path))?;
    serde_json::from_slice(&text).map_err(|source| StateFileError::Damaged {
        path: path.to_owned(),
        remedy,
        source,
    })
}

/// As [`read`], and none where there is no such file.
pub(crate) fn read_if_there<T: DeserializeOwned>(
    path: &Path,
    remedy: &'static str,
) -> Result<Option<T>, StateFileError> {
    match read(path, remedy) {
        Err(StateFileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        read => read.map(Some),
    }
}

/// Replaces a file as a whole.
pub(crate) fn write(path: &Path, text: serde_json::Result<Vec<u8>>) -> Result<(), StateFileError> {
    text.map_err(io::Error::from)
        .and_then(|text| write_atomically(path, &text))
        .map_err(failed("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_that_is_missing_or_damaged_is_told_from_one_that_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let missing = read_if_there::<Vec<u32>>(&path, "remove it").unwrap();
        assert_eq!(missing, None);
        let missing = read::<Vec<u32>>(&path, "remove it").unwrap_err();
        assert!(missing.to_string().starts_with("cannot read "), "{missing}");

        write(&path, serde_json::to_vec(&[1, 2])).unwrap();
        assert_eq!(read::<Vec<u32>>(&path, "remove it").unwrap(), [1, 2]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

        fs::write(&path, "[1,").unwrap();
        let damaged = read_if_there::<Vec<u32>>(&path, "remove it").unwrap_err();
        assert!(
            damaged
                .to_string()
                .ends_with("state.json is damaged; remove it"),
            "{damaged}"
        );
    }
}
