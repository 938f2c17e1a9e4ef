//! Any other runtime of containerd's, by its name: `ctr run --runtime NAME`.

use std::process::Command;

use super::{Container, Runtime, RuntimeError, Started, is_installed};

/// A runtime that containerd starts.
pub struct ContainerdClass {
    class: String,
}

/// The namespace of our containers in containerd.
const NAMESPACE: &str = "sandbox-isolation";
/// The client.
const PROGRAM: &str = "ctr";

impl ContainerdClass {
    /// The runtime that containerd knows by this name, such as `io.containerd.runc.v2`.
    #[must_use]
    pub fn new(class: &str) -> Self {
        Self {
            class: class.to_owned(),
        }
    }

    /// `ctr`, at the socket that `CONTAINERD_ADDRESS` names, which it reads itself.
    fn command() -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(["--namespace", NAMESPACE]);
        command
    }
}

impl Runtime for ContainerdClass {
    fn name(&self) -> &str {
        &self.class
    }

    fn obstacle(&self) -> Option<String> {
        if !is_installed(PROGRAM) {
            return Some("ctr is not installed (Debian: apt install containerd)".to_owned());
        }
        None
    }

    fn start(&self, container: &Container<'_>) -> Result<Started, RuntimeError> {
        let config = container.bundle()?;
        let mut command = Self::command();
        command
            .args(["run", "--rm", "--runtime", &self.class, "--config"])
            .arg(config)
            .arg(&container.name);
        let removal = [
            &["tasks", "kill", "--signal", "KILL"][..],
            &["tasks", "delete", "--force"],
            &["containers", "delete"],
        ]
        .map(|words| {
            let mut command = Self::command();
            command.args(words).arg(&container.name);
            command
        });
        let mut added = Self::command();
        added.args(["tasks", "exec", "--exec-id", "added", &container.name]);
        container.session(command, added, removal.into())
    }
}
