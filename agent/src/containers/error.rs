//! Why a container could not be dealt with, and the ttrpc status that says so.

use std::io;
use std::path::PathBuf;

use sandbox_protocol::limits::MAX_LASTING_MOUNTS;
use sandbox_protocol::start_failure::StartFailure;
use sandbox_types::{ContainerId, IdError, WithCauses};
use ttrpc::proto::{Code, Status};

use crate::cgroup::CgroupError;
use crate::copied_files::FileError;
use crate::fill::FillError;
use crate::helper::FailureKind;
use crate::launch::LaunchError;
use crate::mount::MountError;
use crate::process::State;
use crate::spec::SpecError;

/// Why a container could not be dealt with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContainerError {
    /// A name that is none.
    #[error(transparent)]
    Id(#[from] IdError),
    /// No such container.
    #[error("there is no container {id}")]
    NoContainer {
        /// Its name.
        id: ContainerId,
    },
    /// No such process.
    #[error("there is no process {what}")]
    NoProcess {
        /// Container and exec id.
        what: String,
    },
    /// The name is taken.
    #[error("{what} is there already")]
    Exists {
        /// Container, and exec id of a process.
        what: String,
    },
    /// Not possible in this state.
    #[error("cannot {action} {what}, which is {state:?}")]
    WrongState {
        /// What was asked for.
        action: &'static str,
        /// Of which process.
        what: String,
        /// Its state.
        state: State,
    },
    /// The process has ended.
    #[error("process {what} has ended")]
    Ended {
        /// Which.
        what: String,
    },
    /// No signal has this number.
    #[error("there is no signal {signal}")]
    NoSignal {
        /// The number.
        signal: u32,
    },
    /// The process has no terminal.
    #[error("process {what} has no terminal")]
    NoTerminal {
        /// Which.
        what: String,
    },
    /// The spec cannot be run here.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A volume could not be filled.
    #[error(transparent)]
    Fill(#[from] FillError),
    /// A kind of namespace that containers cannot share.
    #[error(
        "containers cannot share a {kind:?} namespace; they can share pid, ipc, uts, network and user"
    )]
    SharedKind {
        /// What the host sent.
        kind: String,
    },
    /// No program of the agent's has this number.
    #[error("the agent has no program {number}")]
    NoProgram {
        /// What the host sent.
        number: i32,
    },
    /// Device rules cannot be changed.
    #[error("the device rules of {id} cannot be changed after it was made")]
    Devices {
        /// Which container.
        id: ContainerId,
    },
    /// A file could not be copied into the guest.
    #[error(transparent)]
    File(#[from] FileError),
    /// The root could not be built.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// More than may be mounted for all containers.
    #[error("there are {MAX_LASTING_MOUNTS} mounts that stay, and there can be no more")]
    TooManyLasting,
    /// The process could not be made or started.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The group could not be used.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Pipes could not be made.
    #[error("cannot make the process's streams")]
    Streams(#[source] io::Error),
    /// The agent's own files could not be written.
    #[error("cannot write {path}")]
    Folder {
        /// Which.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A kernel parameter was refused.
    #[error("cannot set kernel parameter {key}={value}")]
    Sysctl {
        /// Its name.
        key: String,
        /// The value.
        value: String,
        #[source]
        source: io::Error,
    },
    /// A signal could not be sent.
    #[error("cannot send signal {signal} to {what}")]
    Signal {
        /// To which process.
        what: String,
        /// Its number.
        signal: u32,
        #[source]
        source: io::Error,
    },
    /// The terminal refused.
    #[error("cannot set the size of the terminal of {what}")]
    Terminal {
        /// Of which process.
        what: String,
        #[source]
        source: io::Error,
    },
}

impl ContainerError {
    /// What the host is told: a code to decide by, and the whole chain for people.
    pub(crate) fn to_status(&self) -> Status {
        let message = WithCauses(self).to_string();
        if let Self::Launch(LaunchError::Failed(failure)) = self {
            let start = match failure.kind {
                FailureKind::ProgramNotFound => Some(StartFailure::ProgramNotFound),
                FailureKind::ProgramNotExecutable => Some(StartFailure::ProgramNotExecutable),
                FailureKind::Setup | FailureKind::Invalid => None,
            };
            if let Some(start) = start {
                return start.to_status(message);
            }
        }
        ttrpc::get_status(self.code(), message)
    }

    fn code(&self) -> Code {
        match self {
            Self::Launch(LaunchError::Failed(failure)) if failure.kind == FailureKind::Invalid => {
                Code::INVALID_ARGUMENT
            }
            Self::Id(_) | Self::NoSignal { .. } | Self::Spec(_) => Code::INVALID_ARGUMENT,
            Self::Mount(MountError::Path(_) | MountError::NoSource { .. })
            | Self::File(FileError::Path(_) | FileError::TooLarge { .. })
            | Self::Cgroup(CgroupError::Resource(_))
            | Self::SharedKind { .. }
            | Self::NoProgram { .. }
            | Self::TooManyLasting
            | Self::Devices { .. } => Code::INVALID_ARGUMENT,
            Self::NoContainer { .. } | Self::NoProcess { .. } | Self::Ended { .. } => {
                Code::NOT_FOUND
            }
            Self::Exists { .. } => Code::ALREADY_EXISTS,
            Self::WrongState { .. } | Self::NoTerminal { .. } => Code::FAILED_PRECONDITION,
            Self::Mount(_)
            | Self::File(_)
            | Self::Fill(_)
            | Self::Launch(_)
            | Self::Cgroup(_)
            | Self::Streams(_)
            | Self::Folder { .. }
            | Self::Sysctl { .. }
            | Self::Signal { .. }
            | Self::Terminal { .. } => Code::INTERNAL,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::helper::Failure;

    #[test]
    fn missing_program_is_told_by_the_details_of_the_status() {
        let status = |kind| {
            let message = "no".to_owned();
            ContainerError::Launch(LaunchError::Failed(Failure { kind, message })).to_status()
        };
        let of = |kind| StartFailure::from_status(&status(kind));
        assert_eq!(
            of(FailureKind::ProgramNotFound),
            Some(StartFailure::ProgramNotFound)
        );
        assert_eq!(
            of(FailureKind::ProgramNotExecutable),
            Some(StartFailure::ProgramNotExecutable)
        );
        assert_eq!(of(FailureKind::Setup), None);
    }

    #[test]
    fn status_carries_the_whole_chain() {
        let error = ContainerError::Folder {
            path: "/run/x".into(),
            source: io::Error::from_raw_os_error(28),
        };
        let status = error.to_status();
        assert_eq!(
            status.message(),
            "cannot write /run/x: No space left on device (os error 28)"
        );
    }
}
