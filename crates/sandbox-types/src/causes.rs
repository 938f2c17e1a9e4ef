//! How an error is said.

use std::error::Error;
use std::fmt;

/// Shows an error and what caused it, on one line, each cause after a colon. A cause with whose text its predecessor
/// ends already is not said again.
#[derive(Debug, Clone, Copy)]
pub struct WithCauses<'a>(pub &'a dyn Error);

impl fmt::Display for WithCauses<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.0.to_string();
        let mut source = self.0.source();
        while let Some(cause) = source {
            let said = cause.to_string();
            if !text.ends_with(&said) {
                text.push_str(": ");
                text.push_str(&said);
            }
            source = cause.source();
        }
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Stuck {
        #[error(transparent)]
        Passed(io::Error),
        #[error("cannot open the box")]
        Added(#[source] io::Error),
        #[error("not today: the lid is stuck")]
        Repeated(#[source] io::Error),
        #[error("no delivery")]
        Twice(#[source] Box<Self>),
    }

    #[test]
    fn every_cause_is_said_once() {
        let cause = || io::Error::other("the lid is stuck");
        for (error, said) in [
            (Stuck::Passed(cause()), "the lid is stuck"),
            (
                Stuck::Added(cause()),
                "cannot open the box: the lid is stuck",
            ),
            (Stuck::Repeated(cause()), "not today: the lid is stuck"),
            (
                Stuck::Twice(Box::new(Stuck::Added(cause()))),
                "no delivery: cannot open the box: the lid is stuck",
            ),
        ] {
            assert_eq!(WithCauses(&error).to_string(), said);
        }
    }
}
