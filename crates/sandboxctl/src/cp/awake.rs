//! A container that does not run, started so far that its files can be reached: its root, its mounts and its limits,
//! and a first process of the agent's that does nothing. Nothing of its own is executed, nobody takes its output, and
//! its state stays what it was.

use std::fs;
use std::path::{Path, PathBuf};

use sandbox_protocol::bundle::{LOG_FILE, SPEC_FILE};
use sandbox_protocol::extensions::{PROGRAM_ANNOTATION, PROGRAM_PAUSE};
use serde_json::{Value, json};

use super::{CpError, local};
use crate::app::AppError;
use crate::container::{Attended, Container, Containers};
use crate::launch::Launch;
use crate::settle;
use crate::shim::{Shim, ShimProgram};
use crate::signals::KILL;
use crate::stop;

/// Its bundle, in the container's folder.
const BUNDLE: &str = "awake";

/// The container, held so that nobody else starts or removes it.
pub(super) struct Awake {
    attended: Attended,
    launch: Launch,
    program: ShimProgram,
}

impl Awake {
    /// Starts it.
    pub(super) async fn start(
        containers: &Containers,
        container: &Container,
    ) -> Result<(Self, Shim), CpError> {
        let name = || container.record.name.to_string();
        let attended = stop::hold(containers, container)
            .await
            .map_err(|source| CpError::Hold {
                name: name(),
                source: Box::new(source),
            })?
            .ok_or_else(|| CpError::Gone { name: name() })?;
        let launch = Launch::load(attended.folder())?;
        let program = ShimProgram {
            bundle: make_bundle(attended.folder())?,
            ..launch.shim(&attended.container)
        };
        let mut awake = Self {
            attended,
            launch,
            program,
        };
        match awake.wake().await {
            Ok(shim) => Ok((awake, shim)),
            Err(error) => {
                awake.clear_away().await;
                Err(error)
            }
        }
    }

    async fn wake(&mut self) -> Result<Shim, CpError> {
        let name = self.attended.container.record.name.to_string();
        let failed = |source| CpError::Wake {
            name: name.clone(),
            source,
        };
        let shim = self.program.start(None).await.map_err(failed)?;
        // Whoever finds it without us knows what to end.
        let record = shim.record.clone();
        let begun = match self.attended.update(|state| state.shim = Some(record)) {
            Ok(()) => self.begin(&shim).await,
            Err(error) => Err(AppError::from(error).into()),
        };
        if begun.is_err() {
            // The shim's own error says more than that it could not be ended.
            let _ = shim.kill().await;
        }
        begun.map(|()| shim)
    }

    async fn begin(&self, shim: &Shim) -> Result<(), CpError> {
        let id = self.attended.container.record.id.as_str();
        let failed = |source| CpError::Shim {
            name: self.attended.container.record.name.to_string(),
            source,
        };
        let bundle = &self.program.bundle;
        shim.tasks
            .create(id, bundle, &self.launch.rootfs, None)
            .await
            .map_err(failed)?;
        shim.tasks.start(id, "").await.map_err(failed)
    }

    /// Ends it.
    pub(super) async fn end(mut self, shim: &Shim) -> Result<(), CpError> {
        let record = &self.attended.container.record;
        let id = record.id.as_str();
        let ended = async {
            shim.tasks.kill(id, KILL, true).await?;
            shim.tasks.wait(id, "").await?;
            shim.tasks.delete(id, "").await
        }
        .await;
        let name = record.name.to_string();
        // Whatever it said, no machine stays; and one that did not end in order is no loss by now, unless it was
        // still writing.
        let gone = shim.end().await;
        self.clear_away().await;
        ended.map_err(|source| CpError::Shim {
            name: name.clone(),
            source,
        })?;
        gone.map_err(|source| CpError::Wake { name, source })
    }

    /// Removes what it left, as far as that goes: it goes with the container at the latest.
    async fn clear_away(&mut self) {
        let _ = self.program.delete().await;
        let _ = fs::remove_dir_all(&self.program.bundle);
        settle::forget_sockets(&self.launch, self.attended.folder());
        let _ = self.attended.update(|state| state.shim = None);
    }
}

/// Removes the bundle that somebody who was killed left.
pub(crate) fn forget(folder: &Path) {
    // What is not there needs no removing.
    let _ = fs::remove_dir_all(folder.join(BUNDLE));
}

fn make_bundle(folder: &Path) -> Result<PathBuf, CpError> {
    forget(folder);
    let bundle = folder.join(BUNDLE);
    fs::create_dir(&bundle).map_err(local("create", &bundle))?;
    let root = bundle.join("rootfs");
    fs::create_dir(&root).map_err(local("create", &root))?;
    let log = bundle.join(LOG_FILE);
    fs::write(&log, b"").map_err(local("write", &log))?;

    let path = folder.join(SPEC_FILE);
    let text = fs::read(&path).map_err(local("read", &path))?;
    let spec = serde_json::from_slice(&text).map_err(|source| CpError::Spec {
        path: path.clone(),
        source,
    })?;
    let config = bundle.join(SPEC_FILE);
    fs::write(&config, pausing(spec).to_string()).map_err(local("write", &config))?;
    Ok(bundle)
}

/// The same container with a first process that does nothing, and without the hooks and the network of its own.
fn pausing(mut spec: Value) -> Value {
    spec["process"] = json!({
        "terminal": false,
        "user": {"uid": 0, "gid": 0},
        "args": [PROGRAM_PAUSE],
        "env": [],
        "cwd": "/",
        "noNewPrivileges": true,
    });
    spec["annotations"][PROGRAM_ANNOTATION] = PROGRAM_PAUSE.into();
    if let Some(spec) = spec.as_object_mut() {
        spec.remove("hooks");
    }
    let namespaces = spec
        .pointer_mut("/linux/namespaces")
        .and_then(Value::as_array_mut);
    for namespace in namespaces.into_iter().flatten() {
        if let Some(namespace) = namespace.as_object_mut() {
            // That of the network is there only while the container runs.
            namespace.remove("path");
        }
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_containers_is_executed() {
        let spec = json!({
            "process": {"args": ["rm", "-r", "/"], "cwd": "/x", "terminal": true},
            "hooks": {"poststop": [{"path": "/bin/false"}]},
            "mounts": [{"destination": "/proc", "type": "proc"}],
            "linux": {"namespaces": [{"type": "network", "path": "/run/sandbox/netns/1"}]},
        });
        let pausing = pausing(spec);
        assert_eq!(pausing["process"]["args"], json!(["pause"]));
        assert_eq!(pausing["process"]["terminal"], false);
        assert_eq!(pausing["annotations"][PROGRAM_ANNOTATION], "pause");
        assert!(pausing.get("hooks").is_none());
        assert_eq!(pausing["linux"]["namespaces"], json!([{"type": "network"}]));
        assert_eq!(pausing["mounts"][0]["destination"], "/proc");
    }

    #[test]
    fn bundle_that_was_left_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), "{}").unwrap();
        let bundle = make_bundle(folder.path()).unwrap();
        fs::write(bundle.join("address"), "x").unwrap();
        make_bundle(folder.path()).unwrap();
        assert!(!bundle.join("address").exists());
        assert!(bundle.join("rootfs").is_dir() && bundle.join("log").is_file());
    }
}
