//! What all parts share: one world, one image in it, and how each subject runs a container of that image.

mod about;
mod task;

use std::cell::{Cell, OnceCell};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use sandbox_harness::bundle::{self, PROBE};
use sandbox_harness::containerd::{Containerd, DEMO_IMAGE, RUNTIME};
use sandbox_harness::{Driver, Setup, World, process};
use serde_json::json;

use crate::fixture;
use crate::host::Host;
use crate::order::Turns;
use crate::subject::{Runtime, Subject, Way};
use crate::timed::Timed;
pub(crate) use about::{About, Contender};
pub(crate) use task::{Root, SCRIPT, Task};

/// The image's name in this runtime's store, as the harness imports it.
const IMAGE: &str = "demo";
/// containerd's runtime of plain containers.
const RUNC_RUNTIME: &str = "io.containerd.runc.v2";

/// Everything there is to measure with.
pub(crate) struct Lab {
    world: World,
    host: Host,
    runs: usize,
    at_once: Vec<usize>,
    containerd: OnceCell<std::result::Result<Containerd, String>>,
    names: Cell<u32>,
}

/// What a container has beside the program in it.
#[derive(Debug, Clone)]
pub(crate) struct Given<'a> {
    /// The image's name in this runtime's store.
    pub(crate) image: &'a str,
    /// The same image's files, in a folder of the host's.
    pub(crate) root: PathBuf,
    /// A folder of the host's that is [`SHARED`] in the container.
    pub(crate) shared: Option<&'a Path>,
    /// Whether it has no network, one processor, [`LIMIT_MIB`] of memory and [`LIMIT_PROCESSES`].
    pub(crate) limited: bool,
}

/// Memory of a container that has limits, in MiB.
const LIMIT_MIB: u64 = 256;
/// Its processes.
const LIMIT_PROCESSES: u64 = 256;

/// Where a folder of the host's is.
pub(crate) const SHARED: &str = "/shared";

/// What a lab is made from.
pub(crate) struct Plan {
    pub(crate) setup: Setup,
    pub(crate) host: Host,
    pub(crate) runs: usize,
    pub(crate) at_once: Vec<usize>,
}

impl Lab {
    /// Makes the world, imports the image, and unpacks it for runtimes that want a folder.
    ///
    /// # Errors
    /// When a tool is missing or refuses.
    pub(crate) fn make(plan: Plan) -> Result<Self> {
        let world = World::with_demo(&plan.setup)?;
        fixture::unpack(&plan.setup.demo, &world.path().join("root"))?;
        let lab = Self {
            world,
            host: plan.host,
            runs: plan.runs,
            at_once: plan.at_once,
            containerd: OnceCell::new(),
            names: Cell::new(0),
        };
        lab.prepare_qemu()?;
        Ok(lab)
    }

    /// Ends everything.
    ///
    /// # Errors
    /// With what was left behind.
    pub(crate) fn finish(mut self) -> Result<()> {
        drop(self.containerd.take());
        self.remove_left_by_runc();
        self.world.finish()
    }

    /// Containers of runs that were cut short. They have environments of their own, so the world does not know them.
    fn remove_left_by_runc(&self) {
        let listed = self.runc().args(["list", "--quiet"]).output();
        let names = listed.map(|output| output.stdout).unwrap_or_default();
        for name in String::from_utf8_lossy(&names).lines() {
            let _ = self.runc().args(["delete", "--force", name]).output();
        }
    }

    pub(crate) fn world(&self) -> &World {
        &self.world
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    /// A file that is built, or installed, beside the programs.
    ///
    /// # Errors
    /// When it is not there.
    pub(crate) fn artifact(&self, name: &str) -> Result<PathBuf> {
        let binaries = &self.world.setup().binaries;
        let places =
            ["../artifacts", "../lib/sandbox"].map(|folder| binaries.join(folder).join(name));
        let found = places.into_iter().find(|path| path.exists());
        found.with_context(|| format!("no {name} beside {}", binaries.display()))
    }

    pub(crate) fn driver(&self) -> Driver {
        self.world.setup().driver
    }

    pub(crate) fn limit(&self) -> Duration {
        self.world.setup().limit
    }

    pub(crate) fn runs(&self) -> usize {
        self.runs
    }

    /// As many runs of each subject, once it has warmed up.
    pub(crate) fn turns(&self) -> Turns {
        Turns::warmed_up(self.runs)
    }

    /// How many sandboxes are started at once, in turn.
    pub(crate) fn at_once(&self) -> &[usize] {
        &self.at_once
    }

    /// The image's files, in a folder of the host's.
    pub(crate) fn root(&self) -> PathBuf {
        self.world.path().join("root")
    }

    /// The type of the file system that everything is on.
    pub(crate) fn storage(&self) -> String {
        fixture::file_system(self.world.path())
    }

    /// A name that no container had before.
    pub(crate) fn name(&self) -> String {
        self.names.set(self.names.get() + 1);
        format!("bench{}", self.names.get())
    }

    /// Where the configuration is with which the `qemu` driver's QEMU has KVM. The driver asks for emulation; of two
    /// accelerators on its command line QEMU takes the first that works. In the driver's jail there is no `/dev/kvm`.
    fn qemu_config(&self) -> PathBuf {
        self.world.path().join("qemu-microvm.toml")
    }

    fn prepare_qemu(&self) -> Result<()> {
        let program = self.world.path().join("qemu-on-kvm");
        fs::write(
            &program,
            "#!/bin/sh\nexec qemu-system-x86_64 -accel kvm \"$@\"\n",
        )?;
        fs::set_permissions(&program, Permissions::from_mode(0o755))?;
        let config = format!(
            "hypervisor = \"qemu\"\nallow_emulation = true\njail = false\nqemu = {program:?}\nrun_dir = {:?}\n",
            self.world.run_dir()
        );
        Ok(fs::write(self.qemu_config(), config)?)
    }

    /// The containerd of this lab, started when it is first asked for, and the image in it.
    fn containerd(&self) -> Result<&Containerd> {
        let started = self.containerd.get_or_init(|| {
            let start = || -> Result<_> {
                let containerd = Containerd::start(&self.world)?;
                containerd.import_demo(&self.world)?;
                Ok(containerd)
            };
            start().map_err(|error| format!("{error:#}"))
        });
        started
            .as_ref()
            .map_err(|why| anyhow!("containerd does not start: {why}"))
    }

    /// A command that runs a program in a new container, with its streams, to its end. Without a container, the program.
    ///
    /// # Errors
    /// When something that it needs cannot be made.
    pub(crate) fn run_command(
        &self,
        subject: Subject,
        name: &str,
        arguments: &[&str],
    ) -> Result<Command> {
        match (subject.way, subject.runtime) {
            (_, Runtime::Host) => {
                let (program, rest) = arguments.split_first().context("no program")?;
                let program = if *program == PROBE {
                    self.world.setup().probe.clone()
                } else {
                    PathBuf::from(program)
                };
                let mut command = Command::new(program);
                self.world.adopt(&mut command);
                command.args(rest);
                Ok(command)
            }
            (Way::Command, Runtime::Runc) => self.runc_run(name, &self.given(), arguments),
            (Way::Command, _) => {
                let options = ["run", "--rm", "-i", "--timings=json", "--name", name];
                Ok(self.sandboxctl(subject, &[&options[..], &[IMAGE], arguments].concat()))
            }
            (Way::Containerd, runtime) => {
                let containerd = self.containerd()?;
                let runtime = match runtime {
                    Runtime::Runc => RUNC_RUNTIME,
                    _ => RUNTIME,
                };
                let options = ["run", "--rm", "--runtime", runtime, DEMO_IMAGE, name];
                Ok(containerd.ctr_command(&[&options, arguments].concat()))
            }
            (Way::Task, _) => bail!("the task service has no command line"),
        }
    }

    /// Starts [`Self::run_command`]; it may take as long as one command.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn run(&self, subject: Subject, name: &str, arguments: &[&str]) -> Result<Timed> {
        self.hold(subject, name, arguments, self.limit())
    }

    /// As [`Self::run`], with a limit of the caller's.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub(crate) fn hold(
        &self,
        subject: Subject,
        name: &str,
        arguments: &[&str],
        limit: Duration,
    ) -> Result<Timed> {
        let mut command = self.run_command(subject, name, arguments)?;
        Timed::start(&mut command, self.world.path(), name, limit)
    }

    /// What containers have where nothing else is said.
    pub(crate) fn given(&self) -> Given<'static> {
        Given {
            image: IMAGE,
            root: self.root(),
            shared: None,
            limited: false,
        }
    }

    /// As [`Self::run`] of a subject that is reached from a command line, with what it is given.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub(crate) fn run_given(
        &self,
        subject: Subject,
        name: &str,
        given: &Given<'_>,
        arguments: &[&str],
    ) -> Result<Timed> {
        let mut command = match (subject.way, subject.runtime) {
            (_, Runtime::Host) => self.run_command(subject, name, arguments)?,
            (Way::Command, Runtime::Runc) => self.runc_run(name, given, arguments)?,
            (Way::Command, _) => {
                let mut options = vec!["run", "--rm", "-i", "--name", name];
                let volume = given
                    .shared
                    .map(|folder| format!("{}:{SHARED}", folder.display()));
                if let Some(volume) = &volume {
                    options.extend(["-v", volume]);
                }
                let memory = format!("--memory={LIMIT_MIB}m");
                let processes = format!("--pids-limit={LIMIT_PROCESSES}");
                if given.limited {
                    options.extend(["--cpus=1", memory.as_str(), processes.as_str()]);
                }
                options.push(given.image);
                self.sandboxctl(subject, &[&options[..], arguments].concat())
            }
            _ => bail!("only command lines are given anything"),
        };
        Timed::start(&mut command, self.world.path(), name, self.limit())
    }

    /// Makes the host forget what it has cached of the image's files.
    ///
    /// # Errors
    /// When they cannot be opened.
    pub(crate) fn evict_image(&self) -> Result<()> {
        let layers = self.world.state_dir().join("images/layers");
        let mut files = vec![self.root().join("data/noise")];
        for entry in fs::read_dir(&layers)? {
            files.push(entry?.path());
        }
        for path in files {
            let file = File::open(&path).with_context(|| path.display().to_string())?;
            // What is not on disk yet cannot be forgotten.
            file.sync_all()?;
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        }
        Ok(())
    }

    /// A command that adds a process to a container that runs.
    ///
    /// # Errors
    /// When containerd does not run.
    pub(crate) fn exec_command(
        &self,
        subject: Subject,
        name: &str,
        arguments: &[&str],
    ) -> Result<Command> {
        Ok(match (subject.way, subject.runtime) {
            (Way::Command, Runtime::Runc) => {
                let mut command = self.runc();
                command.arg("exec").arg(name).args(arguments);
                command
            }
            (Way::Command, Runtime::Sandbox | Runtime::QemuMicrovm) => {
                self.sandboxctl(subject, &[&["exec", name], arguments].concat())
            }
            (Way::Containerd, _) => {
                let exec = self.name();
                let options = ["task", "exec", "--exec-id", &exec, name];
                self.containerd()?
                    .ctr_command(&[&options, arguments].concat())
            }
            (Way::Task, _) | (_, Runtime::Host) => bail!("no command line adds a process to it"),
        })
    }

    /// `sandboxctl` with these arguments, for this subject.
    pub(crate) fn sandboxctl(&self, subject: Subject, arguments: &[&str]) -> Command {
        let mut command = match (subject.runtime, arguments) {
            (Runtime::QemuMicrovm, [verb @ ("run" | "create"), rest @ ..]) => self
                .world
                .sandboxctl_command(&[&[*verb, "--hypervisor", "qemu"], rest].concat()),
            _ => self.world.sandboxctl_command(arguments),
        };
        if subject.runtime == Runtime::QemuMicrovm {
            command.env("SANDBOX_CONFIG", self.qemu_config());
        }
        command
    }

    fn runc(&self) -> Command {
        let mut command = Command::new("runc");
        self.world.adopt(&mut command);
        command.arg("--root").arg(self.world.path().join("runc"));
        command
    }

    fn runc_run(&self, name: &str, given: &Given<'_>, arguments: &[&str]) -> Result<Command> {
        let folder = self.world.path().join("bundles").join(name);
        fs::create_dir_all(&folder)?;
        let mut spec = bundle::spec(arguments);
        spec["root"] = json!({ "path": given.root });
        if let (Some(shared), Some(mounts)) = (given.shared, spec["mounts"].as_array_mut()) {
            mounts.push(json!({
                "destination": SHARED, "type": "bind", "source": shared, "options": ["rbind", "rw"],
            }));
        }
        if given.limited {
            spec["linux"]["resources"] = json!({
                "cpu": { "period": 100_000, "quota": 100_000 },
                "memory": { "limit": LIMIT_MIB << 20 },
                "pids": { "limit": LIMIT_PROCESSES },
            });
            if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
                namespaces.push(json!({ "type": "network" }));
            }
        }
        fs::write(folder.join("config.json"), serde_json::to_vec(&spec)?)?;
        let mut command = self.runc();
        command.arg("run").arg("--bundle").arg(folder).arg(name);
        Ok(command)
    }

    /// Why a subject cannot be measured here, if so.
    pub(crate) fn obstacle(&self, subject: Subject) -> Option<String> {
        subject.obstacle(&self.host, self.driver())
    }

    /// Those who take part where these subjects are measured.
    pub(crate) fn contenders(&self, subjects: &[Subject]) -> Vec<Contender> {
        subjects
            .iter()
            .map(|&subject| Contender {
                label: subject.label(self.driver()),
                obstacle: self.obstacle(subject),
            })
            .collect()
    }
}

/// Runs a tool to its end.
///
/// # Errors
/// With what it said.
pub(crate) fn tool(command: &mut Command, limit: Duration) -> Result<String> {
    Ok(process::run(command, b"", limit)?.expect_code(0)?.text())
}
