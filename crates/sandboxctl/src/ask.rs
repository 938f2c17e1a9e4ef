//! Questions to a person.

use std::io::{self, Write as _};

/// Whether the answer is yes. Where nobody answers, it is not.
pub(crate) fn confirmed(what: &str) -> bool {
    eprint!("{what} Are you sure you want to continue? [y/N] ");
    let _ = io::stderr().flush();
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).is_ok()
        && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
}
