//! The timeline of a start: which phase was reached when.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::time::{ClockId, clock_gettime};
use sandbox_types::timeline::{Mark, Phase};

use crate::files::write_atomically;

/// The host's `CLOCK_MONOTONIC`, in nanoseconds.
pub(crate) fn monotonic_ns() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

/// The host's time, in nanoseconds since the Unix epoch.
pub(crate) fn unix_time_ns() -> u64 {
    nanoseconds(ClockId::Realtime)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or_default();
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(nanoseconds)
}

/// Collects marks; each phase counts once, the first time. Written to a file, if one is configured, as marks come.
#[derive(Debug)]
pub(crate) struct Timeline {
    marks: Mutex<Vec<Mark>>,
    path: Option<PathBuf>,
}

impl Timeline {
    pub(crate) fn new(path: Option<PathBuf>) -> Self {
        Self {
            marks: Mutex::new(Vec::new()),
            path,
        }
    }

    pub(crate) fn mark(&self, phase: Phase) {
        self.mark_at(phase, monotonic_ns());
    }

    pub(crate) fn mark_at(&self, phase: Phase, monotonic_ns: u64) {
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        if marks.iter().any(|mark| mark.phase == phase) {
            return;
        }
        marks.push(Mark {
            phase,
            monotonic_ns,
        });
        marks.sort_by_key(|mark| mark.phase);
        if let Some(path) = &self.path
            && let Err(error) = write(path, &marks)
        {
            // Timing is a diagnostic: a start does not fail for it.
            tracing::warn!(path = %path.display(), %error, "cannot write the timeline");
        }
    }

    pub(crate) fn marks(&self) -> Vec<Mark> {
        self.marks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

fn write(path: &Path, marks: &[Mark]) -> io::Result<()> {
    let json = serde_json::to_vec(marks)?;
    write_atomically(path, &json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phase_marked_twice_keeps_the_first() {
        let timeline = Timeline::new(None);
        timeline.mark_at(Phase::AgentReady, 5);
        timeline.mark_at(Phase::AgentReady, 9);
        timeline.mark_at(Phase::MonitorStarted, 1);
        let marks: Vec<_> = timeline
            .marks()
            .iter()
            .map(|m| (m.phase, m.monotonic_ns))
            .collect();
        assert_eq!(marks, [(Phase::MonitorStarted, 1), (Phase::AgentReady, 5)]);
    }

    #[test]
    fn timeline_file_holds_every_mark() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("timeline.json");
        let timeline = Timeline::new(Some(path.clone()));
        timeline.mark(Phase::MonitorStarted);
        timeline.mark(Phase::AgentReady);
        let read: Vec<Mark> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(read, timeline.marks());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
