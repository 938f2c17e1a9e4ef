//! The pod: its virtual machine, agent, containers and their life cycle.
//!
//! [`Sandbox::start`] makes a virtual machine from a [`SandboxPlan`] with one of two hypervisor drivers
//! ([`host::choose_driver`]), waits until the agent in the guest has announced itself, and hands back the
//! means to talk to it: typed calls ([`Sandbox::agent`]), byte streams ([`Sandbox::open_stream`]) and what
//! happens on its own ([`SandboxEvent`]). A sandbox ends in one of two ways, asked for ([`Sandbox::stop`]) or by a
//! death whose cause is told ([`SandboxDeath`]); both remove every process, mount and file that was made for it.
//!
//! Nothing that comes from the guest is trusted: it is bounded in size and time, and it never names a path of
//! the host.
//!
//! **Threads.** Helper processes are told to die with the *thread* that spawned them (`PR_SET_PDEATHSIG`), so
//! [`Sandbox::start`] must be called within a tokio runtime whose threads live as long as the process: a
//! current-thread runtime on the main thread.

pub mod agent;
pub mod cgroup;
pub mod cleanup;
pub mod config;
mod console;
pub mod driver;
pub mod event;
pub mod files;
pub mod host;
pub mod identity;
pub mod jail;
mod loopback;
pub mod network;
pub mod oom;
pub mod process;
mod resolver;
pub mod rootfs;
pub mod sandbox;
pub mod share;
mod timeline;
pub mod untrusted;
mod vsock;

pub use agent::{AgentClient, AgentError};
pub use config::{Config, ConfigError, Hypervisor};
pub use driver::Driver;
pub use event::{DeathCause, SandboxDeath, SandboxEvent};
pub use sandbox::{
    BlockDevice, EarlyPlan, HeadStart, MachineSize, ResizeError, Sandbox, SandboxBasis,
    SandboxError, SandboxPlan,
};
pub use vsock::StreamError;
