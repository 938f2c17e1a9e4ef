//! The mounts of a spec.
//!
//! libcontainer passes over some options without a word, and sets no propagation. What it passes over is refused
//! here; propagation is taken out for the executor to set.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, Mount, Spec};
use serde::{Deserialize, Serialize};

use sandbox_protocol::extensions::FILL_OPTION;

use super::SpecError;
use crate::fill::Fill;
use crate::guest_path::GuestPath;

/// Options that nothing here could honour.
const REFUSED: [&str; 8] = [
    "sync",
    "dirsync",
    "mand",
    "remount",
    "nosymfollow",
    "idmap",
    "ridmap",
    "tmpcopyup",
];
/// What begins so is a caller's own (mount(8)).
const CALLERS: &str = "x-";

/// Which mounts see those that are made below another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Propagation {
    Private,
    Slave,
    Shared,
    Unbindable,
}

/// The propagation of one mount of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MountPropagation {
    /// Where it is, in the container.
    pub(crate) destination: PathBuf,
    /// What is set.
    pub(crate) kind: Propagation,
    /// For what is mounted below it too.
    pub(crate) recursive: bool,
}

fn propagation(word: &str) -> Option<(Propagation, bool)> {
    let kind = |word: &str| match word {
        "private" => Some(Propagation::Private),
        "slave" => Some(Propagation::Slave),
        "shared" => Some(Propagation::Shared),
        "unbindable" => Some(Propagation::Unbindable),
        _ => None,
    };
    let whole = kind(word).map(|kind| (kind, false));
    whole.or_else(|| Some((kind(word.strip_prefix('r')?)?, true)))
}

/// Whether a mount shows what is somewhere already.
pub(crate) fn is_bind(mount: &Mount) -> bool {
    let options = mount.options().as_deref().unwrap_or_default();
    mount.typ().as_deref() == Some("bind")
        || options.iter().any(|word| word == "bind" || word == "rbind")
}

/// Says the propagation of the root in the words that libcontainer knows. It changes the root with all that is mounted
/// below in any case, so that a recursive word (containerd's CRI plugin writes `rslave`) means what the plain one does.
pub(super) fn adapt_root(linux: &mut Linux) {
    let word = linux.rootfs_propagation().clone().unwrap_or_default();
    let plain = match propagation(&word) {
        Some((_, true)) => word.strip_prefix('r').unwrap_or(&word),
        // Others are libcontainer's to refuse.
        _ => &word,
    };
    linux.set_rootfs_propagation((!plain.is_empty()).then(|| plain.to_owned()));
}

/// What was taken out of the mounts.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) propagation: Vec<MountPropagation>,
    pub(super) fills: Vec<Fill>,
}

/// Checks the mounts, and takes out what is not for libcontainer.
pub(super) fn adapt(spec: &mut Spec, own_users: bool) -> Result<Taken, SpecError> {
    let mut taken = Taken::default();
    let Some(mut mounts) = spec.mounts().clone() else {
        return Ok(taken);
    };
    for mount in &mut mounts {
        let destination = mount.destination().clone();
        let refused = |what: &str| SpecError::Mount {
            destination: destination.display().to_string(),
            what: what.to_owned(),
        };
        let bind = is_bind(mount);
        if bind {
            check_source(mount)?;
        }
        let mapped = |mappings: &Option<Vec<_>>| mappings.as_ref().is_some_and(|m| !m.is_empty());
        if mapped(mount.uid_mappings()) || mapped(mount.gid_mappings()) {
            return Err(refused("uidMappings and gidMappings"));
        }
        let mut kept = Vec::new();
        for word in mount.options().clone().unwrap_or_default() {
            if REFUSED.contains(&word.as_str()) {
                return Err(refused(&format!("option {word}")));
            }
            match propagation(&word) {
                // Mounts of the guest do not appear on the host.
                Some((Propagation::Shared, _)) if bind => {
                    return Err(refused(&format!("option {word} of a bind")));
                }
                Some((kind, recursive)) => taken.propagation.push(MountPropagation {
                    destination: destination.clone(),
                    kind,
                    recursive,
                }),
                None if bind && word == FILL_OPTION => taken.fills.push(Fill {
                    volume: mount.source().clone().unwrap_or_default(),
                    place: destination.clone(),
                }),
                None if word.starts_with(CALLERS) => {}
                None => kept.push(word),
            }
        }
        // The guest's network namespace is not that of a container's users, who so cannot mount its /sys anew.
        if own_users && mount.typ().as_deref() == Some("sysfs") {
            mount.set_typ(Some("bind".to_owned()));
            mount.set_source(Some("/sys".into()));
            kept.push("rbind".to_owned());
        }
        mount.set_options(Some(kept));
    }
    spec.set_mounts(Some(mounts));
    Ok(taken)
}

fn check_source(mount: &Mount) -> Result<(), SpecError> {
    let source = mount.source().as_deref();
    let shared = source
        .and_then(Path::to_str)
        .is_some_and(|path| GuestPath::new(path).is_ok());
    if shared {
        return Ok(());
    }
    Err(SpecError::HostBind {
        destination: mount.destination().display().to_string(),
        source_path: source.unwrap_or(Path::new("")).display().to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn propagation_words_are_told_from_other_options() {
        assert_eq!(propagation("rshared"), Some((Propagation::Shared, true)));
        assert_eq!(propagation("private"), Some((Propagation::Private, false)));
        for word in ["ro", "rro", "rw", "relatime", "rbind"] {
            assert_eq!(propagation(word), None);
        }
    }
}
