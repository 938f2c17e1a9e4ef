//! A container by calls to a shim's task service, as an engine makes them; each call with a clock.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use containerd_shim_protos::api;
use nix::libc::SIGKILL;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sandbox_harness::shim::{self, Output, Shim};
use sandbox_harness::task::EventServer;
use sandbox_harness::{bundle, leaks, process};
use serde_json::Value as Json;

use super::Lab;
use crate::report::Value;
use crate::strace;
use crate::subject::Runtime;
use crate::timed::{Timed, handle, wait_for_end};

/// What it prints when it runs, and then it waits.
pub(crate) const SCRIPT: &str = "echo up; exec sleep 100000";

/// What a container's root is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Root {
    /// The image below a writable layer, in the form that the runtime takes best: EROFS and ext4, or an overlay of folders.
    Image,
    /// A folder of the host's, as containerd's overlayfs snapshotter hands it over: shared by virtio-fs.
    Folder,
}

/// A container that runs, and its shim. Dropped, both are ended: a container under runc is not the world's to find.
pub(crate) struct Task {
    shim: Shim,
    /// The shim's process.
    process: OwnedFd,
    id: String,
    execs: u32,
    limit: Duration,
    ended: bool,
    /// Where its output goes; a container whose reader is gone is another one.
    output: Option<Output>,
    _events: EventServer,
}

impl Lab {
    /// Starts a shim and a container; it, and how long each step took.
    ///
    /// # Errors
    /// With what the shim said.
    pub(crate) fn start_task(&self, runtime: Runtime, root: Root) -> Result<(Task, Vec<Value>)> {
        self.start_task_of(runtime, root, &bundle::spec(&["sh", "-c", SCRIPT]))
    }

    /// As [`Self::start_task`], of a container with this specification, whose process says something when it is ready.
    ///
    /// # Errors
    /// As [`Self::start_task`].
    pub(crate) fn start_task_of(
        &self,
        runtime: Runtime,
        root: Root,
        spec: &Json,
    ) -> Result<(Task, Vec<Value>)> {
        self.start_task_traced(runtime, root, spec, None)
    }

    /// As [`Self::start_task_of`], with all system calls of the shim and its descendants in a file, if there is one.
    ///
    /// # Errors
    /// As [`Self::start_task`].
    pub(crate) fn start_task_traced(
        &self,
        runtime: Runtime,
        root: Root,
        spec: &Json,
        trace: Option<&Path>,
    ) -> Result<(Task, Vec<Value>)> {
        let id = self.name();
        let folder = self.bundle(&id, spec)?;
        let mounts = match (runtime, root) {
            (Runtime::Runc, _) | (_, Root::Folder) => overlay(&self.root(), &folder)?,
            (_, Root::Image) => self.disks(&folder)?,
        };
        let events = EventServer::start()?;
        let mut command = self.shim_command(runtime, &id, &folder)?;
        command.env("TTRPC_ADDRESS", events.address());
        if let Some(file) = trace {
            command = strace::traced(&command, file);
        }
        let mut unfinished = Unfinished {
            lab: self,
            runtime,
            id: &id,
            folder: &folder,
            over: false,
        };

        let begun = Instant::now();
        let mut started = Timed::start(&mut command, self.world().path(), &id, self.limit())?;
        // A shim's `start` reads what it is to begin with to the end.
        started.close();
        let (address, _) = started.line()?;
        let start = started.end()?;
        let connecting = Instant::now();
        let shim = Shim::connect(self.world(), &address, &folder)?;
        let request = api::ConnectRequest {
            id: id.clone(),
            ..Default::default()
        };
        let process = handle(shim.tasks().connect(Shim::context(), &request)?.shim_pid)?;
        let connect = connecting.elapsed();
        let mut task = Task {
            shim,
            process,
            id: id.clone(),
            execs: 0,
            limit: self.limit(),
            ended: false,
            output: None,
            _events: events,
        };
        let creating = Instant::now();
        let mut output = task.shim.create_on(&task.id, false, mounts)?;
        let create = creating.elapsed();
        let starting = Instant::now();
        task.shim.start_process(&task.id, "")?;
        let task_start = starting.elapsed();
        output
            .line()
            .with_context(|| format!("no output; the shim's log: {}", task.shim.log()))?;
        let first_output = begun.elapsed();
        task.output = Some(output);
        unfinished.over = true;
        let values = vec![
            Value::took("shim start", start),
            Value::took("connect", connect),
            Value::took("Create", create),
            Value::took("Start", task_start),
            Value::took("shim start to first output", first_output),
        ];
        Ok((task, values))
    }

    fn bundle(&self, id: &str, spec: &Json) -> Result<PathBuf> {
        let folder = self.world().path().join("tasks").join(id);
        fs::create_dir_all(folder.join("rootfs"))?;
        fs::write(folder.join("config.json"), serde_json::to_vec(spec)?)?;
        Ok(folder)
    }

    fn shim_command(&self, runtime: Runtime, id: &str, bundle: &Path) -> Result<Command> {
        let world = self.world();
        match runtime {
            Runtime::Runc => {
                let mut command = Command::new("containerd-shim-runc-v2");
                world.adopt(&mut command);
                shim::start_program(world, command, id, bundle)
            }
            Runtime::QemuMicrovm => {
                let mut command = shim::start_command(world, id, bundle)?;
                command.env("SANDBOX_CONFIG", self.qemu_config());
                Ok(command)
            }
            Runtime::Host | Runtime::Sandbox => shim::start_command(world, id, bundle),
        }
    }

    /// The image as one EROFS layer, and a writable disk of the container's own.
    fn disks(&self, folder: &Path) -> Result<Vec<api::Mount>> {
        let layer = self.world().path().join("root.erofs");
        if !layer.exists() {
            let mut command = Command::new("mkfs.erofs");
            // As the image store makes them: every file on pages of its own.
            command
                .args(["--quiet", "-Eforce-inode-extended,noinline_data"])
                .arg(&layer)
                .arg(self.root());
            super::tool(&mut command, self.limit())?;
        }
        let writable = folder.join("rw.ext4");
        let template = self.world().path().join("scratch.ext4");
        if !template.exists() {
            self.copy_sparse(&self.artifact("scratch.ext4")?, &template)?;
        }
        self.copy_sparse(&template, &writable)?;
        Ok(vec![
            mount("erofs", &layer.to_string_lossy(), &["ro", "loop"]),
            mount(
                "ext4",
                &writable.to_string_lossy(),
                &["rw", "loop", "discard"],
            ),
            mount(
                "format/mkdir/overlay",
                "overlay",
                &[
                    "X-containerd.mkdir.path={{ mount 1 }}/upper:0755",
                    "X-containerd.mkdir.path={{ mount 1 }}/work:0755",
                    "workdir={{ mount 1 }}/work",
                    "upperdir={{ mount 1 }}/upper",
                    "lowerdir={{ overlay 0 0 }}",
                ],
            ),
        ])
    }

    fn copy_sparse(&self, from: &Path, to: &Path) -> Result<()> {
        let mut command = Command::new("cp");
        command
            .args(["--sparse=always", "--reflink=auto", "--dereference"])
            .args([from, to]);
        super::tool(&mut command, self.limit()).map(drop)
    }
}

/// What `start` made, until there is a container. Dropped before, it ends the shim and has what that leaves cleared away, as an engine
/// does where `start` fails or takes too long: nobody else knows of that process.
struct Unfinished<'a> {
    lab: &'a Lab,
    runtime: Runtime,
    id: &'a str,
    folder: &'a Path,
    over: bool,
}

impl Unfinished<'_> {
    fn clear_away(&self) -> Result<()> {
        let world = self.lab.world();
        let named = format!("-id {} ", self.id);
        let ended = process::wait_until("the end of a shim", self.lab.limit(), || {
            let mut left = leaks::processes(world.path());
            left.retain(|one| {
                one.command.contains("containerd-shim-") && one.command.contains(&named)
            });
            for shim in &left {
                // It may have ended since it was listed.
                let _ = kill(Pid::from_raw(shim.pid), Signal::SIGKILL);
            }
            left.is_empty().then_some(())
        });
        let mut command = match self.runtime {
            Runtime::Runc => {
                let mut command = Command::new("containerd-shim-runc-v2");
                world.adopt(&mut command);
                command
                    .args(["-namespace", shim::NAMESPACE, "-id", self.id, "-bundle"])
                    .arg(self.folder)
                    .arg("delete")
                    .current_dir(self.folder);
                command
            }
            _ => shim::delete_command(world, self.id, self.folder),
        };
        if self.runtime == Runtime::QemuMicrovm {
            command.env("SANDBOX_CONFIG", self.lab.qemu_config());
        }
        super::tool(&mut command, self.lab.limit())?;
        ended
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        if let Err(error) = self.clear_away() {
            eprintln!("    {} was not cleared away: {error:#}", self.id);
        }
    }
}

fn mount(kind: &str, source: &str, options: &[&str]) -> api::Mount {
    api::Mount {
        type_: kind.to_owned(),
        source: source.to_owned(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..Default::default()
    }
}

/// The image's folder below a writable one of the container's own.
fn overlay(lower: &Path, folder: &Path) -> Result<Vec<api::Mount>> {
    let mut options = vec![format!("lowerdir={}", lower.display())];
    for (option, name) in [("upperdir", "upper"), ("workdir", "work")] {
        let path = folder.join(name);
        fs::create_dir(&path)?;
        options.push(format!("{option}={}", path.display()));
    }
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    Ok(vec![mount("overlay", "overlay", &options)])
}

impl Task {
    /// Adds a process that does nothing, waits for its end, and removes it.
    ///
    /// # Errors
    /// With what the shim said.
    pub(crate) fn exec(&mut self) -> Result<Duration> {
        self.execs += 1;
        let name = format!("e{}", self.execs);
        let begun = Instant::now();
        let _output = self
            .shim
            .exec(&self.id, &name, &bundle::process(&["true"]))?;
        self.shim.wait(&self.id, &name)?;
        self.shim.delete(&self.id, &name)?;
        Ok(begun.elapsed())
    }

    /// Kills the container, removes it, and ends the shim; how long each step took.
    ///
    /// # Errors
    /// With what the shim said.
    pub(crate) fn end(mut self) -> Result<Vec<Value>> {
        let killing = Instant::now();
        self.kill()?;
        self.shim.wait(&self.id, "")?;
        let killed = killing.elapsed();
        let deleting = Instant::now();
        self.shim.delete(&self.id, "")?;
        let deleted = deleting.elapsed();
        self.ended = true;
        let ending = Instant::now();
        // The connection may end before the answer comes.
        let _ = self.shim.shutdown(&self.id);
        self.shim.hang_up();
        wait_for_end(&self.process, self.limit)?;
        let ended = ending.elapsed();
        Ok(vec![
            Value::took("kill to exit", killed),
            Value::took("Delete", deleted),
            Value::took("Shutdown to the shim's end", ended),
        ])
    }

    fn kill(&self) -> Result<()> {
        let request = api::KillRequest {
            id: self.id.clone(),
            signal: SIGKILL.cast_unsigned(),
            all: true,
            ..Default::default()
        };
        self.shim.tasks().kill(Shim::context(), &request)?;
        Ok(())
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // Each of these fails where the one before has not come about; whatever is left, the world ends.
        if self.kill().is_ok() {
            let _ = self.shim.wait(&self.id, "");
        }
        let _ = self.shim.delete(&self.id, "");
        let _ = self.shim.shutdown(&self.id);
        self.shim.hang_up();
    }
}
