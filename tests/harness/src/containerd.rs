//! A private containerd with the shim on its path.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::cri::{self, Cri};
use crate::layout;
use crate::netns::HostNet;
use crate::process::{self, Finished, Running, wait_until};
use crate::userland::Userland;
use crate::world::World;

mod newer;

pub use newer::{Newer, Sandboxer};

/// The runtime's name in containerd; it finds the shim's program by it.
pub const RUNTIME: &str = "io.containerd.sandbox.v2";

/// The demo image.
pub const DEMO_IMAGE: &str = "docker.io/library/demo:latest";
/// The image of the CRI plugin's sandbox containers.
pub const PAUSE_IMAGE: &str = "docker.io/library/pause:latest";

/// The bridge of the pods' network, and its addresses.
pub const BRIDGE: &str = "cni0";
const SUBNET: &str = "10.88.0.0/24";
/// Where Debian's package has CNI's plugins.
const CNI_PLUGINS: &str = "/usr/lib/cni";

fn bridge(leases: &Path) -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "test",
        "plugins": [{
            "type": "bridge",
            "bridge": BRIDGE,
            "isGateway": true,
            "ipam": {
                "type": "host-local",
                "dataDir": leases,
                "ranges": [[{"subnet": SUBNET}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }, {"type": "portmap", "capabilities": {"portMappings": true}}],
    })
}

/// A containerd of its own for one world. Dropped, it is stopped.
pub struct Containerd {
    command: Command,
    child: Child,
    socket: PathBuf,
    log: PathBuf,
    limit: Duration,
    land: Option<Userland>,
}

/// Where containerd runs, if not simply on this machine.
#[derive(Default)]
struct Place<'a> {
    land: Option<Userland>,
    net: Option<&'a HostNet>,
}

/// Makes the folder of networks in containerd's folder, with a bridge in it if pods are to have one.
fn write_networks(folder: &Path, has_bridge: bool) -> Result<PathBuf> {
    let networks = folder.join("cni");
    fs::create_dir_all(&networks)?;
    if has_bridge {
        let text = bridge(&networks.join("leases")).to_string();
        fs::write(networks.join("10-test.conflist"), text)?;
    }
    Ok(networks)
}

impl Containerd {
    /// Starts containerd and waits until it answers.
    ///
    /// # Errors
    /// When it is not installed or does not come up; the error carries its log.
    pub fn start(world: &World) -> Result<Self> {
        Self::start_configured(
            world,
            "version = 2\n",
            "disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n",
            Place::default(),
        )
    }

    /// Starts containerd with its CRI plugin, which has a runtime class ([`cri::HANDLER`]) for our shim and the images
    /// [`PAUSE_IMAGE`] and [`DEMO_IMAGE`]. With a namespace in the place of the host's network, in which containerd runs
    /// then, pods get a network of CNI's ([`BRIDGE`]); without one, none is configured.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with_cri(world: &World, net: Option<&HostNet>) -> Result<(Self, Cri)> {
        let folder = world.path().join("containerd");
        let networks = write_networks(&folder, net.is_some())?;
        let plugin = "plugins.\"io.containerd.grpc.v1.cri\"";
        let containerd = Self::start_configured(
            world,
            "version = 2\n",
            &format!(
                "[{plugin}]\nsandbox_image = {PAUSE_IMAGE:?}\nstream_server_port = \"0\"\n\
                 netns_mounts_under_state_dir = true\n\
                 [{plugin}.cni]\nbin_dir = {CNI_PLUGINS:?}\nconf_dir = {networks:?}\n\
                 [{plugin}.containerd]\ndefault_runtime_name = {handler:?}\n\
                 [{plugin}.containerd.runtimes.{handler}]\nruntime_type = {RUNTIME:?}\n",
                handler = cri::HANDLER,
            ),
            Place { land: None, net },
        )?;
        let cri = containerd.import_images_of_pods(world)?;
        Ok((containerd, cri))
    }

    /// Imports what pods need, and waits until the CRI plugin knows it.
    fn import_images_of_pods(&self, world: &World) -> Result<Cri> {
        let pause = world.path().join("pause");
        fs::create_dir(&pause)?;
        let config = json!({"Entrypoint": ["/bin/tail", "-f", "/dev/null"]});
        layout::write(&pause, "pause", &[layout::busybox_layer()?], &config)?;
        self.import(world, &["--namespace", "k8s.io"], &pause, PAUSE_IMAGE)?;
        let demo = fs::canonicalize(&world.setup().demo)?;
        self.import(world, &["--namespace", "k8s.io"], &demo, DEMO_IMAGE)?;
        let cri = self.cri()?;
        for image in [PAUSE_IMAGE, DEMO_IMAGE] {
            cri.wait_for_image(image).with_context(|| self.log())?;
        }
        Ok(cri)
    }

    /// Connects to the CRI plugin.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn cri(&self) -> Result<Cri> {
        Cri::connect(&self.socket, self.limit)
    }

    fn start_configured(
        world: &World,
        version: &str,
        plugins: &str,
        place: Place<'_>,
    ) -> Result<Self> {
        let folder = world.path().join("containerd");
        fs::create_dir_all(&folder)?;
        let socket = folder.join("c.sock");
        let config = folder.join("config.toml");
        fs::write(
            &config,
            format!(
                "{version}root = {root:?}\nstate = {state:?}\n{plugins}\
                 [grpc]\naddress = {socket:?}\n[ttrpc]\naddress = {ttrpc:?}\n",
                root = folder.join("root"),
                state = folder.join("state"),
                ttrpc = folder.join("t.sock"),
            ),
        )?;
        let sandbox_config = folder.join("sandbox.toml");
        world.write_config(&sandbox_config)?;
        let path = std::env::join_paths(std::iter::once(world.setup().binaries.clone()).chain(
            std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()),
        ))?;
        let log = folder.join("log");
        let plain = Command::new("containerd");
        let mut command = match (&place.land, place.net) {
            (Some(land), net) => land.command(&plain, net),
            (None, Some(net)) => net.command(&plain),
            (None, None) => plain,
        };
        world.adopt(&mut command);
        command
            .arg("--config")
            .arg(&config)
            .env("PATH", path)
            .env("SANDBOX_CONFIG", &sandbox_config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?);
        let mut containerd = Self {
            child: command.spawn().context("cannot start containerd")?,
            command,
            socket,
            log,
            limit: world.setup().limit,
            land: place.land,
        };
        containerd.wait_until_up()?;
        Ok(containerd)
    }

    /// Ends containerd, if it runs, and starts it again. What it runs goes on meanwhile.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn restart(&mut self) -> Result<()> {
        self.stop();
        self.child = self.command.spawn().context("cannot start containerd")?;
        self.wait_until_up()
    }

    /// Kills containerd, which has no time to tell anybody. What it runs goes on.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Ends containerd. What it runs goes on.
    pub fn stop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX));
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        let _ = kill(pid, Signal::SIGTERM);
        let ended = wait_until("containerd ends", Duration::from_secs(60), || {
            matches!(self.child.try_wait(), Ok(Some(_))).then_some(())
        });
        if ended.is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    fn wait_until_up(&mut self) -> Result<()> {
        let containerd = &*self;
        let mut last = String::new();
        wait_until(
            "containerd answers",
            containerd.limit,
            || match containerd.ctr(&["version"]) {
                Ok(finished) if finished.code == 0 => Some(()),
                Ok(finished) => {
                    last = finished.stderr;
                    None
                }
                Err(error) => {
                    last = error.to_string();
                    None
                }
            },
        )
        .with_context(|| format!("{last}\n{}", containerd.log()))
    }

    /// The last of what containerd and the shims logged.
    #[must_use]
    pub fn log(&self) -> String {
        let mut text = String::new();
        if let Ok(mut file) = fs::File::open(&self.log) {
            let _ = file.read_to_string(&mut text);
        }
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// `ctr` against this containerd.
    #[must_use]
    pub fn ctr_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(&self.socket).args(arguments);
        self.in_its_land(command)
    }

    /// Runs `ctr` to its end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn ctr(&self, arguments: &[&str]) -> Result<Finished> {
        process::run(&mut self.ctr_command(arguments), b"", self.limit)
    }

    /// Starts `ctr`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_ctr(&self, arguments: &[&str]) -> Result<Running> {
        Running::start(&mut self.ctr_command(arguments), self.limit)
    }

    /// Starts a container of the demo image in a sandbox by `ctr run`, with these options, and this command in it.
    ///
    /// # Errors
    /// When `ctr` cannot be started.
    pub fn ctr_run(&self, options: &[&str], name: &str, command: &[&str]) -> Result<Running> {
        let what = ["--runtime", RUNTIME, DEMO_IMAGE, name];
        self.start_ctr(&[&["run"], options, &what, command].concat())
    }

    /// Imports the demo image as [`DEMO_IMAGE`].
    ///
    /// # Errors
    /// With what the tools said.
    pub fn import_demo(&self, world: &World) -> Result<()> {
        let demo = fs::canonicalize(&world.setup().demo)?;
        self.import(world, &[], &demo, DEMO_IMAGE)
    }

    /// Imports the layout in `folder` under this name, with these options of `ctr`'s own.
    ///
    /// # Errors
    /// With what the tools said.
    pub fn import(&self, world: &World, options: &[&str], folder: &Path, name: &str) -> Result<()> {
        let archive = world.path().join("image.tar");
        let status = Command::new("tar")
            .arg("--create")
            .arg("--file")
            .arg(&archive)
            .arg("--directory")
            .arg(folder)
            .arg(".")
            .status()?;
        if !status.success() {
            bail!("tar failed: {status}");
        }
        let archive = archive.to_string_lossy();
        let import = ["image", "import", "--base-name", "x", "--index-name", name];
        self.ctr(&[options, &import, &[archive.as_ref()]].concat())?
            .expect_code(0)?;
        Ok(())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.stop();
    }
}
