//! The structure check: which member may use which, how long a file may be, and what may not be in the tree.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::{project_root, shell};

/// What each member may depend on, of the other members. A member that is not named here fails the check.
const ALLOWED: &[(&str, &[&str])] = &[
    ("sandbox-types", &[]),
    ("sandbox-protocol", &["sandbox-types"]),
    ("sandbox-jail", &["sandbox-types"]),
    ("sandbox-vmm", &["sandbox-types", "sandbox-jail"]),
    ("sandbox-image", &["sandbox-types"]),
    // It reaches runtimes by their programs, our own too.
    ("sandbox-isolation", &[]),
    ("sandbox-netlink", &["sandbox-types"]),
    ("sandbox-network", &["sandbox-types", "sandbox-netlink"]),
    (
        "sandbox-runtime",
        &["sandbox-types", "sandbox-protocol", "sandbox-network"],
    ),
    (
        "sandboxctl",
        &[
            "sandbox-types",
            "sandbox-protocol",
            "sandbox-image",
            "sandbox-isolation",
            "sandbox-network",
            "sandbox-runtime",
        ],
    ),
    (
        "containerd-shim-sandbox-v2",
        &["sandbox-types", "sandbox-protocol", "sandbox-runtime"],
    ),
    (
        "sandbox-agent",
        &["sandbox-types", "sandbox-protocol", "sandbox-netlink"],
    ),
    // Tests reach the product's programs by path, never as libraries.
    ("sandbox-harness", &[]),
    ("sandbox-probe", &[]),
    ("sandbox-e2e", &["sandbox-harness"]),
    ("sandbox-compat", &["sandbox-harness"]),
    // But for the monitor's block device, which is measured without a guest.
    ("sandbox-bench", &["sandbox-harness", "sandbox-vmm"]),
    // The template of the writable layer is made by the code that clones it, the demo by the tests' layout writer.
    ("xtask", &["sandbox-image", "sandbox-harness"]),
];

/// Lines that no Rust file may have more of.
const MAX_LINES: usize = 1_000;

/// Checks the whole tree.
///
/// # Errors
/// One error that lists everything that is wrong.
pub(crate) fn check() -> Result<()> {
    let mut wrong = dependencies()?;
    wrong.extend(files()?);
    if wrong.is_empty() {
        shell::step("structure: as it should be");
        return Ok(());
    }
    bail!("the structure check failed:\n  {}", wrong.join("\n  "));
}

/// What cargo says of the workspace's packages.
///
/// # Errors
/// When cargo fails.
pub(crate) fn metadata() -> Result<serde_json::Value> {
    let mut command = shell::cargo();
    command
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(project_root());
    Ok(serde_json::from_str(&shell::read_from(&mut command)?)?)
}

/// What the test program of a target is called: the package's folder and the target, or that alone where they are the same.
pub(crate) fn test_program(folder: &Path, target: &str) -> String {
    let package = folder.file_name().unwrap_or_default().to_string_lossy();
    if package == target {
        target.to_owned()
    } else {
        format!("{package}/{target}")
    }
}

/// The names of the workspace's test programs, as far as that is known without building them.
///
/// # Errors
/// When cargo fails.
pub(crate) fn test_programs() -> Result<Vec<String>> {
    let metadata = metadata()?;
    let mut names = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let manifest = package["manifest_path"].as_str().unwrap_or_default();
        let folder = Path::new(manifest).parent().unwrap_or(Path::new(""));
        for target in package["targets"].as_array().into_iter().flatten() {
            if target["test"] == true
                && let Some(name) = target["name"].as_str()
            {
                names.push(test_program(folder, name));
            }
        }
    }
    names.sort();
    Ok(names)
}

fn dependencies() -> Result<Vec<String>> {
    let metadata = metadata()?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata has no packages")?;
    let uses: BTreeMap<&str, Vec<&str>> = packages
        .iter()
        .filter_map(|package| {
            let dependencies = package["dependencies"].as_array()?;
            let ours = dependencies
                .iter()
                .filter(|dependency| dependency["path"].is_string())
                .filter_map(|dependency| dependency["name"].as_str())
                .collect();
            Some((package["name"].as_str()?, ours))
        })
        .collect();
    Ok(forbidden(&uses))
}

fn forbidden(uses: &BTreeMap<&str, Vec<&str>>) -> Vec<String> {
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let mut wrong = Vec::new();
    for (member, used) in uses {
        match allowed.get(member) {
            None => wrong.push(format!(
                "{member} is not in the list of members (structure.rs)"
            )),
            Some(allowed) => wrong.extend(
                used.iter()
                    .filter(|other| !allowed.contains(other))
                    .map(|other| format!("{member} may not depend on {other}")),
            ),
        }
    }
    wrong
}

fn files() -> Result<Vec<String>> {
    let root = project_root();
    let list = shell::read("git", &["-C", &root.to_string_lossy(), "ls-files"])?;
    let mut wrong = Vec::new();
    for name in list.lines() {
        let path = root.join(name);
        if name.ends_with("/mod.rs") {
            wrong.push(format!(
                "{name}: modules are named for what they are, not mod.rs"
            ));
        }
        if Path::new(name)
            .extension()
            .is_some_and(|extension| extension == "rs")
        {
            let Ok(text) = fs::read_to_string(&path) else {
                continue;
            };
            let lines = text.lines().count();
            if lines > MAX_LINES {
                wrong.push(format!("{name}: {lines} lines, at most {MAX_LINES}"));
            }
            if name.ends_with("lib.rs") && !text.starts_with("//!") {
                wrong.push(format!("{name}: a crate begins with what it is"));
            }
        }
    }
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependency_against_the_direction_is_named() {
        let uses = BTreeMap::from([
            ("sandbox-types", vec!["sandbox-runtime"]),
            ("sandbox-runtime", vec!["sandbox-types"]),
            ("newcomer", vec![]),
        ]);
        let wrong = forbidden(&uses);
        assert_eq!(wrong.len(), 2, "{wrong:?}");
        assert!(
            wrong
                .iter()
                .any(|line| line == "sandbox-types may not depend on sandbox-runtime")
        );
    }
}
