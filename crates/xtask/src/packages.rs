//! Debian packages that the build, the runtime and the tests need; what is missing is installed.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::shell;

/// What the build of the workspace, the guest kernel and the guest image needs.
const BUILD: &[&str] = &[
    "bc",
    "bison",
    "busybox-static",
    "e2fsprogs",
    "erofs-utils",
    "flex",
    "gcc",
    "libc6-dev",
    "libcap-ng-dev",
    "libelf-dev",
    "libseccomp-dev",
    "libssl-dev",
    "linux-source-6.12",
    "make",
    "pkg-config",
    "xz-utils",
];

/// What containers of `sandboxctl` need for their networks: CNI's plugins, and what those call.
const NETWORK: &[&str] = &["containernetworking-plugins", "iptables"];

/// What the tests need on top.
const TEST: &[&str] = &[
    "containerd",
    "cpio",
    "cryptsetup-bin",
    "debootstrap",
    "docker-registry",
    "git",
    "gnupg",
    "golang-docker-credential-helpers",
    "iproute2",
    "kmod",
    "pass",
    "procps",
    "runc",
    "skopeo",
    "strace",
    "tmux",
    "umoci",
    "xfsprogs",
];

/// The emulator: for hosts without hardware virtualization, and for the test host.
const EMULATOR: &[&str] = &["qemu-system-x86"];

/// Debian 12's own QEMU (7.2) wedges nested guests now and then; its backports have a newer one.
const BACKPORTS_RELEASE: &str = "bookworm";

fn missing<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    packages
        .iter()
        .copied()
        .filter(|package| {
            shell::read("dpkg-query", &["-W", "-f=${db:Status-Abbrev}", package])
                .map_or(true, |status| !status.starts_with("ii"))
        })
        .collect()
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let mut command = if nix::unistd::geteuid().is_root() {
        Command::new("apt-get")
    } else if shell::has("sudo") {
        let mut command = Command::new("sudo");
        command.arg("apt-get");
        command
    } else {
        bail!("packages are missing and only root can install them: run this as root");
    };
    command
        .args(["-q", "-y", "--no-install-recommends"])
        // Another apt-get that runs on a new machine is waited for.
        .args(["-o", "DPkg::Lock::Timeout=600"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive");
    shell::run_quietly(&mut command, None)
}

fn release() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .unwrap_or_default()
        .trim_matches('"')
        .to_owned()
}

/// The mirror that this machine already uses for its own release, in deb822 or one-line form.
fn configured_mirror(release: &str) -> Option<String> {
    let mut files = vec![std::path::PathBuf::from("/etc/apt/sources.list")];
    if let Ok(folder) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(folder.flatten().map(|entry| entry.path()));
    }
    files
        .iter()
        .filter(|file| {
            file.extension()
                .is_some_and(|extension| extension == "list" || extension == "sources")
        })
        .filter_map(|file| fs::read_to_string(file).ok())
        .find_map(|text| mirror_in(&text, release))
}

/// The address in one apt sources file from which `release` itself (not its updates) comes.
fn mirror_in(text: &str, release: &str) -> Option<String> {
    let one_line = text.lines().find_map(|line| {
        let words: Vec<&str> = line
            .split_whitespace()
            .filter(|word| !word.starts_with('[') && !word.ends_with(']'))
            .collect();
        match words.as_slice() {
            ["deb", address, suite, ..] if *suite == release => Some((*address).to_owned()),
            _ => None,
        }
    });
    one_line.or_else(|| {
        text.split("\n\n").find_map(|stanza| {
            let field = |name: &str| {
                stanza
                    .lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                    .map(str::trim)
            };
            let suites = field("Suites")?;
            suites
                .split_whitespace()
                .any(|suite| suite == release)
                .then(|| field("URIs")?.split_whitespace().next().map(str::to_owned))?
        })
    })
}

/// Lets apt see the release's backports, through the mirror that it already uses.
fn enable_backports(release: &str) -> Result<()> {
    let suite = format!("{release}-backports");
    if shell::read("apt-cache", &["policy"]).is_ok_and(|policy| policy.contains(&suite)) {
        return Ok(());
    }
    let mirror = configured_mirror(release).with_context(|| {
        format!("no apt source for {release} was found, so its backports cannot be added")
    })?;
    let stanza = format!(
        "Types: deb\nURIs: {mirror}\nSuites: {suite}\nComponents: main\n\
         Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    );
    let path = "/etc/apt/sources.list.d/sandbox-runtime-backports.sources";
    shell::step(format!("adding {suite} to apt ({path})"));
    fs::write(path, stanza).with_context(|| format!("cannot write {path}: run this as root"))
}

fn install(packages: &[&str], from: Option<&str>) -> Result<()> {
    let missing = missing(packages);
    if missing.is_empty() {
        return Ok(());
    }
    shell::step(format!("installing {}", missing.join(" ")));
    apt_get(&["update"])?;
    let mut arguments = vec!["install"];
    if let Some(suite) = from {
        arguments.extend(["-t", suite]);
    }
    arguments.extend(missing);
    apt_get(&arguments)
}

/// The mirror from which this machine has its own release.
pub(crate) fn mirror() -> Option<String> {
    configured_mirror(&release())
}

fn install_emulator() -> Result<()> {
    if missing(EMULATOR).is_empty() {
        return Ok(());
    }
    let release = release();
    if release == BACKPORTS_RELEASE {
        enable_backports(&release)?;
        install(EMULATOR, Some(&format!("{release}-backports")))
    } else {
        install(EMULATOR, None)
    }
}

/// Makes apt know the packages that there are.
///
/// # Errors
/// When apt fails.
pub(crate) fn refresh() -> Result<()> {
    apt_get(&["update"])
}

/// Installs what `make run` needs.
///
/// # Errors
/// When this is not a Debian, or apt fails.
pub(crate) fn for_run() -> Result<()> {
    if !shell::has("dpkg-query") {
        bail!(
            "packages are set up through apt, which this system does not have; install the equivalents of: {}",
            [BUILD, NETWORK, EMULATOR].concat().join(" ")
        );
    }
    install(&[BUILD, NETWORK].concat(), None)?;
    install_emulator()
}

/// Installs what `make test` needs.
///
/// # Errors
/// As [`for_run`].
pub(crate) fn for_test() -> Result<()> {
    for_run()?;
    install(TEST, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirror_is_found_in_both_forms() {
        let deb822 = "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n\n\
                      Types: deb\nURIs: http://mirror.example/security\nSuites: bookworm-security\n";
        assert_eq!(
            mirror_in(deb822, "bookworm").as_deref(),
            Some("http://mirror.example/debian")
        );
        let one_line = "# comment\ndeb [signed-by=/k.gpg] http://m.example/debian bookworm main\n";
        assert_eq!(
            mirror_in(one_line, "bookworm").as_deref(),
            Some("http://m.example/debian")
        );
        assert_eq!(mirror_in(deb822, "trixie"), None);
    }
}
