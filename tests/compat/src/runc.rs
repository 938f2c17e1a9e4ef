//! A case under runc.

use std::fs::{self, File};
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use sandbox_harness::World;
use sandbox_harness::shim::Output;
use serde_json::Value;

use crate::Sight;
use crate::cases::Case;

struct Runc<'a> {
    world: &'a World,
    id: &'a str,
    limit: Duration,
}

/// Removes the container, whatever became of it.
impl Drop for Runc<'_> {
    fn drop(&mut self) {
        let _ = self.command().args(["delete", "--force", self.id]).output();
    }
}

/// Where a runtime sends a terminal to (`runc --console-socket`).
struct Console {
    path: PathBuf,
    listener: UnixListener,
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Console {
    fn listen(path: PathBuf) -> Result<Self> {
        let listener = UnixListener::bind(&path)?;
        Ok(Self { path, listener })
    }

    #[expect(
        unsafe_code,
        reason = "a received descriptor is only known by its number"
    )]
    fn receive(&self, limit: Duration) -> Result<File> {
        use std::os::fd::AsFd as _;
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let mut wait = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        ensure!(poll(&mut wait, timeout)? == 1, "runc sent no terminal");
        let (connection, _) = self.listener.accept()?;
        connection.set_read_timeout(Some(limit))?;
        let mut name = [0; 4096];
        let mut parts = [IoSliceMut::new(&mut name)];
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
        let message = recvmsg::<()>(
            connection.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(descriptors) = control
                && let [descriptor] = descriptors[..]
            {
                // SAFETY: the kernel has just made it for us.
                return Ok(File::from(unsafe { OwnedFd::from_raw_fd(descriptor) }));
            }
        }
        bail!("runc sent a message without a terminal")
    }
}

impl Runc<'_> {
    fn command(&self) -> Command {
        let mut command = Command::new("runc");
        self.world.adopt(&mut command);
        command
            .arg("--root")
            .arg(self.world.path().join("runc"))
            .arg("--log")
            .arg(self.log_file())
            .stdin(Stdio::null());
        command
    }

    fn log_file(&self) -> PathBuf {
        self.world.path().join("runc.log")
    }

    /// Runs a runc command that leaves a process behind, whose output comes back.
    fn process(&self, command: &mut Command, terminal: bool) -> Result<Output> {
        let log = || fs::read_to_string(self.log_file()).unwrap_or_default();
        if terminal {
            let console = Console::listen(self.world.path().join("console"))?;
            command.arg("--console-socket").arg(&console.path);
            let status = command.arg(self.id).status()?;
            ensure!(status.success(), "{command:?}: {status}\n{}", log());
            return Ok(Output::new(console.receive(self.limit)?, self.limit));
        }
        let (reader, writer) = std::io::pipe()?;
        let status = command
            .arg(self.id)
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .status()?;
        // Our copies of the pipe's end go with the command.
        let output = Output::new(File::from(OwnedFd::from(reader)), self.limit);
        ensure!(status.success(), "{command:?}: {status}\n{}", log());
        Ok(output)
    }

    fn create(&self, bundle: &Path, terminal: bool) -> Result<Output> {
        let mut command = self.command();
        command.arg("create").arg("--bundle").arg(bundle);
        self.process(&mut command, terminal)
    }

    fn start(&self) -> Result<()> {
        let output = self.command().args(["start", self.id]).output()?;
        ensure!(
            output.status.success(),
            "runc start: {}",
            fs::read_to_string(self.log_file()).unwrap_or_default()
        );
        Ok(())
    }

    fn exec(&self, process: &Value) -> Result<Output> {
        let file = self.world.path().join("process.json");
        fs::write(&file, serde_json::to_vec(process)?)?;
        let mut command = self.command();
        command.args(["exec", "--detach", "--process"]).arg(&file);
        let terminal = process["terminal"].as_bool().unwrap_or(false);
        self.process(&mut command, terminal)
    }
}

/// Runs the bundle and has the probe look, from its first process and from an added one.
///
/// # Errors
/// With what runc said.
pub(crate) fn look(world: &World, bundle: &Path, case: &Case) -> Result<Sight> {
    let runc = Runc {
        world,
        id: case.name,
        limit: world.setup().limit,
    };
    let mut output = runc.create(bundle, case.terminal())?;
    runc.start()?;
    let init = output.line().context("of the container")?;
    let mut output = runc.exec(&case.exec)?;
    let exec = output.line().context("of the exec")?;
    Ok(Sight {
        init: serde_json::from_str(&init).with_context(|| init.clone())?,
        exec: serde_json::from_str(&exec).with_context(|| exec.clone())?,
    })
}
