//! A shim spoken to directly, over its task service (containerd `runtime/task/v2`): what a test needs that gives the
//! shim a bundle of its own making, and not what containerd makes of one.

use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::net::Shutdown;
use std::os::fd::{AsFd as _, IntoRawFd as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::ttrpc::context::{self, Context};
use containerd_shim_protos::{Client, TaskClient};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;

use crate::process;
use crate::world::World;

/// containerd's namespace of everything that is started here.
pub const NAMESPACE: &str = "test";
/// What containerd calls the description of an exec's process.
const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
const PROGRAM: &str = "containerd-shim-sandbox-v2";

/// A shim that serves one pod.
pub struct Shim {
    connection: Client,
    client: TaskClient,
    /// The connection once more, to hang up.
    socket: UnixStream,
    bundle: PathBuf,
    limit: Duration,
}

/// The output of a process: a stream that is read line by line, each with a deadline.
pub struct Output {
    from: File,
    read: Vec<u8>,
    limit: Duration,
}

impl Output {
    /// Reads from any stream.
    #[must_use]
    pub fn new(from: File, limit: Duration) -> Self {
        Self {
            from,
            read: Vec::new(),
            limit,
        }
    }

    /// The next line, without its end.
    ///
    /// # Errors
    /// When the stream ends or nothing comes in time; with what came until then.
    pub fn line(&mut self) -> Result<String> {
        let deadline = Instant::now() + self.limit;
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            let so_far = || String::from_utf8_lossy(&self.read).into_owned();
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut wait = [PollFd::new(self.from.as_fd(), PollFlags::POLLIN)];
            if poll(&mut wait, timeout)? == 0 {
                bail!("no line within {:?}, only {:?}", self.limit, so_far());
            }
            let mut chunk = [0; 4096];
            // A terminal whose last process is gone answers EIO.
            match self.from.read(&mut chunk) {
                Ok(length) if length > 0 => self.read.extend_from_slice(&chunk[..length]),
                Ok(_) => bail!("the output ended after {:?}", so_far()),
                Err(error) => bail!("the output ended after {:?}: {error}", so_far()),
            }
        }
    }
}

/// How long a call may take; the shim bounds its own work.
fn patient() -> Context {
    context::with_timeout(0)
}

fn make_fifo(path: &Path) -> Result<()> {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(0o600))
        .with_context(|| format!("cannot make the fifo {}", path.display()))
}

/// The reading end of a fifo that the other side has not opened yet.
fn open_fifo(path: &Path) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path)?;
    nix::fcntl::fcntl(
        &file,
        nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty()),
    )?;
    Ok(file)
}

/// The shim's program, told to start for a bundle as containerd 1.x tells it.
///
/// # Errors
/// When the file system refuses.
pub fn start_command(world: &World, id: &str, bundle: &Path) -> Result<Command> {
    let config = world.path().join("shim.toml");
    world.write_config(&config)?;
    let mut command = start_program(world, world.command(PROGRAM), id, bundle)?;
    command.env("SANDBOX_CONFIG", &config);
    Ok(command)
}

/// The shim's program, told to clean up after a shim of [`start_command`] that was killed.
#[must_use]
pub fn delete_command(world: &World, id: &str, bundle: &Path) -> Command {
    let mut command = world.command(PROGRAM);
    command
        .args(["-namespace", NAMESPACE, "-id", id, "-address"])
        .arg(world.path().join("containerd.sock"))
        .arg("delete")
        .current_dir(bundle)
        .env("SANDBOX_CONFIG", world.path().join("shim.toml"));
    command
}

/// Any shim's program, told to start for a bundle as containerd 1.x tells it.
///
/// # Errors
/// When the file system refuses.
pub fn start_program(
    world: &World,
    mut command: Command,
    id: &str,
    bundle: &Path,
) -> Result<Command> {
    // The shim logs where there is a log.
    File::create(bundle.join("log"))?;
    command
        // Containers of the same name in other worlds have other shims, as those of other containerds have.
        .args(["-namespace", NAMESPACE, "-id", id, "-address"])
        .arg(world.path().join("containerd.sock"))
        .arg("start")
        .current_dir(bundle);
    Ok(command)
}

impl Shim {
    /// Starts a shim for the bundle, as containerd would, and connects to it.
    ///
    /// # Errors
    /// When it cannot be started; with what it said.
    pub fn start(world: &World, id: &str, bundle: &Path) -> Result<Self> {
        Self::start_with(world, id, bundle, "")
    }

    /// As [`Self::start`], with more lines in its configuration.
    ///
    /// # Errors
    /// When it cannot be started; with what it said.
    pub fn start_with(world: &World, id: &str, bundle: &Path, more: &str) -> Result<Self> {
        let mut command = start_command(world, id, bundle)?;
        let config = world.path().join("shim.toml");
        let text = std::fs::read_to_string(&config)?;
        std::fs::write(&config, text + more)?;
        let started = process::run(&mut command, b"", world.setup().limit)?.expect_code(0)?;
        Self::connect(world, started.text().trim(), bundle)
    }

    /// Connects to a shim that runs.
    ///
    /// # Errors
    /// When nothing listens there.
    pub fn connect(world: &World, address: &str, bundle: &Path) -> Result<Self> {
        let path = address.strip_prefix("unix://").unwrap_or(address);
        let socket = UnixStream::connect(path)
            .with_context(|| format!("cannot connect to the shim at {address:?}"))?;
        let connection = Client::new(socket.try_clone()?.into_raw_fd())?;
        Ok(Self {
            client: TaskClient::new(connection.clone()),
            connection,
            socket,
            bundle: bundle.to_owned(),
            limit: world.setup().limit,
        })
    }

    /// The connection, for other services than that of tasks.
    #[must_use]
    pub fn connection(&self) -> &Client {
        &self.connection
    }

    /// The task service.
    #[must_use]
    pub fn tasks(&self) -> &TaskClient {
        &self.client
    }

    /// What to pass along with a call to [`Self::tasks`]: no time limit but the shim's own.
    #[must_use]
    pub fn context() -> Context {
        patient()
    }

    /// Makes and starts the bundle's container, with nothing on its standard input; its outputs come back as one.
    ///
    /// # Errors
    /// With what the shim answered, and its log.
    pub fn run(&self, id: &str, terminal: bool) -> Result<Output> {
        let output = self.create(id, terminal)?;
        self.start_process(id, "")?;
        Ok(output)
    }

    /// Makes the bundle's container, as [`Self::run`], and does not start it.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn create(&self, id: &str, terminal: bool) -> Result<Output> {
        self.create_on(id, terminal, Vec::new())
    }

    /// As [`Self::create`], on a root that is put together of these mounts.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn create_on(&self, id: &str, terminal: bool, root: Vec<api::Mount>) -> Result<Output> {
        let out = self.bundle.join("stdout");
        make_fifo(&out)?;
        let output = Output::new(open_fifo(&out)?, self.limit);
        let path = out.display().to_string();
        let request = api::CreateTaskRequest {
            id: id.to_owned(),
            bundle: self.bundle.display().to_string(),
            terminal,
            stderr: if terminal {
                String::new()
            } else {
                path.clone()
            },
            stdout: path,
            rootfs: root,
            ..Default::default()
        };
        self.client
            .create(patient(), &request)
            .with_context(|| format!("Create failed\n{}", self.log()))?;
        Ok(output)
    }

    /// Adds a process to a container and starts it; its outputs come back as one.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn exec(&self, id: &str, exec_id: &str, process: &Value) -> Result<Output> {
        let out = self.bundle.join(format!("stdout-{exec_id}"));
        make_fifo(&out)?;
        let output = Output::new(open_fifo(&out)?, self.limit);
        let path = out.display().to_string();
        let terminal = process["terminal"].as_bool().unwrap_or(false);
        let request = api::ExecProcessRequest {
            id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            terminal,
            stderr: if terminal {
                String::new()
            } else {
                path.clone()
            },
            stdout: path,
            spec: Some(Any {
                type_url: PROCESS_TYPE.to_owned(),
                value: serde_json::to_vec(process)?,
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        self.client
            .exec(patient(), &request)
            .with_context(|| format!("Exec failed\n{}", self.log()))?;
        self.start_process(id, exec_id)?;
        Ok(output)
    }

    /// Starts a container that was made, or a process that was added.
    ///
    /// # Errors
    /// With what the shim answered, and its log.
    pub fn start_process(&self, id: &str, exec_id: &str) -> Result<()> {
        let request = api::StartRequest {
            id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            ..Default::default()
        };
        self.client
            .start(patient(), &request)
            .with_context(|| format!("Start failed\n{}", self.log()))?;
        Ok(())
    }

    /// Waits for a process's end; its exit status.
    ///
    /// # Errors
    /// With what the shim answered.
    pub fn wait(&self, id: &str, exec_id: &str) -> Result<u32> {
        let request = api::WaitRequest {
            id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            ..Default::default()
        };
        Ok(self.client.wait(patient(), &request)?.exit_status)
    }

    /// Removes an ended process, and of a container everything.
    ///
    /// # Errors
    /// With what the shim answered.
    pub fn delete(&self, id: &str, exec_id: &str) -> Result<()> {
        let request = api::DeleteRequest {
            id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            ..Default::default()
        };
        self.client.delete(patient(), &request)?;
        Ok(())
    }

    /// Freezes a container.
    ///
    /// # Errors
    /// With what the shim answered.
    pub fn pause(&self, id: &str) -> Result<()> {
        let request = api::PauseRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        self.client.pause(patient(), &request)?;
        Ok(())
    }

    /// Lets a frozen container go on.
    ///
    /// # Errors
    /// With what the shim answered.
    pub fn resume(&self, id: &str) -> Result<()> {
        let request = api::ResumeRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        self.client.resume(patient(), &request)?;
        Ok(())
    }

    /// The container's processes, by number.
    ///
    /// # Errors
    /// With what the shim answered.
    pub fn pids(&self, id: &str) -> Result<Vec<u32>> {
        let request = api::PidsRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        let answer = self.client.pids(patient(), &request)?;
        Ok(answer.processes.iter().map(|process| process.pid).collect())
    }

    /// Ends the shim.
    ///
    /// # Errors
    /// With what it answered.
    pub fn shutdown(&self, id: &str) -> Result<()> {
        let request = api::ShutdownRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        self.client.shutdown(patient(), &request)?;
        Ok(())
    }

    /// Closes the connection, as engines do once [`Self::shutdown`] is answered; the shim waits a while for that. No call follows.
    pub fn hang_up(&self) {
        // What fails here was broken before.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Kills every process of a container, removes it, and ends the shim.
    ///
    /// # Errors
    /// With what the shim answered.
    pub fn end(&self, id: &str) -> Result<()> {
        let kill = api::KillRequest {
            id: id.to_owned(),
            signal: nix::libc::SIGKILL.cast_unsigned(),
            all: true,
            ..Default::default()
        };
        self.client.kill(patient(), &kill)?;
        self.wait(id, "")?;
        self.delete(id, "")?;
        self.shutdown(id)?;
        self.hang_up();
        Ok(())
    }

    /// What the shim logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.bundle.join("log")).unwrap_or_default()
    }
}
