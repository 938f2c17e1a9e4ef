//! The newer user land's containerd, of version 2, with the runtime class that is in `deploy/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::{Containerd, Place};
use crate::cri::Cri;
use crate::netns::HostNet;
use crate::userland::Userland;
use crate::world::World;

/// Who makes the sandboxes of pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sandboxer {
    /// containerd itself, each with a container as Kubernetes' pause.
    Podsandbox,
    /// The shim's sandbox service.
    Shim,
}

/// How it is configured.
#[derive(Clone, Copy)]
pub struct Newer<'a> {
    /// The runtime class to import.
    pub sandboxer: Sandboxer,
    /// Where layers are unpacked: `overlayfs` or `erofs`.
    pub snapshotter: &'a str,
    /// A network namespace in the place of the host's, in which pods get a network of CNI's.
    pub net: Option<&'a HostNet>,
}

impl Default for Newer<'_> {
    fn default() -> Self {
        Self {
            sandboxer: Sandboxer::Podsandbox,
            snapshotter: "overlayfs",
            net: None,
        }
    }
}

impl Newer<'_> {
    /// With the runtime class whose pods are the shim's sandboxes.
    #[must_use]
    pub fn of_the_shim() -> Self {
        Self {
            sandboxer: Sandboxer::Shim,
            ..Self::default()
        }
    }
}

/// The folder `deploy` of the checkout that the programs were built in.
fn deploy(world: &World) -> Result<PathBuf> {
    let root = world.setup().binaries.ancestors().nth(2);
    Ok(root
        .context("programs are in target/release")?
        .join("deploy"))
}

/// What is beside the folders and addresses.
fn plugins(drop_in: &Path, networks: &Path, newer: Newer<'_>) -> String {
    let snapshotter = newer.snapshotter;
    let mut text = format!(
        "imports = [{drop_in:?}]\n\
         [plugins.\"io.containerd.cri.v1.images\"]\nsnapshotter = {snapshotter:?}\n\
         [plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox = {pause:?}\n\
         [plugins.\"io.containerd.cri.v1.runtime\"]\nnetns_mounts_under_state_dir = true\n\
         [plugins.\"io.containerd.cri.v1.runtime\".cni]\nconf_dir = {networks:?}\n",
        pause = super::PAUSE_IMAGE,
    );
    if snapshotter == "erofs" {
        text += "[plugins.\"io.containerd.service.v1.diff-service\"]\ndefault = [\"erofs\", \"walking\"]\n";
    }
    text
}

impl Containerd {
    /// Starts containerd 2 in a user land of its own, with its CRI plugin.
    ///
    /// # Errors
    /// As [`Userland::enter`] and [`Containerd::start`].
    pub fn start_newer(world: &World, newer: Newer<'_>) -> Result<Self> {
        let land = Userland::enter(world)?;
        let folder = world.path().join("containerd");
        let networks = super::write_networks(&folder, newer.net.is_some())?;
        // As an operator does it: the drop-in, and the configuration where it says that it is.
        let drop_in = folder.join("runtime-class.toml");
        let name = match newer.sandboxer {
            Sandboxer::Podsandbox => "sandbox.toml",
            Sandboxer::Shim => "sandbox-2.toml",
        };
        fs::copy(deploy(world)?.join("containerd").join(name), &drop_in)?;
        let class = folder.join("class.toml");
        world.write_config(&class)?;
        land.read(&[
            "install",
            "-D",
            &class.to_string_lossy(),
            "/etc/sandbox/config.toml",
        ])?;
        let plugins = plugins(&drop_in, &networks, newer);
        let place = Place {
            land: Some(land),
            net: newer.net,
        };
        Self::start_configured(world, "version = 3\n", &plugins, place)
    }

    /// The same, with the images that pods need; and a client of the CRI plugin.
    ///
    /// # Errors
    /// As [`Containerd::start_newer`].
    pub fn start_newer_with_cri(world: &World, newer: Newer<'_>) -> Result<(Self, Cri)> {
        let containerd = Self::start_newer(world, newer)?;
        let cri = containerd.import_images_of_pods(world)?;
        Ok((containerd, cri))
    }

    /// What it says of something mounted in its user land.
    ///
    /// # Errors
    /// When it is not of the newer user land, or with what the program said.
    pub fn read(&self, words: &[&str]) -> Result<String> {
        let land = self
            .land
            .as_ref()
            .context("this containerd is the host's")?;
        land.read(words)
    }

    /// Stops it, and requires that nothing is mounted any more in its user land but what was in the beginning.
    ///
    /// # Errors
    /// As [`Userland::expect_no_mount_left`].
    pub fn finish(mut self) -> Result<()> {
        self.stop();
        match &self.land {
            Some(land) => land.expect_no_mount_left(),
            None => Ok(()),
        }
    }

    /// Its user land.
    ///
    /// # Errors
    /// When it is the host's.
    pub(crate) fn land(&self) -> Result<&Userland> {
        self.land.as_ref().context("this containerd is the host's")
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// A command of this containerd's user land.
    pub(super) fn in_its_land(&self, plain: Command) -> Command {
        match &self.land {
            Some(land) => land.command(&plain, None),
            None => plain,
        }
    }
}
