//! This project's own runtime, as a person at a shell uses it: `sandboxctl run`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Container, Runtime, RuntimeError, Started, options};
use crate::image;

/// `sandboxctl` with a state folder of our own.
pub struct Sandbox {
    program: PathBuf,
    state: PathBuf,
    /// Options of `run` that are the caller's, such as which hypervisor.
    more: Vec<String>,
}

impl Sandbox {
    /// Imports the probe's image into a new state folder below `folder`.
    ///
    /// # Errors
    /// With what `sandboxctl` said.
    pub fn prepare(
        program: &Path,
        folder: &Path,
        probe: &Path,
        more: Vec<String>,
    ) -> Result<Self, RuntimeError> {
        let sandbox = Self {
            program: program.to_owned(),
            state: folder.join("state"),
            more,
        };
        let layout = folder.join("layout");
        let failed = |source| RuntimeError::Files {
            path: layout.clone(),
            source,
        };
        std::fs::create_dir_all(&layout).map_err(failed)?;
        image::write_layout(&layout, probe).map_err(failed)?;
        let output = sandbox
            .command()
            .args(["image", "import", "--name", image::NAME])
            .arg(&layout)
            .stdin(Stdio::null())
            .output()
            .map_err(failed)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(RuntimeError::Unusable(said));
        }
        Ok(sandbox)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--root")
            .arg(&self.state)
            .arg("--run-dir")
            .arg(self.state.join("run"));
        command
    }
}

impl Runtime for Sandbox {
    fn name(&self) -> &'static str {
        "sandbox"
    }

    fn obstacle(&self) -> Option<String> {
        None
    }

    fn start(&self, container: &Container<'_>) -> Result<Started, RuntimeError> {
        let mut command = self.command();
        command
            .args(["run", "--rm", "--interactive", "--name", &container.name])
            .args(&self.more)
            .args(options(container.profile, &container.shares))
            .args([image::NAME, image::PROBE, "serve"]);
        let mut removal = self.command();
        removal.args(["rm", "--force", &container.name]);
        let mut added = self.command();
        added.args(["exec", &container.name]);
        container.session(command, added, vec![removal])
    }
}
