//! How fast the disks of a sandbox are served: so many bytes and operations in a second, all disks together.
//!
//! A [`Bucket`] knows until when what passed is paid for. Something may pass as long as that is at most [`BURST`] ahead of now,
//! however large it is, and then puts it off by its own cost. So no request waits for ever, and in any time `t` at
//! most `rate * (t + BURST)` passes, and one request of each disk. (It is the virtual scheduling form of the generic cell
//! rate algorithm, ITU-T I.371, annex A.)

use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use sandbox_types::monitor::DiskLimits;

use super::error::BlockError;

/// After a rest, as much passes at once as otherwise in this time.
pub const BURST: Duration = Duration::from_millis(100);

const SECOND_NS: u128 = 1_000_000_000;

/// What may pass in a second, of anything that is counted.
#[derive(Debug)]
pub struct Bucket {
    rate: NonZeroU64,
    /// Until when all that passed is paid for, on the caller's clock in nanoseconds.
    paid_until: u64,
}

impl Bucket {
    /// Lets `rate` pass in a second.
    #[must_use]
    pub fn new(rate: NonZeroU64) -> Self {
        Self {
            rate,
            paid_until: 0,
        }
    }

    /// How many nanoseconds it takes from `now_ns` until something may pass; 0 is none.
    #[must_use]
    pub fn wait_ns(&self, now_ns: u64) -> u64 {
        let burst = u64::try_from(BURST.as_nanos()).unwrap_or(u64::MAX);
        self.paid_until.saturating_sub(now_ns.saturating_add(burst))
    }

    /// So much passed.
    pub fn charge(&mut self, now_ns: u64, amount: u64) {
        let rate = u128::from(self.rate.get());
        let cost = u128::from(amount).saturating_mul(SECOND_NS).div_ceil(rate);
        self.paid_until = self
            .paid_until
            .max(now_ns)
            .saturating_add(u64::try_from(cost).unwrap_or(u64::MAX));
    }
}

#[derive(Debug)]
struct Buckets {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

/// What the disks of a sandbox have together.
#[derive(Debug, Clone)]
pub struct DiskPace {
    buckets: Arc<Mutex<Buckets>>,
}

impl DiskPace {
    /// None when nothing is limited.
    #[must_use]
    pub fn new(limits: &DiskLimits) -> Option<Self> {
        let buckets = Buckets {
            bytes: limits.bytes_per_second.map(Bucket::new),
            operations: limits.operations_per_second.map(Bucket::new),
        };
        let limited = buckets.bytes.is_some() || buckets.operations.is_some();
        limited.then(|| Self {
            buckets: Arc::new(Mutex::new(buckets)),
        })
    }

    /// How many nanoseconds it takes until a request may pass; 0 is none.
    fn wait_ns(&self, now_ns: u64) -> u64 {
        let buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = |bucket: &Option<Bucket>| bucket.as_ref().map_or(0, |it| it.wait_ns(now_ns));
        wait(&buckets.bytes).max(wait(&buckets.operations))
    }

    fn charge(&self, now_ns: u64, bytes: u64) {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = &mut buckets.bytes {
            bucket.charge(now_ns, bytes);
        }
        if let Some(bucket) = &mut buckets.operations {
            bucket.charge(now_ns, 1);
        }
    }
}

/// A disk's part in it, and what wakes its thread.
#[derive(Debug)]
pub(super) struct Turnstile {
    pace: DiskPace,
    timer: OwnedFd,
}

impl Turnstile {
    pub(super) fn new(pace: DiskPace) -> Result<Self, BlockError> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)
            .map_err(|errno| BlockError::Timer(errno.into()))?;
        Ok(Self { pace, timer })
    }

    /// Whether a request may pass. If not, the timer is readable when it is worth asking again.
    pub(super) fn admits(&self) -> Result<bool, BlockError> {
        let wait = self.pace.wait_ns(now_ns());
        if wait == 0 {
            return Ok(true);
        }
        let wait = Duration::from_nanos(wait);
        let spec = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: wait.subsec_nanos().into(),
            },
        };
        // This also takes away that it is readable from the last time.
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec)
            .map_err(|errno| BlockError::Timer(errno.into()))?;
        Ok(false)
    }

    /// A request with so much data passed.
    pub(super) fn passed(&self, bytes: u64) {
        self.pace.charge(now_ns(), bytes);
    }

    /// Forgets that the timer went off.
    pub(super) fn rewind(&self) {
        let mut count = [0; 8];
        // Not yet is no error.
        let _ = rustix::io::read(&self.timer, &mut count);
    }
}

impl AsFd for Turnstile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

fn now_ns() -> u64 {
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

    const BURST_NS: u64 = 100_000_000;

    fn bucket(rate: u64) -> Bucket {
        Bucket::new(NonZeroU64::new(rate).unwrap())
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

    #[test]
    fn slower_of_the_two_decides() {
        let limits = DiskLimits {
            bytes_per_second: NonZeroU64::new(1_000_000),
            operations_per_second: NonZeroU64::new(10),
        };
        let pace = DiskPace::new(&limits).unwrap();
        pace.charge(0, 0);
        assert_eq!(pace.wait_ns(0), 0);
        pace.charge(0, 0);
        assert_eq!(pace.wait_ns(0), BURST_NS);
        pace.charge(0, 10_000_000);
        assert_eq!(pace.wait_ns(0), 10_000_000_000 - BURST_NS);
        assert!(DiskPace::new(&DiskLimits::default()).is_none());
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
