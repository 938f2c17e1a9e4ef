//! Descriptors handed over by number, and borrowing from types without [`AsFd`](std::os::fd::AsFd).
#![expect(
    unsafe_code,
    reason = "descriptors arrive as numbers from the parent process, and EventFd has no AsFd"
)]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use vmm_sys_util::eventfd::EventFd;

/// A descriptor number that cannot be taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FdError {
    /// Nothing is open under this number.
    #[error("descriptor {fd} ({purpose}) is not open in this process")]
    NotOpen {
        /// The number.
        fd: RawFd,
        /// What it was to be.
        purpose: &'static str,
    },
    /// The configuration names a number twice.
    #[error("descriptor {fd} ({purpose}) is already used for something else")]
    Taken {
        /// The number.
        fd: RawFd,
        /// What it was to be.
        purpose: &'static str,
    },
}

/// Takes over descriptors that the parent process left open, each once.
#[derive(Debug, Default)]
pub struct Inherited {
    taken: Vec<RawFd>,
}

impl Inherited {
    /// No descriptor taken yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes over descriptor `fd`.
    ///
    /// # Errors
    /// [`FdError`] if it is not open or was taken before. The standard three are never given away.
    pub fn take(&mut self, fd: RawFd, purpose: &'static str) -> Result<OwnedFd, FdError> {
        if fd <= 2 || self.taken.contains(&fd) {
            return Err(FdError::Taken { fd, purpose });
        }
        // SAFETY: fcntl(F_GETFD) has no memory operands and changes nothing.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
            return Err(FdError::NotOpen { fd, purpose });
        }
        self.taken.push(fd);
        // SAFETY: it is open, it was inherited so nothing in this process owns it, and `taken` keeps it
        // from being handed out again.
        let owned = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: fcntl(F_SETFD) has no memory operands.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        Ok(owned)
    }
}

/// Borrows from an event descriptor, for as long as it lives.
#[must_use]
pub fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor stays open while `event` is borrowed, which the lifetime of the result
    // enforces.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
