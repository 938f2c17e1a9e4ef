//! A real registry (Debian's `docker-registry`) on loopback, and a proxy before it that stops half-way.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::process::{self, Running};
use crate::world::World;

/// The user that a guarded registry knows.
pub const USER: &str = "sandbox";
/// Their password.
pub const PASSWORD: &str = "secret";
/// The same as a line of a password file, made by `htpasswd -nbB`.
const PASSWORD_LINE: &str =
    "sandbox:$2y$05$33VUR65VNPXgwkbkoCUG9ef3mQ.dBRwYpLCsUfpwwRGAfSeBAFUoS\n";

/// A registry that runs until this is dropped.
pub struct Registry {
    process: Running,
    address: String,
    guarded: bool,
}

impl Registry {
    /// Starts an empty registry that serves anybody.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn open(world: &World, name: &str) -> Result<Self> {
        Self::start(world, name, false)
    }

    /// Starts an empty registry that wants [`USER`] and [`PASSWORD`].
    ///
    /// # Errors
    /// When it does not come up.
    pub fn guarded(world: &World, name: &str) -> Result<Self> {
        Self::start(world, name, true)
    }

    fn start(world: &World, name: &str, guarded: bool) -> Result<Self> {
        let folder = world.path().join(name);
        std::fs::create_dir(&folder)?;
        let mut config = json!({
            "version": "0.1",
            "log": {"level": "info", "formatter": "text"},
            "storage": {"filesystem": {"rootdirectory": folder.join("data")}},
            "http": {"addr": "127.0.0.1:0"},
        });
        if guarded {
            let passwords = folder.join("htpasswd");
            std::fs::write(&passwords, PASSWORD_LINE)?;
            config["auth"] = json!({"htpasswd": {"realm": "test", "path": passwords}});
        }
        // JSON is YAML.
        let path = folder.join("config.yml");
        std::fs::write(&path, config.to_string())?;
        let mut command = Command::new("sh");
        command
            .args(["-c", "exec docker-registry serve \"$0\" 2>&1"])
            .arg(&path);
        world.adopt(&mut command);
        let mut process = Running::start(&mut command, world.setup().limit)?;
        let line = process.wait_for_line("listening on ")?;
        let address = line
            .split("listening on ")
            .nth(1)
            .and_then(|rest| rest.split(['"', ',', ' ']).next())
            .with_context(|| format!("no address in {line:?}"))?;
        Ok(Self {
            address: address.to_owned(),
            process,
            guarded,
        })
    }

    /// Its name in image names, `127.0.0.1:PORT`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.address
    }

    /// Puts the image at `source` (in skopeo's spelling, `oci:FOLDER:TAG`) into the registry.
    ///
    /// # Errors
    /// When skopeo fails.
    pub fn put(&self, world: &World, source: &str, image: &str) -> Result<()> {
        let mut arguments = vec!["copy", "--quiet", "--all", "--dest-tls-verify=false"];
        let credentials = format!("{USER}:{PASSWORD}");
        if self.guarded {
            arguments.extend(["--dest-creds", &credentials]);
        }
        let target = format!("docker://{}/{image}", self.address);
        arguments.extend([source, &target]);
        skopeo(world, &arguments).map(drop)
    }

    /// The manifest that `image` stands for in the registry, byte for byte.
    ///
    /// # Errors
    /// When skopeo fails.
    pub fn manifest(&self, world: &World, image: &str) -> Result<String> {
        let target = format!("docker://{}/{image}", self.address);
        skopeo(world, &["inspect", "--raw", "--tls-verify=false", &target])
    }

    /// Ends the registry.
    pub fn stop(self) {
        drop(self.process);
    }
}

/// Runs skopeo and gives what it prints.
///
/// # Errors
/// When it fails.
pub fn skopeo(world: &World, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("skopeo");
    command.arg("--insecure-policy").args(arguments);
    world.adopt(&mut command);
    let finished = process::run(&mut command, b"", world.setup().limit)?.expect_code(0)?;
    Ok(finished.text())
}

/// Passes connections on to a registry, but no more than so many bytes of its answers; then nothing comes any more,
/// and nothing ends.
pub struct StallingProxy {
    address: SocketAddr,
    ends: Arc<AtomicBool>,
    listening: Option<JoinHandle<()>>,
}

impl StallingProxy {
    /// Starts it.
    ///
    /// # Errors
    /// When there is no free port.
    pub fn start(registry: &Registry, bytes: u64) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let target: SocketAddr = registry.address.parse()?;
        let ends = Arc::new(AtomicBool::new(false));
        let left = Arc::new(AtomicU64::new(bytes));
        let for_thread = Arc::clone(&ends);
        let listening = std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if for_thread.load(Ordering::Relaxed) {
                    return;
                }
                let left = Arc::clone(&left);
                std::thread::spawn(move || drop(pass_on(client, target, &left)));
            }
        });
        Ok(Self {
            address,
            ends,
            listening: Some(listening),
        })
    }

    /// Its name in image names.
    #[must_use]
    pub fn name(&self) -> String {
        self.address.to_string()
    }
}

impl Drop for StallingProxy {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        // Wakes it up.
        let _ = TcpStream::connect(self.address);
        if let Some(listening) = self.listening.take() {
            let _ = listening.join();
        }
    }
}

fn pass_on(mut client: TcpStream, target: SocketAddr, left: &AtomicU64) -> Result<()> {
    let mut server = TcpStream::connect(target)?;
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    let asking = std::thread::spawn(move || {
        let _ = std::io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Both);
    });
    let mut buffer = vec![0; 16 << 10];
    loop {
        let n = server.read(&mut buffer)?;
        // At once: connections that each took what another had just taken would never stall.
        let taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(n as u64)
        });
        if n == 0 || taken.is_err() {
            break;
        }
        client.write_all(&buffer[..n])?;
    }
    // Until the client has gone away.
    ensure!(asking.join().is_ok(), "the proxy's thread failed");
    Ok(())
}
