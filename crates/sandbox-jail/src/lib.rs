//! What a process of the runtime gives up before it touches what a guest wrote. It knows nothing of virtual machines.
//!
//! - [`seccomp`]: which system calls a thread may make.

pub mod seccomp;
