//! How fast the disks of a sandbox are served: so many bytes and operations in a second, all disks together.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sandbox_types::monitor::DiskLimits;

use super::error::BlockError;
use crate::virtio::pace::{Bucket, PaceTimer, now_ns};

/// After a rest, as much passes at once as otherwise in this time.
pub(crate) const BURST: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Buckets {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

/// What the disks of a sandbox have together.
#[derive(Debug, Clone)]
pub(crate) struct DiskPace {
    buckets: Arc<Mutex<Buckets>>,
}

impl DiskPace {
    /// None when nothing is limited.
    #[must_use]
    pub(crate) fn new(limits: &DiskLimits) -> Option<Self> {
        let buckets = Buckets {
            bytes: limits.bytes_per_second.map(|rate| Bucket::new(rate, BURST)),
            operations: limits
                .operations_per_second
                .map(|rate| Bucket::new(rate, BURST)),
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
    timer: PaceTimer,
}

impl Turnstile {
    pub(super) fn new(pace: DiskPace) -> Result<Self, BlockError> {
        let timer = PaceTimer::new().map_err(BlockError::Timer)?;
        Ok(Self { pace, timer })
    }

    /// Whether a request may pass. If not, the timer is readable when it is worth asking again.
    pub(super) fn admits(&self) -> Result<bool, BlockError> {
        let wait = self.pace.wait_ns(now_ns());
        if wait == 0 {
            return Ok(true);
        }
        self.timer.set(wait).map_err(BlockError::Timer)?;
        Ok(false)
    }

    /// A request with so much data passed.
    pub(super) fn passed(&self, bytes: u64) {
        self.pace.charge(now_ns(), bytes);
    }

    /// Forgets that the timer went off.
    pub(super) fn rewind(&self) {
        self.timer.rewind();
    }
}

impl AsFd for Turnstile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;

    const BURST_NS: u64 = 100_000_000;

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
}
