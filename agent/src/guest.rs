//! The guest's clock and name, and its end.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use rustix::system::RebootCommand;
use rustix::time::{ClockId, Timespec, clock_settime};
use sandbox_types::monitor::{EXIT_PORT, POWER_OFF};

/// Why the guest could not be configured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuestError {
    /// Not a time that the clock can have.
    #[error("{unix_time_ns} ns since 1970 is no time that the clock can have")]
    Time {
        /// What the host sent.
        unix_time_ns: u64,
    },
    /// The kernel refused.
    #[error("cannot set the guest's {what}")]
    Refused {
        /// Clock or name.
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

/// Sets the clock and, unless it is empty, the host name.
pub(crate) fn configure(unix_time_ns: u64, hostname: &str) -> Result<(), GuestError> {
    let refused = |what| {
        move |errno: rustix::io::Errno| GuestError::Refused {
            what,
            source: errno.into(),
        }
    };
    let seconds = i64::try_from(unix_time_ns / 1_000_000_000);
    let nanoseconds = i64::try_from(unix_time_ns % 1_000_000_000);
    let (Ok(tv_sec), Ok(tv_nsec)) = (seconds, nanoseconds) else {
        return Err(GuestError::Time { unix_time_ns });
    };
    clock_settime(ClockId::Realtime, Timespec { tv_sec, tv_nsec }).map_err(refused("clock"))?;
    if !hostname.is_empty() {
        rustix::system::sethostname(hostname.as_bytes()).map_err(refused("host name"))?;
    }
    Ok(())
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
