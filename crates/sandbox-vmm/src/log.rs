//! Messages that the guest can cause, on standard error, at a bounded rate.

use std::fmt;
use std::io::{self, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Messages that may come at once.
const BURST: u32 = 16;
/// Time after which one more may come.
const REFILL: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Limit {
    left: u32,
    since: Option<Instant>,
    dropped: u64,
}

impl Limit {
    const fn new() -> Self {
        Self {
            left: BURST,
            since: None,
            dropped: 0,
        }
    }

    /// Whether a message may be written now, and how many were not since the last.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        let since = *self.since.get_or_insert(now);
        let elapsed = now.saturating_duration_since(since).as_millis();
        let earned = u32::try_from(elapsed / REFILL.as_millis()).unwrap_or(u32::MAX);
        if earned > 0 {
            self.left = self.left.saturating_add(earned).min(BURST);
            self.since = Some(now);
        }
        let Some(left) = self.left.checked_sub(1) else {
            self.dropped = self.dropped.saturating_add(1);
            return None;
        };
        self.left = left;
        Some(std::mem::take(&mut self.dropped))
    }
}

static LIMIT: Mutex<Limit> = Mutex::new(Limit::new());

/// Writes a message that the guest caused, unless there were too many.
pub fn guest(message: fmt::Arguments<'_>) {
    let mut limit = LIMIT.lock().unwrap_or_else(PoisonError::into_inner);
    match limit.admit(Instant::now()) {
        None => {}
        Some(0) => line(format_args!("{message}")),
        Some(dropped) => line(format_args!(
            "{message} ({dropped} messages before it dropped)"
        )),
    }
}

/// Says how many messages were not written since the last one that was. To be called when no more come.
pub fn close() {
    let mut limit = LIMIT.lock().unwrap_or_else(PoisonError::into_inner);
    match std::mem::take(&mut limit.dropped) {
        0 => {}
        dropped => line(format_args!("{dropped} more messages dropped")),
    }
}

/// Unlike `eprintln!`, goes on when nobody reads.
fn line(message: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "sandbox-vmm: {message}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_over_the_burst_wait_for_the_refill() {
        let mut limit = Limit::new();
        let start = Instant::now();
        for _ in 0..BURST {
            assert_eq!(limit.admit(start), Some(0));
        }
        assert_eq!(limit.admit(start), None);
        assert_eq!(limit.admit(start + REFILL / 2), None);
        assert_eq!(limit.admit(start + REFILL), Some(2));
        assert_eq!(limit.admit(start + REFILL), None);
    }
}
