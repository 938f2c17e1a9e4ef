//! The queues of a tap, of which a driver uses the first few.
//!
//! The kernel spreads flows over the queues that are attached, so those that are not used must not be. While no driver is
//! there all are: a queue can be watched only while it is attached (`tun_chr_poll` in Linux's `drivers/net/tun.c`), and it is
//! watched from the activation on.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::error::NetError;
use super::tap::Tap;

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
}

impl Pairs {
    /// All of them attached.
    pub(super) fn new(taps: Vec<Tap>) -> Result<Self, NetError> {
        let mut lanes = Vec::with_capacity(taps.len());
        for tap in taps {
            let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(NetError::Again)?;
            lanes.push(Arc::new(Lane { tap, wake }));
        }
        Ok(Self {
            active: AtomicUsize::new(lanes.len()),
            lanes,
        })
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

    /// Uses the first `count` from now on. Only one thread at a time may call it.
    ///
    /// # Errors
    /// What the kernel says; as many are used then as can be.
    pub(super) fn set(&self, count: usize) -> io::Result<()> {
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
