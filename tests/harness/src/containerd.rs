//! A private containerd with the shim on its path.

use std::fs;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::{self, Finished, Running, wait_until};
use crate::world::World;

/// The runtime's name in containerd; it finds the shim's program by it.
pub const RUNTIME: &str = "io.containerd.sandbox.v2";

/// A containerd of its own for one world. Dropped, it is stopped.
pub struct Containerd {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
    limit: Duration,
}

impl Containerd {
    /// Starts containerd and waits until it answers.
    ///
    /// # Errors
    /// When it is not installed or does not come up; the error carries its log.
    pub fn start(world: &World) -> Result<Self> {
        let folder = world.path().join("containerd");
        fs::create_dir_all(&folder)?;
        let socket = folder.join("c.sock");
        let config = folder.join("config.toml");
        fs::write(
            &config,
            format!(
                "version = 2\nroot = {root:?}\nstate = {state:?}\n\
                 disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
                 [grpc]\naddress = {socket:?}\n[ttrpc]\naddress = {ttrpc:?}\n",
                root = folder.join("root"),
                state = folder.join("state"),
                ttrpc = folder.join("t.sock"),
            ),
        )?;
        let sandbox_config = folder.join("sandbox.toml");
        world.write_config(&sandbox_config)?;
        let path = std::env::join_paths(std::iter::once(world.setup().binaries.clone()).chain(
            std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()),
        ))?;
        let log = folder.join("log");
        let mut command = Command::new("containerd");
        world.adopt(&mut command);
        let child = command
            .arg("--config")
            .arg(&config)
            .env("PATH", path)
            .env("SANDBOX_CONFIG", &sandbox_config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()
            .context("cannot start containerd")?;
        let containerd = Self {
            child,
            socket,
            log,
            limit: world.setup().limit,
        };
        let mut last = String::new();
        wait_until(
            "containerd answers",
            Duration::from_secs(60),
            || match containerd.ctr(&["version"]) {
                Ok(finished) if finished.code == 0 => Some(()),
                Ok(finished) => {
                    last = finished.stderr;
                    None
                }
                Err(error) => {
                    last = error.to_string();
                    None
                }
            },
        )
        .with_context(|| format!("{last}\n{}", containerd.log()))?;
        Ok(containerd)
    }

    /// The last of what containerd and the shims logged.
    #[must_use]
    pub fn log(&self) -> String {
        let mut text = String::new();
        if let Ok(mut file) = fs::File::open(&self.log) {
            let _ = file.read_to_string(&mut text);
        }
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// `ctr` against this containerd.
    #[must_use]
    pub fn ctr_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(&self.socket).args(arguments);
        command
    }

    /// Runs `ctr` to its end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn ctr(&self, arguments: &[&str]) -> Result<Finished> {
        process::run(&mut self.ctr_command(arguments), b"", self.limit)
    }

    /// Starts `ctr`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_ctr(&self, arguments: &[&str]) -> Result<Running> {
        Running::start(&mut self.ctr_command(arguments), self.limit)
    }

    /// Imports the demo image under the name that the tests use.
    ///
    /// # Errors
    /// With what the tools said.
    pub fn import_demo(&self, world: &World) -> Result<&'static str> {
        const NAME: &str = "docker.io/library/demo:latest";
        let archive = world.path().join("demo.tar");
        let status = Command::new("tar")
            .arg("--create")
            .arg("--file")
            .arg(&archive)
            .arg("--directory")
            .arg(fs::canonicalize(&world.setup().demo)?)
            .arg(".")
            .status()?;
        if !status.success() {
            bail!("tar failed: {status}");
        }
        self.ctr(&[
            "image",
            "import",
            "--base-name",
            "x",
            "--index-name",
            NAME,
            &archive.to_string_lossy(),
        ])?
        .expect_code(0)?;
        Ok(NAME)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX));
        let _ = kill(pid, Signal::SIGTERM);
        let ended = wait_until("containerd ends", Duration::from_secs(10), || {
            matches!(self.child.try_wait(), Ok(Some(_))).then_some(())
        });
        if ended.is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
