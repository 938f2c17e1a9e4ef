//! One process of a container, from its making to its end.
//!
//! ```text
//!   Added ----------.
//!                   v
//!   Created ---> Starting ---> Running ---> Exited
//!      |            '--------> Failed          ^
//!      '---------------------------------------'
//! ```
//!
//! The first process of a container begins as `Created`, an added one as `Added`.

use std::sync::{Mutex, PoisonError};

use sandbox_types::ExecId;
use tokio::sync::watch;

use crate::launch::{Launch, ReportPipe};
use crate::reaper::ExitStatus;
use crate::stdio::{Descriptor, Streams};

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Described, not made.
    Added,
    /// Made, waiting for its start.
    Created { pid: i32 },
    /// Told to start; the pid is there once it is made.
    Starting { pid: Option<i32> },
    /// Its program runs.
    Running { pid: i32 },
    /// Its program could not be run.
    Failed,
    /// Gone.
    Exited { pid: i32, status: ExitStatus },
}

impl State {
    /// The pid of a process that can be signalled.
    pub(crate) fn alive(self) -> Option<i32> {
        match self {
            Self::Created { pid } | Self::Running { pid } => Some(pid),
            Self::Starting { pid } => pid,
            Self::Added | Self::Failed | Self::Exited { .. } => None,
        }
    }

    /// Whether nothing more happens to it.
    pub(crate) fn over(self) -> bool {
        matches!(self, Self::Failed | Self::Exited { .. })
    }
}

/// What starting needs, taken when it is started.
#[derive(Debug)]
pub(crate) enum Prepared {
    /// A container's first process, which waits.
    Waiting(ReportPipe),
    /// A process to be added.
    Launch(Box<Launch>),
}

/// A process.
#[derive(Debug)]
pub(crate) struct Process {
    /// `None` for the container's first.
    pub(crate) exec: Option<ExecId>,
    pub(crate) streams: Streams,
    state: watch::Sender<State>,
    prepared: Mutex<Option<Prepared>>,
    terminal: Mutex<Option<Descriptor>>,
}

impl Process {
    pub(crate) fn new(
        exec: Option<ExecId>,
        state: State,
        streams: Streams,
        prepared: Prepared,
    ) -> Self {
        Self {
            exec,
            streams,
            state: watch::Sender::new(state),
            prepared: Mutex::new(Some(prepared)),
            terminal: Mutex::new(None),
        }
    }

    pub(crate) fn state(&self) -> State {
        *self.state.borrow()
    }

    /// The one place that changes the state; a process that is over stays so.
    pub(crate) fn set_state(&self, state: State) {
        self.state.send_if_modified(|now| {
            let change = !now.over() && *now != state;
            if change {
                *now = state;
            }
            change
        });
    }

    /// Until the state is such.
    pub(crate) async fn until(&self, condition: impl Fn(State) -> bool) {
        let mut state = self.state.subscribe();
        let _ = state.wait_for(|state| condition(*state)).await;
    }

    /// What starting needs; `None` if it has been taken.
    pub(crate) fn take_prepared(&self) -> Option<Prepared> {
        self.prepared
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Its terminal is there (or, for `None`, will never be).
    pub(crate) fn set_terminal(&self, terminal: Option<Descriptor>) {
        self.streams.connect_terminal(terminal.as_ref());
        *self.terminal.lock().unwrap_or_else(PoisonError::into_inner) = terminal;
    }

    pub(crate) fn terminal(&self) -> Option<Descriptor> {
        self.terminal
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Lets go of everything that could keep a stream open.
    pub(crate) fn release(&self) {
        self.take_prepared();
        self.set_terminal(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_that_is_over_stays_so() {
        let process = Process::new(
            None,
            State::Created { pid: 1 },
            Streams::default(),
            Prepared::Launch(Box::new(Launch {
                action: crate::helper::Action::Create,
                folder: "/".into(),
                stdio: None,
                confinement: crate::spec::Confinement::default(),
            })),
        );
        process.set_state(State::Starting { pid: Some(1) });
        assert_eq!(process.state().alive(), Some(1));
        process.set_state(State::Failed);
        process.set_state(State::Exited { pid: 1, status: 0 });
        assert_eq!(process.state(), State::Failed);
        assert_eq!(process.state().alive(), None);
    }
}
