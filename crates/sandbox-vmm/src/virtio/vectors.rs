//! Guest memory as readv(2) and its kin take it: bytes pass between a file and the guest without a copy in between.

use std::marker::PhantomData;

use vm_memory::volatile_memory::PtrGuardMut;
use vm_memory::{GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap};

use super::chain::Segment;

/// Pieces of memory that a system call fills, or takes bytes from, one after the other.
///
/// All that is guest memory is whole, and stays mapped as long as this lives. Other threads and the guest may access it at
/// the same time, which is why no reference to it exists.
#[derive(Debug)]
pub(crate) struct Vectors<'a> {
    /// The first `passed` are behind us.
    pieces: Vec<libc::iovec>,
    passed: usize,
    guards: Vec<PtrGuardMut>,
    borrowed: PhantomData<&'a mut [u8]>,
}

impl<'a> Vectors<'a> {
    /// Room for so many pieces; more can be added.
    #[must_use]
    pub(crate) fn with_capacity(pieces: usize) -> Self {
        Self {
            pieces: Vec::with_capacity(pieces),
            passed: 0,
            guards: Vec::with_capacity(pieces),
            borrowed: PhantomData,
        }
    }

    /// These pieces of guest memory.
    ///
    /// # Errors
    /// One is not all there.
    pub(crate) fn of_guest(
        memory: &'a GuestMemoryMmap,
        segments: impl Iterator<Item = Segment>,
    ) -> Result<Self, GuestMemoryError> {
        let mut vectors = Self::with_capacity(segments.size_hint().0);
        for segment in segments {
            vectors.add_guest(memory, segment)?;
        }
        Ok(vectors)
    }

    /// Adds a piece of guest memory.
    ///
    /// # Errors
    /// It is not all there.
    pub(crate) fn add_guest(
        &mut self,
        memory: &'a GuestMemoryMmap,
        segment: Segment,
    ) -> Result<(), GuestMemoryError> {
        let length = usize::try_from(segment.length).unwrap_or(usize::MAX);
        let guard = memory.get_slice(segment.address, length)?.ptr_guard_mut();
        self.pieces.push(libc::iovec {
            iov_base: guard.as_ptr().cast(),
            iov_len: length,
        });
        self.guards.push(guard);
        Ok(())
    }

    /// Adds memory of the monitor's.
    pub(crate) fn add_own(&mut self, bytes: &'a mut [u8]) {
        self.pieces.push(libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        });
    }

    /// Leaves out the next `bytes` bytes.
    pub(crate) fn advance(&mut self, mut bytes: usize) {
        while let Some(first) = self.pieces.get_mut(self.passed) {
            if bytes < first.iov_len {
                first.iov_base = first.iov_base.wrapping_byte_add(bytes);
                first.iov_len -= bytes;
                return;
            }
            bytes -= first.iov_len;
            self.passed += 1;
        }
    }

    /// What is left.
    #[must_use]
    pub(crate) fn as_slice(&self) -> &[libc::iovec] {
        self.pieces.get(self.passed..).unwrap_or_default()
    }
}
