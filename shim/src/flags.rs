//! The command line that the shim contract prescribes: flags in Go's style (`-id X`, `-id=X`, `--id X`), then the
//! command.

use std::path::PathBuf;

use crate::error::ShimError;

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    /// Be the server.
    Serve,
    /// Start the server.
    Start,
    /// Clean up after a killed server.
    Delete,
    /// Print the version.
    Version,
    /// Print what the shim is and can do.
    Info,
}

/// The command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flags {
    /// What to do.
    pub(crate) command: Command,
    /// containerd's namespace of the container.
    pub(crate) namespace: String,
    /// The container's (and so the pod's) identifier.
    pub(crate) id: String,
    /// The address of containerd's gRPC socket; empty without a containerd.
    pub(crate) address: String,
    /// The bundle; the working directory when it is not given.
    pub(crate) bundle: Option<PathBuf>,
    /// Log more.
    pub(crate) debug: bool,
}

impl Flags {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    /// [`ShimError::Usage`] for an unknown flag, a missing value, an unknown command, or a missing `-id` or
    /// `-namespace` where one is needed.
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, ShimError> {
        let usage = |message: String| ShimError::Usage { message };
        let mut flags = Self {
            command: Command::Serve,
            namespace: String::new(),
            id: String::new(),
            address: String::new(),
            bundle: None,
            debug: false,
        };
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let Some(flag) = argument.strip_prefix('-') else {
                flags.command = match argument.as_str() {
                    "start" => Command::Start,
                    "delete" => Command::Delete,
                    other => {
                        return Err(usage(format!("unknown command {other:?}: start or delete")));
                    }
                };
                continue;
            };
            let flag = flag.strip_prefix('-').unwrap_or(flag);
            let (name, inline) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            match name {
                "v" | "version" => {
                    flags.command = Command::Version;
                    return Ok(flags);
                }
                "info" => {
                    flags.command = Command::Info;
                    return Ok(flags);
                }
                "debug" => flags.debug = inline.is_none_or(|value| value != "false"),
                "namespace" | "id" | "address" | "publish-binary" | "bundle" | "socket" => {
                    let value = inline
                        .or_else(|| arguments.next())
                        .ok_or_else(|| usage(format!("-{name} needs a value")))?;
                    match name {
                        "namespace" => flags.namespace = value,
                        "id" => flags.id = value,
                        "address" => flags.address = value,
                        "bundle" => flags.bundle = Some(PathBuf::from(value)),
                        // Events go through containerd's ttrpc socket; the binary is for shims that cannot.
                        _ => {}
                    }
                }
                other => return Err(usage(format!("unknown flag -{other}"))),
            }
        }
        for (name, value) in [("namespace", &flags.namespace), ("id", &flags.id)] {
            if value.is_empty() {
                return Err(usage(format!(
                    "-{name} is missing; containerd and sandboxctl give it"
                )));
            }
        }
        Ok(flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Flags, ShimError> {
        Flags::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn flags_of_containerd_are_understood() {
        let flags =
            parse("-namespace ns -address /a -publish-binary /b -id c1 -debug start").unwrap();
        assert_eq!(flags.command, Command::Start);
        assert_eq!((flags.namespace.as_str(), flags.id.as_str()), ("ns", "c1"));
        assert!(flags.debug);
        let flags = parse("--namespace=ns --id=c1 -bundle /x delete").unwrap();
        assert_eq!(flags.command, Command::Delete);
        assert_eq!(flags.bundle, Some(PathBuf::from("/x")));
        assert_eq!(parse("-v").unwrap().command, Command::Version);
        assert_eq!(parse("-info").unwrap().command, Command::Info);
    }

    #[test]
    fn flags_that_are_wrong_are_named() {
        for line in ["-id", "-what x", "stop -id a -namespace b", "-id a start"] {
            assert!(
                matches!(parse(line), Err(ShimError::Usage { .. })),
                "{line}"
            );
        }
    }
}
