//! The agent's own programs for containers (`AgentProgram`): the agent's binary, executed by descriptor, so that a
//! container needs nothing for them and finds nothing of them in its file system.
//!
//! They run as any program of the container does, with its user, capabilities and system call filter.

mod archive;
mod init;
mod pause;

pub(crate) use archive::{ArchiveError, archive_content, write as unpack_archive};

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use sandbox_protocol::agent::AgentProgram;
use sandbox_protocol::extensions::{
    PROGRAM_ARCHIVE_READ, PROGRAM_ARCHIVE_WRITE, PROGRAM_INIT, PROGRAM_PAUSE,
};
use serde::{Deserialize, Serialize};

/// One of the agent's own programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Program {
    /// Starts a command, passes signals on, reaps.
    Init,
    /// Writes an archive to standard output.
    ArchiveRead,
    /// Unpacks an archive from standard input.
    ArchiveWrite,
    /// Holds namespaces and a root, and does nothing.
    Pause,
}

impl Program {
    /// All there are.
    const ALL: [Self; 4] = [
        Self::Init,
        Self::ArchiveRead,
        Self::ArchiveWrite,
        Self::Pause,
    ];

    /// As the host says it; `None` for the command that the process names.
    pub(crate) fn from_wire(program: AgentProgram) -> Option<Self> {
        match program {
            AgentProgram::AGENT_PROGRAM_NONE => None,
            AgentProgram::AGENT_PROGRAM_INIT => Some(Self::Init),
            AgentProgram::AGENT_PROGRAM_ARCHIVE_READ => Some(Self::ArchiveRead),
            AgentProgram::AGENT_PROGRAM_ARCHIVE_WRITE => Some(Self::ArchiveWrite),
            AgentProgram::AGENT_PROGRAM_PAUSE => Some(Self::Pause),
        }
    }

    /// First argument of the binary when it is to be this program.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Init => PROGRAM_INIT,
            Self::ArchiveRead => PROGRAM_ARCHIVE_READ,
            Self::ArchiveWrite => PROGRAM_ARCHIVE_WRITE,
            Self::Pause => PROGRAM_PAUSE,
        }
    }

    /// The program that a first argument names.
    pub(crate) fn named(word: &OsStr) -> Option<Self> {
        Self::ALL.into_iter().find(|program| word == program.word())
    }

    /// Whether its arguments are a command of the container's.
    pub(crate) fn runs_a_command(self) -> bool {
        self == Self::Init
    }

    /// The program's `main`.
    pub(crate) fn run(self, arguments: Vec<OsString>) -> ExitCode {
        match self {
            Self::Init => init::main(&arguments),
            Self::ArchiveRead => archive::read_main(&arguments),
            Self::ArchiveWrite => archive::write_main(&arguments),
            Self::Pause => pause::main(),
        }
    }
}

/// Says on standard error, which is the container's, why a program failed.
fn complain(program: Program, message: &str) {
    use std::io::Write as _;
    // There is nowhere to say that saying failed.
    let _ = writeln!(std::io::stderr(), "{}: {message}", program.word());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_is_found_by_its_word() {
        for program in Program::ALL {
            assert_eq!(Program::named(program.word().as_ref()), Some(program));
        }
        assert_eq!(Program::named("helper".as_ref()), None);
    }
}
