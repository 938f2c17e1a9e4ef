//! `start`: makes the task socket, starts the server on it, and says where it is. A container of a pod that runs gets
//! the address of that pod's.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sandbox_protocol::bundle::ADDRESS_FILE;
use sandbox_runtime::Config;
use sandbox_runtime::cleanup::{FolderClaim, is_served, release_socket};
use sandbox_types::SandboxId;

use crate::address::socket_path;
use crate::bootstrap::Bootstrap;
use crate::error::ShimError;
use crate::flags::Flags;
use crate::spec::role::Role;
use crate::{events, log};

/// The bundle: given, or the working directory.
pub(crate) fn bundle(flags: &Flags) -> Result<PathBuf, ShimError> {
    match &flags.bundle {
        Some(bundle) => Ok(bundle.clone()),
        None => std::env::current_dir().map_err(ShimError::system("find the bundle")),
    }
}

/// What a start leaves in the bundle for the `delete` that may follow: containerd says it only once.
const CONFIG_FILE: &str = "sandbox-config";
/// The folder that the task socket was made in, and that of running sandboxes: where the pod is, whatever the configuration says by then.
/// containerd's own shims use the first name too.
const SOCKET_DIR_FILE: &str = "socket-dir";
const RUN_DIR_FILE: &str = "run-dir";

/// The configuration, with the folders that a start has begun to use.
///
/// # Errors
/// [`ShimError`] when it cannot be used.
pub(crate) fn load_config(bundle: &Path) -> Result<Config, ShimError> {
    let mut config = match remembered(bundle, CONFIG_FILE) {
        Some(path) => Config::from_file(&path)?,
        None => Config::load()?,
    };
    if let Some(folder) = remembered(bundle, SOCKET_DIR_FILE) {
        config.socket_dir = folder;
    }
    if let Some(folder) = remembered(bundle, RUN_DIR_FILE) {
        config.run_dir = folder;
    }
    Ok(config)
}

/// As [`load_config`], for who looks for what a shim has left, and needs nothing but the folders: a configuration that was changed since, or
/// cannot be used any more, hides nothing.
///
/// # Errors
/// [`ShimError`] when the start has noted no folders, and the configuration cannot be used.
pub(crate) fn places(bundle: &Path) -> Result<Config, ShimError> {
    let folders = (
        remembered(bundle, RUN_DIR_FILE),
        remembered(bundle, SOCKET_DIR_FILE),
    );
    match folders {
        (Some(run_dir), Some(socket_dir)) => Ok(Config {
            run_dir,
            socket_dir,
            ..Config::default()
        }),
        _ => load_config(bundle),
    }
}

/// Notes the folders that this configuration has the pod use.
fn note_places(bundle: &Path, config: &Config) -> Result<(), ShimError> {
    for (name, folder) in [
        (SOCKET_DIR_FILE, &config.socket_dir),
        (RUN_DIR_FILE, &config.run_dir),
    ] {
        write(bundle, name, folder.as_os_str().as_bytes())?;
    }
    Ok(())
}

/// Whether the start was told a configuration, or a call later.
pub(crate) fn is_told_config(bundle: &Path) -> bool {
    remembered(bundle, CONFIG_FILE).is_some()
}

/// The configuration of a pod whose first container names this file, kept for the `delete` that may follow; none where the start
/// was told one.
///
/// # Errors
/// [`ShimError`] when it cannot be used, or not be kept.
pub(crate) fn late_config(bundle: &Path, path: &Path) -> Result<Option<Config>, ShimError> {
    if is_told_config(bundle) {
        return Ok(None);
    }
    let mut config = Config::from_file(path)?;
    // The socket is where the start made it.
    config.socket_dir = load_config(bundle)?.socket_dir;
    note_places(bundle, &config)?;
    write(bundle, CONFIG_FILE, path.as_os_str().as_bytes())?;
    Ok(Some(config))
}

fn remembered(bundle: &Path, name: &str) -> Option<PathBuf> {
    let bytes = fs::read(bundle.join(name)).ok()?;
    (!bytes.is_empty()).then(|| PathBuf::from(OsString::from_vec(bytes)))
}

/// Keeps what only this call was told, and forgets the folders of a start before it in the same bundle.
fn remember(bundle: &Path, bootstrap: &Bootstrap) -> Result<(), ShimError> {
    for name in [SOCKET_DIR_FILE, RUN_DIR_FILE] {
        match fs::remove_file(bundle.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(ShimError::System {
                    what: format!("remove {name} in {}", bundle.display()),
                    source: error,
                });
            }
            _ => {}
        }
    }
    for (name, path) in [
        (CONFIG_FILE, &bootstrap.config_path),
        (SOCKET_DIR_FILE, &bootstrap.socket_dir),
    ] {
        if let Some(path) = path {
            write(bundle, name, path.as_os_str().as_bytes())?;
        }
    }
    Ok(())
}

fn write(bundle: &Path, name: &str, bytes: &[u8]) -> Result<(), ShimError> {
    fs::write(bundle.join(name), bytes).map_err(ShimError::system(format!(
        "write {name} in {}",
        bundle.display()
    )))
}

/// The socket of a pod under this configuration.
pub(crate) fn socket(config: &Config, flags: &Flags, pod: &str) -> Result<PathBuf, ShimError> {
    socket_path(&config.socket_dir, &flags.address, &flags.namespace, pod).ok_or_else(|| {
        ShimError::SocketDir {
            path: config.socket_dir.clone(),
        }
    })
}

/// The socket of the pod of a container in `bundle`: in the folder that the pod's own start has noted, whose bundle is where the container's is, with
/// the pod's name in the path for the container's.
fn socket_of_pod(
    config: &Config,
    flags: &Flags,
    bundle: &Path,
    pod: &str,
) -> Result<PathBuf, ShimError> {
    let of_pod: PathBuf = bundle
        .components()
        .map(|part| match part.as_os_str() == flags.id.as_str() {
            true => Path::new(pod).as_os_str(),
            false => part.as_os_str(),
        })
        .collect();
    match remembered(&of_pod, SOCKET_DIR_FILE) {
        Some(socket_dir) => {
            let config = Config {
                socket_dir,
                ..config.clone()
            };
            socket(&config, flags, pod)
        }
        None => socket(config, flags, pod),
    }
}

/// `folder` is that of the pod's sandbox.
fn bind(path: &Path, folder: &Path) -> Result<UnixListener, ShimError> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let served = || ShimError::AlreadyServed {
                path: path.to_owned(),
            };
            // Who serves it has the claim, and would be waited for.
            if is_served(path) {
                return Err(served());
            }
            // Of a shim that was killed. Who clears its sandbox away takes it away too, before we put ours there; so may another start.
            let _claim = FolderClaim::of_left(folder);
            let stays = ShimError::system(format!("remove the stale socket {}", path.display()));
            if !release_socket(path).map_err(stays)? {
                return Err(served());
            }
            UnixListener::bind(path)
        }
        other => other,
    };
    listener.map_err(ShimError::system(format!("listen on {}", path.display())))
}

/// Starts the server, or finds the one of the container's pod, and says where its socket is.
///
/// # Errors
/// [`ShimError`]; no process and no socket is left then.
pub(crate) fn start(flags: &Flags) -> Result<(), ShimError> {
    let id = SandboxId::new(flags.id.as_str())?;
    let bundle = bundle(flags)?;
    let bootstrap = Bootstrap::read(flags)?;
    remember(&bundle, &bootstrap)?;
    let config = load_config(&bundle)?;
    note_places(&bundle, &config)?;
    if let Role::Member(pod) = Role::of_bundle(&bundle)? {
        // The shim of a pod's container is that of the pod's sandbox.
        let path = socket_of_pod(&config, flags, &bundle, pod.as_str())?;
        if UnixStream::connect(&path).is_err() {
            return Err(ShimError::NoPod { pod, path });
        }
        return answer(&bundle, &bootstrap, &path);
    }
    let socket = socket(&config, flags, &flags.id)?;
    fs::create_dir_all(&config.socket_dir).map_err(ShimError::system(format!(
        "create the socket folder {}",
        config.socket_dir.display()
    )))?;
    let listener = bind(&socket, &config.sandbox_dir(&flags.namespace, &id))?;
    let started = spawn(flags, &bundle, &bootstrap, &socket, listener);
    if started.is_err() {
        let _ = fs::remove_file(&socket);
    }
    started
}

/// Leaves the address in the bundle, where containerd 1.x looks for it after a restart, and says it.
fn answer(bundle: &Path, bootstrap: &Bootstrap, socket: &Path) -> Result<(), ShimError> {
    let address = format!("unix://{}", socket.display());
    write(bundle, ADDRESS_FILE, address.as_bytes())?;
    let mut stdout = io::stdout();
    stdout
        .write_all(&bootstrap.answer(&address)?)
        .and_then(|()| stdout.flush())
        .map_err(ShimError::system("say the address"))
}

fn spawn(
    flags: &Flags,
    bundle: &Path,
    bootstrap: &Bootstrap,
    socket: &Path,
    listener: UnixListener,
) -> Result<(), ShimError> {
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))
        .map_err(ShimError::system(format!("protect {}", socket.display())))?;
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
    if bootstrap.debug {
        command.arg("-debug");
    }
    if let Some(address) = &bootstrap.events_address {
        command.env(events::ADDRESS_VARIABLE, address);
    }
    let mut server = command
        .spawn()
        .map_err(ShimError::system("start the server"))?;
    let said = write(bundle, "shim.pid", server.id().to_string().as_bytes())
        .and_then(|()| answer(bundle, bootstrap, socket));
    if said.is_err() {
        let _ = server.kill();
        let _ = server.wait();
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_that_is_named_late_holds_unless_one_was_named_before() {
        let bundle = tempfile::tempdir().unwrap();
        let file = bundle.path().join("late.toml");
        let text = "memory_overhead_mib = 77\nsocket_dir = \"/late\"\n";
        fs::write(&file, text).unwrap();
        let late = late_config(bundle.path(), &file).unwrap().unwrap();
        assert_eq!(late.memory_overhead_mib, 77);
        // A `delete` finds it, and the socket where it was made before.
        let found = load_config(bundle.path()).unwrap();
        assert_eq!(found.memory_overhead_mib, 77);
        assert_eq!(found.socket_dir, Config::load().unwrap().socket_dir);
        assert!(late_config(bundle.path(), &file).unwrap().is_none());
        let missing = bundle.path().join("missing.toml");
        let other = tempfile::tempdir().unwrap();
        assert!(late_config(other.path(), &missing).is_err());
    }

    #[test]
    fn pod_is_found_after_its_configuration_was_changed() {
        let host = tempfile::tempdir().unwrap();
        let of = |name: &str| host.path().join(name).join("userdata");
        let (pod, member) = (of("p1"), of("m1"));
        for bundle in [&pod, &member] {
            fs::create_dir_all(bundle).unwrap();
        }
        let begun = Config {
            run_dir: "/old/run".into(),
            socket_dir: "/old/sockets".into(),
            ..Config::default()
        };
        note_places(&pod, &begun).unwrap();
        // Nor does it matter to who clears it away that the new one is none.
        let file = host.path().join("new.toml");
        fs::write(&file, "memory_mib = []").unwrap();
        write(&pod, CONFIG_FILE, file.as_os_str().as_bytes()).unwrap();
        assert!(load_config(&pod).is_err());
        let left = places(&pod).unwrap();
        assert_eq!(
            (left.run_dir, left.socket_dir),
            (begun.run_dir, begun.socket_dir.clone())
        );
        fs::write(
            &file,
            "run_dir = \"/new/run\"\nsocket_dir = \"/new/sockets\"\n",
        )
        .unwrap();
        assert_eq!(load_config(&pod).unwrap().run_dir, Path::new("/old/run"));

        let flags = Flags {
            command: crate::flags::Command::Start,
            namespace: "ns".to_owned(),
            id: "m1".to_owned(),
            address: String::new(),
            bundle: None,
            debug: false,
        };
        let changed = Config {
            socket_dir: "/new/sockets".into(),
            ..Config::default()
        };
        let found = socket_of_pod(&changed, &flags, &member, "p1").unwrap();
        assert_eq!(found.parent(), Some(begun.socket_dir.as_path()));
        let other = socket_of_pod(&changed, &flags, &member, "p2").unwrap();
        assert_eq!(other.parent(), Some(Path::new("/new/sockets")));
    }

    #[test]
    fn socket_of_a_dead_shim_is_replaced_and_of_a_live_one_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let sandbox = folder.path().join("sandbox");
        let listener = bind(&path, &sandbox).unwrap();
        assert!(matches!(
            bind(&path, &sandbox),
            Err(ShimError::AlreadyServed { .. })
        ));
        drop(listener);
        // Nor is the sandbox that it has left in the way.
        fs::create_dir(&sandbox).unwrap();
        drop(bind(&path, &sandbox).unwrap());
    }
}
