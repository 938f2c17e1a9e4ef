//! One test's private world.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::ending::{self, PREFIX};
use crate::leaks::{self, Process, WORLD_VARIABLE};
use crate::process::{self, Finished, Running};

/// How long what has been killed may take to be gone, on a machine with much to do. Only what stays takes so long.
pub(crate) const DYING: Duration = Duration::from_secs(60);

/// How long a machine may take to boot, in seconds: several at once are emulated on two processors.
pub(crate) const BOOT_TIMEOUT_S: u32 = 170;
/// The configuration of `sandboxctl` in a world: as without any, but for that.
const CONFIG: &str = "defaults.toml";

/// Which hypervisor driver the tests ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// The monitor, on KVM.
    Kvm,
    /// QEMU, emulating.
    Qemu,
}

impl Driver {
    /// What `--hypervisor` takes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Qemu => "qemu",
        }
    }

    /// The program that runs the virtual machine.
    #[must_use]
    pub fn monitor(self) -> &'static str {
        match self {
            Self::Kvm => "sandbox-vmm run",
            Self::Qemu => "qemu-system-x86_64",
        }
    }
}

/// What all tests of one run share.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Folder of the product's programs.
    pub binaries: PathBuf,
    /// The demo image, an OCI layout.
    pub demo: PathBuf,
    /// The program that looks around inside a container.
    pub probe: PathBuf,
    /// The driver under test.
    pub driver: Driver,
    /// How many sandboxes run at once where a test is about that.
    pub at_once: usize,
    /// How long one command may take. Emulated machines are slow; this is for hangs, not for speed.
    pub limit: Duration,
}

/// A private state folder, runtime folder and set of processes.
pub struct World {
    setup: Setup,
    folder: tempfile::TempDir,
}

impl World {
    /// A world for the harness's own tests, which run no program of ours.
    #[cfg(test)]
    pub(crate) fn without_programs() -> Self {
        let setup = Setup {
            binaries: PathBuf::new(),
            demo: PathBuf::new(),
            probe: PathBuf::new(),
            driver: Driver::Qemu,
            at_once: 1,
            limit: Duration::from_secs(60),
        };
        Self::empty(&setup).unwrap()
    }

    /// A world in which nothing is yet.
    ///
    /// # Errors
    /// When its folders cannot be made.
    pub fn empty(setup: &Setup) -> Result<Self> {
        // Short: it is part of the paths of Unix sockets.
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir()?;
        ending::register(folder.path())?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        fs::create_dir(folder.path().join("run"))?;
        let config = folder.path().join(CONFIG);
        fs::write(&config, format!("boot_timeout_s = {BOOT_TIMEOUT_S}\n"))?;
        fs::set_permissions(&config, fs::Permissions::from_mode(0o644))?;
        Ok(Self {
            setup: setup.clone(),
            folder,
        })
    }

    /// A world that has the demo image, named `demo`.
    ///
    /// # Errors
    /// When it cannot be imported.
    pub fn with_demo(setup: &Setup) -> Result<Self> {
        let world = Self::empty(setup)?;
        world
            .sandboxctl(&[
                "image",
                "import",
                "--name",
                "demo",
                &setup.demo.to_string_lossy(),
            ])?
            .expect_code(0)?;
        Ok(world)
    }

    /// What all tests share.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The folder `deploy` of the checkout that the programs were built in.
    ///
    /// # Errors
    /// When they are somewhere else.
    pub fn deploy(&self) -> Result<PathBuf> {
        let root = self.setup.binaries.ancestors().nth(2);
        Ok(root
            .context("programs are in target/release")?
            .join("deploy"))
    }

    /// The world's own folder, for files of the test.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The runtime folder; nothing is in it when nothing runs.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.path().join("run")
    }

    /// The state folder of `sandboxctl`.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.path().join("state")
    }

    /// Writes a configuration for a shim of this world.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn write_config(&self, path: &Path) -> Result<()> {
        let text = format!(
            "hypervisor = {:?}\nallow_emulation = {}\nrun_dir = {:?}\nboot_timeout_s = {BOOT_TIMEOUT_S}\n",
            self.setup.driver.name(),
            self.setup.driver == Driver::Qemu,
            self.run_dir()
        );
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// A program of the product, as a process of this world.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.setup.binaries.join(program));
        self.adopt(&mut command);
        command
    }

    /// Makes any command a process of this world.
    pub fn adopt(&self, command: &mut Command) {
        command
            .env(WORLD_VARIABLE, self.path())
            .env("SANDBOX_ROOT", self.state_dir())
            .env("SANDBOX_RUN_DIR", self.run_dir())
            .env("SANDBOX_CONFIG", self.path().join(CONFIG))
            .current_dir(self.path());
    }

    /// `sandboxctl` with these arguments. `run` and `create` get the driver under test unless they name one, and no
    /// network unless they name one: a bridge would be the whole machine's.
    #[must_use]
    pub fn sandboxctl_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.command("sandboxctl");
        match arguments {
            [verb @ ("run" | "create"), rest @ ..] => {
                command.arg(verb);
                if !rest.contains(&"--hypervisor") {
                    command.args(["--hypervisor", self.setup.driver.name()]);
                }
                if !rest.contains(&"--network") {
                    command.args(["--network", "none"]);
                }
                command.args(rest);
            }
            all => {
                command.args(all);
            }
        }
        command
    }

    /// Runs `sandboxctl` to its end with nothing on standard input.
    ///
    /// # Errors
    /// When it does not end in time. Its exit code is the caller's to judge.
    pub fn sandboxctl(&self, arguments: &[&str]) -> Result<Finished> {
        self.sandboxctl_with_input(arguments, b"")
    }

    /// Runs `sandboxctl` to its end.
    ///
    /// # Errors
    /// As [`Self::sandboxctl`].
    pub fn sandboxctl_with_input(&self, arguments: &[&str], input: &[u8]) -> Result<Finished> {
        process::run(
            &mut self.sandboxctl_command(arguments),
            input,
            self.setup.limit,
        )
    }

    /// Starts `sandboxctl`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, arguments: &[&str]) -> Result<Running> {
        Running::start(&mut self.sandboxctl_command(arguments), self.setup.limit)
    }

    /// Starts the demo image with these options and a shell that echoes its input until it ends; returns when it runs.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_waiting(&self, options: &[&str]) -> Result<Running> {
        let arguments = [&["run"], options, &["demo", "sh", "-c", "echo up; cat"]].concat();
        let mut running = self.start(&arguments)?;
        running.wait_for_line("up")?;
        Ok(running)
    }

    /// The one process of this world whose command line contains `part`.
    ///
    /// # Errors
    /// When there is none, or more than one, within the limit.
    pub fn process(&self, part: &str) -> Result<Process> {
        process::wait_until(&format!("a process {part:?}"), self.setup.limit, || {
            let mut found: Vec<Process> = leaks::processes(self.path())
                .into_iter()
                .filter(|process| process.command.contains(part))
                .collect();
            (found.len() == 1).then(|| found.remove(0))
        })
    }

    /// Kills the one process whose command line contains `part`, and waits until it is dead: until then it holds its files
    /// and locks.
    ///
    /// # Errors
    /// As [`Self::process`].
    pub fn kill_process(&self, part: &str) -> Result<()> {
        let process = self.process(part)?;
        kill(Pid::from_raw(process.pid), Signal::SIGKILL)
            .with_context(|| format!("cannot kill {}", process.command))?;
        process::wait_until(&process.command, self.setup.limit, || {
            let folder = format!("/proc/{}", process.pid);
            let stat = fs::read_to_string(format!("{folder}/stat"));
            let threads = fs::read_dir(format!("{folder}/task")).map_or(0, Iterator::count);
            // The state comes behind the name in brackets (proc(5)); a zombie has nothing any more, but its other threads may.
            stat.map_or(true, |stat| {
                let zombie = stat.rsplit(')').next().map(|rest| rest.starts_with(" Z"));
                threads < 2 && zombie == Some(true)
            })
            .then_some(())
        })
    }

    /// Requires that no process of this world is left: what was killed dies in its own time, and who saw an end and told of it
    /// ends a moment later.
    ///
    /// # Errors
    /// Naming those that stay.
    pub fn expect_no_process(&self) -> Result<()> {
        let mut left = Vec::new();
        process::wait_until("that no process is left", DYING, || {
            left = leaks::processes(self.path());
            left.is_empty().then_some(())
        })
        .with_context(|| format!("still there: {left:?}"))
    }

    /// Ends the world and looks for what was left behind: no process, mount or socket of it, nothing in its
    /// runtime folder, no container in its state folder. What the machine has only once (network devices and
    /// namespaces, cgroups) is compared over a whole run, with [`leaks::machine`].
    ///
    /// # Errors
    /// Naming everything that is left, after a time in which dying processes may finish dying.
    pub fn finish(self) -> Result<()> {
        let clean = self.expect_nothing_left();
        if clean.is_err() {
            ending::force_end(self.path());
        }
        clean
    }

    /// Looks for what was left behind, as [`Self::finish`], of a world that goes on.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub fn expect_nothing_left(&self) -> Result<()> {
        let containers = self.state_dir().join("containers");
        let run_dir = self.run_dir();
        let mut left = Vec::new();
        let clean = process::wait_until("a clean end", DYING, || {
            left = leaks::left_behind(self.path(), &[&run_dir, &containers]);
            left.is_empty().then_some(())
        });
        if clean.is_err() {
            bail!("left behind:\n  {}", left.join("\n  "));
        }
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        ending::force_end(self.path());
        ending::forget(self.path());
    }
}
