//! The shim's log: containerd reads it from a fifo named `log` in the bundle; `sandboxctl` has a file there.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Mutex;

use sandbox_protocol::bundle::LOG_FILE;
use tracing_subscriber::filter::LevelFilter;

/// Opens the bundle's log. A fifo is opened for both directions, so that a reader that comes late or never blocks
/// nobody and breaks nothing; what does not fit is dropped. `None` when there is no log.
pub(crate) fn open(bundle: &Path) -> Option<File> {
    let path = bundle.join(LOG_FILE);
    let is_fifo = std::fs::metadata(&path).ok()?.file_type().is_fifo();
    let mut options = OpenOptions::new();
    if is_fifo {
        options
            .read(true)
            .write(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
    } else {
        options.append(true);
    }
    options.open(path).ok()
}

/// Sends the process's log to the bundle's.
pub(crate) fn install(bundle: &Path, level: LevelFilter) {
    let Some(file) = open(bundle) else { return };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .with_target(false)
        .with_writer(Mutex::new(file))
        .init();
}
