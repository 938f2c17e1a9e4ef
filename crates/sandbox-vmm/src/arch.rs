//! What depends on the processor: where things are, how the kernel is entered, what a vCPU is.

#[cfg(target_arch = "x86_64")]
pub mod x86_64;
