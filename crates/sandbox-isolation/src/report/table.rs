//! For a terminal.

use std::fmt::Write as _;

use super::{by_threat, printable, shown, summary, why};
use crate::campaign::Report;
use crate::verdict::Outcome;

/// Threat by threat: each case, its outcome under each runtime, and why; the control's side where it is the point.
#[must_use]
pub fn table(report: &Report) -> String {
    let width = report.cases.iter().map(|case| case.name.len()).max();
    let width = width.unwrap_or(0);
    let names = report.runtimes.iter().chain([&report.control]);
    let who = names.map(String::len).max().unwrap_or(0);
    let mut text = String::new();
    for (threat, cases) in by_threat(report) {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}", threat.title().to_uppercase());
        for case in cases {
            for one in &case.runtimes {
                let _ = writeln!(
                    text,
                    "  {:width$}  {:who$}  {:15}  {}",
                    case.name,
                    one.runtime,
                    one.verdict.outcome.title(),
                    printable(&why(&one.verdict)),
                );
            }
            let skipped = case
                .runtimes
                .iter()
                .all(|one| one.verdict.outcome == Outcome::Skipped);
            if !skipped {
                let _ = writeln!(
                    text,
                    "  {:width$}  {:who$}  {:15}  {}",
                    "",
                    report.control,
                    "(control)",
                    printable(&shown(&case.control)),
                );
            }
        }
        text.push('\n');
    }
    let _ = writeln!(text, "{}", summary(report));
    text
}
