//! A device that reads from a file that has become shorter: this program starts itself again, and reads.

#[path = "support/fault.rs"]
mod fault;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use fault::{attempt, run, trial};
use sandbox_types::MemMib;
use sandbox_types::monitor::{FILE_LOST_EXIT_CODE, PMEM_ALIGNMENT, PMEM_HEADER_BYTES};
use sandbox_vmm::memory::window::{Window, WindowFile};
use sandbox_vmm::memory::{Sharing, create, lost};
use vm_memory::{Bytes as _, GuestAddress};

fn main() -> ExitCode {
    let trials = vec![
        trial("read_of_what_is_there_goes_on", || {
            let (code, said) = attempt("there")?;
            ensure!(code == Some(0) && said.is_empty(), "{code:?}, {said}");
            Ok(())
        }),
        trial(
            "read_of_what_is_lost_ends_the_process_with_a_reason",
            || {
                let (code, said) = attempt("lost")?;
                ensure!(code == Some(FILE_LOST_EXIT_CODE.into()), "{code:?}, {said}");
                ensure!(said.contains("persistent memory"), "{said}");
                Ok(())
            },
        ),
        trial("fault_elsewhere_is_a_kill_by_sigbus", || {
            let (code, said) = attempt("elsewhere")?;
            ensure!(code.is_none() && said.is_empty(), "{code:?}, {said}");
            Ok(())
        }),
    ];
    run(read, trials)
}

/// Reads the second page of a file of which only the first is left, unless it is to read what is there.
fn read(what: &str) -> Result<()> {
    let mut file = tempfile::tempfile()?;
    file.write_all(&[1; 8192])?;
    let handle = file.try_clone()?;
    let files = vec![WindowFile {
        file,
        offset: PMEM_HEADER_BYTES,
        bytes: 8192,
    }];
    let size = MemMib::new(64)?;
    let window = Window::map(size, PMEM_ALIGNMENT, files)?;
    let memory = create(size, Sharing::Private, Some(&window), None)?;
    let page = match what {
        "there" => 0,
        "lost" | "elsewhere" => 4096,
        other => bail!("{other} is nothing to do"),
    };
    handle.set_len(4096)?;
    match what {
        "elsewhere" => lost::end_when_read(&(0..1))?,
        _ => lost::end_when_read(&window.host_range())?,
    }
    let address = GuestAddress(window.range().start + PMEM_HEADER_BYTES + page);
    let byte: u8 = memory.read_obj(address)?;
    ensure!(byte == 1, "read {byte}");
    Ok(())
}
