//! The states of a sandbox, and the one place that changes them.
//!
//! ```text
//!              Spawned           AgentReady
//!  Preparing ----------> Booting ----------> Running
//!   |     |               |    |              |    |
//!   |     | StopRequested |    |              |    |
//!   |     +---------------+----|--------------+    |
//!   |                     |    |                   |
//!   | Ended               v    | Ended             | Ended
//!   |                 Stopping |                   |
//!   |                     |    v                   v
//!   +---------------------|-> Failing         Died
//!                         |    |                   |
//!                         |    | Released          | Released
//!                         v    v                   v
//!                         +---> Gone <-------------+
//! ```
//!
//! In `Stopping`, `Failing` and `Died` everything that was made is being removed; further requests and ends change
//! nothing. `Gone` is final. Only a sandbox that was `Running` reports its death as an event; before that it is
//! the error of the start.

/// Where a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Its folder, sockets and mounts are being made.
    Preparing,
    /// Its processes run; the agent has not announced itself.
    Booting,
    /// The agent is ready.
    Running,
    /// It is being ended because that was asked for.
    Stopping,
    /// It did not come up.
    Failing,
    /// It ended by itself after it had come up.
    Died,
    /// Nothing of it is left.
    Gone,
}

/// What happens to a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Its processes were started.
    Spawned,
    /// The agent announced itself and was configured.
    AgentReady,
    /// Somebody wants it to end.
    StopRequested,
    /// It ended, or could not go on.
    Ended,
    /// Everything was removed, as far as it could be.
    Released,
}

/// A step that cannot happen in that state: a mistake in the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a sandbox that is {state:?} cannot take the step {step:?}")]
pub(crate) struct InvalidStep {
    state: State,
    step: Step,
}

impl State {
    fn after(self, step: Step) -> Result<Self, InvalidStep> {
        use State::{Booting, Died, Failing, Gone, Preparing, Running, Stopping};
        Ok(match (self, step) {
            (Preparing, Step::Spawned) => Booting,
            (Booting, Step::AgentReady) => Running,
            (Preparing | Booting | Running, Step::StopRequested) => Stopping,
            (Preparing | Booting, Step::Ended) => Failing,
            (Running, Step::Ended) => Died,
            (Stopping | Failing | Died, Step::StopRequested | Step::Ended) => self,
            (Gone, Step::StopRequested) => Gone,
            (Stopping | Failing | Died, Step::Released) => Gone,
            (state, step) => return Err(InvalidStep { state, step }),
        })
    }
}

/// A sandbox's state.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    state: State,
}

impl Lifecycle {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Preparing,
        }
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// Takes a step. One that is not valid is logged and changes nothing.
    pub(crate) fn take(&mut self, step: Step) -> State {
        match self.state.after(step) {
            Ok(next) => {
                if next != self.state {
                    tracing::debug!(from = ?self.state, to = ?next, ?step, "sandbox");
                }
                self.state = next;
            }
            Err(error) => tracing::error!(%error, "sandbox"),
        }
        self.state
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Spawned),
            Just(Step::AgentReady),
            Just(Step::StopRequested),
            Just(Step::Ended),
            Just(Step::Released),
        ]
    }

    fn is_being_removed(state: State) -> bool {
        matches!(state, State::Stopping | State::Failing | State::Died)
    }

    #[test]
    fn lifecycle_of_an_ordinary_sandbox() {
        let mut life = Lifecycle::new();
        assert_eq!(life.take(Step::Spawned), State::Booting);
        assert_eq!(life.take(Step::AgentReady), State::Running);
        assert_eq!(life.take(Step::StopRequested), State::Stopping);
        assert_eq!(life.take(Step::Ended), State::Stopping);
        assert_eq!(life.take(Step::Released), State::Gone);
    }

    proptest! {
        #[test]
        fn lifecycle_any_walk_keeps_its_promises(steps in prop::collection::vec(any_step(), 0..30)) {
            let mut life = Lifecycle::new();
            let mut was_running = false;
            for step in steps {
                let before = life.state();
                let after = life.take(step);
                was_running |= after == State::Running;
                // Nothing comes back from its end.
                if before == State::Gone {
                    prop_assert_eq!(after, State::Gone);
                }
                // What is being removed stays so until it is removed.
                if is_being_removed(before) {
                    prop_assert!(after == before || (after == State::Gone && step == Step::Released));
                }
                // Nothing is gone without having been removed.
                if after == State::Gone && before != State::Gone {
                    prop_assert!(is_being_removed(before));
                }
                // A death is one of a sandbox that had come up.
                if after == State::Died {
                    prop_assert!(was_running);
                }
                // From everywhere a request or an end leads towards removal.
                if matches!(step, Step::StopRequested | Step::Ended) {
                    prop_assert!(is_being_removed(after) || after == State::Gone);
                }
            }
        }
    }
}
