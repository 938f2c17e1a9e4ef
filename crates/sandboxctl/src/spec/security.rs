//! `--security-opt`.

use std::path::PathBuf;

use super::SpecError;
use crate::cli::ContainerOptions;

/// Which system calls the process may make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seccomp {
    /// All that its capabilities let it make.
    Unconfined,
    /// Those of the built-in profile.
    Builtin,
    /// Those of the profile in this file.
    File(PathBuf),
}

/// What all the options together say; a later one overrides an earlier one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Security {
    pub(super) no_new_privileges: bool,
    /// None where no option speaks of it.
    pub(super) seccomp: Option<Seccomp>,
    /// Whether the kernel's files are neither masked nor read-only.
    pub(super) system_paths: bool,
}

/// Reads the options. docker takes `:` for `=`, as it once was.
pub(super) fn options(options: &ContainerOptions) -> Result<Security, SpecError> {
    let mut security = Security {
        no_new_privileges: false,
        seccomp: None,
        system_paths: false,
    };
    for option in &options.security_opt {
        let unknown = || SpecError::SecurityOption {
            option: option.clone(),
        };
        let (key, value) = match option.split_once(['=', ':']) {
            Some((key, value)) => (key, Some(value)),
            None => (option.as_str(), None),
        };
        match (key, value) {
            ("no-new-privileges", None | Some("true")) => security.no_new_privileges = true,
            ("no-new-privileges", Some("false")) => security.no_new_privileges = false,
            ("seccomp", Some("unconfined")) => security.seccomp = Some(Seccomp::Unconfined),
            ("seccomp", Some("builtin")) => security.seccomp = Some(Seccomp::Builtin),
            ("seccomp", Some(path)) if !path.is_empty() => {
                security.seccomp = Some(Seccomp::File(path.into()));
            }
            // What is asked to be off is off.
            ("apparmor", Some("unconfined" | "")) | ("label", Some("disable" | "")) => {}
            ("systempaths", Some("unconfined")) => security.system_paths = true,
            ("apparmor" | "label", Some(_)) => {
                return Err(SpecError::NoSuchModule {
                    option: option.clone(),
                });
            }
            _ => return Err(unknown()),
        }
    }
    Ok(security)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(given: &[&str]) -> Result<Security, SpecError> {
        options(&ContainerOptions {
            security_opt: given.iter().copied().map(str::to_owned).collect(),
            ..ContainerOptions::default()
        })
    }

    #[test]
    fn options_say_what_docker_says() {
        let security = read(&["no-new-privileges", "seccomp=p.json"]).unwrap();
        assert!(security.no_new_privileges);
        assert_eq!(security.seccomp, Some(Seccomp::File("p.json".into())));
        let security = read(&["no-new-privileges:true", "no-new-privileges=false"]).unwrap();
        assert!(!security.no_new_privileges);
        assert_eq!(
            read(&["seccomp=builtin"]).unwrap().seccomp,
            Some(Seccomp::Builtin)
        );
        assert!(read(&["apparmor=unconfined"]).is_ok());
        assert_eq!(read(&[]).unwrap().seccomp, None);
        assert!(read(&["systempaths=unconfined"]).unwrap().system_paths);
    }

    #[test]
    fn option_that_cannot_be_honoured_is_refused() {
        assert!(matches!(
            read(&["apparmor=strict"]),
            Err(SpecError::NoSuchModule { .. })
        ));
        for option in ["seccomp", "seccomp=", "what", "no-new-privileges=maybe"] {
            assert!(
                matches!(read(&[option]), Err(SpecError::SecurityOption { .. })),
                "{option}"
            );
        }
    }
}
