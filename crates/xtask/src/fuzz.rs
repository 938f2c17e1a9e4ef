//! The fuzz targets of `tests/fuzz`, each for a while.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::project_root;
use crate::shell;

/// The longest input, in bytes: what is tested are parsers and state machines, not throughput.
const MAX_INPUT_BYTES: u32 = 16 * 1024;
/// After which one input counts as a hang, in seconds.
const HANG_SECONDS: u32 = 60;
/// What a target may hold, in MiB, the sanitizer's own memory included.
const MEMORY_MIB: u32 = 2048;

fn folder() -> PathBuf {
    project_root().join("tests/fuzz")
}

fn targets(wanted: &[String]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder().join("fuzz_targets"))? {
        let path = entry?.path();
        if let Some(name) = path.file_stem() {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    if let Some(unknown) = wanted.iter().find(|name| !names.contains(name)) {
        bail!(
            "there is no fuzz target {unknown:?}; there are {}",
            names.join(", ")
        );
    }
    if !wanted.is_empty() {
        names.retain(|name| wanted.contains(name));
    }
    Ok(names)
}

/// Runs each of these targets, or all, for as many seconds. What is found is kept in `tests/fuzz/artifacts`, new inputs in
/// `target/fuzz`.
///
/// # Errors
/// Names the targets in which something was found, when all have run.
pub(crate) fn run(seconds: u64, wanted: &[String]) -> Result<()> {
    let targets = targets(wanted)?;
    let known = Command::new("cargo")
        .args(["+nightly", "fuzz", "--version"])
        .output();
    if !known.is_ok_and(|output| output.status.success()) {
        bail!(
            "fuzzing needs cargo-fuzz and a nightly toolchain: `rustup toolchain install nightly` and \
             `cargo install cargo-fuzz`"
        );
    }
    // Outside the workspace, but of the same versions as the product.
    let lock = folder().join("Cargo.lock");
    fs::copy(project_root().join("Cargo.lock"), &lock)
        .with_context(|| format!("cannot write {}", lock.display()))?;
    let mut found = Vec::new();
    for name in targets {
        shell::step(format!("fuzzing {name} for {seconds} s"));
        let new = project_root().join("target/fuzz").join(&name);
        fs::create_dir_all(&new).with_context(|| format!("cannot make {}", new.display()))?;
        let mut command = Command::new("cargo");
        command
            .args(["+nightly", "fuzz", "run", "--fuzz-dir", ".", &name])
            .arg(new)
            .arg(folder().join("corpus").join(&name))
            .args(["--", &format!("-max_total_time={seconds}")])
            .arg(format!("-max_len={MAX_INPUT_BYTES}"))
            .arg(format!("-timeout={HANG_SECONDS}"))
            .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
            .current_dir(folder());
        let dictionary = folder().join("dictionaries").join(&name);
        if dictionary.exists() {
            command.arg(format!("-dict={}", dictionary.display()));
        }
        if shell::run(&mut command).is_err() {
            found.push(name);
        }
    }
    if !found.is_empty() {
        bail!(
            "something was found by {}; see tests/fuzz/artifacts",
            found.join(", ")
        );
    }
    Ok(())
}
