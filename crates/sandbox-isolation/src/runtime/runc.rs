//! runc: containers on the host's kernel. Every control runs under it.

use std::ffi::CString;
use std::path::Path;
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
            leak(&mut command, &container.shares.errors)?;
        }
        command.arg(&container.name);
        let mut removal = runc();
        removal.args(["delete", "--force", &container.name]);
        let mut added = runc();
        added.args(["exec", &container.name]);
        container.session(command, added, vec![removal])
    }
}

/// Hands descriptors of the host's root folder and of the file of its output through to the container, as a runtime with a leak does
/// (CVE-2024-21626), or one that has a container write to a log itself.
#[expect(
    unsafe_code,
    reason = "what runs between fork and exec is handed over by an unsafe function"
)]
fn leak(command: &mut Command, output: &Path) -> Result<(), RuntimeError> {
    use nix::fcntl::{OFlag, open};
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::process::CommandExt as _;
    // What begins with the first number that is no standard stream.
    const LEAKED: [(i32, OFlag); 2] = [(3, OFlag::O_DIRECTORY), (4, OFlag::O_RDWR)];
    command.args(["--preserve-fds", "2"]);
    let output = CString::new(output.as_os_str().as_bytes()).map_err(|error| {
        let (path, source) = (output.to_owned(), error.into());
        RuntimeError::Files { path, source }
    })?;
    let leak = move || {
        use std::os::fd::{AsRawFd as _, IntoRawFd as _};
        for ((number, flags), path) in LEAKED.into_iter().zip([c"/", output.as_c_str()]) {
            let leaked = open(path, flags, nix::sys::stat::Mode::empty())?;
            if leaked.as_raw_fd() == number {
                let _ = leaked.into_raw_fd();
                continue;
            }
            // SAFETY: dup2(2) with two numbers; whatever the second was, exec is about to close it.
            nix::errno::Errno::result(unsafe { nix::libc::dup2(leaked.as_raw_fd(), number) })?;
        }
        Ok(())
    };
    // SAFETY: open, dup2 and close are all it calls, which may be called after fork.
    unsafe { command.pre_exec(leak) };
    Ok(())
}
