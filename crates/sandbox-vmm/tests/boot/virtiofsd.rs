//! The server of a shared folder.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use command_fds::{CommandFdExt, FdMapping};

/// A virtiofsd that ends with its connection, and in any case with this.
pub(crate) struct Virtiofsd(Child);

impl Drop for Virtiofsd {
    fn drop(&mut self) {
        // Both fail when it has ended, as it should have.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Serves `dir` on a connection.
pub(crate) fn serve(program: &Path, dir: &Path) -> Result<(Virtiofsd, UnixStream)> {
    let socket = tempfile::tempdir()?;
    let path = socket.path().join("s");
    let listener = UnixListener::bind(&path)?;
    let mut command = Command::new(program);
    command
        .args([
            "--fd",
            "3",
            "--sandbox",
            "none",
            "--cache",
            "auto",
            "--shared-dir",
        ])
        .arg(dir)
        .stderr(Stdio::null())
        .fd_mappings(vec![FdMapping {
            parent_fd: listener.into(),
            child_fd: 3,
        }])?;
    let server = Virtiofsd(command.spawn().context("cannot start virtiofsd")?);
    Ok((server, UnixStream::connect(&path)?))
}
