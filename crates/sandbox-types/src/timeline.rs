//! When each phase of a start was reached.
//!
//! Every process on the host stamps with `CLOCK_MONOTONIC`, which all of them share, so marks of different
//! processes can be laid on one line.

use serde::{Deserialize, Serialize};

/// A point that every start passes, in the order in which it passes them, but for [`Self::MonitorStarted`]: the shim begins the monitor
/// when it starts itself, where it can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// `sandboxctl` began.
    Requested,
    /// The image's layers and the writable layer are there.
    ImageReady,
    /// The shim answers.
    ShimStarted,
    /// The monitor process (or QEMU) runs. It may wait for the rest then.
    MonitorStarted,
    /// The first guest instruction is about to run. Under QEMU: the process was told to start.
    FirstInstruction,
    /// The guest kernel handed over to the agent. Told by the guest, so only as true as the guest is.
    AgentStarted,
    /// The agent's announcement arrived.
    AgentReady,
    /// The container exists.
    ContainerCreated,
    /// The container's process was told to start, and did.
    ContainerStarted,
    /// The first byte of the container's output.
    FirstOutput,
    /// The container's first process ended.
    Exited,
}

impl Phase {
    /// What the phase is called where a person reads it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::ImageReady => "image ready",
            Self::ShimStarted => "shim started",
            Self::MonitorStarted => "monitor started",
            Self::FirstInstruction => "first guest instruction",
            Self::AgentStarted => "kernel to agent",
            Self::AgentReady => "agent ready",
            Self::ContainerCreated => "container created",
            Self::ContainerStarted => "container started",
            Self::FirstOutput => "first output",
            Self::Exited => "exited",
        }
    }
}

/// One phase, reached at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Which phase.
    pub phase: Phase,
    /// The host's `CLOCK_MONOTONIC`, in nanoseconds.
    pub monotonic_ns: u64,
}
