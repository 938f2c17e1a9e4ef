//! What can go wrong, and how it is told to containerd.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;

use sandbox_protocol::start_failure::{self, StartFailure};
use sandbox_runtime::agent::Code;
use sandbox_runtime::cleanup::CleanupError;
use sandbox_runtime::config::OverrideError;
use sandbox_runtime::host::HostError;
use sandbox_runtime::network::NetworkError;
use sandbox_runtime::rootfs::RootfsError;
use sandbox_runtime::share::ShareMountError;
use sandbox_runtime::{AgentError, ConfigError, ResizeError, SandboxError, StreamError};
use sandbox_types::{IdError, SandboxId, WithCauses};

use crate::hooks::HookError;
use crate::lifecycle::LifecycleError;
use crate::pod::sandbox::PhaseError;
use crate::pod::volumes::VolumeLockError;
use crate::program::ProgramError;
use crate::spec::SpecError;
use crate::spec::binds::BindError;
use crate::spec::disks::DiskError;
use crate::spec::pod_config::PodConfigError;
use crate::stdio::StdioError;

/// Why a command of the shim failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShimError {
    /// The command line is wrong.
    #[error("{message}")]
    Usage {
        /// What is wrong.
        message: String,
    },
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An identifier breaks the grammar.
    #[error("the container's identifier cannot be used")]
    Id(#[from] IdError),
    /// The socket's folder leaves no room for its name.
    #[error("the socket folder {} is too long for a Unix socket; choose a shorter `socket_dir`", path.display())]
    SocketDir {
        /// The folder.
        path: PathBuf,
    },
    /// The bundle's specification cannot be used.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A container of a pod whose shim is not there.
    #[error(
        "no shim serves pod {pod} on {}; its sandbox must be made first, or has ended", path.display()
    )]
    NoPod {
        /// The pod.
        pod: SandboxId,
        /// Where its shim would be.
        path: PathBuf,
    },
    /// Another shim of this pod is there.
    #[error("a shim of this pod already serves {}", path.display())]
    AlreadyServed {
        /// Its socket.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The server's socket broke.
    #[error("the task service failed")]
    Serve(#[source] ttrpc::Error),
    /// Something of a killed shim's pod could not be removed.
    #[error(transparent)]
    Cleanup(#[from] CleanupError),
    /// The answer could not be written.
    #[error("cannot encode the answer")]
    Encode(#[from] protobuf::Error),
}

impl ShimError {
    /// For `map_err`: what was tried when the system refused.
    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }
}

/// Why a call of the task service failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TaskError {
    /// An identifier breaks the grammar.
    #[error(transparent)]
    Id(#[from] IdError),
    /// There is no such container or process.
    #[error("{what} does not exist in this pod")]
    NotFound {
        /// Which.
        what: String,
    },
    /// There is one already.
    #[error("{what} already exists in this pod")]
    AlreadyExists {
        /// Which.
        what: String,
    },
    /// The bundle takes no note of the hooks that are to run in the end.
    #[error("cannot note the poststop hooks in the bundle")]
    NoteHooks(#[source] io::Error),
    /// What the sandbox service was told of the pod cannot be understood.
    #[error(transparent)]
    PodConfig(#[from] PodConfigError),
    /// The options of the pod's first container are not what their type says.
    #[error("`options` are no options of a runtime")]
    Options(#[source] protobuf::Error),
    /// The configuration that they name cannot be used.
    #[error("the configuration that `options` name cannot be used")]
    Config(#[source] Box<ShimError>),
    /// The files of the pod's containers cannot be written.
    #[error("cannot write the files of the pod's containers in the sandbox's bundle")]
    PodFiles(#[source] io::Error),
    /// A container of a pod that is not here.
    #[error("pod {pod} has no sandbox that runs here; its sandbox container comes first")]
    NoPod {
        /// Which pod.
        pod: SandboxId,
    },
    /// The sandbox is not in a phase for this.
    #[error(transparent)]
    Phase(#[from] PhaseError),
    /// The process is not in a state for this.
    #[error(transparent)]
    Lifecycle(#[from] LifecycleError),
    /// The bundle's specification cannot be used.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// What the pod says of its machine is not allowed.
    #[error(transparent)]
    Override(#[from] OverrideError),
    /// A bind mount of the specification cannot be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A new volume cannot be filled now.
    #[error(transparent)]
    Volume(#[from] VolumeLockError),
    /// A disk cannot be had.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A program of the agent's that it does not have.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A hook failed, or cannot be supported.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The root file system's mounts cannot be used.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// The pod's network namespace cannot be used.
    #[error("the network namespace in `linux.namespaces` cannot be used")]
    Network(#[from] NetworkError),
    /// No driver can run it here.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The virtual machine did not start, or not stop.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// Its machine did not become larger.
    #[error(transparent)]
    Resize(#[from] ResizeError),
    /// The agent refused or did not answer.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// A stream of the process could not be opened.
    #[error("cannot open the process's streams")]
    Stream(#[from] StreamError),
    /// The caller's ends of the streams cannot be used.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// The shim was told to end while a container was being made or the sandbox started, or whoever wanted it is gone.
    #[error(
        "the shim was shut down, or its caller went away, while the container was being created, or the sandbox started"
    )]
    Unwanted,
    /// The pod died meanwhile.
    #[error("{reason}")]
    Died {
        /// Why, with the last console lines.
        reason: String,
    },
    /// Not built yet.
    #[error("{what} is not supported")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
    },
}

impl TaskError {
    /// The ttrpc status by which containerd decides what happened.
    fn code(&self) -> Code {
        match self {
            Self::Id(_)
            | Self::Spec(_)
            | Self::Bind(_)
            | Self::Disk(_)
            | Self::PodConfig(_)
            | Self::Options(_)
            | Self::Override(_)
            | Self::Program(_)
            | Self::Rootfs(_)
            | Self::Stdio(_)
            | Self::Sandbox(SandboxError::Share(ShareMountError::Entry(_))) => {
                Code::INVALID_ARGUMENT
            }
            Self::NotFound { .. } => Code::NOT_FOUND,
            Self::AlreadyExists { .. } => Code::ALREADY_EXISTS,
            Self::Lifecycle(error) => match error {
                LifecycleError::Ended { .. } => Code::NOT_FOUND,
                LifecycleError::Wrong { .. } => Code::FAILED_PRECONDITION,
            },
            Self::Agent(AgentError::Refused { code, .. }) => *code,
            Self::Agent(AgentError::TimedOut { .. } | AgentError::Mute { .. }) => {
                Code::DEADLINE_EXCEEDED
            }
            Self::Unsupported { .. } => Code::UNIMPLEMENTED,
            Self::Host(_)
            | Self::Hook(_)
            | Self::Network(_)
            | Self::NoPod { .. }
            | Self::Unwanted
            | Self::Volume(VolumeLockError::Busy { .. })
            | Self::Config(_)
            | Self::Phase(_) => Code::FAILED_PRECONDITION,
            Self::Sandbox(_)
            | Self::Resize(_)
            | Self::Agent(_)
            | Self::Stream(_)
            | Self::NoteHooks(_)
            | Self::Volume(VolumeLockError::Io { .. })
            | Self::PodFiles(_)
            | Self::Died { .. } => Code::INTERNAL,
        }
    }

    /// Set when the container's program cannot be run.
    pub(crate) fn start_failure(&self) -> Option<StartFailure> {
        match self {
            Self::Agent(AgentError::Refused { failure, .. }) => *failure,
            _ => None,
        }
    }
}

impl TaskError {
    /// The answer to a call that starts a program, for a caller whose request has this metadata ([`start_failure`]).
    pub(crate) fn answer_to(self, metadata: &HashMap<String, Vec<String>>) -> ttrpc::Error {
        match self.start_failure() {
            Some(failure) if start_failure::is_asked_for(metadata) => {
                ttrpc::Error::RpcStatus(failure.to_status(WithCauses(&self).to_string()))
            }
            _ => self.into(),
        }
    }
}

impl From<TaskError> for ttrpc::Error {
    fn from(error: TaskError) -> Self {
        Self::RpcStatus(ttrpc::get_status(
            error.code(),
            WithCauses(&error).to_string(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing() -> TaskError {
        TaskError::Agent(AgentError::Refused {
            call: "CreateContainer",
            code: Code::NOT_FOUND,
            message: "no such program".to_owned(),
            failure: Some(StartFailure::ProgramNotFound),
        })
    }

    #[test]
    fn why_a_program_cannot_be_run_is_in_the_details_for_who_asks() {
        let mut metadata = HashMap::new();
        start_failure::ask(&mut metadata);
        for (metadata, wanted) in [
            (metadata, Some(StartFailure::ProgramNotFound)),
            (HashMap::new(), None),
        ] {
            let ttrpc::Error::RpcStatus(status) = missing().answer_to(&metadata) else {
                panic!("it is no status");
            };
            assert_eq!(StartFailure::from_status(&status), wanted);
            assert_eq!(status.details.is_empty(), wanted.is_none());
            assert_eq!(status.code(), Code::NOT_FOUND);
            assert!(status.message().contains("no such program"));
        }
    }
}
