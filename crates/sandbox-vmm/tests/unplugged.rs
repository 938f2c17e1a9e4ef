//! A device that is pointed at memory which the guest does not have at the time: this program starts itself again, and reads there.

#[path = "support/fault.rs"]
mod fault;

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use fault::{attempt, run, trial};
use sandbox_types::MemMib;
use sandbox_types::monitor::UNPLUGGED_EXIT_CODE;
use sandbox_vmm::memory::later::Later;
use sandbox_vmm::memory::{Sharing, create, unplugged};
use vm_memory::{Bytes as _, GuestAddress};

fn main() -> ExitCode {
    let trials = vec![
        trial("read_of_memory_that_was_given_goes_on", || {
            let (code, said) = attempt("given")?;
            ensure!(code == Some(0) && said.is_empty(), "{code:?}, {said}");
            Ok(())
        }),
        trial(
            "read_of_memory_that_was_not_given_ends_the_process_with_a_reason",
            || {
                let (code, said) = attempt("not-given")?;
                ensure!(code == Some(UNPLUGGED_EXIT_CODE.into()), "{code:?}, {said}");
                ensure!(said.contains("was not given"), "{said}");
                Ok(())
            },
        ),
        trial("fault_elsewhere_is_a_kill_by_sigsegv", || {
            let (code, said) = attempt("elsewhere")?;
            ensure!(code.is_none() && said.is_empty(), "{code:?}, {said}");
            Ok(())
        }),
    ];
    run(read, trials)
}

/// Reads the second block of memory that comes later, which has been given only if it says so.
fn read(what: &str) -> Result<()> {
    let first = MemMib::new(64)?;
    let later = Later::new(first, MemMib::new(128)?, 0).context("nothing comes later")?;
    let memory = create(first, Sharing::Private, None, Some(later))?;
    later.give(&memory, 0, later.block())?;
    let range = later.host_range(&memory).context("it is not there")?;
    match what {
        "given" => later.give(&memory, later.block(), later.block())?,
        "not-given" | "elsewhere" => {}
        other => bail!("{other} is nothing to do"),
    }
    match what {
        "elsewhere" => unplugged::end_when_used(&(0..1))?,
        _ => unplugged::end_when_used(&range)?,
    }
    let address = GuestAddress(later.range().start + later.block());
    let byte: u8 = memory.read_obj(address)?;
    ensure!(byte == 0, "read {byte}");
    Ok(())
}
