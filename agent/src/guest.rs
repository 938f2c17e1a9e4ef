//! The guest's clock, name and memory, and its end.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use rustix::system::RebootCommand;
use sandbox_types::monitor::{EXIT_PORT, POWER_OFF};

use crate::clock::{self, ClockError};

/// Why the guest could not be configured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuestError {
    /// The clock.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// The host name.
    #[error("cannot set the guest's host name")]
    Hostname(#[source] io::Error),
}

/// Sets the clock and, unless it is empty, the host name.
pub(crate) fn configure(unix_time_ns: u64, hostname: &str) -> Result<(), GuestError> {
    clock::set(unix_time_ns)?;
    if !hostname.is_empty() {
        rustix::system::sethostname(hostname.as_bytes())
            .map_err(|errno| GuestError::Hostname(errno.into()))?;
    }
    Ok(())
}

/// The memory that the kernel hands out, in bytes (`totalram` of sysinfo(2)).
pub(crate) fn memory_bytes() -> u64 {
    let memory = rustix::system::sysinfo();
    memory.totalram.saturating_mul(memory.mem_unit.into())
}

/// Writes everything back and ends the machine.
pub(crate) fn power_off() -> io::Error {
    rustix::fs::sync();
    let port = File::options().write(true).open("/dev/port");
    let written = port.and_then(|port| port.write_all_at(&[POWER_OFF], u64::from(EXIT_PORT)));
    // Still here: no such device. A reset ends the machine too, if less cleanly.
    if let Err(error) = written {
        crate::log!("cannot write to the exit port: {error}");
    }
    match rustix::system::reboot(RebootCommand::Restart) {
        Err(errno) => errno.into(),
        Ok(()) => io::ErrorKind::Other.into(),
    }
}
