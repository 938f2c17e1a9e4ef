//! Paths that the host names, confined to the agent's own folder.

use std::path::{Component, Path, PathBuf};

use sandbox_protocol::GUEST_RUN_DIR;

/// Why a path from the host is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("path {path:?} is not an absolute path below {GUEST_RUN_DIR} without \"..\"")]
pub(crate) struct GuestPathError {
    path: String,
}

/// An absolute path below [`GUEST_RUN_DIR`] that no `..` leads out of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GuestPath(PathBuf);

impl GuestPath {
    /// Takes `path` if it stays below [`GUEST_RUN_DIR`].
    pub(crate) fn new(path: &str) -> Result<Self, GuestPathError> {
        let confined = Path::new(path)
            .strip_prefix(GUEST_RUN_DIR)
            .ok()
            .filter(|rest| {
                rest.components().next().is_some()
                    && rest
                        .components()
                        .all(|component| matches!(component, Component::Normal(_)))
            })
            .is_some();
        if confined && !path.contains('\0') {
            Ok(Self(PathBuf::from(path)))
        } else {
            Err(GuestPathError {
                path: path.to_owned(),
            })
        }
    }

    /// The path.
    pub(crate) fn as_path(&self) -> &Path {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn path_outside_the_run_directory_is_refused() {
        for path in [
            "",
            "/",
            "/run",
            "/run/sandbox",
            "/run/sandbox/",
            "/run/sandboxes/a",
            "/run/sandbox/../a",
            "/run/sandbox/a/../../b",
            "run/sandbox/a",
            "/etc/passwd",
            "/run/sandbox/a\0b",
        ] {
            assert!(GuestPath::new(path).is_err(), "{path:?}");
        }
        assert!(GuestPath::new("/run/sandbox/containers/a/rootfs").is_ok());
    }

    proptest! {
        #[test]
        fn path_that_is_taken_stays_below_the_run_folder(rest in "(/|\\.|a|\\.\\.){0,12}") {
            if let Ok(path) = GuestPath::new(&format!("/run/sandbox/{rest}")) {
                prop_assert!(path.as_path().components().all(|c| c != Component::ParentDir));
                prop_assert!(path.as_path().starts_with(GUEST_RUN_DIR));
                prop_assert!(path.as_path() != Path::new(GUEST_RUN_DIR));
            }
        }
    }
}
