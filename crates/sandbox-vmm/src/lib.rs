//! The virtual machine monitor: one KVM guest with its virtio devices.
//!
//! `sandbox-vmm run` takes a [`sandbox_types::monitor::MonitorConfig`], boots the kernel in it and ends when
//! the guest does. `sandbox-vmm vsock-backend` serves the [`vsock`] device alone to another monitor.
//!
//! Threads and epoll, no async runtime: one thread for each vCPU, one for each device, and the main thread,
//! which waits for the first of them, or its parent, to end the machine.

pub mod arch;
pub mod bus;
mod control;
pub mod devices;
pub mod end;
pub mod fd;
pub mod jail;
pub mod log;
mod machine;
pub mod memory;
pub mod process;
pub mod run;
pub mod seccomp;
pub mod vcpu;
pub mod virtio;
pub mod vsock;
