//! Descriptors handed over by number, or with a message, and borrowing from types without [`AsFd`](std::os::fd::AsFd).
#![expect(
    unsafe_code,
    reason = "descriptors arrive as numbers from the parent process, and EventFd has no AsFd"
)]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use vmm_sys_util::eventfd::EventFd;

/// A descriptor number that cannot be taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FdError {
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
pub(crate) struct Inherited {
    taken: Vec<RawFd>,
}

impl Inherited {
    /// No descriptor taken yet.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Takes over descriptor `fd`.
    ///
    /// # Errors
    /// [`FdError`] if it is not open or was taken before. The standard three are never given away.
    pub(crate) fn take(&mut self, fd: RawFd, purpose: &'static str) -> Result<OwnedFd, FdError> {
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

/// The place of a descriptor among those that came with a message, of which there is none to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PassedError {
    /// Fewer came.
    #[error("descriptor {index} ({purpose}) did not come with the message")]
    Missing {
        /// Its place.
        index: usize,
        /// What it was to be.
        purpose: &'static str,
    },
    /// The message names a place twice.
    #[error("descriptor {index} ({purpose}) of the message is already used for something else")]
    Taken {
        /// Its place.
        index: usize,
        /// What it was to be.
        purpose: &'static str,
    },
    /// The message does not name a place.
    #[error("descriptor {index} came with the message and is not used for anything")]
    Unused {
        /// Its place.
        index: usize,
    },
}

/// Descriptors that came with a message, to be taken once each.
#[derive(Debug)]
pub(crate) struct Passed {
    fds: Vec<Option<OwnedFd>>,
}

impl Passed {
    /// In the order in which they came.
    #[must_use]
    pub(crate) fn new(fds: Vec<OwnedFd>) -> Self {
        Self {
            fds: fds.into_iter().map(Some).collect(),
        }
    }

    /// Takes the one at this place.
    ///
    /// # Errors
    /// [`PassedError`] if there is none, or it was taken before.
    pub(crate) fn take(
        &mut self,
        index: usize,
        purpose: &'static str,
    ) -> Result<OwnedFd, PassedError> {
        let place = self
            .fds
            .get_mut(index)
            .ok_or(PassedError::Missing { index, purpose })?;
        place.take().ok_or(PassedError::Taken { index, purpose })
    }

    /// To be called when all are taken.
    ///
    /// # Errors
    /// [`PassedError::Unused`] if they are not.
    pub(crate) fn finish(self) -> Result<(), PassedError> {
        match self.fds.iter().position(Option::is_some) {
            Some(index) => Err(PassedError::Unused { index }),
            None => Ok(()),
        }
    }
}

/// Borrows from an event descriptor, for as long as it lives.
#[must_use]
pub fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor stays open while `event` is borrowed, which the lifetime of the result
    // enforces.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
