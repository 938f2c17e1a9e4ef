//! The queues of a tap, of which a driver uses the first few.
//!
//! The kernel spreads flows over the queues that are attached, so those that are not used must not be. While no driver is
//! there all are: a queue can be watched only while it is attached (`tun_chr_poll` in Linux's `drivers/net/tun.c`), and it is
//! watched from the activation on.
//!
//! Each queue that is attached or detached takes a lock that all network interfaces of the host have in common, and has the kernel wait for all its
//! processors. So a driver has that done now and then only: what it asks for beyond that waits until its turn comes.

use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::error::NetError;
use super::tap::Tap;
use crate::virtio::pace::{Bucket, PaceTimer, now_ns};

/// So many changes in a second of which queues are attached,
const CHANGES_PER_SECOND: NonZeroU64 = NonZeroU64::MIN.saturating_add(1);
/// and 16 at once.
const CHANGES_AT_ONCE: Duration = Duration::from_millis(7_500);

/// A queue, and what wakes the thread of its pair.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) tap: Tap,
    pub(super) wake: EventFd,
}

/// A tap's queues.
#[derive(Debug)]
pub(super) struct Pairs {
    lanes: Vec<Arc<Lane>>,
    active: AtomicUsize,
    changes: Mutex<Bucket>,
    timer: PaceTimer,
}

impl Pairs {
    /// All of them attached.
    pub(super) fn new(taps: Vec<Tap>) -> Result<Self, NetError> {
        Self::with_changes(taps, Bucket::new(CHANGES_PER_SECOND, CHANGES_AT_ONCE))
    }

    /// The same, of which as much is changed as passes `changes`.
    pub(super) fn with_changes(taps: Vec<Tap>, changes: Bucket) -> Result<Self, NetError> {
        let mut lanes = Vec::with_capacity(taps.len());
        for tap in taps {
            let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(NetError::Again)?;
            lanes.push(Arc::new(Lane { tap, wake }));
        }
        Ok(Self {
            active: AtomicUsize::new(lanes.len()),
            lanes,
            changes: Mutex::new(changes),
            timer: PaceTimer::new().map_err(NetError::Timer)?,
        })
    }

    fn wait_ns(&self) -> u64 {
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes.wait_ns(now_ns())
    }

    /// Whether a driver may have a change made.
    pub(super) fn may_change(&self) -> bool {
        self.wait_ns() == 0
    }

    /// The same, for the thread that watches the timer: it is readable when it is worth asking again.
    pub(super) fn admits_change(&self) -> Result<bool, NetError> {
        let wait = self.wait_ns();
        if wait > 0 {
            self.timer.set(wait).map_err(NetError::Timer)?;
        }
        Ok(wait == 0)
    }

    /// The timer's descriptor.
    pub(super) fn timer(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    /// Forgets that the timer went off.
    pub(super) fn rewind(&self) {
        self.timer.rewind();
    }

    /// Attaches those that are not, which no driver can have done again before it has had some detached.
    ///
    /// # Errors
    /// As [`Self::set`].
    pub(super) fn attach_all(&self) -> io::Result<()> {
        self.attach_first(self.lanes.len())
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.lanes.len()
    }

    /// The queue of a pair.
    pub(super) fn get(&self, pair: usize) -> Option<&Arc<Lane>> {
        self.lanes.get(pair)
    }

    /// Whether frames of this queue are to be read.
    pub(super) fn is_active(&self, pair: usize) -> bool {
        pair < self.active.load(Ordering::Acquire)
    }

    /// Uses the first `count` from now on, which counts as a change if it is one. Only one thread at a time may call it.
    ///
    /// # Errors
    /// What the kernel says; as many are used then as can be.
    pub(super) fn set(&self, count: usize) -> io::Result<()> {
        if count != self.active.load(Ordering::Acquire) {
            let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
            changes.charge(now_ns(), 1);
        }
        self.attach_first(count)
    }

    fn attach_first(&self, count: usize) -> io::Result<()> {
        let before = self.active.load(Ordering::Acquire);
        // Not read any more, and only then detached; attached, and only then read.
        self.active.store(count.min(before), Ordering::Release);
        for (index, lane) in self.lanes.iter().enumerate().skip(1) {
            lane.tap.attach(index < count)?;
        }
        self.active.store(count, Ordering::Release);
        for lane in self.lanes.iter().take(count).skip(before) {
            // What came since it was attached woke nobody. A full counter wakes as well.
            let _ = lane.wake.write(1);
        }
        Ok(())
    }
}
