//! What a case means, from its control and from the runtime under test.
//!
//! ```text
//! control:   cannot run here  → Skipped
//!            blocked, partial, no answer → InvalidControl
//!            reached, shared  → the runtime under test:  cannot run here, no answer → Skipped
//!                                                        reached → Breached
//!                                                        partial → Degraded
//!                                                        blocked, shared → Held
//! ```

use serde::Serialize;
use serde_json::Value;

use crate::case::Finding;

/// What came of a run of a case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "run", rename_all = "snake_case")]
pub enum Observation {
    /// It ran.
    Seen {
        /// What the probe said.
        seen: Value,
        /// What the host saw.
        watched: Value,
        /// What both mean.
        #[serde(flatten)]
        finding: Finding,
    },
    /// It cannot run on this machine.
    Obstacle {
        /// Why.
        reason: String,
    },
    /// The container or its probe did not answer.
    NoAnswer {
        /// Why, as far as that is known.
        reason: String,
    },
}

/// What a case showed of a runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The attack succeeds under the control and not under the runtime.
    Held,
    /// It succeeds under both.
    Breached,
    /// A protection inside the boundary is not there; the boundary is.
    Degraded,
    /// It could not be tried.
    Skipped,
    /// The attack did not show under the control: nothing can be said.
    InvalidControl,
}

impl Outcome {
    /// All, the worst first.
    pub const ALL: [Self; 5] = [
        Self::Breached,
        Self::InvalidControl,
        Self::Degraded,
        Self::Skipped,
        Self::Held,
    ];

    /// In words.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Breached => "BREACHED",
            Self::Degraded => "degraded",
            Self::Skipped => "skipped",
            Self::InvalidControl => "INVALID CONTROL",
        }
    }
}

/// An outcome, why, and whether the runtime left the question open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// What it is.
    pub outcome: Outcome,
    /// In one sentence.
    pub because: String,
    /// What was reached because it was shared on purpose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared: Option<String>,
    /// The runtime gave no answer, although the control did: not an outcome of this machine, but a question left open.
    pub unanswered: bool,
}

impl Verdict {
    fn new(outcome: Outcome, because: impl Into<String>) -> Self {
        Self {
            outcome,
            because: because.into(),
            shared: None,
            unanswered: false,
        }
    }
}

/// What control and subject together mean.
#[must_use]
pub fn verdict(control: &Observation, subject: &Observation) -> Verdict {
    match control {
        Observation::Obstacle { reason } => return Verdict::new(Outcome::Skipped, reason),
        Observation::NoAnswer { reason } => {
            let because = format!("the control gave no answer: {reason}");
            return Verdict::new(Outcome::InvalidControl, because);
        }
        Observation::Seen { finding, .. } => match finding {
            Finding::Reached(_) | Finding::Shared(_) => {}
            Finding::Blocked(because) | Finding::Partial(because) => {
                let because = format!("the attack did not show under the control: {because}");
                return Verdict::new(Outcome::InvalidControl, because);
            }
        },
    }
    match subject {
        Observation::Obstacle { reason } => Verdict::new(Outcome::Skipped, reason),
        Observation::NoAnswer { reason } => Verdict {
            unanswered: true,
            ..Verdict::new(Outcome::Skipped, format!("no answer: {reason}"))
        },
        Observation::Seen { finding, .. } => match finding {
            Finding::Reached(because) => Verdict::new(Outcome::Breached, because),
            Finding::Blocked(because) => Verdict::new(Outcome::Held, because),
            Finding::Partial(because) => Verdict::new(Outcome::Degraded, because),
            Finding::Shared(because) => Verdict {
                shared: Some(because.clone()),
                ..Verdict::new(Outcome::Held, "only what is shared on purpose was reached")
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(finding: Finding) -> Observation {
        Observation::Seen {
            seen: Value::Null,
            watched: Value::Null,
            finding,
        }
    }

    fn reached() -> Observation {
        seen(Finding::Reached("it".to_owned()))
    }

    fn blocked() -> Observation {
        seen(Finding::Blocked("it".to_owned()))
    }

    fn partial() -> Observation {
        seen(Finding::Partial("it".to_owned()))
    }

    fn shared() -> Observation {
        seen(Finding::Shared("it".to_owned()))
    }

    fn silent() -> Observation {
        Observation::NoAnswer {
            reason: "gone".to_owned(),
        }
    }

    fn obstacle() -> Observation {
        Observation::Obstacle {
            reason: "there is none".to_owned(),
        }
    }

    #[test]
    fn control_that_does_not_fire_is_invalid_whatever_the_subject_shows() {
        for control in [blocked(), partial(), silent()] {
            for subject in [
                reached(),
                blocked(),
                partial(),
                shared(),
                silent(),
                obstacle(),
            ] {
                let verdict = verdict(&control, &subject);
                assert_eq!(verdict.outcome, Outcome::InvalidControl, "{control:?}");
            }
        }
    }

    #[test]
    fn subject_is_judged_where_the_control_fired() {
        for control in [reached(), shared()] {
            let outcome = |subject| verdict(&control, &subject).outcome;
            assert_eq!(outcome(blocked()), Outcome::Held);
            assert_eq!(outcome(reached()), Outcome::Breached);
            assert_eq!(outcome(partial()), Outcome::Degraded);
            assert_eq!(outcome(shared()), Outcome::Held);
            assert_eq!(outcome(obstacle()), Outcome::Skipped);
        }
    }

    #[test]
    fn silence_is_not_held_and_is_marked() {
        let silence = verdict(&reached(), &silent());
        assert_eq!(silence.outcome, Outcome::Skipped);
        assert!(silence.unanswered);
        assert!(!verdict(&reached(), &obstacle()).unanswered);
    }

    #[test]
    fn what_is_shared_is_said_to_be() {
        let verdict = verdict(&shared(), &shared());
        assert_eq!(verdict.shared.as_deref(), Some("it"));
    }

    #[test]
    fn case_that_cannot_run_here_is_skipped_with_its_reason() {
        let verdict = verdict(&obstacle(), &blocked());
        assert_eq!(verdict.outcome, Outcome::Skipped);
        assert_eq!(verdict.because, "there is none");
    }
}
