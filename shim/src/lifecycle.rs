//! The life of one process (a container's first, or one added by exec), as the task service tells it.
//!
//! ```text
//!            start            started            pause
//!  Created --------> Starting --------> Running --------> Paused
//!     |                 |  \              | ^               | |
//!     | exited          |   \ failed      | +----- resume --+ |
//!     |                 |    \            | exited            | exited
//!     +-----------------+-----+-----------+-------------------+---> Stopped --delete--> (gone)
//! ```
//!
//! A process may exit before the answer to its start has arrived; the exit is then kept in `Starting`, so that nobody
//! hears of the end before the beginning. Deleting is allowed when `Created` or `Stopped`. This type does
//! no I/O: every change returns what is to be announced, in order.

use std::time::SystemTime;

use containerd_shim_protos::api::Status;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// The exit code, or 128 plus the signal's number.
    pub(crate) status: u32,
    /// When, by the host's clock.
    pub(crate) at: SystemTime,
}

impl Exit {
    /// One that is heard of now.
    pub(crate) fn now(status: u32) -> Self {
        Self {
            status,
            at: SystemTime::now(),
        }
    }
}

/// What the world is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Announcement {
    /// The process runs.
    Started,
    /// The process ended.
    Exited(Exit),
}

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lifecycle {
    /// Made, not started.
    Created,
    /// Being started.
    Starting {
        /// It has already ended.
        exit: Option<Exit>,
    },
    /// Runs.
    Running,
    /// Frozen.
    Paused,
    /// Ended.
    Stopped(Exit),
}

/// Why a change is not possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LifecycleError {
    /// It has ended.
    #[error("cannot {action}: the process has already finished")]
    Ended {
        /// What was asked for.
        action: &'static str,
    },
    /// It is in another state.
    #[error("cannot {action} a process that is {state}")]
    Wrong {
        /// What was asked for.
        action: &'static str,
        /// In words.
        state: &'static str,
    },
}

impl Lifecycle {
    fn name(self) -> &'static str {
        match self {
            Self::Created => "created but not started",
            Self::Starting { .. } => "being started",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped(_) => "stopped",
        }
    }

    fn wrong(self, action: &'static str) -> LifecycleError {
        match self {
            Self::Stopped(_) => LifecycleError::Ended { action },
            _ => LifecycleError::Wrong {
                action,
                state: self.name(),
            },
        }
    }

    /// A start was asked for.
    ///
    /// # Errors
    /// Unless `Created`.
    pub(crate) fn start(&mut self) -> Result<(), LifecycleError> {
        match self {
            Self::Created => {
                *self = Self::Starting { exit: None };
                Ok(())
            }
            other => Err(other.wrong("start")),
        }
    }

    /// The start succeeded.
    pub(crate) fn started(&mut self) -> Vec<Announcement> {
        match *self {
            Self::Starting { exit: None } => {
                *self = Self::Running;
                vec![Announcement::Started]
            }
            Self::Starting { exit: Some(exit) } => {
                *self = Self::Stopped(exit);
                vec![Announcement::Started, Announcement::Exited(exit)]
            }
            Self::Created | Self::Running | Self::Paused | Self::Stopped(_) => Vec::new(),
        }
    }

    /// The start failed: the process never ran, so nothing is announced.
    pub(crate) fn failed(&mut self, exit: Exit) {
        if let Self::Starting { .. } = self {
            *self = Self::Stopped(exit);
        }
    }

    /// The process ended. Only the first end counts.
    pub(crate) fn exited(&mut self, exit: Exit) -> Vec<Announcement> {
        match self {
            Self::Starting { exit: early } => {
                early.get_or_insert(exit);
                Vec::new()
            }
            Self::Created | Self::Running | Self::Paused => {
                *self = Self::Stopped(exit);
                vec![Announcement::Exited(exit)]
            }
            Self::Stopped(_) => Vec::new(),
        }
    }

    /// It was frozen.
    ///
    /// # Errors
    /// Unless `Running`.
    pub(crate) fn pause(&mut self) -> Result<(), LifecycleError> {
        match self {
            Self::Running => {
                *self = Self::Paused;
                Ok(())
            }
            other => Err(other.wrong("pause")),
        }
    }

    /// It was thawed.
    ///
    /// # Errors
    /// Unless `Paused`.
    pub(crate) fn resume(&mut self) -> Result<(), LifecycleError> {
        match self {
            Self::Paused => {
                *self = Self::Running;
                Ok(())
            }
            other => Err(other.wrong("resume")),
        }
    }

    /// Whether it may be removed.
    ///
    /// # Errors
    /// Unless `Created` or `Stopped`.
    pub(crate) fn may_delete(self) -> Result<(), LifecycleError> {
        match self {
            Self::Created | Self::Stopped(_) => Ok(()),
            other => Err(other.wrong("delete")),
        }
    }

    /// Whether it can take a signal, a size or input.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) fn must_live(self, action: &'static str) -> Result<(), LifecycleError> {
        match self {
            Self::Stopped(_) => Err(LifecycleError::Ended { action }),
            _ => Ok(()),
        }
    }

    /// Whether it can take a signal, if it has no process before its start.
    ///
    /// # Errors
    /// When it has ended, or was not started.
    pub(crate) fn must_have_begun(self, action: &'static str) -> Result<(), LifecycleError> {
        match self {
            Self::Created => Err(self.wrong(action)),
            _ => self.must_live(action),
        }
    }

    /// Whether it runs.
    ///
    /// # Errors
    /// Unless `Running`.
    pub(crate) fn must_run(self, action: &'static str) -> Result<(), LifecycleError> {
        match self {
            Self::Running => Ok(()),
            other => Err(other.wrong(action)),
        }
    }

    /// Whether it can take another process.
    ///
    /// # Errors
    /// When it is frozen: what is started in it would be too, while its start is waited for.
    pub(crate) fn must_not_be_paused(self, action: &'static str) -> Result<(), LifecycleError> {
        match self {
            Self::Paused => Err(self.wrong(action)),
            _ => Ok(()),
        }
    }

    /// Its end, when it has ended.
    pub(crate) fn exit(self) -> Option<Exit> {
        match self {
            Self::Stopped(exit) => Some(exit),
            _ => None,
        }
    }

    /// As the task service says it.
    pub(crate) fn status(self) -> Status {
        match self {
            Self::Created | Self::Starting { .. } => Status::CREATED,
            Self::Running => Status::RUNNING,
            Self::Paused => Status::PAUSED,
            Self::Stopped(_) => Status::STOPPED,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Start,
        Started,
        Failed,
        Exited(u32),
        Pause,
        Resume,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            Just(Step::Start),
            Just(Step::Started),
            Just(Step::Failed),
            (0u32..256).prop_map(Step::Exited),
            Just(Step::Pause),
            Just(Step::Resume),
        ];
        prop::collection::vec(step, 0..30)
    }

    fn exit(status: u32) -> Exit {
        Exit {
            status,
            at: SystemTime::UNIX_EPOCH,
        }
    }

    proptest! {
        #[test]
        fn life_is_announced_once_and_in_order(steps in steps()) {
            let mut life = Lifecycle::Created;
            let mut told = Vec::new();
            let mut stopped: Option<Exit> = None;
            for step in steps {
                match step {
                    Step::Start => drop(life.start()),
                    Step::Started => told.extend(life.started()),
                    Step::Failed => life.failed(exit(255)),
                    Step::Exited(status) => told.extend(life.exited(exit(status))),
                    Step::Pause => drop(life.pause()),
                    Step::Resume => drop(life.resume()),
                }
                // An end is final.
                if let Some(end) = stopped {
                    prop_assert_eq!(life.exit(), Some(end));
                }
                stopped = life.exit();
            }
            let starts = told.iter().filter(|a| matches!(a, Announcement::Started)).count();
            let exits = told.iter().filter(|a| matches!(a, Announcement::Exited(_))).count();
            prop_assert!(starts <= 1 && exits <= 1);
            if starts == 1 && exits == 1 {
                prop_assert_eq!(told[0], Announcement::Started);
            }
            if let Some(Announcement::Exited(end)) = told.last() {
                prop_assert_eq!(life.exit(), Some(*end));
            }
        }
    }

    #[test]
    fn exit_before_the_start_is_answered_is_told_after_it() {
        let mut life = Lifecycle::Created;
        life.start().unwrap();
        assert_eq!(life.exited(exit(3)), []);
        assert_eq!(life.status(), Status::CREATED);
        assert_eq!(
            life.started(),
            [Announcement::Started, Announcement::Exited(exit(3))]
        );
    }

    #[test]
    fn running_process_cannot_be_deleted() {
        let mut life = Lifecycle::Created;
        assert!(life.may_delete().is_ok());
        life.start().unwrap();
        life.started();
        assert!(matches!(
            life.may_delete(),
            Err(LifecycleError::Wrong { .. })
        ));
        life.exited(exit(0));
        assert!(life.may_delete().is_ok());
        assert!(matches!(
            life.must_live("kill"),
            Err(LifecycleError::Ended { .. })
        ));
    }
}
