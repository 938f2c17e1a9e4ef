//! Programs that start themselves again to meet a fault, which may end them.

use std::env;
use std::process::{Command, ExitCode};

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};

/// Names what the program is to do instead of testing.
const ATTEMPT: &str = "SANDBOX_TEST_ATTEMPT";

/// Does what the program was started again for, or else runs the tests.
pub(crate) fn run(act: fn(&str) -> Result<()>, trials: Vec<Trial>) -> ExitCode {
    if let Ok(attempt) = env::var(ATTEMPT) {
        return match act(&attempt) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

pub(crate) fn trial(name: &str, test: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    Trial::test(name, || {
        test().map_err(|error| Failed::from(format!("{error:#}")))
    })
}

/// Starts the program again; its exit code, if it was not killed, and what it said.
pub(crate) fn attempt(what: &str) -> Result<(Option<i32>, String)> {
    let output = Command::new(env::current_exe()?)
        .env(ATTEMPT, what)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((output.status.code(), said))
}
