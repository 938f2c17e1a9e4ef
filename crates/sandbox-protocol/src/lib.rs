//! What the host and the agent in the guest say to each other.
//!
//! Three kinds of vsock connection, so that control, streams and events never wait for one another:
//!
//! | port | who listens | what it carries |
//! | --- | --- | --- |
//! | [`AGENT_PORT`] | agent | ttrpc, the [`agent_ttrpc::Agent`] service |
//! | [`STREAM_PORT`] | agent | one connection per stdin, stdout, stderr, or TCP connection to the pod's loopback interface: a framed [`agent::StreamOpen`], a framed [`agent::StreamOpened`] back, then bytes |
//! | [`EVENT_PORT`] | host | framed [`agent::AgentEvent`]s; the first is `Ready`; end-of-file means that the agent is gone |

/// Declares a module of what a build script generated from a `.proto` file: `mod NAME = "FILE in OUT_DIR"`, where it is wanted with
/// `using` a module beside it. Nothing is expected of the style of such code.
#[macro_export]
macro_rules! generated {
    ($(#[$doc:meta])* $visibility:vis mod $name:ident = $file:literal $(, using $other:ident)?;) => {
        $(#[$doc])*
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
        $visibility mod $name {
            $(use super::$other;)?
            include!(concat!(env!("OUT_DIR"), "/", $file));
        }
    };
}

pub mod bundle;
pub mod extensions;
pub mod frame;
pub mod limits;
pub mod start_failure;

generated! {
    /// Messages of `proto/agent.proto`.
    pub mod agent = "agent.rs";
}

generated! {
    /// Client and server of `proto/agent.proto`.
    pub mod agent_ttrpc = "agent_ttrpc.rs", using agent;
}

generated! {
    /// Messages of `proto/details.proto`: what the shim tells of a process, in the `info` of containerd's `ProcessInfo`.
    pub mod details = "details.rs";
}

/// Type URL of [`details::ProcessDetails`] in the `info`.
pub const PROCESS_DETAILS_TYPE: &str = "containerd.runc.v1.ProcessDetails";

/// The variable by which the agent, as the kernel's first process, is told where in the persistent memory device the guest image is, which
/// is the root disk's too: `OFFSET+BYTES`, in whole pages. The kernel hands words of its command line that it does not know to its first
/// process (kernel `Documentation/admin-guide/kernel-parameters.rst`).
pub const ROOT_VARIABLE: &str = "SANDBOX_ROOT";
/// The number of the guest image's partition of that device; those of layers follow.
pub const ROOT_PARTITION: u32 = 1;

/// Guest port of the agent's ttrpc service.
pub const AGENT_PORT: u32 = 1024;
/// Guest port of the byte streams.
pub const STREAM_PORT: u32 = 1025;
/// Host port that the agent announces itself on.
pub const EVENT_PORT: u32 = 1026;

/// Goes up with every change that an older peer would misread.
pub const PROTOCOL_VERSION: u32 = 3;

/// Where the agent keeps everything of the containers, in the guest.
pub const GUEST_RUN_DIR: &str = "/run/sandbox";
