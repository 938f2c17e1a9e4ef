//! What the host and the agent in the guest say to each other.
//!
//! Three kinds of vsock connection, so that control, streams and events never wait for one another:
//!
//! | port | who listens | what it carries |
//! | --- | --- | --- |
//! | [`AGENT_PORT`] | agent | ttrpc, the [`agent_ttrpc::Agent`] service |
//! | [`STREAM_PORT`] | agent | one connection per stdin, stdout, stderr, or TCP connection to the pod's loopback interface: a framed [`agent::StreamOpen`], a framed [`agent::StreamOpened`] back, then bytes |
//! | [`EVENT_PORT`] | host | framed [`agent::AgentEvent`]s; the first is `Ready`; end-of-file means that the agent is gone |

pub mod extensions;
pub mod frame;
pub mod limits;
pub mod start_failure;

/// Messages of `proto/agent.proto`.
#[allow(
    missing_docs,
    nonstandard_style,
    unused,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod agent {
    include!(concat!(env!("OUT_DIR"), "/agent.rs"));
}

/// Client and server of `proto/agent.proto`.
#[allow(
    missing_docs,
    unreachable_pub,
    unused,
    clippy::all,
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod agent_ttrpc {
    use super::agent;
    include!(concat!(env!("OUT_DIR"), "/agent_ttrpc.rs"));
}

/// Messages of `proto/details.proto`: what the shim tells of a process, in the `info` of containerd's `ProcessInfo`.
#[allow(
    missing_docs,
    nonstandard_style,
    unused,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod details {
    include!(concat!(env!("OUT_DIR"), "/details.rs"));
}

/// Type URL of [`details::ProcessDetails`] in the `info`.
pub const PROCESS_DETAILS_TYPE: &str = "containerd.runc.v1.ProcessDetails";

/// Guest port of the agent's ttrpc service.
pub const AGENT_PORT: u32 = 1024;
/// Guest port of the byte streams.
pub const STREAM_PORT: u32 = 1025;
/// Host port that the agent announces itself on.
pub const EVENT_PORT: u32 = 1026;

/// Goes up with every change that an older peer would misread.
pub const PROTOCOL_VERSION: u32 = 1;

/// Where the agent keeps everything of the containers, in the guest.
pub const GUEST_RUN_DIR: &str = "/run/sandbox";
