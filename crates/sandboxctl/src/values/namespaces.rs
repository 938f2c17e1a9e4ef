//! Which namespaces a container may have.
//!
//! docker's modes are relative to the host's kernel. Here every container has a kernel of its own, so "the host's"
//! cannot be given, and "another container's" is behind another machine's boundary.

/// Why a mode was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NamespaceError {
    /// The host's.
    #[error(
        "a container cannot be given the host's {what}: it runs behind a kernel of its own; leave the option out{instead}"
    )]
    Host {
        what: &'static str,
        instead: &'static str,
    },
    /// Another container's.
    #[error(
        "a container cannot share the {what} of another: each runs in a virtual machine of its own; run both programs in one container"
    )]
    Container { what: &'static str },
    /// Nothing that a network is called.
    #[error(
        "{value:?} is no network's name; write none, or a name that `sandboxctl network ls` has"
    )]
    Network { value: String },
    /// docker's long form with something of it that is not there.
    #[error(
        "{option:?} is not taken with --network: write the network's name alone; an address is given with --ip, --ip6 or --mac-address, and names of containers are not looked up"
    )]
    NetworkOption { option: String },
    /// Nothing that is known.
    #[error("{value:?} is not known; {known}")]
    Unknown { value: String, known: &'static str },
}

fn refused(
    value: &str,
    what: &'static str,
    instead: &'static str,
    known: &'static str,
) -> NamespaceError {
    match value {
        "host" => NamespaceError::Host { what, instead },
        other if other.starts_with("container:") => NamespaceError::Container { what },
        other => NamespaceError::Unknown {
            value: other.to_owned(),
            known,
        },
    }
}

/// `--pid`.
pub(crate) fn pid(value: &str) -> Result<(), NamespaceError> {
    match value {
        "" | "private" => Ok(()),
        _ => Err(refused(
            value,
            "processes",
            "; --privileged gives a container all rights over its own machine's kernel",
            "write private, or leave the option out",
        )),
    }
}

/// `--uts`.
pub(crate) fn uts(value: &str) -> Result<(), NamespaceError> {
    match value {
        "" | "private" => Ok(()),
        _ => Err(refused(
            value,
            "host name",
            "; --hostname gives it any name",
            "write private, or leave the option out",
        )),
    }
}

/// `--cgroupns`.
pub(crate) fn cgroup(value: &str) -> Result<(), NamespaceError> {
    match value {
        "" | "private" => Ok(()),
        _ => Err(refused(
            value,
            "control groups",
            "",
            "write private, or leave the option out",
        )),
    }
}

/// `--userns`. `host` is docker's word for "numbers are not mapped", which they are not here.
pub(crate) fn user(value: &str) -> Result<(), NamespaceError> {
    match value {
        "" | "host" => Ok(()),
        _ => Err(refused(
            value,
            "users",
            "",
            "write host, which does not map users, or leave the option out",
        )),
    }
}

/// What `--ipc` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ipc {
    /// A namespace of its own, with `/dev/shm`.
    Private,
    /// A namespace of its own, without `/dev/shm`.
    None,
}

impl Ipc {
    /// docker's word.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::None => "none",
        }
    }
}

/// `--ipc`.
pub(crate) fn ipc(value: &str) -> Result<Ipc, NamespaceError> {
    match value {
        // What could be shared has nobody to share it with.
        "" | "private" | "shareable" => Ok(Ipc::Private),
        "none" => Ok(Ipc::None),
        _ => Err(refused(
            value,
            "shared memory",
            "",
            "write private, shareable or none",
        )),
    }
}

/// What a container is attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NetworkMode {
    /// Nothing: it has a loopback interface.
    None,
    /// The network of this name.
    Named(String),
}

/// `--network`: a name, or docker's long form `name=NAME` with nothing else.
pub(crate) fn network(value: &str) -> Result<NetworkMode, NamespaceError> {
    if value.contains('=') {
        let other = value.split(',').find(|part| !part.starts_with("name="));
        return match (other, value.strip_prefix("name=")) {
            (None, Some(name)) => network(name),
            (other, _) => Err(NamespaceError::NetworkOption {
                option: other.unwrap_or(value).to_owned(),
            }),
        };
    }
    let is_name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
    };
    match value {
        "none" => Ok(NetworkMode::None),
        // docker's two words for its own.
        "default" => Ok(NetworkMode::Named("bridge".to_owned())),
        "host" => Err(NamespaceError::Host {
            what: "network",
            instead: "; publish ports with -p",
        }),
        other if other.starts_with("container:") => {
            Err(NamespaceError::Container { what: "network" })
        }
        other if is_name(other) => Ok(NetworkMode::Named(other.to_owned())),
        other => Err(NamespaceError::Network {
            value: other.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_other_containers_are_refused_with_a_reason() {
        for error in [
            pid("host").unwrap_err(),
            uts("host").unwrap_err(),
            ipc("host").unwrap_err(),
            cgroup("host").unwrap_err(),
            network("host").unwrap_err(),
        ] {
            assert!(error.to_string().contains("kernel of its own"), "{error}");
        }
        for error in [
            pid("container:a").unwrap_err(),
            ipc("container:a").unwrap_err(),
            network("container:a").unwrap_err(),
        ] {
            assert!(
                error.to_string().contains("virtual machine of its own"),
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_so_anyway_is_taken() {
        assert_eq!(pid("private"), Ok(()));
        assert_eq!(user("host"), Ok(()));
        assert_eq!(network("none"), Ok(NetworkMode::None));
        let bridge = Ok(NetworkMode::Named("bridge".to_owned()));
        assert_eq!(network("default"), bridge);
        assert_eq!(ipc("shareable"), Ok(Ipc::Private));
        assert_eq!(ipc("none"), Ok(Ipc::None));
        assert_eq!(network("name=bridge"), bridge);
        for (text, named) in [
            ("name=blue,alias=web", "alias=web"),
            ("alias=web", "alias=web"),
        ] {
            let error = network(text).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        assert!(network("../x").unwrap_err().to_string().contains("name"));
    }
}
