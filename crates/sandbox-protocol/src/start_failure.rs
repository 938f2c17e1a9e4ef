//! Why a program could not be run, told apart by more than the text of the error.
//!
//! A shell, `docker run` and `sandboxctl run` exit with 127 when there is no such program and with 126 when
//! there is one that cannot be executed. The agent answers CreateContainer or StartProcess with a ttrpc status
//! that has a [`StartFailure`] in its `details`; every other error has none there.
//!
//! The shim answers so only to who asks for it with [`ask`]: to clients of containerd that know no such type (Docker, `ctr`) every
//! entry of the details is one more error, which they show.

use std::collections::HashMap;

use ttrpc::proto::{Any, Code, Status};

/// Type of the entry in the status's `details`.
const TYPE_URL: &str = "sandbox.agent.v1.StartFailure";
/// The metadata of a request that asks for it.
const ASKED_FOR: &str = "sandbox-start-failure";

/// Asks for it in a request's metadata.
pub fn ask(metadata: &mut HashMap<String, Vec<String>>) {
    metadata.insert(ASKED_FOR.to_owned(), vec!["details".to_owned()]);
}

/// Whether a request asks for it.
#[must_use]
pub fn is_asked_for(metadata: &HashMap<String, Vec<String>>) -> bool {
    metadata.contains_key(ASKED_FOR)
}

/// Why a program could not be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartFailure {
    /// There is no such program in the container.
    ProgramNotFound,
    /// There is one, but it cannot be executed: permissions, a directory, an unknown format, no interpreter.
    ProgramNotExecutable,
}

impl StartFailure {
    /// The exit code that shells and `docker run` have for it.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::ProgramNotFound => 127,
            Self::ProgramNotExecutable => 126,
        }
    }

    /// The status that says so.
    #[must_use]
    pub fn to_status(self, message: String) -> Status {
        let mut status = Status::new();
        status.set_code(match self {
            Self::ProgramNotFound => Code::NOT_FOUND,
            Self::ProgramNotExecutable => Code::PERMISSION_DENIED,
        });
        status.set_message(message);
        status.details.push(Any {
            type_url: TYPE_URL.to_owned(),
            value: vec![self.exit_code()],
            ..Any::default()
        });
        status
    }

    /// What a status says; `None` for any other error.
    #[must_use]
    pub fn from_status(status: &Status) -> Option<Self> {
        status
            .details
            .iter()
            .filter(|entry| entry.type_url == TYPE_URL)
            .find_map(|entry| match entry.value.as_slice() {
                [127] => Some(Self::ProgramNotFound),
                [126] => Some(Self::ProgramNotExecutable),
                _ => None,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_failure_in_status_is_read_back() {
        for failure in [
            StartFailure::ProgramNotFound,
            StartFailure::ProgramNotExecutable,
        ] {
            let status = failure.to_status("no".to_owned());
            assert_eq!(StartFailure::from_status(&status), Some(failure));
        }
    }

    #[test]
    fn start_failure_is_asked_for_in_the_metadata() {
        let mut metadata = HashMap::new();
        assert!(!is_asked_for(&metadata));
        ask(&mut metadata);
        assert!(is_asked_for(&metadata));
    }

    #[test]
    fn start_failure_in_other_status_is_none() {
        let mut status = Status::new();
        status.set_code(Code::NOT_FOUND);
        assert_eq!(StartFailure::from_status(&status), None);
    }
}
