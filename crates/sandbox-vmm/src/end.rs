//! How the machine ends: the first to say so wins, and the main thread is woken.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock};

use sandbox_types::monitor::GuestExit;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Shared by everyone who can end the machine.
#[derive(Debug, Clone)]
pub struct MachineEnd {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    exit: OnceLock<GuestExit>,
    event: EventFd,
}

impl MachineEnd {
    /// A machine that has not ended.
    ///
    /// # Errors
    /// No event descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared {
                exit: OnceLock::new(),
                event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            }),
        })
    }

    /// The machine ends like this, unless it already ended otherwise.
    pub fn set(&self, exit: GuestExit) {
        if self.shared.exit.set(exit).is_ok()
            && let Err(error) = self.shared.event.write(1)
        {
            eprintln!("sandbox-vmm: cannot tell the main thread of the guest's end: {error}");
        }
    }

    /// How it ended, once it has.
    #[must_use]
    pub fn get(&self) -> Option<&GuestExit> {
        self.shared.exit.get()
    }
}

impl AsFd for MachineEnd {
    /// Readable once the machine has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        crate::fd::borrow(&self.shared.event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_end_wins() {
        let end = MachineEnd::new().unwrap();
        assert_eq!(end.get(), None);
        end.set(GuestExit::Shutdown);
        end.set(GuestExit::Reset);
        assert_eq!(end.get(), Some(&GuestExit::Shutdown));
    }
}
