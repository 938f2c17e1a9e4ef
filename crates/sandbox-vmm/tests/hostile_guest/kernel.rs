//! The guest, built from `guest/` by the compiler alone, once: a program without anything below it needs no package.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

/// Code for addresses that are fixed, without what an operating system would have to do for it.
const OPTIONS: &[&str] = &[
    "--edition=2024",
    "-Copt-level=2",
    "-Cpanic=abort",
    "-Cforce-unwind-tables=no",
    "-Crelocation-model=static",
    "-Cno-redzone=yes",
    "-Cstrip=symbols",
    "-Clink-arg=-nostdlib",
    "-Clink-arg=-static",
    "-Clink-arg=-no-pie",
    "-Clink-arg=-Wl,--build-id=none",
];

/// Where it is.
pub(crate) fn kernel() -> Result<PathBuf> {
    static BUILT: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    BUILT
        .get_or_init(|| build().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(|error| anyhow::anyhow!("cannot build the hostile guest: {error}"))
}

/// Builds it, unless it was already, by this compiler's name or on another machine with the same folders.
fn build() -> Result<PathBuf> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hostile_guest/guest");
    let mut files: Vec<PathBuf> = fs::read_dir(&sources)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.sort();
    let mut hash = Sha256::new();
    for file in &files {
        hash.update(fs::read(file).with_context(|| file.display().to_string())?);
    }
    for option in OPTIONS {
        hash.update(option);
    }
    let hash: String = hash
        .finalize()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let built = folder.join(format!("hostile-guest-{hash}"));
    if built.exists() {
        return Ok(built);
    }
    fs::create_dir_all(folder)?;
    let fresh = tempfile::tempdir_in(folder)?;
    let program = fresh.path().join("guest");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(&rustc)
        .args(OPTIONS)
        .arg(format!(
            "-Clink-arg=-Wl,-T,{}",
            sources.join("link.ld").display()
        ))
        .arg("-o")
        .arg(&program)
        .arg(sources.join("main.rs"))
        .output()
        .with_context(|| format!("cannot run {}", rustc.display()))?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // Whole under its name or not there at all, as other programs may do the same at this moment.
    fs::rename(&program, &built)?;
    Ok(built)
}
