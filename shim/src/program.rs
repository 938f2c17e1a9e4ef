//! Which of the agent's own programs a caller asks for: see [`sandbox_protocol::extensions`].

use std::collections::HashMap;

use sandbox_protocol::agent::AgentProgram;
use sandbox_protocol::extensions::{
    EXEC_PROGRAM_TYPE, PROGRAM_ANNOTATION, PROGRAM_ARCHIVE_READ, PROGRAM_ARCHIVE_WRITE,
    PROGRAM_INIT, PROGRAM_PAUSE,
};

/// A program that the agent does not have.
#[derive(Debug, thiserror::Error)]
#[error(
    "{asked_by} asks for the agent's program {word:?}; there are {PROGRAM_INIT:?}, {PROGRAM_ARCHIVE_READ:?}, {PROGRAM_ARCHIVE_WRITE:?} and {PROGRAM_PAUSE:?}"
)]
pub(crate) struct ProgramError {
    asked_by: &'static str,
    word: String,
}

fn by_word(asked_by: &'static str, word: &str) -> Result<AgentProgram, ProgramError> {
    match word {
        PROGRAM_INIT => Ok(AgentProgram::AGENT_PROGRAM_INIT),
        PROGRAM_ARCHIVE_READ => Ok(AgentProgram::AGENT_PROGRAM_ARCHIVE_READ),
        PROGRAM_ARCHIVE_WRITE => Ok(AgentProgram::AGENT_PROGRAM_ARCHIVE_WRITE),
        PROGRAM_PAUSE => Ok(AgentProgram::AGENT_PROGRAM_PAUSE),
        _ => Err(ProgramError {
            asked_by,
            word: word.to_owned(),
        }),
    }
}

/// What a container's first process is, by its annotations.
///
/// # Errors
/// [`ProgramError`] for a word that is not known.
pub(crate) fn of_container(
    annotations: Option<&HashMap<String, String>>,
) -> Result<AgentProgram, ProgramError> {
    match annotations.and_then(|all| all.get(PROGRAM_ANNOTATION)) {
        None => Ok(AgentProgram::AGENT_PROGRAM_NONE),
        Some(word) => by_word(PROGRAM_ANNOTATION, word),
    }
}

/// What an exec runs, by the type of its specification.
///
/// # Errors
/// [`ProgramError`] for a word that is not known.
pub(crate) fn of_exec(type_url: &str) -> Result<AgentProgram, ProgramError> {
    match type_url.strip_prefix(EXEC_PROGRAM_TYPE) {
        None => Ok(AgentProgram::AGENT_PROGRAM_NONE),
        Some(word) => by_word("the exec's type", word),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_by_their_words() {
        let with = |word: &str| {
            let annotations = HashMap::from([(PROGRAM_ANNOTATION.to_owned(), word.to_owned())]);
            of_container(Some(&annotations))
        };
        assert_eq!(with("init").unwrap(), AgentProgram::AGENT_PROGRAM_INIT);
        assert!(with("sh").is_err());
        assert_eq!(
            of_container(None).unwrap(),
            AgentProgram::AGENT_PROGRAM_NONE
        );
        assert_eq!(
            of_exec("types.containerd.io/opencontainers/runtime-spec/1/Process").unwrap(),
            AgentProgram::AGENT_PROGRAM_NONE
        );
        assert_eq!(
            of_exec("types.sandbox.dev/program/archive-read").unwrap(),
            AgentProgram::AGENT_PROGRAM_ARCHIVE_READ
        );
        assert!(of_exec("types.sandbox.dev/program/").is_err());
    }
}
