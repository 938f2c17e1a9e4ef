//! A real registry (Debian's `docker-registry`) on loopback, with TLS or without, and a proxy before it that stops half-way.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
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

/// What a registry wants of its clients.
#[derive(Debug, Clone, Copy, Default)]
struct Wants<'a> {
    /// [`USER`] and [`PASSWORD`].
    password: bool,
    /// TLS, with a certificate of this authority.
    tls: Option<&'a Authority>,
}

/// A certificate authority of the test's own.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    file: PathBuf,
}

impl std::fmt::Debug for Authority {
    /// Without its key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Authority").field(&self.file).finish()
    }
}

impl Authority {
    /// Makes one; its certificate is in `<world>/<name>.pem`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn new(world: &World, name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        let file = world.path().join(format!("{name}.pem"));
        std::fs::write(&file, certificate.pem())?;
        Ok(Self {
            issuer: Issuer::new(params, key),
            file,
        })
    }

    /// The PEM file of its certificate.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Writes a certificate for `127.0.0.1` and its key into `folder`.
    fn issue(&self, folder: &Path) -> Result<(PathBuf, PathBuf)> {
        let params = CertificateParams::new(["127.0.0.1".to_owned()])?;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let (cert_file, key_file) = (folder.join("server.pem"), folder.join("server.key"));
        std::fs::write(&cert_file, certificate.pem())?;
        std::fs::write(&key_file, key.serialize_pem())?;
        Ok((cert_file, key_file))
    }
}

impl Registry {
    /// Starts an empty registry that serves anybody.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn open(world: &World, name: &str) -> Result<Self> {
        Self::start(world, name, Wants::default())
    }

    /// Starts an empty registry that wants [`USER`] and [`PASSWORD`].
    ///
    /// # Errors
    /// When it does not come up.
    pub fn guarded(world: &World, name: &str) -> Result<Self> {
        let wants = Wants {
            password: true,
            tls: None,
        };
        Self::start(world, name, wants)
    }

    /// Starts an empty registry that wants [`USER`] and [`PASSWORD`], over TLS with a certificate of `authority`.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn secured(world: &World, name: &str, authority: &Authority) -> Result<Self> {
        let wants = Wants {
            password: true,
            tls: Some(authority),
        };
        Self::start(world, name, wants)
    }

    fn start(world: &World, name: &str, wants: Wants<'_>) -> Result<Self> {
        let folder = world.path().join(name);
        std::fs::create_dir(&folder)?;
        let mut config = json!({
            "version": "0.1",
            "log": {"level": "info", "formatter": "text"},
            "storage": {"filesystem": {"rootdirectory": folder.join("data")}},
            "http": {"addr": "127.0.0.1:0"},
        });
        if let Some(authority) = wants.tls {
            let (certificate, key) = authority.issue(&folder)?;
            config["http"]["tls"] = json!({"certificate": certificate, "key": key});
        }
        if wants.password {
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
            guarded: wants.password,
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
