//! The guest's processors. The kernel brings up at boot what the host says (`maxcpus=`); the others are brought up when a container is to
//! use more (Linux: `Documentation/core-api/cpu_hotplug.rst`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where the kernel has them, as `cpu0`, `cpu1`, …
const FOLDER: &str = "/sys/devices/system/cpu";

/// Why a processor is not used.
#[derive(Debug, thiserror::Error)]
#[error("cannot bring processor {number} up ({})", path.display())]
pub(crate) struct ProcessorError {
    /// Which.
    number: u32,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Has the kernel use at least the first `count`.
pub(crate) fn bring_up(count: u32) -> Result<(), ProcessorError> {
    bring_up_in(Path::new(FOLDER), count)
}

fn bring_up_in(folder: &Path, count: u32) -> Result<(), ProcessorError> {
    // The first is always up, and has no such file.
    for number in 1..count {
        let path = folder.join(format!("cpu{number}/online"));
        let refused = |source| ProcessorError {
            number,
            path: path.clone(),
            source,
        };
        let is_up = fs::read(&path).map_err(refused)?.starts_with(b"1");
        if !is_up {
            fs::write(&path, "1").map_err(refused)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_that_are_down_are_brought_up_and_one_that_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = |number: u32| folder.path().join(format!("cpu{number}/online"));
        for number in 1..=3 {
            fs::create_dir(folder.path().join(format!("cpu{number}"))).unwrap();
            fs::write(file(number), "0\n").unwrap();
        }
        bring_up_in(folder.path(), 1).unwrap();
        assert_eq!(fs::read_to_string(file(1)).unwrap(), "0\n");
        bring_up_in(folder.path(), 3).unwrap();
        let states = [1, 2, 3].map(|number| fs::read_to_string(file(number)).unwrap());
        assert_eq!(states, ["1", "1", "0\n"]);
        let error = bring_up_in(folder.path(), 5).unwrap_err();
        assert!(error.to_string().contains("processor 4"), "{error}");
    }
}
