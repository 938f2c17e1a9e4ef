//! An x86-64 machine without firmware, ACPI, PCI or legacy timers.
//!
//! - [`layout`]: the physical address space;
//! - [`pvh`]: loading the kernel and what it finds at its entry;
//! - `image`: where the kernel leaves memory empty;
//! - [`mptable`]: processors and interrupts, for a kernel without ACPI;
//! - [`cpuid`]: what the processor says of itself;
//! - [`registers`]: the state in which a vCPU begins.

pub(crate) mod cpuid;
mod image;
pub mod layout;
pub(crate) mod mptable;
pub mod pvh;
pub mod registers;
