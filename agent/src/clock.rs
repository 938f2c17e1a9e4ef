//! The guest's clock, kept to the host's.
//!
//! The host says what time it is; that message is late by the time it took. Under KVM the kernel can ask the host
//! itself (`CONFIG_PTP_1588_CLOCK_KVM`), and then the message only confirms it. A clock that is far off is set; one
//! that is near is sped up or slowed down until it is right, so that programs see no jump.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use crate::sys;

/// A clock that is off by this much is set (ntpd's step threshold). Less is made up for at 0.5 ms a second.
const STEP: Duration = Duration::from_millis(128);
/// How far the paravirtual clock may be from what the host said and still be the clock that the host means.
const PLAUSIBLE: Duration = Duration::from_secs(10);
/// The paravirtual clock of KVM's guests.
const PTP_DEVICE: &str = "/dev/ptp0";
/// Its name.
const PTP_NAME: (&str, &str) = ("/sys/class/ptp/ptp0/clock_name", "KVM virtual PTP");
const NS_PER_SECOND: i64 = 1_000_000_000;

/// Why the clock could not be set.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClockError {
    /// Not a time that the clock can have.
    #[error("{unix_time_ns} ns since 1970 is no time that the clock can have")]
    Time {
        /// What the host sent.
        unix_time_ns: u64,
    },
    /// The kernel refused.
    #[error("cannot {what} the guest's clock")]
    Refused {
        /// Set or adjust.
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

/// What is to be done about a clock that is off by so much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Correction {
    Step,
    /// By so many microseconds.
    Slew(i64),
}

fn correction(offset_ns: i64) -> Correction {
    if Duration::from_nanos(offset_ns.unsigned_abs()) >= STEP {
        Correction::Step
    } else {
        Correction::Slew(offset_ns / 1000)
    }
}

fn nanoseconds(time: Timespec) -> Option<i64> {
    time.tv_sec
        .checked_mul(NS_PER_SECOND)?
        .checked_add(time.tv_nsec)
}

/// What the paravirtual clock says, if there is one.
fn paravirtual() -> Option<i64> {
    let (path, name) = PTP_NAME;
    if fs::read_to_string(path).ok()?.trim() != name {
        return None;
    }
    let device = File::open(PTP_DEVICE).ok()?;
    nanoseconds(sys::clock_of(device.as_fd()).ok()?)
}

fn target(unix_time_ns: u64) -> Result<i64, ClockError> {
    let told = i64::try_from(unix_time_ns).map_err(|_| ClockError::Time { unix_time_ns })?;
    let exact =
        paravirtual().filter(|exact| Duration::from_nanos(exact.abs_diff(told)) <= PLAUSIBLE);
    Ok(exact.unwrap_or(told))
}

fn step(to_ns: i64) -> Result<(), ClockError> {
    let time = Timespec {
        tv_sec: to_ns / NS_PER_SECOND,
        tv_nsec: to_ns % NS_PER_SECOND,
    };
    clock_settime(ClockId::Realtime, time).map_err(|errno| ClockError::Refused {
        what: "set",
        source: errno.into(),
    })
}

/// Sets the clock, before there is anybody who could see it jump.
pub(crate) fn set(unix_time_ns: u64) -> Result<(), ClockError> {
    step(target(unix_time_ns)?)
}

/// Corrects the clock.
pub(crate) fn correct(unix_time_ns: u64) -> Result<(), ClockError> {
    let target = target(unix_time_ns)?;
    let now = nanoseconds(clock_gettime(ClockId::Realtime)).unwrap_or(0);
    match correction(target.saturating_sub(now)) {
        Correction::Step => step(target),
        Correction::Slew(microseconds) => {
            sys::slew(microseconds).map_err(|source| ClockError::Refused {
                what: "adjust",
                source,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_that_is_far_off_is_set_and_one_that_is_near_is_slewed() {
        assert_eq!(correction(128_000_000), Correction::Step);
        assert_eq!(correction(i64::MIN), Correction::Step);
        assert_eq!(correction(127_999_999), Correction::Slew(127_999));
        assert_eq!(correction(-5_000), Correction::Slew(-5));
        assert_eq!(correction(0), Correction::Slew(0));
    }

    #[test]
    fn time_after_the_year_2262_is_refused() {
        assert!(matches!(set(u64::MAX), Err(ClockError::Time { .. })));
    }
}
