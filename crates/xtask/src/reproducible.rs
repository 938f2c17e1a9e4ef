//! Whether the guest image comes out the same wherever it is built. What goes into it and is not fixed by its recipe
//! is the agent, so that is built a second time, from a copy of the sources in another folder.
//!
//! It prints libtest's lines, as a suite of `cargo xtask test`.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use libtest_mimic::{Arguments, Trial};

use crate::cache::{self, Inputs};
use crate::{guest, project_root, shell};

/// What a build of the agent reads.
const SOURCES: &[&str] = &[
    ".cargo",
    "Cargo.lock",
    "Cargo.toml",
    "agent",
    "crates",
    "rust-toolchain.toml",
    "shim",
    "tests",
];

/// Runs the one test.
///
/// # Errors
/// Never: a failure is the test's.
pub(crate) fn run() -> Result<ExitCode> {
    let name = "guest_agent_built_in_another_folder_is_the_same_to_the_byte";
    let trial = Trial::test(name, || {
        compare().map_err(|error| format!("{error:#}").into())
    });
    let arguments = Arguments {
        test_threads: Some(1),
        ..Default::default()
    };
    Ok(libtest_mimic::run(&arguments, vec![trial]).exit_code())
}

/// Takes minutes, once for each agent.
fn compare() -> Result<()> {
    let here = guest::agent()?;
    let inputs = Inputs::default()
        .text("recipe", "1")
        .text("compiler", &shell::read("rustc", &["--version"])?)
        .file(&here)?;
    cache::product("reproduced", inputs, |folder| {
        let elsewhere = folder.join("a/copy/of/the/sources");
        fs::create_dir_all(&elsewhere)?;
        shell::run_quietly(
            Command::new("cp")
                .args(["--archive", "--parents"])
                .args(SOURCES)
                .arg(&elsewhere)
                .current_dir(project_root()),
            None,
        )?;
        let there = guest::agent_of(&elsewhere, &folder.join("built"))?;
        same(&here, &there)?;
        fs::remove_dir_all(folder.join("a"))?;
        fs::remove_dir_all(folder.join("built"))?;
        Ok(())
    })?;
    Ok(())
}

fn same(one: &Path, other: &Path) -> Result<()> {
    let read =
        |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let (a, b) = (read(one)?, read(other)?);
    if a == b {
        return Ok(());
    }
    let at = a.iter().zip(&b).position(|(a, b)| a != b);
    bail!(
        "{} ({} bytes) and {} ({} bytes) differ, first at byte {at:?}",
        one.display(),
        a.len(),
        other.display(),
        b.len()
    );
}
