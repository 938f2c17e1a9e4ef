//! A newer user land for the tests: Debian testing, with the engines of which Debian 12 has only old ones. Made by debootstrap once
//! per list of packages, and linked to `target/userland`. It is a folder for a chroot; the tests' harness never writes into it.
//!
//! Debian testing changes from day to day: what was taken is listed in the folder's `etc/userland-packages`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::cache::{self, Inputs};
use crate::{packages, project_root, shell};

/// What the tests run from it. `iptables` and `iproute2` are what CNI's plugins and Docker call.
const PACKAGES: &[&str] = &[
    "containerd",
    "containernetworking-plugins",
    "docker-cli",
    "docker.io",
    "erofs-utils",
    "iproute2",
    "iptables",
    "runc",
];

const SUITE: &str = "testing";
/// Older versions of debootstrap do not know the suite's new releases; it is always made as `sid` is.
const SCRIPT: &str = "/usr/share/debootstrap/scripts/sid";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where the packages come from when no mirror is configured here.
const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";

/// What no test looks at, and is half of the files.
const UNUSED: &[&str] = &[
    "usr/share/doc",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/man",
    "var/cache/apt",
    "var/lib/apt/lists",
];

/// Makes the user land when it is not in the cache.
///
/// # Errors
/// When we are not root, a package is not to be had, or the file system refuses.
pub(crate) fn build() -> Result<PathBuf> {
    let inputs = Inputs::default()
        .text("recipe", "1")
        .text("suite", SUITE)
        .text("packages", &PACKAGES.join(" "));
    let folder = cache::folder("userland", inputs, |folder| {
        debootstrap(&folder.join("root"), &folder.join("log"))
    })?;
    let link = project_root().join("target/userland");
    cache::link(&folder.join("root"), &link)?;
    Ok(link)
}

fn debootstrap(root: &Path, log: &Path) -> Result<()> {
    // It mounts proc and sys in the new root. In a namespace of its own they end with it, however it ends.
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "debootstrap"])
        .args(["--variant=minbase", "--keyring", KEYRING])
        .arg(format!("--include={}", PACKAGES.join(",")))
        .arg(SUITE)
        .arg(root)
        .arg(packages::mirror().unwrap_or_else(|| DEFAULT_MIRROR.to_owned()))
        .arg(SCRIPT)
        .env("DEBIAN_FRONTEND", "noninteractive");
    shell::run_quietly(&mut command, Some(log)).context(
        "the newer user land was not made: debootstrap runs as root, and from a mirror of Debian's",
    )?;
    for path in UNUSED {
        let path = root.join(path);
        if path.exists() {
            fs::remove_dir_all(&path)
                .with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    let taken = shell::read(
        "dpkg-query",
        &[
            format!("--admindir={}", root.join("var/lib/dpkg").display()),
            "--show".to_owned(),
        ],
    )?;
    fs::write(root.join("etc/userland-packages"), taken + "\n")?;
    Ok(())
}
