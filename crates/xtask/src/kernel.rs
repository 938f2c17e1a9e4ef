//! The guest kernel: Debian's kernel source, or a tree of the user's own, with `guest-image/kernel.config`; and
//! without its [`padding`].

mod padding;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::cache::{self, Inputs};
use crate::{project_root, shell};

const SOURCE_PACKAGE: &str = "linux-source-6.12";
const SOURCE_TARBALL: &str = "/usr/src/linux-source-6.12.tar.xz";

/// Names a kernel source tree to build instead of the package.
pub(crate) const SOURCE_VARIABLE: &str = "SANDBOX_KERNEL_SOURCE";

/// Variables that would otherwise put the time, the user and the host into the image.
const REPRODUCIBLE: &[(&str, &str)] = &[
    ("KBUILD_BUILD_TIMESTAMP", "1970-01-01T00:00:00Z"),
    ("KBUILD_BUILD_USER", "sandbox"),
    ("KBUILD_BUILD_HOST", "sandbox"),
    ("KBUILD_BUILD_VERSION", "1"),
    ("LC_ALL", "C"),
];

/// The uncompressed `vmlinux` as guests get it, built when it is not in the cache.
///
/// # Errors
/// When the source is missing, an option does not take, or the build fails.
pub(crate) fn vmlinux() -> Result<PathBuf> {
    let built = built()?;
    // By its bytes, because a tree of the user's has one name for whatever is built from it.
    let inputs = Inputs::default().text("recipe", "1").file(&built)?;
    let folder = cache::product("vmlinux", inputs, |folder| {
        let mut file =
            fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
        let bytes = padding::leave_out(&mut file)
            .with_context(|| format!("cannot leave the padding out of {}", built.display()))?;
        shell::step(format!(
            "leaving {} KiB of padding out of the kernel",
            bytes >> 10
        ));
        fs::write(folder.join("vmlinux"), file)?;
        Ok(())
    })?;
    Ok(folder.join("vmlinux"))
}

/// `vmlinux` as its build makes it.
fn built() -> Result<PathBuf> {
    let fragment = project_root().join("guest-image/kernel.config");
    if let Some(source) = std::env::var_os(SOURCE_VARIABLE).filter(|value| !value.is_empty()) {
        return from_tree(&PathBuf::from(source), &fragment);
    }
    let version = shell::read("dpkg-query", &["-W", "-f=${Version}", SOURCE_PACKAGE])
        .with_context(|| format!("package {SOURCE_PACKAGE} is not installed"))?;
    let inputs = Inputs::default()
        .text("recipe", "1")
        .text("source", &version)
        .text("compiler", &shell::read("gcc", &["-dumpfullversion"])?)
        .text("linker", &shell::read("ld", &["--version"])?)
        .file(&fragment)?;
    let folder = cache::product("kernel", inputs, |folder| {
        let tree = folder.join("source");
        fs::create_dir(&tree)?;
        shell::run_quietly(
            Command::new("tar")
                .args([
                    "--extract",
                    "--strip-components=1",
                    "--file",
                    SOURCE_TARBALL,
                ])
                .arg("--directory")
                .arg(&tree),
            None,
        )?;
        build(&tree, None, &fragment, &folder.join("build.log"))?;
        fs::rename(tree.join("vmlinux"), folder.join("vmlinux"))?;
        fs::rename(tree.join(".config"), folder.join("config"))?;
        fs::remove_dir_all(&tree)?;
        Ok(())
    })?;
    Ok(folder.join("vmlinux"))
}

/// Builds a tree of the user's in a folder of the cache, beside the tree; `make` itself decides what is new.
fn from_tree(source: &Path, fragment: &Path) -> Result<PathBuf> {
    let source = source
        .canonicalize()
        .with_context(|| format!("{SOURCE_VARIABLE}={} cannot be used", source.display()))?;
    if !source.join("Kconfig").is_file() {
        bail!(
            "{SOURCE_VARIABLE}={} is not a kernel source tree: it has no Kconfig",
            source.display()
        );
    }
    let inputs = Inputs::default().text("tree", &source.to_string_lossy());
    let output = cache::folder("kernel-tree", inputs, |_| Ok(()))?;
    build(&source, Some(&output), fragment, &output.join("build.log"))?;
    Ok(output.join("vmlinux"))
}

fn build(source: &Path, output: Option<&Path>, fragment: &Path, log: &Path) -> Result<()> {
    let build_folder = output.unwrap_or(source);
    let make = |target: &[&str]| {
        let mut command = Command::new("make");
        command.arg("-C").arg(source).args(target);
        if let Some(output) = output {
            command.arg(format!("O={}", output.display()));
        }
        command.envs(REPRODUCIBLE.iter().copied());
        command
    };
    shell::run_quietly(&mut make(&["tinyconfig"]), Some(log))?;
    let mut merge = Command::new(source.join("scripts/kconfig/merge_config.sh"));
    merge
        .args(["-m", "-O"])
        .arg(build_folder)
        .arg(build_folder.join(".config"))
        .arg(fragment)
        .current_dir(source);
    shell::run_quietly(&mut merge, Some(log))?;
    shell::run_quietly(&mut make(&["olddefconfig"]), Some(log))?;
    let config = fs::read_to_string(build_folder.join(".config"))?;
    let wanted = fs::read_to_string(fragment)?;
    let refused = options_refused(&wanted, &config);
    if !refused.is_empty() {
        bail!(
            "the kernel did not take these options of {}: {}",
            fragment.display(),
            refused.join(" ")
        );
    }
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    shell::step(format!(
        "building the guest kernel with {jobs} jobs; this takes minutes, once"
    ));
    shell::run_quietly(&mut make(&[&format!("-j{jobs}"), "vmlinux"]), Some(log))
}

/// The lines of `fragment` that do not hold in `config`.
fn options_refused<'a>(fragment: &'a str, config: &str) -> Vec<&'a str> {
    let lines: std::collections::HashSet<&str> = config.lines().collect();
    fragment
        .lines()
        .filter(|line| line.starts_with("CONFIG_"))
        .filter(|line| match line.strip_suffix("=n") {
            Some(option) => lines.iter().any(|set| {
                set.strip_prefix(option)
                    .is_some_and(|rest| rest.starts_with('='))
            }),
            None => !lines.contains(line),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn option_that_did_not_take_is_named() {
        let fragment = "# reason\nCONFIG_A=y\nCONFIG_B=n\nCONFIG_C=32\nCONFIG_D=n\n";
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=64\nCONFIG_D=y\nCONFIG_BB=y\n";
        assert_eq!(
            options_refused(fragment, config),
            ["CONFIG_C=32", "CONFIG_D=n"]
        );
    }
}
