//! The bundle that both runtimes get.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use sandbox_harness::bundle::PROBE;
use sandbox_harness::process::copy_program;
use serde_json::{Value, json};

use crate::cases::Case;

/// In the spec, in the place of the folder of the bundle's shared files.
pub(crate) const SHARED: &str = "@shared@";

fn mode(path: &Path, mode: u32) -> Result<()> {
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}

/// A root with the probe and the files that a container expects to find.
fn root(root: &Path, probe: &Path) -> Result<()> {
    for folder in [
        "bin",
        "dev",
        "etc",
        "home/user",
        "mnt/kept",
        "proc",
        "root",
        "run",
        "sys",
        "tmp",
        "var",
    ] {
        fs::create_dir_all(root.join(folder))?;
    }
    mode(&root.join("tmp"), 0o1777)?;
    mode(&root.join("root"), 0o700)?;
    copy_program(probe, &root.join(PROBE.trim_start_matches('/')))?;
    mode(&root.join(PROBE.trim_start_matches('/')), 0o755)?;
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n",
    )?;
    fs::write(
        root.join("etc/group"),
        "root:x:0:\nuser:x:1000:\ntape:x:26:user\n",
    )?;
    symlink("../etc", root.join("var/link"))?;
    symlink("missing/place", root.join("mnt/dangling"))?;
    mode(&root.join("mnt/kept"), 0o1710)?;
    Ok(())
}

/// What bind mounts of the specs name.
fn shared(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder.join("folder/inner"))?;
    fs::write(folder.join("folder/file"), "in a folder\n")?;
    fs::write(folder.join("file"), "alone\n")?;
    Ok(())
}

fn fill_in(value: &mut Value, shared: &str) {
    match value {
        Value::String(text) => *text = text.replace(SHARED, shared),
        Value::Array(items) => items.iter_mut().for_each(|item| fill_in(item, shared)),
        Value::Object(members) => members
            .values_mut()
            .for_each(|member| fill_in(member, shared)),
        _ => {}
    }
}

/// Writes the case's bundle into a folder.
///
/// # Errors
/// When the file system refuses.
pub(crate) fn make(folder: &Path, case: &Case, probe: &Path) -> Result<PathBuf> {
    let bundle = folder.join("bundle");
    fs::create_dir(&bundle)?;
    mode(&bundle, 0o755)?;
    root(&bundle.join("rootfs"), probe)?;
    let files = folder.join("shared");
    shared(&files)?;
    let mut spec = case.spec.clone();
    fill_in(&mut spec, &files.to_string_lossy());
    spec["process"]["args"] = json!([PROBE, "--hold", "look", "all"]);
    if let Some(map) = spec["linux"]["uidMappings"].get(0) {
        // As an image store does for a container with a user namespace.
        let owner = map["hostID"].as_u64().context("hostID")?;
        give(&bundle.join("rootfs"), u32::try_from(owner)?)?;
    }
    fs::write(
        bundle.join("config.json"),
        serde_json::to_vec_pretty(&spec)?,
    )?;
    Ok(bundle)
}

fn give(path: &Path, owner: u32) -> Result<()> {
    std::os::unix::fs::lchown(path, Some(owner), Some(owner))?;
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), owner)?;
        }
    }
    Ok(())
}
