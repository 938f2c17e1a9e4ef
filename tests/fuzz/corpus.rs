//! What a fuzz target begins from, replayed. Shared by the tests that do so.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The inputs in a corpus, and where they are.
pub(crate) fn inputs(corpus: &str) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = package
        .ancestors()
        .map(|above| above.join("tests/fuzz/corpus").join(corpus))
        .find(|folder| folder.is_dir())
        .ok_or(io::ErrorKind::NotFound)?;
    let mut inputs = fs::read_dir(folder)?
        .map(|entry| {
            let path = entry?.path();
            let bytes = fs::read(&path)?;
            Ok((path, bytes))
        })
        .collect::<io::Result<Vec<_>>>()?;
    inputs.sort();
    Ok(inputs)
}

/// Holds `check` to every input of a corpus that has at least so many.
pub(crate) fn replay(
    corpus: &str,
    least: usize,
    check: impl Fn(&[u8]) -> Result<(), String>,
) -> Result<(), String> {
    let inputs = inputs(corpus).map_err(|error| format!("corpus {corpus}: {error}"))?;
    for (path, bytes) in &inputs {
        check(bytes).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    match inputs.len() {
        count if count < least => Err(format!("corpus {corpus} has {count} inputs")),
        _ => Ok(()),
    }
}
