//! Docker's engine of the newer user land, with a containerd of its own, in a network namespace in the place of the host's: its
//! bridges, rules and proxies are that namespace's.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::containerd::{Containerd, Newer};
use crate::netns::HostNet;
use crate::process::{self, Finished, wait_until};
use crate::world::World;

/// The runtime's name in `deploy/docker/daemon.json`.
pub const SANDBOX: &str = "sandbox";

/// The demo image.
pub const DEMO_IMAGE: &str = "demo";

/// What pools of addresses the engine takes networks from. They are its namespace's alone.
const POOL: &str = "base=172.30.0.0/16,size=24";

/// An engine of its own for one world. Dropped, it is stopped; what it runs goes on until the world ends.
pub struct Docker<'a> {
    containerd: Containerd,
    net: &'a HostNet,
    command: Command,
    child: Child,
    socket: PathBuf,
    log: PathBuf,
    limit: Duration,
    was_killed: bool,
}

impl<'a> Docker<'a> {
    /// Starts the engine with the configuration that is in `deploy/`, and gives it the demo image.
    ///
    /// # Errors
    /// When it does not come up; the error carries its log.
    pub fn start(world: &World, net: &'a HostNet) -> Result<Self> {
        let newer = Newer {
            net: Some(net),
            ..Newer::default()
        };
        let containerd = Containerd::start_newer(world, newer)?;
        let folder = world.path().join("docker");
        fs::create_dir(&folder)?;
        let config = folder.join("daemon.json");
        fs::copy(world.deploy()?.join("docker/daemon.json"), &config)?;
        let socket = folder.join("d.sock");
        let log = folder.join("log");
        let mut plain = Command::new("dockerd");
        plain
            .arg("--config-file")
            .arg(&config)
            .arg("--containerd")
            .arg(containerd.socket())
            .arg("--host")
            .arg(format!("unix://{}", socket.display()))
            .arg("--data-root")
            .arg(folder.join("data"))
            // The rest is below /run, which is the user land's own.
            .args(["--default-address-pool", POOL])
            .arg("--pidfile")
            .arg(folder.join("pid"));
        let mut command = containerd.land()?.command(&plain, Some(net));
        world.adopt(&mut command);
        let output = fs::File::create(&log)?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let mut docker = Self {
            child: command.spawn().context("cannot start dockerd")?,
            containerd,
            net,
            command,
            socket,
            log,
            limit: world.setup().limit,
            was_killed: false,
        };
        docker.wait_until_up()?;
        let archive = folder.join("demo.tar");
        let archive = archive.to_string_lossy();
        world
            .sandboxctl(&["save", "-o", &archive, "demo"])?
            .expect_code(0)?;
        docker.docker(&["load", "-i", &archive])?.expect_code(0)?;
        Ok(docker)
    }

    fn wait_until_up(&mut self) -> Result<()> {
        let mut last = String::new();
        let up = wait_until("dockerd answers", self.limit, || {
            let finished = self.docker(&["version"]).ok()?;
            last = finished.stderr;
            (finished.code == 0).then_some(())
        });
        up.with_context(|| format!("{last}\n{}", self.log()))
    }

    /// Kills the engine, which has no time to tell anybody, and starts it again. What it runs goes on meanwhile.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn kill_and_restart(&mut self) -> Result<()> {
        let _ = self.child.kill();
        self.child.wait()?;
        self.was_killed = true;
        self.child = self.command.spawn().context("cannot start dockerd")?;
        self.wait_until_up()
    }

    /// The last of what the engine and its containerd, with the shims, logged.
    #[must_use]
    pub fn log(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(40)..].join("\n");
        format!("dockerd:\n{last}\ncontainerd:\n{}", self.containerd.log())
    }

    /// `docker` against this engine.
    ///
    /// # Errors
    /// When there is no user land, which there is.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut plain = Command::new("docker");
        plain
            .arg("--host")
            .arg(format!("unix://{}", self.socket.display()))
            .args(arguments);
        Ok(self.containerd.land()?.command(&plain, Some(self.net)))
    }

    /// How long a command may take.
    #[must_use]
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Runs `docker` to its end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn docker(&self, arguments: &[&str]) -> Result<Finished> {
        process::run(&mut self.command(arguments)?, b"", self.limit)
    }

    /// Runs `docker` to its end, which must be a good one; returns what it printed.
    ///
    /// # Errors
    /// With what it said, and the logs.
    pub fn read(&self, arguments: &[&str]) -> Result<String> {
        let finished = self.docker(arguments)?;
        let text = finished.expect_code(0).with_context(|| self.log())?.text();
        Ok(text)
    }

    /// Stops the engine and its containerd, and requires that nothing is mounted any more but what was in the beginning.
    ///
    /// # Errors
    /// Naming what is left.
    pub fn finish(mut self) -> Result<()> {
        self.stop();
        self.containerd.stop();
        let land = self.containerd.land()?;
        if self.was_killed {
            // Of its own folder on itself, which the engine that came after does not know to be its.
            let data = self.socket.with_file_name("data");
            land.read(&["umount", &data.to_string_lossy()])?;
        }
        land.expect_no_mount_left()
    }

    fn stop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX));
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        let _ = kill(pid, Signal::SIGTERM);
        let ended = wait_until("dockerd ends", Duration::from_secs(60), || {
            matches!(self.child.try_wait(), Ok(Some(_))).then_some(())
        });
        if ended.is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Drop for Docker<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}
