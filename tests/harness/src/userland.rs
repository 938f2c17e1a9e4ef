//! Programs of a newer user land, a Debian testing made by `cargo xtask userland`: engines of which this machine's own are old.
//!
//! A [`Userland`] is a mount namespace with that as its root. Nothing is ever written into the folder itself: what is
//! written goes into memory, and is gone with the namespace, as its mounts are. The kernel, processes, network and control groups
//! are the host's.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::netns::HostNet;
use crate::process::{self, Running, wait_until};
use crate::world::World;

/// How long its making may take, and a program that only looks.
const LIMIT: Duration = Duration::from_secs(60);

/// Makes the mounts.
const ENTER: &str = include_str!("enter-userland.sh");

/// A mount namespace whose root is the newer user land. Its mounts end with it and with the last process in it.
pub struct Userland {
    namespace: File,
    /// Where something was mounted in the beginning.
    mounts: BTreeSet<String>,
}

/// Where the user land is, if it was made: beside the folder of the product's programs.
#[must_use]
pub fn folder(binaries: &Path) -> Option<PathBuf> {
    fs::canonicalize(binaries.parent()?.join("userland")).ok()
}

impl Userland {
    /// Makes one for this world, whose folder is in it, as are the product's programs and what they need.
    ///
    /// # Errors
    /// When `cargo xtask userland` has not run, or with what the tools said.
    pub fn enter(world: &World) -> Result<Self> {
        let binaries = &world.setup().binaries;
        let land = folder(binaries).context("there is no user land: run `cargo xtask userland`")?;
        let target = fs::canonicalize(binaries.join(".."))?;
        // The parts of the product are links from `target/artifacts` into the cache, where the user land is too.
        let cache = land.ancestors().nth(2).context("it is in the cache")?;
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private"])
            .args(["sh", "-c", ENTER, "sh"])
            .args([&land, world.path(), cache, &target]);
        let mut making = Running::start(&mut command, LIMIT)?;
        making.wait_for_line("ready")?;
        let namespace = File::open(format!("/proc/{}/ns/mnt", making.pid()))?;
        making.finish()?.expect_code(0)?;
        let mut userland = Self {
            namespace,
            mounts: BTreeSet::new(),
        };
        userland.mounts = userland.mount_points()?;
        Ok(userland)
    }

    /// A command that runs in it what `plain` runs, in another network namespace if one is given; the environment is for the
    /// caller to set. It begins in the root folder.
    #[must_use]
    pub fn command(&self, plain: &Command, net: Option<&HostNet>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!(
            "--mount=/proc/{}/fd/{}",
            std::process::id(),
            self.namespace.as_raw_fd()
        ));
        if let Some(net) = net {
            command.arg(format!("--net={}", net.path().display()));
        }
        command.arg(plain.get_program()).args(plain.get_args());
        command
    }

    /// Runs a program in it to its end; returns what it printed.
    ///
    /// # Errors
    /// With what it said, when it fails.
    pub fn read(&self, words: &[&str]) -> Result<String> {
        let (program, arguments) = words.split_first().context("a program")?;
        let mut command = self.command(Command::new(program).args(arguments), None);
        Ok(process::run(&mut command, b"", LIMIT)?
            .expect_code(0)?
            .text())
    }

    /// Where something is mounted in it.
    fn mount_points(&self) -> Result<BTreeSet<String>> {
        let table = self.read(&["cat", "/proc/self/mountinfo"])?;
        // The fifth field (proc_pid_mountinfo(5)).
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        Ok(points.map(str::to_owned).collect())
    }

    /// Requires that nothing is mounted in it but what was in the beginning: what is unmounted lazily goes in its own time.
    ///
    /// # Errors
    /// Naming what is left.
    pub fn expect_no_mount_left(&self) -> Result<()> {
        let mut left = Vec::new();
        let clean = wait_until("that no mount is left", LIMIT, || {
            let now = self.mount_points().ok()?;
            left = now.difference(&self.mounts).cloned().collect();
            left.is_empty().then_some(())
        });
        ensure!(
            clean.is_ok(),
            "left mounted in the newer user land: {left:?}"
        );
        Ok(())
    }
}
