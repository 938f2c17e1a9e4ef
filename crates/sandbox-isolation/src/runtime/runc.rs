//! runc: containers on the host's kernel. Every control runs under it.

use std::process::Command;

use super::{Container, Runtime, RuntimeError, Started, is_installed};
use crate::case::Profile;

/// runc, without containerd in between.
pub struct Runc;

/// The program.
const PROGRAM: &str = "runc";

impl Runtime for Runc {
    fn name(&self) -> &'static str {
        PROGRAM
    }

    fn obstacle(&self) -> Option<String> {
        if !is_installed(PROGRAM) {
            return Some("runc is not installed (Debian: apt install runc)".to_owned());
        }
        None
    }

    fn start(&self, container: &Container<'_>) -> Result<Started, RuntimeError> {
        container.bundle()?;
        let runc = || {
            let mut command = Command::new(PROGRAM);
            command.arg("--root").arg(container.folder.join("runc"));
            command
        };
        let mut command = runc();
        command.arg("run").arg("--bundle").arg(&container.folder);
        if container.profile == Profile::Host {
            leak_root(&mut command);
        }
        command.arg(&container.name);
        let mut removal = runc();
        removal.args(["delete", "--force", &container.name]);
        container.session(command, vec![removal])
    }
}

/// Hands a descriptor of the host's root folder through to the container, as a runtime with a leak does (CVE-2024-21626).
#[expect(
    unsafe_code,
    reason = "what runs between fork and exec is handed over by an unsafe function"
)]
fn leak_root(command: &mut Command) {
    use std::os::unix::process::CommandExt as _;
    command.args(["--preserve-fds", "1"]);
    let leak = || {
        use nix::fcntl::{OFlag, open};
        use std::os::fd::{AsRawFd as _, IntoRawFd as _};
        let folder = open(
            "/",
            OFlag::O_DIRECTORY | OFlag::O_RDONLY,
            nix::sys::stat::Mode::empty(),
        )?;
        if folder.as_raw_fd() == 3 {
            let _ = folder.into_raw_fd();
            return Ok(());
        }
        // SAFETY: dup2(2) with two numbers; whatever 3 was, exec is about to close it.
        nix::errno::Errno::result(unsafe { nix::libc::dup2(folder.as_raw_fd(), 3) })?;
        Ok(())
    };
    // SAFETY: open, dup2 and close are all it calls, which may be called after fork.
    unsafe { command.pre_exec(leak) };
}
