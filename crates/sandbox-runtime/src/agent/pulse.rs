//! Whether the agent is still at the other end of the connection for calls.
//!
//! What is not answered stays in ttrpc's table for as long as the connection (ttrpc 0.9, `asynchronous/client.rs`), some 5 KiB for each
//! call. So an agent that leaves too many is taken for one that is gone. It may be slow: on a host that has no time for it, or while a
//! file system of the host's hangs, it answers nothing for minutes, and a busy engine asks it several times in a second. Only one
//! that answered nothing for [`SILENCE`] is gone for that alone; else it takes [`MOST_UNANSWERED`], 20 MiB, which are days of calls that fail.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// An agent that answers nothing for so long is gone, once that many calls have shown it.
const SILENCE: Duration = Duration::from_secs(600);
const MOST_IN_A_ROW: u32 = 64;
/// How many calls of its whole life an agent may leave unanswered.
const MOST_UNANSWERED: u32 = 4096;

/// What its connection and the calls over it tell of an agent.
#[derive(Debug)]
pub(super) struct Pulse {
    gone: watch::Sender<bool>,
    counts: Mutex<Counts>,
}

#[derive(Debug)]
struct Counts {
    /// When it last answered, or began to be asked.
    answered: Instant,
    /// What it left unanswered since.
    in_a_row: u32,
    unanswered: u32,
    /// It has left a call unanswered, and no reply came since.
    is_mute: bool,
}

/// A call that waits for its answer. Dropped without one, it was not answered in its time, or in its caller's.
pub(super) struct Asked<'a>(Option<&'a Pulse>);

impl Pulse {
    pub(super) fn new() -> Self {
        Self {
            gone: watch::Sender::new(false),
            counts: Mutex::new(Counts {
                answered: Instant::now(),
                in_a_row: 0,
                unanswered: 0,
                is_mute: false,
            }),
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The agent is asked something.
    pub(super) fn ask(&self) -> Asked<'_> {
        Asked(Some(self))
    }

    /// The connection carries nothing more.
    pub(super) fn stop(&self) {
        self.gone.send_replace(true);
    }

    /// A reply came, if only to a call that nobody waits for any more.
    pub(super) fn heard(&self) {
        self.counts().is_mute = false;
    }

    /// Whether the agent has left a call unanswered, and nothing was heard of it since.
    pub(super) fn is_mute(&self) -> bool {
        self.counts().is_mute
    }

    /// Returns when the agent can be asked nothing any more.
    pub(super) async fn until_gone(&self) {
        let mut gone = self.gone.subscribe();
        // The sender is ours.
        let _ = gone.wait_for(|gone| *gone).await;
    }

    fn missed(&self) {
        let mut counts = self.counts();
        counts.in_a_row = counts.in_a_row.saturating_add(1);
        counts.unanswered = counts.unanswered.saturating_add(1);
        counts.is_mute = true;
        let is_silent = counts.in_a_row >= MOST_IN_A_ROW && counts.answered.elapsed() >= SILENCE;
        if (is_silent || counts.unanswered >= MOST_UNANSWERED) && !self.gone.send_replace(true) {
            tracing::error!(
                "the agent has left {} calls unanswered, the last {} of them in a row",
                counts.unanswered,
                counts.in_a_row
            );
        }
    }
}

impl Asked<'_> {
    /// It answered, if only to refuse.
    pub(super) fn answered(mut self) {
        if let Some(pulse) = self.0.take() {
            let mut counts = pulse.counts();
            counts.answered = Instant::now();
            counts.in_a_row = 0;
        }
    }

    /// The connection failed, which is told by itself.
    pub(super) fn failed(mut self) {
        self.0 = None;
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if let Some(pulse) = self.0 {
            pulse.missed();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn is_gone(pulse: &Pulse) -> bool {
        pulse.until_gone().now_or_never().is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn agent_that_is_silent_for_long_is_gone() {
        let pulse = Pulse::new();
        // A stall, in which a busy engine asks a lot.
        for _ in 0..10 * MOST_IN_A_ROW {
            drop(pulse.ask());
        }
        assert!(!is_gone(&pulse));
        tokio::time::advance(SILENCE).await;
        pulse.ask().answered();
        for _ in 0..2 * MOST_IN_A_ROW {
            drop(pulse.ask());
        }
        assert!(!is_gone(&pulse));
        tokio::time::advance(SILENCE).await;
        drop(pulse.ask());
        assert!(is_gone(&pulse));
    }

    #[tokio::test(start_paused = true)]
    async fn agent_that_is_seldom_asked_may_be_silent() {
        let pulse = Pulse::new();
        for _ in 1..MOST_IN_A_ROW {
            tokio::time::advance(SILENCE).await;
            drop(pulse.ask());
        }
        assert!(!is_gone(&pulse));
        drop(pulse.ask());
        assert!(is_gone(&pulse));
    }

    #[tokio::test(start_paused = true)]
    async fn agent_that_answers_every_other_call_is_gone_when_too_many_are_left() {
        let pulse = Pulse::new();
        for _ in 1..MOST_UNANSWERED {
            drop(pulse.ask());
            pulse.ask().answered();
            pulse.ask().failed();
        }
        assert!(!is_gone(&pulse));
        drop(pulse.ask());
        assert!(is_gone(&pulse));
    }
}
