//! The guest's console: a ring in a memory file, in the layout of
//! [`sandbox_types::monitor::console_ring`], and the watch for a kernel panic.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sandbox_types::monitor::console_ring::{DATA_BYTES, FILE_BYTES, HEADER_BYTES};
use vm_memory::mmap::MmapRegionError;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

/// What a panicking Linux says first (`kernel/panic.c`).
const PANIC: &[u8] = b"Kernel panic";

/// Why the console's memory file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// Its size is not known.
    #[error("cannot find out the size of the console's memory file")]
    Size {
        /// What the kernel said.
        source: io::Error,
    },
    /// It is too short: writing to it would end the process.
    #[error("the console's memory file has {bytes} bytes, and needs {FILE_BYTES}")]
    TooShort {
        /// What it has.
        bytes: u64,
    },
    /// It cannot be mapped.
    #[error("cannot map the console's memory file of {FILE_BYTES} bytes")]
    Map {
        /// Why.
        source: MmapRegionError,
    },
}

/// Whether the guest's kernel said that it panicked. Clones are the same flag.
#[derive(Debug, Clone, Default)]
pub struct PanicFlag {
    seen: Arc<AtomicBool>,
}

impl PanicFlag {
    /// Whether it did.
    #[must_use]
    pub(crate) fn is_set(&self) -> bool {
        self.seen.load(Ordering::Acquire)
    }
}

/// The console's writing end.
#[derive(Debug)]
pub struct ConsoleRing {
    map: MmapRegion,
    written: u64,
    /// How many bytes of [`PANIC`] the last bytes were.
    matched: usize,
    panic: PanicFlag,
}

impl ConsoleRing {
    /// A console that goes into `file`.
    ///
    /// # Errors
    /// [`ConsoleError`], also when the file is too short.
    pub fn new(file: File) -> Result<Self, ConsoleError> {
        let bytes = file
            .metadata()
            .map_err(|source| ConsoleError::Size { source })?
            .len();
        if bytes < FILE_BYTES as u64 {
            return Err(ConsoleError::TooShort { bytes });
        }
        let map = MmapRegion::from_file(FileOffset::new(file, 0), FILE_BYTES)
            .map_err(|source| ConsoleError::Map { source })?;
        Ok(Self {
            map,
            written: 0,
            matched: 0,
            panic: PanicFlag::default(),
        })
    }

    /// Tells whether the kernel panicked.
    #[must_use]
    pub fn panic_flag(&self) -> PanicFlag {
        self.panic.clone()
    }

    fn put(&mut self, byte: u8) -> io::Result<()> {
        self.watch(byte);
        let whole = self.map.as_volatile_slice();
        // The remainder is less than DATA_BYTES, so it fits and the sum is inside the mapping.
        let position = usize::try_from(self.written % DATA_BYTES as u64).unwrap_or(0);
        whole
            .write_obj(byte, HEADER_BYTES + position)
            .map_err(io::Error::other)?;
        self.written = self.written.wrapping_add(1);
        // Last, so that the count never covers a byte that is not there yet.
        whole
            .store(self.written.to_le(), 0, Ordering::Release)
            .map_err(io::Error::other)
    }

    fn watch(&mut self, byte: u8) {
        // No proper prefix of PANIC is also its suffix, except for none or its first byte.
        self.matched = if PANIC.get(self.matched) == Some(&byte) {
            self.matched + 1
        } else {
            usize::from(PANIC.first() == Some(&byte))
        };
        if self.matched == PANIC.len() {
            self.matched = 0;
            self.panic.seen.store(true, Ordering::Release);
        }
    }
}

impl Write for ConsoleRing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.put(*byte)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn ring() -> (ConsoleRing, File) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(FILE_BYTES as u64).unwrap();
        (ConsoleRing::new(file.try_clone().unwrap()).unwrap(), file)
    }

    #[test]
    fn bytes_over_the_end_go_round_and_are_counted() {
        let (mut ring, file) = ring();
        ring.write_all(&vec![b'a'; DATA_BYTES - 1]).unwrap();
        ring.write_all(b"xyz").unwrap();
        let mut count = [0; 8];
        file.read_exact_at(&mut count, 0).unwrap();
        assert_eq!(u64::from_le_bytes(count), DATA_BYTES as u64 + 2);
        let mut first = [0; 3];
        file.read_exact_at(&mut first, HEADER_BYTES as u64).unwrap();
        assert_eq!(&first, b"yza");
        let mut last = [0; 1];
        file.read_exact_at(&mut last, FILE_BYTES as u64 - 1)
            .unwrap();
        assert_eq!(&last, b"x");
    }

    #[test]
    fn panic_in_pieces_and_after_a_false_start_is_seen() {
        let (mut ring, _file) = ring();
        let flag = ring.panic_flag();
        ring.write_all(b"Kernel pKernel pan").unwrap();
        assert!(!flag.is_set());
        ring.write_all(b"ic - not syncing").unwrap();
        assert!(flag.is_set());
    }

    #[test]
    fn file_that_is_too_short_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(100).unwrap();
        assert!(matches!(
            ConsoleRing::new(file),
            Err(ConsoleError::TooShort { bytes: 100 })
        ));
    }
}
