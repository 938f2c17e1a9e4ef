//! The process whose end is this one's.

use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::JailError;
use crate::enter::process;

/// Has the kernel kill this process when the thread that started it ends. `parent` is a descriptor of its process
/// (pidfd_open(2)): from within another process namespace its number is not to be seen.
///
/// # Errors
/// [`JailError::Process`], and [`JailError::ParentEnded`] when it was too late.
pub fn die_with(parent: impl AsFd) -> Result<(), JailError> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(process("that it ends with its parent"))?;
    let mut fds = [PollFd::new(&parent, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    match poll(&mut fds, Some(&now)).map_err(process("that it ends with its parent"))? {
        0 => Ok(()),
        _ => Err(JailError::ParentEnded),
    }
}
