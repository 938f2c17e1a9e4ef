//! Resource limits of a process (getrlimit(2)).
//!
//! Raising a hard limit takes a privilege that a process in a user namespace does not have any more, and a low limit
//! harms the agent's own code. So the helper makes room, as far as anything is asked for beyond what it has, and the
//! executor sets the limits as they are to be.

use oci_spec::runtime::{PosixRlimit, PosixRlimitType};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Why a limit cannot be set.
#[derive(Debug, thiserror::Error)]
pub(super) enum LimitError {
    /// Named twice.
    #[error("process.rlimits has {kind} twice")]
    Twice {
        /// Its name.
        kind: PosixRlimitType,
    },
    /// The kernel refused.
    #[error("cannot set {kind} to {soft} (soft) and {hard} (hard)")]
    Refused {
        /// Its name.
        kind: PosixRlimitType,
        /// What was asked for.
        soft: u64,
        /// What was asked for.
        hard: u64,
        #[source]
        source: std::io::Error,
    },
}

fn resource(kind: PosixRlimitType) -> Resource {
    match kind {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    }
}

/// All bits set is no limit (`RLIM_INFINITY`).
fn value(number: u64) -> Option<u64> {
    (number != u64::MAX).then_some(number)
}

fn set(limit: &PosixRlimit, to: Rlimit) -> Result<(), LimitError> {
    setrlimit(resource(limit.typ()), to).map_err(|errno| LimitError::Refused {
        kind: limit.typ(),
        soft: limit.soft(),
        hard: limit.hard(),
        source: errno.into(),
    })
}

/// Raises hard limits that are lower than what is asked for.
pub(super) fn make_room(limits: &[PosixRlimit]) -> Result<(), LimitError> {
    for (index, limit) in limits.iter().enumerate() {
        let kind = limit.typ();
        if limits
            .iter()
            .skip(index + 1)
            .any(|other| other.typ() == kind)
        {
            return Err(LimitError::Twice { kind });
        }
        let now = getrlimit(resource(kind));
        let wanted = value(limit.hard());
        if now
            .maximum
            .is_some_and(|now| wanted.is_none_or(|wanted| wanted > now))
        {
            let room = Rlimit {
                current: now.current,
                maximum: wanted,
            };
            set(limit, room)?;
        }
    }
    Ok(())
}

/// Sets the limits.
pub(super) fn apply(limits: &[PosixRlimit]) -> Result<(), LimitError> {
    for limit in limits {
        let to = Rlimit {
            current: value(limit.soft()),
            maximum: value(limit.hard()),
        };
        set(limit, to)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn limit_that_is_named_twice_is_refused() {
        let limit = |kind: &str| -> PosixRlimit {
            serde_json::from_value(json!({"type": kind, "soft": 0, "hard": 0})).unwrap()
        };
        let core = limit("RLIMIT_CORE");
        assert!(make_room(&[core, limit("RLIMIT_CPU")]).is_ok());
        assert!(matches!(
            make_room(&[core, core]),
            Err(LimitError::Twice { .. })
        ));
    }
}
