//! What a container is doing now: what was written down about it, and what its shim says.

use tokio::time::timeout;

use crate::container::{Container, Status};
use crate::run::Death;
use crate::shim::{ANSWER, Shim, TaskState};

/// 128 and `SIGKILL`: the exit code of a container whose sandbox ended, or was ended, around it.
pub(crate) const KILLED: i32 = 137;

/// The state of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Somebody is making or starting it.
    Creating,
    /// It was made and not started.
    Created,
    Running {
        started: u64,
    },
    Paused,
    /// It should run, but its shim does not answer: its attendant is about to say how it ended, or the shim hangs.
    Unanswering {
        started: u64,
    },
    Exited {
        code: i32,
        /// When, if somebody was there to note it.
        finished: Option<u64>,
    },
    /// It ended without its process.
    Failed {
        reason: String,
        code: i32,
        finished: Option<u64>,
    },
}

/// Nothing can be done with a container that is [`Seen::Unanswering`].
#[derive(Debug, thiserror::Error)]
#[error(
    "container {name} does not answer: it is about to end, or its shim hangs; see `sandboxctl ps -a`, or remove it with `sandboxctl rm -f {name}`"
)]
pub(crate) struct UnansweringError {
    pub(crate) name: String,
}

impl Seen {
    /// Whether something of it still runs.
    pub(crate) fn is_live(&self) -> bool {
        matches!(
            self,
            Self::Creating | Self::Running { .. } | Self::Paused | Self::Unanswering { .. }
        )
    }

    /// docker's word: what did not end by itself has ended all the same.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Creating | Self::Created => "created",
            Self::Running { .. } | Self::Unanswering { .. } => "running",
            Self::Paused => "paused",
            Self::Exited { .. } | Self::Failed { .. } => "exited",
        }
    }
}

/// Looks at a container, and at its shim if it should have one.
pub(crate) async fn look(container: &Container) -> (Seen, Option<Shim>) {
    let started = match &container.record.status {
        Status::Exited { code, finished } => {
            let seen = Seen::Exited {
                code: *code,
                finished: Some(*finished),
            };
            return (seen, None);
        }
        Status::Failed {
            reason,
            code,
            finished,
        } => {
            let seen = Seen::Failed {
                reason: reason.clone(),
                code: *code,
                finished: Some(*finished),
            };
            return (seen, None);
        }
        Status::Created => return (Seen::Created, None),
        Status::Creating => container.record.created,
        Status::Running { started } => *started,
    };
    let shim = match &container.record.shim {
        Some(record) => Shim::reach(&record.address).await,
        None => None,
    };
    let state = match &shim {
        Some(shim) => {
            let id = container.record.id.as_str();
            timeout(ANSWER, shim.tasks.state(id))
                .await
                .ok()
                .and_then(Result::ok)
        }
        None => None,
    };
    let seen = match state {
        Some(TaskState::Running) => Seen::Running { started },
        Some(TaskState::Paused) => Seen::Paused,
        Some(TaskState::Stopped(status)) => match Death::read(&container.folder) {
            Some(death) => failed(death.cause),
            None => Seen::Exited {
                code: i32::try_from(status).unwrap_or(i32::MAX),
                finished: None,
            },
        },
        Some(TaskState::Created | TaskState::Unknown) | None => unseen(container, shim.is_some()),
    };
    (seen, shim)
}

/// A container whose shim says nothing of it.
fn unseen(container: &Container, has_shim: bool) -> Seen {
    let creating = container.record.status == Status::Creating;
    if creating && container.is_attended() {
        return Seen::Creating;
    }
    if let Some(death) = Death::read(&container.folder) {
        return failed(death.cause);
    }
    if container.is_attended() {
        return Seen::Unanswering {
            started: container.record.started.unwrap_or(container.record.created),
        };
    }
    failed(match (creating, has_shim) {
        (true, _) => "sandboxctl ended before the container was started".to_owned(),
        (false, true) => "its shim does not know it any more".to_owned(),
        (false, false) => "its shim died".to_owned(),
    })
}

fn failed(reason: String) -> Seen {
    Seen::Failed {
        reason,
        code: KILLED,
        finished: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::Containers;
    use crate::container::tests::made;

    #[tokio::test]
    async fn container_whose_shim_does_not_answer_is_not_taken_for_one_that_runs() {
        let root = tempfile::tempdir().unwrap();
        let mut attended = made(&Containers::open(root.path()).unwrap());
        attended
            .update(|record| {
                record.status = Status::Running { started: 1 };
                record.started = Some(1);
            })
            .unwrap();
        let container = attended.container.clone();
        let (seen, shim) = look(&container).await;
        assert_eq!(seen, Seen::Unanswering { started: 1 });
        assert!(shim.is_none() && seen.is_live());
        drop(attended);
        assert!(matches!(look(&container).await.0, Seen::Failed { .. }));
    }
}
