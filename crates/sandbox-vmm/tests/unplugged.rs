//! A device that is pointed at memory which the guest does not have at the time: this program starts itself again, and reads there.

use std::env;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use sandbox_types::MemMib;
use sandbox_types::monitor::UNPLUGGED_EXIT_CODE;
use sandbox_vmm::memory::later::Later;
use sandbox_vmm::memory::{Sharing, create, unplugged};
use vm_memory::{Bytes as _, GuestAddress};

/// Names what the program is to do instead of testing.
const ATTEMPT: &str = "SANDBOX_TEST_ATTEMPT";

fn main() -> ExitCode {
    if let Ok(attempt) = env::var(ATTEMPT) {
        return match read(&attempt) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
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
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn trial(name: &str, test: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    Trial::test(name, || {
        test().map_err(|error| Failed::from(format!("{error:#}")))
    })
}

fn attempt(what: &str) -> Result<(Option<i32>, String)> {
    let output = Command::new(env::current_exe()?)
        .env(ATTEMPT, what)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((output.status.code(), said))
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
