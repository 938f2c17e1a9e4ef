//! The `poststop` hooks of a container that are still to run: a file in its bundle, so that `delete` can run them when
//! the shim was killed. Whoever removes the file runs them, so they run once.

use std::fs;
use std::io;
use std::path::Path;

use oci_spec::runtime::Hook;
use serde::{Deserialize, Serialize};

use super::{Hooks, State, When};

const FILE: &str = "poststop.json";

/// The last hooks of a container, which are to run.
#[derive(Serialize, Deserialize)]
pub(crate) struct Due {
    hooks: Vec<Hook>,
    state: State,
}

impl Hooks {
    /// Whether any run when the container has ended.
    pub(crate) fn has_last(&self) -> bool {
        !self.poststop.is_empty()
    }

    /// Notes that the last hooks will have to run, before the first ones do.
    ///
    /// # Errors
    /// When the bundle cannot be written to.
    pub(crate) fn begin(&self, bundle: &Path) -> io::Result<()> {
        if !self.has_last() {
            return Ok(());
        }
        let due = Due {
            hooks: self.poststop.clone(),
            state: self.state.clone(),
        };
        fs::write(bundle.join(FILE), serde_json::to_vec(&due)?)
    }
}

/// Runs the `poststop` hooks of the bundle's container, unless they ran; each failure is logged, the others still run.
pub(crate) async fn run(bundle: &Path) {
    if let Some(due) = take(bundle) {
        due.run().await;
    }
}

/// Takes what is due, to be run; none if there is nothing, or somebody else took it.
pub(crate) fn take(bundle: &Path) -> Option<Due> {
    claim(bundle).unwrap_or_else(|error| {
        tracing::warn!(
            "the poststop hooks do not run: {} cannot be read: {error}",
            bundle.join(FILE).display()
        );
        None
    })
}

impl Due {
    /// Runs the hooks; each failure is logged, the others still run.
    pub(crate) async fn run(self) {
        let last = Hooks {
            poststop: self.hooks,
            state: self.state,
            ..Hooks::default()
        };
        last.run_all(When::Stopped, None).await;
    }
}

fn claim(bundle: &Path) -> io::Result<Option<Due>> {
    let path = bundle.join(FILE);
    let taken = fs::read(&path).and_then(|json| fs::remove_file(&path).map(|()| json));
    match taken {
        Ok(json) => Ok(Some(serde_json::from_slice(&json)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn last_hooks_run_once_with_the_state_and_only_after_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let spec = json!({"ociVersion": "1.0.2", "annotations": {"a": "b"}, "hooks": {"poststop": [
            {"path": "/bin/sh", "args": ["sh", "-c", format!("cat >> {0}; echo >> {0}", out.display())], "env": ["PATH=/bin:/usr/bin"]},
        ]}});
        let spec = serde_json::from_value(spec).unwrap();
        let hooks = Hooks::of(&spec, "c1", Path::new("/bundle")).unwrap();
        run(folder.path()).await;
        assert!(!out.exists());

        hooks.begin(folder.path()).unwrap();
        run(folder.path()).await;
        run(folder.path()).await;
        let text = fs::read_to_string(out).unwrap();
        let state: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            state,
            json!({"ociVersion": "1.0.2", "id": "c1", "status": "stopped", "bundle": "/bundle", "annotations": {"a": "b"}})
        );
    }

    #[tokio::test]
    async fn container_without_last_hooks_leaves_no_note() {
        let folder = tempfile::tempdir().unwrap();
        Hooks::default().begin(folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
