//! A part of a file, read without moving the file's own position.

use std::borrow::Borrow;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;

/// The bytes of a file from `position` to `end`.
pub(crate) struct Extent<F> {
    pub(crate) file: F,
    pub(crate) position: u64,
    pub(crate) end: u64,
}

impl<F: Borrow<File>> Read for Extent<F> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.position)).unwrap_or(usize::MAX);
        let want = left.min(buf.len());
        let file: &File = self.file.borrow();
        let n = file.read_at(buf.get_mut(..want).unwrap_or_default(), self.position)?;
        self.position = self.position.saturating_add(n as u64);
        Ok(n)
    }
}
