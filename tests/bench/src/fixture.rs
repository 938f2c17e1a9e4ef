//! The image that everything runs, and what the host says of its files.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use sandbox_harness::bundle::PROBE;
use sandbox_harness::layout::{self, Layer};
use serde_json::{Value, json};

use crate::lab::tool;

/// Length of the file that is read, in bytes.
const NOISE: usize = 32 << 20;
/// Folders of the tree that is walked, and files in each.
const TREE: (usize, usize) = (50, 50);
/// Files of the large image, of [`LARGE_FILE`] bytes each.
const LARGE_FILES: usize = 30;
const LARGE_FILE: usize = 10 << 20;

/// Bytes that no file system stores in fewer.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64 ^ seed;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// A layer with one file.
fn file_layer(folder: &str, path: &str, mode: u32, content: &[u8]) -> Result<Vec<u8>> {
    Layer::default()
        .directory(folder, 0o755)?
        .file(path, mode, content)?
        .finish()
}

/// Writes the image that everything runs: busybox, the probe, and a file to read.
///
/// # Errors
/// When a program is missing, or the file system refuses.
pub(crate) fn write_image(folder: &Path, probe: &Path) -> Result<()> {
    let probe_program =
        fs::read(probe).with_context(|| format!("{} is not built", probe.display()))?;
    let layers = [
        layout::busybox_layer()?,
        file_layer("bin", PROBE.trim_start_matches('/'), 0o755, &probe_program)?,
        file_layer("data", "data/noise", 0o644, &noise(NOISE, 0))?,
        tree_layer()?,
    ];
    let config = json!({ "Env": ["PATH=/bin"], "Cmd": ["sh"], "WorkingDir": "/" });
    layout::write(folder, "demo", &layers, &config)
}

/// A layer with a tree of small files.
fn tree_layer() -> Result<Vec<u8>> {
    let mut layer = Layer::default()
        .directory("data", 0o755)?
        .directory("data/tree", 0o755)?;
    for folder in 0..TREE.0 {
        layer = layer.directory(&format!("data/tree/{folder}"), 0o755)?;
        for file in 0..TREE.1 {
            layer = layer.file(&format!("data/tree/{folder}/{file}"), 0o644, b"small")?;
        }
    }
    layer.finish()
}

/// Writes an image of 300 MiB beside busybox, in `/large`.
///
/// # Errors
/// As [`write_image`].
pub(crate) fn write_large_image(folder: &Path) -> Result<()> {
    let mut layer = Layer::default().directory("large", 0o755)?;
    for file in 0..LARGE_FILES {
        let content = noise(LARGE_FILE, file as u64 + 1);
        layer = layer.file(&format!("large/{file}"), 0o644, &content)?;
    }
    let config = json!({ "Env": ["PATH=/bin"], "Cmd": ["sh"], "WorkingDir": "/" });
    let layers = [layout::busybox_layer()?, layer.finish()?];
    layout::write(folder, "large", &layers, &config)
}

/// Puts the layers of a layout's only image on top of one another in a new folder.
///
/// # Errors
/// When the layout is not as [`write_image`] leaves it, or `tar` refuses.
pub(crate) fn unpack(layout: &Path, root: &Path) -> Result<()> {
    let read = |path: &Path| -> Result<Value> {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(serde_json::from_slice(&text)?)
    };
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap_or_default();
        layout.join("blobs").join(digest.replace(':', "/"))
    };
    fs::create_dir(root)?;
    fs::set_permissions(root, fs::Permissions::from_mode(0o755))?;
    let index = read(&layout.join("index.json"))?;
    let manifest = read(&blob(&index["manifests"][0]))?;
    for layer in manifest["layers"].as_array().context("no layers")? {
        let mut command = Command::new("tar");
        command.arg("-xpf").arg(blob(layer)).arg("-C").arg(root);
        tool(&mut command, Duration::from_secs(120))?;
    }
    Ok(())
}

/// The type of the file system that a path is on (proc(5), `mountinfo`).
pub(crate) fn file_system(path: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    file_system_in(&mounts, path)
        .unwrap_or("unknown")
        .to_owned()
}

fn file_system_in<'a>(mounts: &'a str, path: &Path) -> Option<&'a str> {
    mounts
        .lines()
        .filter_map(|line| {
            let (mount, rest) = line.split_once(" - ")?;
            let point = mount.split(' ').nth(4)?;
            path.starts_with(point)
                .then(|| (point.len(), rest.split(' ').next()))
        })
        // Of two on one place the later one is on top.
        .max_by_key(|(length, _)| *length)
        .and_then(|(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_system_is_that_of_the_longest_mount_point() {
        let mounts = "1 0 0:1 / / rw - ext4 /dev/vda rw\n\
                      2 1 0:2 / /tmp rw shared:1 - tmpfs tmpfs rw\n\
                      3 1 0:3 / /tmporary rw - xfs /dev/vdb rw\n\
                      4 2 0:4 / /tmp rw - overlay overlay rw\n";
        let of = |path: &str| file_system_in(mounts, Path::new(path));
        assert_eq!(of("/tmp/a"), Some("overlay"));
        assert_eq!(of("/tmporary/a"), Some("xfs"));
        assert_eq!(of("/var"), Some("ext4"));
    }
}
