//! Bounds what is read of a tar.

use std::cell::Cell;
use std::io::{self, Read, Seek, SeekFrom};
use std::rc::Rc;

use super::limits::Limit;

/// How much may still be read. The `tar` crate reads the headers of an entry (long names, PAX records) into memory by itself
/// and without a bound; this is the bound.
pub(crate) struct Meter {
    bytes: u64,
    header_bytes: u64,
    left: Cell<u64>,
    /// Set while headers are being read.
    header_left: Cell<Option<u64>>,
    tripped: Cell<Option<Limit>>,
}

impl Meter {
    /// Allows `bytes` in all, and `header_bytes` each time headers are read.
    pub(crate) fn new(bytes: u64, header_bytes: u64) -> Rc<Self> {
        Rc::new(Self {
            bytes,
            header_bytes,
            left: Cell::new(bytes),
            header_left: Cell::new(None),
            tripped: Cell::new(None),
        })
    }

    /// Runs `read`, which reads the headers of the next entry.
    pub(crate) fn headers<T>(&self, read: impl FnOnce() -> T) -> T {
        self.header_left.set(Some(self.header_bytes));
        let result = read();
        self.header_left.set(None);
        result
    }

    /// The limit that ended reading, if one did.
    pub(crate) fn tripped(&self) -> Option<Limit> {
        self.tripped.get()
    }

    fn spend(&self, count: u64) -> io::Result<()> {
        let exceeded = |limit| {
            self.tripped.set(Some(limit));
            Err(io::Error::other("limit exceeded"))
        };
        match self.left.get().checked_sub(count) {
            Some(left) => self.left.set(left),
            None => return exceeded(Limit::Bytes(self.bytes)),
        }
        match self.header_left.get().map(|left| left.checked_sub(count)) {
            None => Ok(()),
            Some(Some(left)) => {
                self.header_left.set(Some(left));
                Ok(())
            }
            Some(None) => exceeded(Limit::HeaderBytes(self.header_bytes)),
        }
    }
}

/// A stream whose reading is metered.
pub(crate) struct Metered<R> {
    inner: R,
    meter: Rc<Meter>,
    /// Bytes until the next block of the tar begins; `None` if the end is to be taken as it is.
    to_block: Option<usize>,
}

/// A tar consists of blocks of this size.
const BLOCK_BYTES: usize = 512;

impl<R> Metered<R> {
    pub(crate) fn new(inner: R, meter: &Rc<Meter>) -> Self {
        Self {
            inner,
            meter: Rc::clone(meter),
            to_block: None,
        }
    }

    /// As [`Metered::new`], with a last block that was cut short filled up with zeros. Some tools (umoci) end their tars
    /// with the last byte of the last file; whether bytes are missing is for the digest to tell.
    pub(crate) fn padded(inner: R, meter: &Rc<Meter>) -> Self {
        Self {
            to_block: Some(0),
            ..Self::new(inner, meter)
        }
    }
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut n = self.inner.read(buf)?;
        if let Some(left) = self.to_block {
            if n == 0 {
                n = left.min(buf.len());
                buf.get_mut(..n).unwrap_or_default().fill(0);
            }
            let into_block = n % BLOCK_BYTES;
            self.to_block = Some((left + BLOCK_BYTES - into_block) % BLOCK_BYTES);
        }
        self.meter.spend(n as u64)?;
        Ok(n)
    }
}

impl<R: Seek> Seek for Metered<R> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.inner.seek(position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padded_stream_ends_with_a_whole_block() {
        for (len, padded) in [(0, 0), (1, 512), (511, 512), (512, 512), (1500, 1536)] {
            let data = vec![1; len];
            let mut bytes = Vec::new();
            Metered::padded(data.as_slice(), &Meter::new(4096, 0))
                .read_to_end(&mut bytes)
                .unwrap();
            assert_eq!(bytes.len(), padded, "{len}");
            assert!(bytes.starts_with(&data) && bytes.iter().skip(len).all(|byte| *byte == 0));
        }
    }

    #[test]
    fn reading_over_a_limit_names_it() {
        let meter = Meter::new(10, 5);
        let mut stream = Metered::new(io::repeat(0), &meter);
        let mut four = [0; 4];
        stream.read_exact(&mut four).unwrap();
        meter.headers(|| stream.read_exact(&mut four)).unwrap();
        assert_eq!(meter.tripped(), None);
        assert!(meter.headers(|| stream.read(&mut [0; 6])).is_err());
        assert_eq!(meter.tripped(), Some(Limit::Bytes(10)));
    }
}
