//! What a process of the runtime gives up before it touches what a guest wrote. It knows nothing of virtual machines.
//!
//! - [`enter`]: all of what a [`JailConfig`](sandbox_types::jail::JailConfig) says, in the order in which it must be done;
//! - [`namespaces`], [`root`], [`user`], [`capabilities`], [`limits`], [`landlock`], [`descriptors`], [`parent`]: its parts;
//! - [`seccomp`]: which system calls a thread may make, afterwards.

pub mod capabilities;
pub mod descriptors;
mod enter;
pub mod landlock;
pub mod limits;
pub mod namespaces;
pub mod parent;
pub mod root;
pub mod seccomp;
pub mod user;

pub use enter::{JailError, enter};
