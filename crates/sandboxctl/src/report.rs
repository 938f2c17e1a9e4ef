//! The one place where errors reach the user.

use std::error::Error;

use sandbox_types::WithCauses;

/// Prints an error that ends what was asked for.
pub(crate) fn error(error: &(dyn Error + 'static)) {
    eprintln!("sandboxctl: {}", WithCauses(error));
}

/// Prints an error that ends nothing, but that the user should know of.
pub(crate) fn warn(error: &(dyn Error + 'static)) {
    eprintln!("sandboxctl: warning: {}", WithCauses(error));
}
