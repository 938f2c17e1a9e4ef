//! `start`: makes the task socket, starts the server on it, and says where it is.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sandbox_runtime::Config;
use sandbox_types::SandboxId;

use crate::address::socket_path;
use crate::error::ShimError;
use crate::flags::Flags;
use crate::log;

/// The bundle: given, or the working directory.
pub(crate) fn bundle(flags: &Flags) -> Result<PathBuf, ShimError> {
    match &flags.bundle {
        Some(bundle) => Ok(bundle.clone()),
        None => std::env::current_dir().map_err(ShimError::system("find the bundle")),
    }
}

/// The pod's socket under this configuration.
pub(crate) fn socket(config: &Config, flags: &Flags) -> Result<PathBuf, ShimError> {
    socket_path(
        &config.socket_dir,
        &flags.address,
        &flags.namespace,
        &flags.id,
    )
    .ok_or_else(|| ShimError::SocketDir {
        path: config.socket_dir.clone(),
    })
}

fn bind(path: &Path) -> Result<UnixListener, ShimError> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if UnixStream::connect(path).is_ok() {
                return Err(ShimError::AlreadyServed {
                    path: path.to_owned(),
                });
            }
            // Of a shim that was killed.
            fs::remove_file(path).map_err(ShimError::system(format!(
                "remove the stale socket {}",
                path.display()
            )))?;
            UnixListener::bind(path)
        }
        other => other,
    };
    listener.map_err(ShimError::system(format!("listen on {}", path.display())))
}

/// Starts the server and prints the address of its socket.
///
/// # Errors
/// [`ShimError`]; no process and no socket is left then.
pub(crate) fn start(flags: &Flags) -> Result<(), ShimError> {
    SandboxId::new(flags.id.as_str())?;
    let bundle = bundle(flags)?;
    let config = Config::load()?;
    let socket = socket(&config, flags)?;
    fs::create_dir_all(&config.socket_dir).map_err(ShimError::system(format!(
        "create the socket folder {}",
        config.socket_dir.display()
    )))?;
    let listener = bind(&socket)?;
    let started = spawn(flags, &bundle, &socket, listener);
    if started.is_err() {
        let _ = fs::remove_file(&socket);
    }
    started
}

fn spawn(
    flags: &Flags,
    bundle: &Path,
    socket: &Path,
    listener: UnixListener,
) -> Result<(), ShimError> {
    let write = |name: &str, text: &str| {
        fs::write(bundle.join(name), text).map_err(ShimError::system(format!(
            "write {name} in {}",
            bundle.display()
        )))
    };
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))
        .map_err(ShimError::system(format!("protect {}", socket.display())))?;
    let address = format!("unix://{}", socket.display());
    let program = std::env::current_exe().map_err(ShimError::system("find this program"))?;
    let mut command = Command::new(program);
    command
        .args([
            "-namespace",
            &flags.namespace,
            "-id",
            &flags.id,
            "-address",
            &flags.address,
        ])
        .arg("-bundle")
        .arg(bundle)
        // The server takes the listening socket from its standard input.
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::null())
        .stderr(log::open(bundle).map_or_else(Stdio::null, Stdio::from))
        .current_dir(bundle);
    if flags.debug {
        command.arg("-debug");
    }
    write("address", &address)?;
    let mut server = command
        .spawn()
        .map_err(ShimError::system("start the server"))?;
    let recorded = write("shim.pid", &server.id().to_string()).and_then(|()| {
        let mut stdout = io::stdout();
        stdout
            .write_all(address.as_bytes())
            .and_then(|()| stdout.flush())
            .map_err(ShimError::system("say the address"))
    });
    if recorded.is_err() {
        let _ = server.kill();
        let _ = server.wait();
    }
    recorded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_of_a_dead_shim_is_replaced_and_of_a_live_one_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let listener = bind(&path).unwrap();
        assert!(matches!(bind(&path), Err(ShimError::AlreadyServed { .. })));
        drop(listener);
    }
}
