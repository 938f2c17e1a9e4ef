//! The one place where errors reach the user.

use std::error::Error;

/// An error and what caused it, on one line each cause after a colon.
///
/// A cause whose text its predecessor already ends with is not said again.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = cause.source();
    }
    text
}

/// Prints an error that ends what was asked for.
pub(crate) fn error(error: &(dyn Error + 'static)) {
    eprintln!("sandboxctl: {}", chain(error));
}

/// Prints an error that ends nothing, but that the user should know of.
pub(crate) fn warn(error: &(dyn Error + 'static)) {
    eprintln!("sandboxctl: warning: {}", chain(error));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open the box")]
    struct Outer(#[source] std::io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("not today: the lid is stuck")]
    struct Repeating(#[source] std::io::Error);

    #[test]
    fn chain_names_every_cause_once() {
        let cause = || std::io::Error::other("the lid is stuck");
        assert_eq!(
            chain(&Outer(cause())),
            "cannot open the box: the lid is stuck"
        );
        assert_eq!(chain(&Repeating(cause())), "not today: the lid is stuck");
    }
}
