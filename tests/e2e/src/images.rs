//! Images: imported, layered, and refused when they are not whole.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use sandbox_harness::World;
use sandbox_harness::layout::{self, Layer};
use serde_json::json;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("image_layers_are_stacked_with_whiteouts", layers),
    ("image_from_a_tar_runs", tar_archive),
    ("image_ls_lists_and_rm_removes", list_and_remove),
    (
        "image_with_a_corrupt_layer_is_refused_and_leaves_nothing",
        corrupt_layer,
    ),
    ("image_with_a_corrupt_manifest_is_refused", corrupt_manifest),
    (
        "image_layer_corrupted_after_import_is_an_error",
        corrupt_store,
    ),
];

fn import(world: &World, name: &str, path: &Path) -> Result<sandbox_harness::Finished> {
    world.sandboxctl(&["image", "import", "--name", name, &path.to_string_lossy()])
}

fn layers(world: &World) -> Result<()> {
    let middle = Layer::default()
        .directory("data", 0o755)?
        .file("data/gone", 0o644, b"1")?
        .file("data/changed", 0o644, b"old\n")?
        .directory("opaque", 0o755)?
        .file("opaque/hidden", 0o644, b"1")?
        .finish()?;
    let top = Layer::default()
        .file("data/.wh.gone", 0o644, b"")?
        .file("data/changed", 0o600, b"new\n")?
        .directory("opaque", 0o755)?
        .file("opaque/.wh..wh..opq", 0o644, b"")?
        .file("opaque/seen", 0o644, b"1")?
        .symlink("link", "data/changed")?
        .finish()?;
    let folder = world.path().join("layered");
    fs::create_dir(&folder)?;
    let config = json!({ "Env": ["PATH=/bin"], "Cmd": ["sh"] });
    layout::write(
        &folder,
        "layered",
        &[layout::busybox_layer()?, middle, top],
        &config,
    )?;
    import(world, "layered", &folder)?.expect_code(0)?;
    let script = "ls /data /opaque; cat /link; stat -c %a /data/changed";
    world
        .sandboxctl(&["run", "--rm", "layered", "sh", "-c", script])?
        .expect_code(0)?
        .expect_stdout("/data:\nchanged\n\n/opaque:\nseen\nnew\n600\n")?;
    Ok(())
}

fn tar_archive(world: &World) -> Result<()> {
    let archive = world.path().join("demo.tar");
    let status = std::process::Command::new("tar")
        .arg("-cf")
        .arg(&archive)
        .arg("-C")
        .arg(&world.setup().demo)
        .arg(".")
        .status()?;
    ensure!(status.success(), "tar failed");
    import(world, "from-tar", &archive)?.expect_code(0)?;
    world
        .sandboxctl(&["run", "--rm", "from-tar", "echo", "x"])?
        .expect_code(0)?
        .expect_stdout("x\n")?;
    Ok(())
}

fn list_and_remove(world: &World) -> Result<()> {
    let listed = world.sandboxctl(&["image", "ls"])?.expect_code(0)?;
    ensure!(
        listed.text().contains("demo"),
        "not listed: {}",
        listed.text()
    );
    world.sandboxctl(&["image", "rm", "demo"])?.expect_code(0)?;
    let listed = world.sandboxctl(&["image", "ls"])?.expect_code(0)?;
    ensure!(
        !listed.text().contains("demo"),
        "still listed: {}",
        listed.text()
    );
    world
        .sandboxctl(&["run", "--rm", "--pull", "never", "demo", "true"])?
        .expect_code(125)?;
    Ok(())
}

/// A copy of the demo image, and its biggest blob, which is its layer.
fn copy_of_demo(world: &World) -> Result<(PathBuf, PathBuf)> {
    let copy = world.path().join("copy");
    let status = std::process::Command::new("cp")
        .arg("-rL")
        .arg(&world.setup().demo)
        .arg(&copy)
        .status()?;
    ensure!(status.success(), "cp failed");
    let layer = fs::read_dir(copy.join("blobs/sha256"))?
        .flatten()
        .max_by_key(|entry| entry.metadata().map_or(0, |data| data.len()))
        .context("the demo has blobs")?;
    Ok((copy, layer.path()))
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn corrupt_layer(world: &World) -> Result<()> {
    let (copy, layer) = copy_of_demo(world)?;
    let mut bytes = fs::read(&layer)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&layer, bytes)?;
    let before = files(&world.state_dir())?;
    import(world, "broken", &copy)?
        .expect_code(125)?
        .expect_stderr(&["layer", "sha256:"])?;
    let after = files(&world.state_dir())?;
    let left: Vec<&PathBuf> = after.iter().filter(|file| !before.contains(file)).collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    world
        .sandboxctl(&["run", "--rm", "--pull", "never", "broken", "true"])?
        .expect_code(125)?;
    Ok(())
}

fn corrupt_manifest(world: &World) -> Result<()> {
    let (copy, _) = copy_of_demo(world)?;
    fs::write(
        copy.join("index.json"),
        "{\"schemaVersion\": 2, \"manifests\": 7}",
    )?;
    import(world, "broken", &copy)?
        .expect_code(125)?
        .expect_stderr(&["index.json"])?;
    Ok(())
}

fn corrupt_store(world: &World) -> Result<()> {
    // The store is trusted while it is whole; a layer that is cut off is not.
    for file in files(&world.state_dir())? {
        if file
            .extension()
            .is_some_and(|extension| extension == "erofs")
        {
            fs::OpenOptions::new()
                .write(true)
                .open(&file)?
                .set_len(100)?;
        }
    }
    world
        .sandboxctl(&["run", "--rm", "demo", "true"])?
        .expect_code(125)?
        .expect_stderr(&["layer"])?;
    Ok(())
}
