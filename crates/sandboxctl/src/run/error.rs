//! Why a run failed, and the exit code that says so.

use std::io;
use std::path::PathBuf;

use sandbox_image::scratch::ScratchError;
use sandbox_protocol::start_failure::StartFailure;
use sandbox_runtime::config::ConfigError;
use sandbox_runtime::host::HostError;
use sandbox_types::{IdError, MachineSizeError};

use super::Death;
use crate::app::AppError;
use crate::container::ContainerError;
use crate::image::ImageError;
use crate::kernel::KernelError;
use crate::launch::LaunchError;
use crate::look::KILLED;
use crate::network::NetworkError;
use crate::settings::SettingsError;
use crate::settle::SettleError;
use crate::shim::{RpcError, ShimError};
use crate::signals;
use crate::spec::SpecError;

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error(transparent)]
    App(#[from] AppError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    #[error(transparent)]
    Shim(#[from] ShimError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// What it was made with cannot be noted.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A terminal was asked for, and standard input is none.
    #[error("the input device is not a TTY; leave out -t, or run it in a terminal")]
    NotATerminal,
    /// No machine has that size.
    #[error("--memory asks for a virtual machine that cannot be made")]
    MachineSize(#[source] MachineSizeError),
    /// An identifier that was made is none.
    #[error("cannot name the container")]
    Id(#[from] IdError),
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    Files {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The shim's configuration cannot be written as TOML.
    #[error("cannot write the shim's configuration")]
    Toml(#[from] toml::ser::Error),
    /// The OCI configuration cannot be written as JSON.
    #[error("cannot write the container's OCI configuration")]
    Json(#[from] serde_json::Error),
    /// There is nothing to run in.
    #[error("image {image} has no layers, so there is nothing in it to run")]
    NoLayers { image: String },
    /// The file for the identifier is there already.
    #[error("the file {} for the container's ID exists; remove it or name another", path.display())]
    CidfileExists { path: PathBuf },
    /// Signals cannot be caught.
    #[error("cannot catch signals")]
    Signals(#[source] io::Error),
    /// A stream cannot be connected.
    #[error("cannot connect the container's {stream}")]
    Stdio {
        stream: &'static str,
        source: io::Error,
    },
    /// Our output cannot be written.
    #[error("cannot write the container's output; `sandboxctl ps -a` says whether it runs on")]
    Output(#[source] io::Error),
    /// The program cannot be run.
    #[error("cannot run {program:?} in image {image}: {}", cannot_run(*failure, message))]
    Program {
        failure: StartFailure,
        program: String,
        image: String,
        message: String,
    },
    /// The attendant said why.
    #[error("{said}")]
    Attendant { said: String, code: u8 },
    /// One terminal, one container.
    #[error("only one container can be attached at a time; start the others without -a and -i")]
    OneToAttach,
    /// The attendant is gone.
    #[error(
        "the container was ended: the process that attended it (sandboxctl) died; see `sandboxctl ps -a`"
    )]
    AttendantDied,
    /// The service that takes the shim's events cannot be.
    #[error("cannot serve the shim's events")]
    Events(#[source] ttrpc::Error),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error(transparent)]
    Settle(#[from] SettleError),
    /// The shim refused or failed.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// The shim ended.
    #[error(
        "the container was ended: its shim (process {pid}) died{}{}",
        log_lines(log),
        console_lines(console)
    )]
    ShimDied {
        pid: u32,
        log: Vec<String>,
        console: Vec<String>,
    },
    /// The sandbox ended.
    #[error("the container was ended: {}{}", death.cause, console_lines(&death.console_tail))]
    SandboxDied { death: Death },
    /// A signal came before the container's process was started.
    #[error("stopped by {} before the container was started", signals::name(*signal))]
    Interrupted { signal: u32 },
}

fn cannot_run(failure: StartFailure, message: &str) -> String {
    let (what, next) = match failure {
        StartFailure::ProgramNotFound => (
            "there is no such program",
            "check the spelling, or give its full path",
        ),
        StartFailure::ProgramNotExecutable => (
            "it cannot be executed",
            "check its permissions and its first line",
        ),
    };
    match message.trim() {
        "" => format!("{what}; {next}"),
        message => format!("{what} ({message}); {next}"),
    }
}

fn console_lines(lines: &[String]) -> String {
    if lines.is_empty() {
        return "; its console is empty".to_owned();
    }
    listed("the last lines of its console", lines)
}

fn log_lines(lines: &[String]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    listed("the last lines it left", lines)
}

fn listed(title: &str, lines: &[String]) -> String {
    let mut text = format!("; {title}:");
    for line in lines {
        text.push_str("\n  | ");
        // What came from the guest must not drive the terminal.
        text.extend(
            line.chars()
                .map(|c| if c.is_control() { '\u{fffd}' } else { c }),
        );
    }
    text
}

impl RunError {
    /// What `sandboxctl` exits with, as docker does.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Program { failure, .. } => failure.exit_code(),
            Self::Attendant { code, .. } => *code,
            Self::Interrupted { signal } => signals::exit_code(*signal),
            _ => 125,
        }
    }

    /// The exit code of the container, which is not that of its process.
    pub(crate) fn container_code(&self) -> i32 {
        match self {
            Self::Program { .. } | Self::Interrupted { .. } => self.exit_code().into(),
            _ => KILLED,
        }
    }

    /// One line for the container's state.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::SandboxDied { death } => death.cause.clone(),
            Self::ShimDied { pid, .. } => format!("its shim (process {pid}) died"),
            other => other
                .to_string()
                .lines()
                .next()
                .unwrap_or_default()
                .to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn death_shows_console_without_control_characters() {
        let error = RunError::SandboxDied {
            death: Death {
                cause: "the guest kernel panicked".to_owned(),
                console_tail: vec!["a\u{1b}[2Jb".to_owned()],
            },
        };
        assert_eq!(
            error.to_string(),
            "the container was ended: the guest kernel panicked; the last lines of its console:\n  | a\u{fffd}[2Jb"
        );
        assert_eq!(error.reason(), "the guest kernel panicked");
        assert_eq!(error.exit_code(), 125);
    }

    #[test]
    fn exit_codes_are_dockers() {
        for (failure, code) in [
            (StartFailure::ProgramNotFound, 127),
            (StartFailure::ProgramNotExecutable, 126),
        ] {
            let error = RunError::Program {
                failure,
                program: "x".to_owned(),
                image: "demo".to_owned(),
                message: String::new(),
            };
            assert_eq!(error.exit_code(), code);
            assert!(error.to_string().contains("\"x\" in image demo"));
        }
        assert_eq!(RunError::Interrupted { signal: 2 }.exit_code(), 130);
        assert_eq!(RunError::NotATerminal.exit_code(), 125);
    }
}
