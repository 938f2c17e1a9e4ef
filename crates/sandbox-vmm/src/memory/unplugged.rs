//! What a device meets that a driver points at memory which the guest does not have at the time ([`super::later`]): `SIGSEGV`.
//!
//! The process ends with [`UNPLUGGED_EXIT_CODE`] and a line on standard error: a guest that does so has ended itself. System calls do not
//! get here: they fail with `EFAULT`.

use std::io;
use std::ops::Range;

use sandbox_types::monitor::UNPLUGGED_EXIT_CODE;

use super::fault::Fault;

pub(super) static FAULT: Fault = Fault::new(
    libc::SIGSEGV,
    UNPLUGGED_EXIT_CODE,
    b"the guest had a device use memory that it was not given, or that it had given back\n",
);

/// Installs the handler for faults in `memory`, of which a process has one.
///
/// # Errors
/// What the kernel says.
pub fn end_when_used(memory: &Range<usize>) -> io::Result<()> {
    FAULT.end_process(memory)
}
