//! Bytes of the guest's that wait for a slow host socket.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};

/// A queue of bytes. It holds no memory while empty; the credit that the connection advertises bounds it.
#[derive(Debug, Default)]
pub(crate) struct Backlog(VecDeque<u8>);

impl Backlog {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Appends bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    /// Forgets all bytes.
    pub(crate) fn clear(&mut self) {
        self.0 = VecDeque::new();
    }

    /// Writes what `socket` takes and says how much that was; zero when it takes nothing now.
    ///
    /// # Errors
    /// What the kernel said, other than `WouldBlock`.
    pub(crate) fn flush<W: Write>(&mut self, mut socket: W) -> io::Result<usize> {
        let mut done: usize = 0;
        while !self.0.is_empty() {
            let (head, tail) = self.0.as_slices();
            match socket.write_vectored(&[IoSlice::new(head), IoSlice::new(tail)]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.0.drain(..count.min(self.0.len()));
                    done = done.saturating_add(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(done),
                Err(error) => return Err(error),
            }
        }
        self.clear();
        Ok(done)
    }
}
