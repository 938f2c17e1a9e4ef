//! The outcome, for people and for programs.

mod html;
mod table;

use crate::campaign::{CaseReport, Report};
use crate::case::Threat;
use crate::verdict::{Observation, Outcome, Verdict};

pub use html::html;
pub use table::table;

/// As JSON, with everything that was seen.
///
/// # Errors
/// None in practice: a report is strings and numbers.
pub fn json(report: &Report) -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(report)
}

/// "12 held, 1 breached, …", without what there is none of.
fn summary(report: &Report) -> String {
    let counts: Vec<String> = Outcome::ALL
        .iter()
        .rev()
        .map(|outcome| (report.count(*outcome), outcome))
        .filter(|(count, _)| *count > 0)
        .map(|(count, outcome)| format!("{count} {}", outcome.title().to_lowercase()))
        .collect();
    if counts.is_empty() {
        return "nothing was tried".to_owned();
    }
    counts.join(", ")
}

/// The threats of which there are cases, in the order of reports, each with these.
fn by_threat(report: &Report) -> impl Iterator<Item = (Threat, Vec<&CaseReport>)> {
    Threat::ALL.into_iter().filter_map(|threat| {
        let all = report.cases.iter();
        let cases: Vec<_> = all.filter(|case| case.threat == threat).collect();
        (!cases.is_empty()).then_some((threat, cases))
    })
}

/// Why the verdict is what it is.
fn why(verdict: &Verdict) -> String {
    match &verdict.shared {
        Some(what) => format!("shared on purpose: {what}"),
        None => verdict.because.clone(),
    }
}

/// Without what would move a terminal's cursor: a guest wrote some of it.
fn printable(text: &str) -> String {
    text.chars()
        .map(|one| if one.is_control() { '?' } else { one })
        .collect()
}

/// What a run showed, in words.
fn shown(observation: &Observation) -> String {
    use crate::case::Finding;
    match observation {
        Observation::Obstacle { reason } => format!("could not run here: {reason}"),
        Observation::NoAnswer { reason } => format!("no answer: {reason}"),
        Observation::Seen { finding, .. } => match finding {
            Finding::Reached(because) => format!("reached: {because}"),
            Finding::Blocked(because) => format!("blocked: {because}"),
            Finding::Partial(because) => format!("partly: {because}"),
            Finding::Shared(because) => format!("shared on purpose: {because}"),
        },
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::campaign::RuntimeReport;
    use crate::case::{Finding, Profile};
    use crate::verdict::verdict;
    use serde_json::Value;

    pub(crate) fn seen(finding: Finding) -> Observation {
        Observation::Seen {
            seen: serde_json::json!({"text": "<script>alert(1)</script>"}),
            watched: Value::Null,
            finding,
        }
    }

    /// A report with one case, whose runtime showed this.
    pub(crate) fn report(control: Observation, observation: Observation) -> Report {
        Report {
            kernel: "Linux <x>".to_owned(),
            control: "runc".to_owned(),
            runtimes: vec!["sandbox".to_owned()],
            cases: vec![CaseReport {
                name: "kernel_x",
                threat: Threat::KernelExploit,
                attempt: "tries",
                watch: "looks",
                expected: "nothing",
                profile: Profile::Plain,
                control_profile: Profile::Granted,
                runtimes: vec![RuntimeReport {
                    runtime: "sandbox".to_owned(),
                    verdict: verdict(&control, &observation),
                    observation,
                }],
                control,
            }],
        }
    }

    fn reached() -> Observation {
        seen(Finding::Reached("read <it>".to_owned()))
    }

    fn blocked() -> Observation {
        seen(Finding::Blocked("refused".to_owned()))
    }

    #[test]
    fn exit_code_tells_breach_from_open_question_from_nothing() {
        let silent = || Observation::NoAnswer {
            reason: "gone".to_owned(),
        };
        let obstacle = || Observation::Obstacle {
            reason: "none".to_owned(),
        };
        assert_eq!(report(reached(), blocked()).exit_code(), 0);
        assert_eq!(report(reached(), reached()).exit_code(), 1);
        assert_eq!(report(blocked(), blocked()).exit_code(), 2);
        assert_eq!(report(reached(), silent()).exit_code(), 2);
        assert_eq!(report(obstacle(), blocked()).exit_code(), 3);
    }

    #[test]
    fn table_names_case_outcome_and_both_sides() {
        let text = table(&report(reached(), blocked()));
        for part in ["kernel_x", "held", "reached: read <it>", "refused"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn html_needs_nothing_else_and_quotes_what_was_seen() {
        let text = html(&report(reached(), blocked()));
        assert!(!text.contains("<script>alert"), "{text}");
        assert!(text.contains("&lt;script&gt;"));
        for outside in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!text.contains(outside), "{outside}");
        }
        assert!(text.contains("kernel exploit in the workload"));
    }

    #[test]
    fn json_has_what_was_seen_on_both_sides() {
        let text = json(&report(reached(), blocked())).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        let case = &value["cases"][0];
        assert_eq!(case["control"]["finding"], "reached");
        assert_eq!(case["runtimes"][0]["outcome"], "held");
        assert_eq!(case["runtimes"][0]["observation"]["finding"], "blocked");
    }
}
