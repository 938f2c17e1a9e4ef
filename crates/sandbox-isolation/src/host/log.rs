//! This machine's kernel log.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, Instant};

use nix::libc;

/// The log, from some moment on.
pub(crate) struct KernelLog(File);

impl KernelLog {
    /// From now on.
    pub(crate) fn from_now_on() -> io::Result<Self> {
        let mut log = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")?;
        log.seek(SeekFrom::End(0))?;
        Ok(Self(log))
    }

    /// How many records since have `mark` in them: up to `most`, and of those that come within a second. Behind one that is still
    /// being written none is given.
    pub(crate) fn count(&self, mark: &str, most: u64) -> u64 {
        let end = Instant::now() + Duration::from_secs(1);
        let mut record = [0u8; 8192];
        let mut found = 0;
        // Each read gives one record (Documentation/ABI/testing/dev-kmsg).
        for _ in 0..10_000 {
            match (&self.0).read(&mut record) {
                Ok(length) => {
                    let text = String::from_utf8_lossy(record.get(..length).unwrap_or_default());
                    found += u64::from(text.contains(mark));
                    if found >= most {
                        break;
                    }
                }
                // Records were overwritten before they were read.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(_) => break,
            }
        }
        found
    }
}
