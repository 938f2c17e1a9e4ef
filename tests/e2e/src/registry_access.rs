//! Who is believed and let in: a registry over TLS with a certificate authority of its own, and credentials that a helper
//! program keeps.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use sandbox_harness::registry::{Authority, PASSWORD, Registry, USER};
use sandbox_harness::{Finished, World, process};
use serde_json::{Value, json};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "registry_over_tls_is_believed_by_its_own_authority_only",
        tls,
    ),
    ("registry_without_tls_is_named_where_tls_is_wanted", no_tls),
    (
        "credential_helper_keeps_gives_and_forgets",
        credential_helper,
    ),
    (
        "credential_helper_that_is_missing_is_named",
        missing_credential_helper,
    ),
];

/// A user of registries: a configuration of their own, and a folder where docker would keep credentials.
struct User<'a> {
    world: &'a World,
    config: PathBuf,
    docker: PathBuf,
    environment: Vec<(&'static str, PathBuf)>,
}

impl<'a> User<'a> {
    fn new(world: &'a World, name: &str, config: &str) -> Result<Self> {
        let path = world.path().join(format!("{name}.toml"));
        fs::write(&path, config)?;
        Ok(Self {
            world,
            config: path,
            docker: world.path().join(name),
            environment: Vec::new(),
        })
    }

    fn sandboxctl(&self, arguments: &[&str], input: &str) -> Result<Finished> {
        let mut command = self.world.sandboxctl_command(arguments);
        command
            .env("SANDBOX_CONFIG", &self.config)
            .env("DOCKER_CONFIG", &self.docker)
            .envs(self.environment.iter().map(|(key, value)| (*key, value)));
        process::run(&mut command, input.as_bytes(), self.world.setup().limit)
    }

    fn login(&self, registry: &Registry, password: &str) -> Result<Finished> {
        let arguments = ["login", "-u", USER, "--password-stdin", registry.name()];
        self.sandboxctl(&arguments, &format!("{password}\n"))
    }

    /// Docker's file.
    fn docker_config(&self) -> Result<Value> {
        let path = self.docker.join("config.json");
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(serde_json::from_slice(&text)?)
    }
}

/// What is said about a registry whose authority is in `file`. Without `plain_http` one on loopback would be spoken to without TLS.
fn believing(registry: &Registry, file: &Path) -> String {
    format!(
        "[registries.{:?}]\nplain_http = false\nca_file = {file:?}\n",
        registry.name()
    )
}

fn demo_in(world: &World, registry: &Registry) -> Result<String> {
    let demo = format!("oci:{}:demo", world.setup().demo.display());
    registry.put(world, &demo, "some/demo:1")?;
    Ok(format!("{}/some/demo:1", registry.name()))
}

fn tls(world: &World) -> Result<()> {
    let (own, other) = (
        Authority::new(world, "own")?,
        Authority::new(world, "other")?,
    );
    let registry = Registry::secured(world, "registry", &own)?;
    let image = demo_in(world, &registry)?;

    // The wrong authority, then the system's: neither a password nor a request passes.
    let wrong = User::new(world, "wrong", &believing(&registry, other.file()))?;
    let system = format!("[registries.{:?}]\nplain_http = false\n", registry.name());
    let system = User::new(world, "system", &system)?;
    for user in [&wrong, &system] {
        let name = format!("[registries.{:?}]", registry.name());
        let parts = ["certificate that is not believed", "ca_file", &name];
        user.sandboxctl(&["pull", &image], "")?
            .expect_code(125)?
            .expect_stderr(&parts)?;
        user.login(&registry, PASSWORD)?
            .expect_code(125)?
            .expect_stderr(&parts)?;
        ensure!(!user.docker.exists(), "credentials were kept");
    }

    let right = User::new(world, "right", &believing(&registry, own.file()))?;
    right
        .sandboxctl(&["pull", &image], "")?
        .expect_code(125)?
        .expect_stderr(&["denies", "sandboxctl login"])?;
    right
        .login(&registry, "wrong")?
        .expect_code(125)?
        .expect_stderr(&["denies"])?;
    right.login(&registry, PASSWORD)?.expect_code(0)?;
    right.sandboxctl(&["pull", &image], "")?.expect_code(0)?;
    let pushed = format!("{}/other/demo:2", registry.name());
    right
        .sandboxctl(&["tag", &image, &pushed], "")?
        .expect_code(0)?;
    right.sandboxctl(&["push", &pushed], "")?.expect_code(0)?;
    right
        .sandboxctl(&["logout", registry.name()], "")?
        .expect_code(0)?;
    right
        .sandboxctl(&["pull", &pushed], "")?
        .expect_code(125)?
        .expect_stderr(&["denies"])?;

    // A file of authorities that is none, or not there, is named.
    let missing = world.path().join("missing.pem");
    User::new(world, "missing", &believing(&registry, &missing))?
        .sandboxctl(&["pull", &image], "")?
        .expect_code(125)?
        .expect_stderr(&["cannot read the certificates", "missing.pem"])?;
    Ok(())
}

fn no_tls(world: &World) -> Result<()> {
    let registry = Registry::open(world, "registry")?;
    let config = format!("[registries.{:?}]\nplain_http = false\n", registry.name());
    let image = format!("{}/some/demo:1", registry.name());
    User::new(world, "user", &config)?
        .sandboxctl(&["pull", &image], "")?
        .expect_code(125)?
        .expect_stderr(&["does not answer with TLS", "plain_http = true"])?;
    Ok(())
}

/// The password store of a user, with a key that needs no passphrase: where `docker-credential-pass` keeps credentials.
struct PasswordStore<'a> {
    world: &'a World,
    gnupg: PathBuf,
    store: PathBuf,
}

impl<'a> PasswordStore<'a> {
    fn new(world: &'a World) -> Result<Self> {
        let made = Self {
            world,
            gnupg: world.path().join("gnupg"),
            store: world.path().join("passwords"),
        };
        fs::DirBuilder::new().mode(0o700).create(&made.gnupg)?;
        let key = ["--batch", "--passphrase", "", "--quick-generate-key"];
        made.run("gpg", &[&key[..], &["test@example.invalid"]].concat())?
            .expect_code(0)?;
        made.run("pass", &["init", "test@example.invalid"])?
            .expect_code(0)?;
        Ok(made)
    }

    fn environment(&self) -> Vec<(&'static str, PathBuf)> {
        vec![
            ("GNUPGHOME", self.gnupg.clone()),
            ("PASSWORD_STORE_DIR", self.store.clone()),
        ]
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<Finished> {
        let mut command = Command::new(program);
        command.args(arguments).envs(self.environment());
        self.world.adopt(&mut command);
        process::run(&mut command, b"", self.world.setup().limit)
    }

    /// The paths of what is kept.
    fn kept(&self) -> Result<String> {
        let mut command = Command::new("find");
        command.arg(&self.store).args(["-name", "*.gpg"]);
        Ok(process::run(&mut command, b"", self.world.setup().limit)?.text())
    }
}

impl Drop for PasswordStore<'_> {
    /// Ends the agent that gpg started.
    fn drop(&mut self) {
        let _ = self.run("gpgconf", &["--kill", "all"]);
    }
}

fn credential_helper(world: &World) -> Result<()> {
    let registry = Registry::guarded(world, "registry")?;
    let image = demo_in(world, &registry)?;
    let passwords = PasswordStore::new(world)?;
    // Once for every registry, once for this one only: the other way, nothing may be there for it.
    for (name, config) in [
        ("all", json!({ "credsStore": "pass" })),
        (
            "one",
            json!({ "credsStore": "missing", "credHelpers": { registry.name(): "pass" } }),
        ),
    ] {
        let mut user = User::new(world, name, "")?;
        user.environment = passwords.environment();
        fs::create_dir(&user.docker)?;
        fs::write(user.docker.join("config.json"), config.to_string())?;
        user.login(&registry, "wrong")?.expect_code(125)?;
        ensure!(
            passwords.kept()?.is_empty(),
            "a wrong password was kept: {}",
            passwords.kept()?
        );
        user.login(&registry, PASSWORD)?.expect_code(0)?;
        ensure!(
            passwords.kept()?.lines().count() == 1,
            "the helper keeps {:?}",
            passwords.kept()?
        );
        let written = user.docker_config()?;
        ensure!(
            written["auths"][registry.name()] == json!({}),
            "docker's file has {written}"
        );
        user.sandboxctl(&["pull", &image], "")?.expect_code(0)?;
        user.sandboxctl(&["logout", registry.name()], "")?
            .expect_code(0)?;
        ensure!(
            passwords.kept()?.is_empty(),
            "the helper still keeps {:?}",
            passwords.kept()?
        );
        user.sandboxctl(&["pull", &image], "")?
            .expect_code(125)?
            .expect_stderr(&["denies"])?;
    }
    Ok(())
}

fn missing_credential_helper(world: &World) -> Result<()> {
    let registry = Registry::guarded(world, "registry")?;
    let user = User::new(world, "user", "")?;
    fs::create_dir(&user.docker)?;
    fs::set_permissions(&user.docker, fs::Permissions::from_mode(0o700))?;
    let config = json!({ "credsStore": "none-such" });
    fs::write(user.docker.join("config.json"), config.to_string())?;
    let parts = ["docker-credential-none-such", "install it", "config.json"];
    user.login(&registry, PASSWORD)?
        .expect_code(125)?
        .expect_stderr(&parts)?;
    let image = format!("{}/some/demo:1", registry.name());
    user.sandboxctl(&["pull", &image], "")?
        .expect_code(125)?
        .expect_stderr(&parts)?;
    Ok(())
}
