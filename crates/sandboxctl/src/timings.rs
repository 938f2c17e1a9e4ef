//! The timeline of a start: our own marks and those the shim wrote down.

mod svg;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use rustix::time::{ClockId, clock_gettime};
use sandbox_types::timeline::{Mark, Phase};

/// The host's `CLOCK_MONOTONIC` now, in nanoseconds.
pub(crate) fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or_default();
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(nanoseconds)
}

/// How a timeline is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum TimingsForm {
    /// A line per phase
    Table,
    /// One line, an array of phases and the moments of `CLOCK_MONOTONIC` in nanoseconds
    Json,
    /// A picture: how long each phase took, and which one it waited for
    Svg,
}

/// The marks of one run.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    marks: Vec<Mark>,
}

impl Timeline {
    /// The phase is reached now.
    pub(crate) fn mark(&mut self, phase: Phase) {
        self.mark_at(phase, monotonic_ns());
    }

    /// The phase was reached then. The first mark of a phase stays.
    pub(crate) fn mark_at(&mut self, phase: Phase, monotonic_ns: u64) {
        if !self.marks.iter().any(|mark| mark.phase == phase) {
            self.marks.push(Mark {
                phase,
                monotonic_ns,
            });
        }
    }

    /// All of them.
    pub(crate) fn into_marks(self) -> Vec<Mark> {
        self.marks
    }

    /// Takes in another's.
    pub(crate) fn merge(&mut self, marks: &[Mark]) {
        for mark in marks {
            self.mark_at(mark.phase, mark.monotonic_ns);
        }
    }

    /// Takes in what the shim wrote.
    pub(crate) fn merge_file(&mut self, path: &Path) {
        let marks: Vec<Mark> = fs::read(path)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        self.merge(&marks);
    }

    /// The marks as text, in order of time. Empty when there is none.
    pub(crate) fn render(&self, form: TimingsForm) -> String {
        let mut marks = self.marks.clone();
        marks.sort_by_key(|mark| (mark.monotonic_ns, mark.phase));
        match form {
            _ if marks.is_empty() => String::new(),
            TimingsForm::Table => Self::table(&marks),
            // Marks are names and numbers, which have a form in JSON.
            TimingsForm::Json => serde_json::to_string(&marks)
                .map(|line| line + "\n")
                .unwrap_or_default(),
            TimingsForm::Svg => svg::draw(&marks),
        }
    }

    /// A line per phase: milliseconds since the request, and since the line above.
    fn table(marks: &[Mark]) -> String {
        let Some(begin) = marks.first().map(|mark| mark.monotonic_ns) else {
            return String::new();
        };
        let mut text = format!("{:<24} {:>10} {:>10}\n", "phase", "ms", "delta");
        let mut last = begin;
        for mark in marks {
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "{:<24} {:>10} {:>10}",
                mark.phase.label(),
                milliseconds(mark.monotonic_ns - begin),
                format!("+{}", milliseconds(mark.monotonic_ns - last)),
            );
            last = mark.monotonic_ns;
        }
        text
    }
}

fn milliseconds(nanoseconds: u64) -> String {
    let microseconds = nanoseconds / 1_000;
    format!("{}.{:02}", microseconds / 1_000, microseconds % 1_000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeline_is_in_order_of_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("timeline.json");
        let shims = [
            Mark {
                phase: Phase::AgentReady,
                monotonic_ns: 900_500_000,
            },
            Mark {
                phase: Phase::MonitorStarted,
                monotonic_ns: 20_000_000,
            },
            Mark {
                phase: Phase::Requested,
                monotonic_ns: 1,
            },
        ];
        fs::write(&path, serde_json::to_vec(&shims).unwrap()).unwrap();
        let mut timeline = Timeline::default();
        timeline.mark_at(Phase::Requested, 10_000_000);
        timeline.merge_file(&path);
        timeline.merge_file(Path::new("/nowhere"));
        let text = timeline.render(TimingsForm::Table);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines[1], ["requested", "0.00", "+0.00"]);
        assert_eq!(lines[2], ["monitor", "started", "10.00", "+10.00"]);
        assert_eq!(lines[3], ["agent", "ready", "890.50", "+880.50"]);
    }

    #[test]
    fn timeline_without_marks_is_empty() {
        for form in [TimingsForm::Table, TimingsForm::Json, TimingsForm::Svg] {
            assert_eq!(Timeline::default().render(form), "");
        }
    }

    #[test]
    fn timeline_as_json_is_what_it_was_made_of() {
        let mut timeline = Timeline::default();
        timeline.mark_at(Phase::AgentReady, 7);
        timeline.mark_at(Phase::Requested, 1);
        let text = timeline.render(TimingsForm::Json);
        let mut read = Timeline::default();
        read.merge(&serde_json::from_str::<Vec<Mark>>(&text).unwrap());
        assert_eq!(
            read.render(TimingsForm::Table),
            timeline.render(TimingsForm::Table)
        );
        assert_eq!(text.lines().count(), 1);
    }
}
