//! What a running sandbox reports on its own, and how it died.

use std::fmt;

use sandbox_types::{ContainerId, ExecId};

/// Something happened in, or to, a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SandboxEvent {
    /// A process of a container ended.
    ProcessExited {
        /// Its container.
        container: ContainerId,
        /// Which added process; `None` for the container's first.
        exec: Option<ExecId>,
        /// As the guest numbers it.
        pid: u32,
        /// The exit code, or 128 plus the signal's number.
        exit_status: u32,
    },
    /// The guest kernel killed a process of the container for want of memory.
    OutOfMemory {
        /// The container.
        container: ContainerId,
    },
    /// The sandbox ended without being asked to. The last event.
    Died(SandboxDeath),
}

/// The end of a sandbox that nobody asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxDeath {
    /// What ended it.
    pub cause: DeathCause,
    /// The last lines of the guest's console, made printable.
    pub console_tail: Vec<String>,
}

impl fmt::Display for SandboxDeath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.cause, console_tail_text(&self.console_tail))
    }
}

impl std::error::Error for SandboxDeath {}

/// The console lines, to follow a one-line message.
pub(crate) fn console_tail_text(lines: &[String]) -> String {
    if lines.is_empty() {
        return "; its console is empty".to_owned();
    }
    let mut text = "; the last lines of its console:".to_owned();
    for line in lines {
        text.push_str("\n  | ");
        text.push_str(line);
    }
    text
}

/// What ended a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeathCause {
    /// The guest powered itself off unasked.
    #[error("the virtual machine powered itself off without being asked to")]
    GuestShutdown,
    /// The guest kernel panicked.
    #[error("the guest kernel panicked")]
    GuestPanic,
    /// The guest reset the machine.
    #[error("the guest reset the virtual machine")]
    GuestReset,
    /// A guest processor shut down.
    #[error("a processor of the guest ended in a triple fault")]
    TripleFault,
    /// KVM could not go on.
    #[error("KVM could not run the guest any further: {0}")]
    KvmError(String),
    /// An image layer that the guest has as memory is no longer what it was.
    #[error("an image layer changed on the host's disk while the virtual machine used it: {0}")]
    LayerLost(String),
    /// One of the agent's connections ended while the machine ran on, or it answered nothing for long.
    #[error("the agent in the guest is gone")]
    AgentGone,
    /// The agent, the guest's first process, ended; its kernel cannot go on without it.
    #[error("the agent in the guest died, and the guest kernel panicked without it")]
    AgentDied,
    /// The agent broke the protocol.
    #[error("the agent in the guest broke the protocol: {0}")]
    AgentMisbehaved(String),
    /// A signal ended the monitor (or QEMU).
    #[error("the virtual machine monitor was killed by signal {signal}{}", signal_name(*signal))]
    MonitorKilled {
        /// Its number.
        signal: i32,
    },
    /// A thread of the monitor (or QEMU) made a system call that is not on its list: a fault of the monitor's, or a guest that took
    /// it over.
    #[error(
        "the virtual machine monitor made a system call that it may not make, and was ended{}",
        after_colon(detail)
    )]
    MonitorViolation {
        /// What it said last: as a rule which thread, and which call.
        detail: String,
    },
    /// The monitor (or QEMU) gave up.
    #[error(
        "the virtual machine monitor failed with exit code {code}{}",
        after_colon(detail)
    )]
    MonitorFailed {
        /// Its exit code.
        code: i32,
        /// What it said last.
        detail: String,
    },
    /// A helper process of the machine ended before it.
    #[error(
        "{name}, a helper process of the virtual machine, ended ({how}){}",
        after_colon(detail)
    )]
    HelperEnded {
        /// Which.
        name: String,
        /// Exit code or signal.
        how: String,
        /// What it said last.
        detail: String,
    },
}

fn after_colon(detail: &str) -> String {
    match detail.trim() {
        "" => String::new(),
        detail => format!(": {detail}"),
    }
}

pub(crate) fn signal_name(number: i32) -> String {
    nix::sys::signal::Signal::try_from(number)
        .map(|signal| format!(" ({signal})"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn death_displays_cause_in_first_line_and_console_after() {
        let death = SandboxDeath {
            cause: DeathCause::MonitorKilled { signal: 9 },
            console_tail: vec!["one".into(), "two".into()],
        };
        assert_eq!(
            death.to_string(),
            "the virtual machine monitor was killed by signal 9 (SIGKILL); the last lines of its console:\n  | one\n  | two"
        );
    }

    #[test]
    fn death_without_console_says_so() {
        let death = SandboxDeath {
            cause: DeathCause::GuestPanic,
            console_tail: Vec::new(),
        };
        assert_eq!(
            death.to_string(),
            "the guest kernel panicked; its console is empty"
        );
    }
}
