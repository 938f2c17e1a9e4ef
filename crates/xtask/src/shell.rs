//! Running other programs: say what runs, fail with what they printed.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::project_root;

/// The cargo that runs us, else the one on the path: not the one that this program was built with, which another
/// toolchain of the same version may have been. It builds in this checkout's `target`, where everything is looked for, whatever the
/// user's environment and configuration say.
///
/// `cargo run` has told us of the package that we are of. Build scripts that look at such variables would run again, and what depends on
/// them be compiled again, each time after a build without us.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        if is_of_our_package(&name) {
            command.env_remove(name);
        }
    }
    command.env("CARGO_TARGET_DIR", project_root().join("target"));
    command
}

/// Whether `cargo run` sets this variable to something of the package whose program it runs.
fn is_of_our_package(variable: &OsStr) -> bool {
    ["CARGO_MANIFEST_", "CARGO_PKG_"]
        .iter()
        .any(|start| variable.as_encoded_bytes().starts_with(start.as_bytes()))
}

/// Prints one line about what is being done.
pub(crate) fn step(what: impl AsRef<str>) {
    eprintln!("==> {}", what.as_ref());
}

fn describe(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        let _ = write!(text, " {}", argument.to_string_lossy());
    }
    text
}

/// Runs `command` with our standard output and error.
///
/// # Errors
/// When it cannot be started or ends with anything but 0.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let what = describe(command);
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot start `{what}`"))?;
    if !status.success() {
        bail!("`{what}` failed: {status}");
    }
    Ok(())
}

/// Runs `command` silently; what it prints is shown only when it fails, and kept in `log` when one is given.
///
/// # Errors
/// When it cannot be started or ends with anything but 0; the error carries its last lines.
pub(crate) fn run_quietly(command: &mut Command, log: Option<&Path>) -> Result<()> {
    let what = describe(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{what}`"))?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    if let Some(log) = log {
        std::fs::write(log, &text).with_context(|| format!("cannot write {}", log.display()))?;
    }
    if !output.status.success() {
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(40)..].join("\n");
        bail!("`{what}` failed: {}\n{tail}", output.status);
    }
    Ok(())
}

/// What `program` prints on standard output, trimmed, in English.
///
/// # Errors
/// When it cannot be started or ends with anything but 0.
pub(crate) fn read(program: impl AsRef<OsStr>, arguments: &[impl AsRef<OsStr>]) -> Result<String> {
    read_from(Command::new(program).args(arguments))
}

/// As [`read`], of a command that is there already.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_from(command: &mut Command) -> Result<String> {
    let what = describe(command);
    let output = command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{what}`"))?;
    if !output.status.success() {
        bail!(
            "`{what}` failed: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Whether `program` is on the path.
pub(crate) fn has(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
    })
}
