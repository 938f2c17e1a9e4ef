//! What a device meets that reads from a file of a [`Window`](super::window::Window) where that is missing: `SIGBUS`.
//!
//! The process ends with [`FILE_LOST_EXIT_CODE`] and a line on standard error; the guest could not go on without its file.

use std::io;
use std::ops::Range;

use sandbox_types::monitor::FILE_LOST_EXIT_CODE;

use super::fault::Fault;

pub(super) static FAULT: Fault = Fault::new(
    libc::SIGBUS,
    FILE_LOST_EXIT_CODE,
    b"a device read from a file of the guest's persistent memory that is no longer there as it was\n",
);

/// Installs the handler for faults in `window`, of which a process has one.
///
/// # Errors
/// What the kernel says.
pub fn end_when_read(window: &Range<usize>) -> io::Result<()> {
    FAULT.end_process(window)
}
