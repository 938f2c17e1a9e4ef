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

/// More than one of the things that a verb was for went wrong; each was reported.
#[derive(Debug, thiserror::Error)]
#[error("{failed} of {all} {what}")]
pub(crate) struct Several {
    failed: usize,
    all: usize,
    /// What became of them, such as "containers were not stopped".
    what: String,
}

/// Ends a verb that was for `all` things: one failure is the error, of several each is reported.
pub(crate) fn conclude<F, E>(mut failures: Vec<F>, all: usize, what: &str) -> Result<(), E>
where
    F: Error + 'static,
    E: From<F> + From<Several>,
{
    if failures.len() < 2 {
        return failures.pop().map_or(Ok(()), |only| Err(only.into()));
    }
    for failure in &failures {
        error(failure);
    }
    let several = Several {
        failed: failures.len(),
        all,
        what: what.to_owned(),
    };
    Err(several.into())
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Ended {
        #[error(transparent)]
        One(#[from] io::Error),
        #[error(transparent)]
        Several(#[from] Several),
    }

    #[test]
    fn one_failure_is_the_error_and_several_are_counted() {
        let conclude = |failed: usize| {
            let failures = (0..failed).map(|_| io::Error::other("stuck")).collect();
            conclude::<io::Error, Ended>(failures, 3, "boxes were not opened")
        };
        assert!(conclude(0).is_ok());
        assert_eq!(conclude(1).unwrap_err().to_string(), "stuck");
        let several = conclude(2).unwrap_err();
        assert_eq!(several.to_string(), "2 of 3 boxes were not opened");
    }
}
