//! What holds for any bytes as the guest's kernel. Shared by the fuzz target and the replay of its corpus.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::sync::OnceLock;

use sandbox_types::MemMib;
use sandbox_vmm::arch::x86_64::pvh::load_kernel;
use vm_memory::{GuestAddress, GuestMemoryMmap};

const MEMORY_MIB: u32 = 64;

fn memory() -> Result<&'static GuestMemoryMmap, String> {
    static MADE: OnceLock<Result<GuestMemoryMmap, String>> = OnceLock::new();
    let make = || {
        let all = [(GuestAddress(0), (MEMORY_MIB as usize) << 20)];
        GuestMemoryMmap::from_ranges(&all).map_err(|error| error.to_string())
    };
    MADE.get_or_init(make).as_ref().map_err(Clone::clone)
}

/// Loads them.
///
/// # Errors
/// If there is no memory. That they are refused is fine.
pub(crate) fn check(bytes: &[u8]) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let mut file: File = tempfile::tempfile().map_err(text)?;
    file.write_all(bytes).map_err(text)?;
    file.rewind().map_err(text)?;
    let size = MemMib::new(MEMORY_MIB.into()).map_err(|error| error.to_string())?;
    drop(load_kernel(memory()?, size, &mut file));
    Ok(())
}
