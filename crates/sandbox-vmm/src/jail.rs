//! How the monitor, and what is beside it, get into their jail.
//!
//! `sandbox-vmm run` and `vsock-backend` enter it themselves, first of all. `sandbox-vmm jailed` enters it for a program that
//! cannot do so itself, and becomes that program. What the jail is, is a [`JailConfig`] on a descriptor.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use sandbox_jail::JailError;
use sandbox_types::WithCauses;
use sandbox_types::jail::JailConfig;

use crate::fd::{FdError, Inherited};

/// The longest description, in bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 16;
/// How to call it.
const USAGE: &str = "sandbox-vmm jailed --jail FD [--sandbox DIR] -- PROGRAM [ARGUMENT…]";

/// Why a process is not in its jail.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnterError {
    /// The command line is not understood.
    #[error("usage: {USAGE}")]
    Usage,
    /// A number of a descriptor that is none.
    #[error("--jail wants a descriptor, not {value:?}")]
    Number {
        /// What it was given, if anything.
        value: Option<OsString>,
    },
    /// A descriptor that is not there.
    #[error(transparent)]
    Descriptor(#[from] FdError),
    /// The description cannot be read.
    #[error("cannot read the description of the jail")]
    Read {
        /// What the kernel said.
        source: io::Error,
    },
    /// The description is none.
    #[error("the description of the jail is not understood")]
    Parse {
        /// Why.
        source: serde_json::Error,
    },
    /// The jail itself.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// The program cannot be executed in it.
    #[error("cannot execute {program:?} in the jail")]
    Exec {
        /// Which.
        program: OsString,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What a command line says of the jail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct JailArguments {
    /// The descriptor of the description; without one there is no jail.
    fd: Option<RawFd>,
}

impl JailArguments {
    /// Takes `--jail FD` and `--sandbox DIR` from the front of `arguments`, and returns what follows. The latter only tells
    /// whoever lists processes whose this one is.
    ///
    /// # Errors
    /// [`EnterError::Number`].
    pub(crate) fn take(arguments: &[OsString]) -> Result<(Self, &[OsString]), EnterError> {
        let mut taken = Self::default();
        let mut rest = arguments;
        while let Some((option, after)) = rest.split_first() {
            let value = after.first();
            match option.to_str() {
                Some("--jail") => {
                    let number = value.and_then(|value| value.to_str()?.parse().ok());
                    taken.fd = Some(number.ok_or_else(|| EnterError::Number {
                        value: value.cloned(),
                    })?);
                }
                Some("--sandbox") => {}
                _ => break,
            }
            rest = after.get(1..).unwrap_or_default();
        }
        Ok((taken, rest))
    }

    /// Enters the jail, if there is to be one. Closes every descriptor that the jail does not name, so that the process must not
    /// have opened any of its own.
    ///
    /// # Errors
    /// [`EnterError`].
    pub(crate) fn enter(self, inherited: &mut Inherited) -> Result<(), EnterError> {
        let Some(fd) = self.fd else { return Ok(()) };
        let config = read(inherited.take(fd, "the description of the jail")?)?;
        let parent = inherited.take(config.parent_fd, "the parent process")?;
        sandbox_jail::enter(&config, parent)?;
        Ok(())
    }
}

fn read(fd: OwnedFd) -> Result<JailConfig, EnterError> {
    let mut text = Vec::new();
    File::from(fd)
        .take(MAX_CONFIG_BYTES)
        .read_to_end(&mut text)
        .map_err(|source| EnterError::Read { source })?;
    serde_json::from_slice(&text).map_err(|source| EnterError::Parse { source })
}

/// `sandbox-vmm jailed`: returns only when the program cannot be executed in its jail. `arguments` are those behind it.
#[must_use]
pub fn main(arguments: &[OsString]) -> ExitCode {
    let error = become_program(arguments);
    eprintln!("sandbox-vmm jailed: {}", WithCauses(&error));
    ExitCode::FAILURE
}

fn become_program(arguments: &[OsString]) -> EnterError {
    let (jail, rest) = match JailArguments::take(arguments) {
        Ok(taken) => taken,
        Err(error) => return error,
    };
    let (Some(_), [separator, program, arguments @ ..]) = (jail.fd, rest) else {
        return EnterError::Usage;
    };
    if separator != OsStr::new("--") {
        return EnterError::Usage;
    }
    if let Err(error) = jail.enter(&mut Inherited::new()) {
        return error;
    }
    EnterError::Exec {
        program: program.clone(),
        source: Command::new(program).args(arguments).exec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn arguments_of_the_jail_are_taken_from_the_front() {
        let line = arguments("--jail 9 --sandbox /a --path /x --jail 4");
        let (taken, rest) = JailArguments::take(&line).unwrap();
        assert_eq!(taken.fd, Some(9));
        assert_eq!(rest, &line[4..]);
        let line = arguments("--cid 5");
        let (taken, rest) = JailArguments::take(&line).unwrap();
        assert_eq!((taken.fd, rest), (None, line.as_slice()));
        for wrong in ["--jail", "--jail x"] {
            let error = JailArguments::take(&arguments(wrong)).unwrap_err();
            assert!(matches!(error, EnterError::Number { .. }), "{error}");
        }
    }

    #[test]
    fn program_without_a_jail_is_not_executed() {
        for wrong in [
            "-- /bin/true",
            "--jail 9 /bin/true",
            "--jail 9 --",
            "--jail 9",
        ] {
            let error = become_program(&arguments(wrong));
            assert!(matches!(error, EnterError::Usage), "{wrong}: {error}");
        }
    }
}
