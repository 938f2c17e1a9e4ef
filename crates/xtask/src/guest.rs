//! Everything of the product that is not compiled from the workspace for the host: the guest kernel and image,
//! `virtiofsd`, the probe, and the template of the writable layer. All of it is linked into `target/artifacts/`, where
//! the binaries in `target/release/` look for it.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::cache::{self, Inputs};
use crate::{kernel, project_root, shell};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The vhost-user file server for shared directories; Debian 12 has no package of it.
const VIRTIOFSD_VERSION: &str = "1.14.0";

/// Size that the guest sees of the writable layer, in bytes. The file is sparse.
const SCRATCH_BYTES: u64 = 8 << 30;

/// Identity of the guest's root file system: constant, so that the image is reproducible.
const ROOTFS_UUID: &str = "5a4d0b0e-0000-4000-8000-73616e64626f";

/// Where the product's parts are linked.
pub(crate) fn artifacts() -> PathBuf {
    project_root().join("target/artifacts")
}

/// Builds what is missing and links it.
///
/// # Errors
/// When a part cannot be built.
pub(crate) fn build() -> Result<()> {
    let folder = artifacts();
    fs::create_dir_all(&folder)?;
    cache::link(&kernel::vmlinux()?, &folder.join("vmlinux"))?;
    cache::link(&virtiofsd()?, &folder.join("virtiofsd"))?;
    cache::link(&scratch()?, &folder.join("scratch.ext4"))?;
    cache::link(&probe()?, &folder.join("probe"))?;
    cache::link(&rootfs(&agent()?)?, &folder.join("rootfs.erofs"))
}

/// Builds the agent as one static binary.
///
/// # Errors
/// When cargo fails.
pub(crate) fn agent() -> Result<PathBuf> {
    static_program(
        "sandbox-agent",
        project_root(),
        &project_root().join("target"),
    )
}

/// Builds the program that runs inside a container, for the tests and for `sandboxctl isolation-test`.
///
/// # Errors
/// When it does not build.
pub(crate) fn probe() -> Result<PathBuf> {
    static_program(
        "sandbox-probe",
        project_root(),
        &project_root().join("target"),
    )
}

/// Builds the agent of the checkout `root` below the folder `target`.
///
/// # Errors
/// When cargo fails.
pub(crate) fn agent_of(root: &Path, target: &Path) -> Result<PathBuf> {
    static_program("sandbox-agent", root, target)
}

/// Builds a package's program of the same name as one static binary. Its bytes depend neither on the checkout's folder
/// `root`, nor on the folder of what is built, nor on where cargo keeps its crates.
fn static_program(package: &str, root: &Path, target: &Path) -> Result<PathBuf> {
    let cargo_home = cargo_home()?;
    let places = [
        (target, "/target"),
        (root, "/sandbox-runtime"),
        (&cargo_home, "/cargo"),
    ];
    // Of the prefixes that fit, rustc takes the last and gcc the last too: the longest comes last.
    let prefixes = |option: &str| -> Vec<String> {
        let replaced = |(from, to): &(&Path, &str)| format!("{option}={}={to}", from.display());
        places.iter().rev().map(replaced).collect()
    };
    let mut flags = vec![
        "-Ctarget-feature=+crt-static".to_owned(),
        "-Cstrip=symbols".to_owned(),
    ];
    flags.extend(prefixes("--remap-path-prefix"));
    let mut command = shell::cargo();
    command
        .args(["build", "--release", "--package", package])
        .args(["--target", TARGET, "--target-dir"])
        .arg(target)
        .current_dir(root)
        .env_remove("RUSTFLAGS")
        // What an incremental build comes out as depends on the builds before it.
        .env("CARGO_INCREMENTAL", "0")
        // Every guest has what it uses of this in memory of its own, and reads it before it is ready.
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s")
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "none")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env("CFLAGS", prefixes("-ffile-prefix-map").join(" "))
        .env("LIBSECCOMP_LINK_TYPE", "static")
        .env("LIBSECCOMP_LIB_PATH", "/usr/lib/x86_64-linux-gnu");
    shell::run(&mut command)?;
    Ok(target.join(TARGET).join("release").join(package))
}

/// Where cargo keeps the crates (the Cargo book, "Cargo Home").
fn cargo_home() -> Result<PathBuf> {
    match std::env::var_os("CARGO_HOME").filter(|value| !value.is_empty()) {
        Some(folder) => Ok(PathBuf::from(folder)),
        None => {
            let home = std::env::var_os("HOME").context("HOME is not set")?;
            Ok(PathBuf::from(home).join(".cargo"))
        }
    }
}

/// A read-only EROFS with the agent as the only program.
fn rootfs(agent: &Path) -> Result<PathBuf> {
    let inputs = Inputs::default()
        .text("recipe", "2")
        .text(
            "mkfs",
            &shell::read("dpkg-query", &["-W", "-f=${Version}", "erofs-utils"])?,
        )
        .file(agent)?;
    let folder = cache::product("rootfs", inputs, |folder| {
        let tree = folder.join("tree");
        for path in ["dev", "etc", "proc", "run", "sbin", "sys", "tmp"] {
            fs::create_dir_all(tree.join(path))?;
        }
        fs::copy(agent, tree.join("sbin/sandbox-agent"))?;
        // libcontainer and libc look these up; the guest has no other users.
        fs::write(tree.join("etc/passwd"), "root:x:0:0:root:/:/sbin/nologin\n")?;
        fs::write(tree.join("etc/group"), "root:x:0:\n")?;
        symlink("/proc/self/mounts", tree.join("etc/mtab"))?;
        for entry in [
            "",
            "dev",
            "etc",
            "proc",
            "run",
            "sbin",
            "sys",
            "tmp",
            "sbin/sandbox-agent",
        ] {
            fs::set_permissions(tree.join(entry), fs::Permissions::from_mode(0o755))?;
        }
        for entry in ["etc/passwd", "etc/group"] {
            fs::set_permissions(tree.join(entry), fs::Permissions::from_mode(0o644))?;
        }
        shell::run_quietly(
            Command::new("mkfs.erofs")
                .args(["-T0", "-U", ROOTFS_UUID, "--all-root"])
                // So that files can be mapped as they are (mkfs.erofs(1)).
                .args(["-E", "noinline_data"])
                .arg(folder.join("rootfs.erofs"))
                .arg(&tree),
            None,
        )?;
        fs::remove_dir_all(&tree)?;
        Ok(())
    })?;
    Ok(folder.join("rootfs.erofs"))
}

fn virtiofsd() -> Result<PathBuf> {
    let inputs = Inputs::default()
        .text("version", VIRTIOFSD_VERSION)
        .text("recipe", "2");
    let folder = cache::product("virtiofsd", inputs, |folder| {
        let mut command = shell::cargo();
        command
            .args([
                "install",
                "virtiofsd",
                "--version",
                VIRTIOFSD_VERSION,
                "--locked",
                "--root",
            ])
            .arg(folder)
            .args(["--target-dir"])
            .arg(folder.join("target"));
        shell::run_quietly(&mut command, Some(&folder.join("build.log")))?;
        fs::remove_dir_all(folder.join("target"))?;
        Ok(())
    })?;
    Ok(folder.join("bin/virtiofsd"))
}

fn scratch() -> Result<PathBuf> {
    let inputs = Inputs::default()
        .text("recipe", "2")
        .text("bytes", &SCRATCH_BYTES.to_string())
        .text(
            "mke2fs",
            &shell::read("dpkg-query", &["-W", "-f=${Version}", "e2fsprogs"])?,
        );
    let folder = cache::product("scratch", inputs, |folder| {
        sandbox_image::scratch::create_template(&folder.join("scratch.ext4"), SCRATCH_BYTES)
            .context("cannot make the template of the writable layer")
    })?;
    Ok(folder.join("scratch.ext4"))
}
