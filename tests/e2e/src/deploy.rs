//! The installer, and what it installs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sandbox_harness::containerd::{Containerd, RUNTIME};
use sandbox_harness::{Finished, Setup, World, process};

use crate::Case;

pub(crate) const CASES: &[Case] = &[(
    "deploy_installs_what_runs_and_removes_it_cleanly",
    installer,
)];

/// How long the installer may take.
const LIMIT: Duration = Duration::from_secs(120);

/// The folder `deploy` of the checkout that the programs were built in.
fn deploy(world: &World) -> Result<PathBuf> {
    let binaries = &world.setup().binaries;
    let root = binaries.ancestors().nth(2);
    Ok(root
        .context("programs are in target/release")?
        .join("deploy"))
}

fn install(world: &World, action: &str, root: &Path) -> Result<Finished> {
    let mut command = Command::new(deploy(world)?.join("install.sh"));
    command.arg(action).arg("--root").arg(root);
    process::run(&mut command, b"", LIMIT)
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
    Ok(found)
}

fn installer(world: &World) -> Result<()> {
    let root = world.path().join("node");
    fs::create_dir(&root)?;
    install(world, "remove", &root)?
        .expect_code(1)?
        .expect_stderr(&["nothing is installed"])?;
    install(world, "install", &root)?.expect_code(0)?;
    let installed = files(&root)?;
    // Once more changes nothing.
    install(world, "install", &root)?.expect_code(0)?;
    ensure!(files(&root)? == installed, "{installed:?}");

    // What is installed runs by itself, and under a containerd that finds it on its path.
    let setup = Setup {
        binaries: root.join("usr/local/bin"),
        ..world.setup().clone()
    };
    let node = World::with_demo(&setup)?;
    let run = node.sandboxctl(&["run", "--rm", "demo", "uname", "-r"])?;
    let kernel = run.expect_code(0)?.text();
    ensure!(kernel.starts_with("6.12."), "{kernel}");
    let out = world.path().join("measured");
    let bench = [
        "bench",
        "--only",
        "at-once",
        "--at-once",
        "1",
        "--runs",
        "1",
    ];
    let to = ["--out", &out.to_string_lossy()];
    node.sandboxctl(&[&bench[..], &to].concat())?
        .expect_code(0)?;
    let measured = fs::read_to_string(out.join("results.md"))?;
    for subject in ["runc", "sandbox ("] {
        let row = measured.lines().find(|line| line.contains(subject));
        row.with_context(|| format!("no {subject} in {measured}"))?;
    }
    ensure!(!measured.contains("a run failed"), "{measured}");
    let containerd = Containerd::start(&node)?;
    containerd.import_demo(&node)?;
    let run = containerd.ctr_run(&["--rm"], "c1", &["uname", "-r"])?;
    let seen = run.finish()?.expect_code(0)?.text();
    ensure!(seen == kernel, "{seen}");
    drop(containerd);
    node.finish()?;

    // containerd takes the runtime class from where it was put.
    let drop_in = root.join("etc/containerd/conf.d/sandbox.toml");
    let config = world.path().join("containerd.toml");
    fs::write(&config, format!("version = 2\nimports = [{drop_in:?}]\n"))?;
    let mut dump = Command::new("containerd");
    dump.arg("--config").arg(&config).args(["config", "dump"]);
    let dump = process::run(&mut dump, b"", LIMIT)?.expect_code(0)?.text();
    ensure!(
        dump.contains(&format!("runtime_type = {RUNTIME:?}")),
        "{dump}"
    );

    // What was changed stays, everything else goes.
    let config = root.join("etc/sandbox/config.toml");
    fs::write(&config, "vcpus = 2\n")?;
    install(world, "install", &root)?.expect_code(0)?;
    ensure!(fs::read_to_string(&config)? == "vcpus = 2\n");
    install(world, "remove", &root)?.expect_code(0)?;
    ensure!(files(&root)? == [config.clone()], "{:?}", files(&root)?);
    fs::remove_file(&config)?;
    install(world, "install", &root)?.expect_code(0)?;
    install(world, "remove", &root)?.expect_code(0)?;
    // One that is cut short, here by a link through which nothing can be written, leaves what `remove` knows of.
    let programs = root.join("usr/local/bin");
    fs::create_dir_all(&programs)?;
    symlink("/nowhere/at/all", programs.join("sandboxctl.new"))?;
    let cut_short = install(world, "install", &root)?;
    ensure!(cut_short.code != 0, "{}", cut_short.text());
    ensure!(programs.join("sandbox-vmm").exists());
    install(world, "remove", &root)?.expect_code(0)?;
    ensure!(files(&root)?.is_empty(), "{:?}", files(&root)?);
    fs::remove_dir_all(root.join("usr"))?;
    let left: Vec<_> = fs::read_dir(&root)?.collect();
    ensure!(left.len() <= 1, "{left:?}");
    Ok(())
}
