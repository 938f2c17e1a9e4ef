//! How often something may be done, and a timer for when it may.
//!
//! A [`Bucket`] knows until when what passed is paid for. Something may pass as long as that is at most its burst ahead of now,
//! however large it is, and then puts it off by its own cost. So nothing waits for ever, and in any time `t` at
//! most `rate * (t + burst)` passes, and once more for each that asks at the same time. (It is the virtual scheduling form of the generic cell
//! rate algorithm, ITU-T I.371, annex A.)

use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};

const SECOND_NS: u128 = 1_000_000_000;

/// What may pass in a second, of anything that is counted.
#[derive(Debug)]
pub(crate) struct Bucket {
    rate: NonZeroU64,
    burst_ns: u64,
    /// Until when all that passed is paid for, on the caller's clock in nanoseconds.
    paid_until: u64,
}

impl Bucket {
    /// Lets `rate` pass in a second, and after a rest as much at once as otherwise in the time `burst`.
    #[must_use]
    pub(crate) fn new(rate: NonZeroU64, burst: Duration) -> Self {
        Self {
            rate,
            burst_ns: u64::try_from(burst.as_nanos()).unwrap_or(u64::MAX),
            paid_until: 0,
        }
    }

    /// How many nanoseconds it takes from `now_ns` until something may pass; 0 is none.
    #[must_use]
    pub(crate) fn wait_ns(&self, now_ns: u64) -> u64 {
        self.paid_until
            .saturating_sub(now_ns.saturating_add(self.burst_ns))
    }

    /// So much passed.
    pub(crate) fn charge(&mut self, now_ns: u64, amount: u64) {
        let rate = u128::from(self.rate.get());
        let cost = u128::from(amount).saturating_mul(SECOND_NS).div_ceil(rate);
        self.paid_until = self
            .paid_until
            .max(now_ns)
            .saturating_add(u64::try_from(cost).unwrap_or(u64::MAX));
    }
}

/// What wakes a thread when it is worth asking a bucket again.
#[derive(Debug)]
pub(super) struct PaceTimer(OwnedFd);

impl PaceTimer {
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self(timerfd_create(TimerfdClockId::Monotonic, flags)?))
    }

    /// Is readable in so many nanoseconds, which are not 0, and not before.
    pub(super) fn set(&self, wait_ns: u64) -> io::Result<()> {
        let wait = Duration::from_nanos(wait_ns);
        let spec = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: wait.subsec_nanos().into(),
            },
        };
        // This also takes away that it is readable from the last time.
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &spec)?;
        Ok(())
    }

    /// Forgets that it went off.
    pub(super) fn rewind(&self) {
        let mut count = [0; 8];
        // Not yet is no error.
        let _ = rustix::io::read(&self.0, &mut count);
    }
}

impl AsFd for PaceTimer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Now, on the clock of the timer.
pub(super) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(now.tv_sec)
        .saturating_mul(1_000_000_000)
        .saturating_add(part(now.tv_nsec))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BURST: Duration = Duration::from_millis(100);
    const BURST_NS: u64 = 100_000_000;

    fn bucket(rate: u64) -> Bucket {
        Bucket::new(NonZeroU64::new(rate).unwrap(), BURST)
    }

    #[test]
    fn burst_passes_at_once_and_then_the_rate() {
        let mut bucket = bucket(1000);
        let mut passed = 0;
        for now_ms in 0..=10_000_u64 {
            while bucket.wait_ns(now_ms * 1_000_000) == 0 {
                bucket.charge(now_ms * 1_000_000, 1);
                passed += 1;
            }
            if now_ms == 0 {
                assert_eq!(passed, 101);
            }
        }
        assert_eq!(passed, 10_101);
    }

    #[test]
    fn request_larger_than_a_burst_passes_and_is_paid_for() {
        let mut bucket = bucket(100);
        assert_eq!(bucket.wait_ns(5), 0);
        bucket.charge(5, 1000);
        assert_eq!(bucket.wait_ns(5), 10_000_000_000 - BURST_NS);
        assert_eq!(bucket.wait_ns(5 + 10_000_000_000 - BURST_NS), 0);
    }

    #[test]
    fn numbers_without_bounds_do_not_overflow() {
        let mut bucket = bucket(1);
        bucket.charge(u64::MAX, u64::MAX);
        assert_eq!(bucket.wait_ns(u64::MAX), 0);
        bucket.charge(0, u64::MAX);
        assert_eq!(bucket.wait_ns(0), u64::MAX - BURST_NS);
    }

    proptest! {
        /// Whoever comes whenever: in every stretch of time no more passes than may, and who waits as long as is said gets through.
        #[test]
        fn never_more_than_rate_and_burst_and_never_starved(
            rate in 1_u64..1_000_000_000,
            arrivals in prop::collection::vec((0_u64..2_000_000_000, 0_u64..5_000_000), 1..60),
        ) {
            let mut bucket = bucket(rate);
            let mut now = 0_u64;
            let mut passed: Vec<(u64, u64)> = Vec::new();
            for (pause, amount) in arrivals {
                now += pause;
                let wait = bucket.wait_ns(now);
                now += wait;
                prop_assert_eq!(bucket.wait_ns(now), 0);
                bucket.charge(now, amount);
                passed.push((now, amount));
            }
            for (index, (start, _)) in passed.iter().enumerate() {
                let mut sum = 0_u128;
                for (end, amount) in &passed[index..] {
                    // What passed before this one, and it itself beside.
                    let allowed = u128::from(rate) * u128::from(end - start + BURST_NS);
                    prop_assert!(sum * SECOND_NS <= allowed + SECOND_NS, "{sum} in {}", end - start);
                    sum += u128::from(*amount);
                }
            }
        }
    }
}
