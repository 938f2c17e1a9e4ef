//! What is expensive to make is made once per set of inputs and kept in the user's cache folder, so that a
//! fresh clone finds it: `${XDG_CACHE_HOME:-~/.cache}/sandbox-runtime/<kind>-<hash of the inputs>/`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::shell;

/// The hash of everything that decides what a product looks like.
#[derive(Default)]
pub(crate) struct Inputs(Sha256);

impl Inputs {
    /// Adds a named text.
    pub(crate) fn text(mut self, name: &str, value: &str) -> Self {
        self.0.update(name.as_bytes());
        self.0.update([0]);
        self.0.update(value.as_bytes());
        self.0.update([0]);
        self
    }

    /// Adds the content of a file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn file(mut self, path: &Path) -> Result<Self> {
        let content = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        self.0.update(Sha256::digest(content));
        Ok(self)
    }

    fn finish(self) -> String {
        let mut text = hex::encode(self.0.finalize());
        text.truncate(16);
        text
    }
}

/// The cache folder itself.
///
/// # Errors
/// When neither `XDG_CACHE_HOME` nor `HOME` is set.
pub(crate) fn root() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    Ok(base.join("sandbox-runtime"))
}

/// The folder that holds the product of `inputs`; `make` fills it when it is not there yet. Two processes that
/// make the same product at once do so one after the other, and a folder that is there is whole: it is filled
/// under another name and renamed.
///
/// # Errors
/// What `make` says, or the file system.
pub(crate) fn product(
    kind: &str,
    inputs: Inputs,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let root = root()?;
    fs::create_dir_all(&root).with_context(|| format!("cannot create {}", root.display()))?;
    let name = format!("{kind}-{}", inputs.finish());
    let folder = root.join(&name);
    if folder.is_dir() {
        return Ok(folder);
    }
    let lock = fs::File::create(root.join(format!("{name}.lock")))?;
    lock.lock().context("cannot lock the cache")?;
    if folder.is_dir() {
        return Ok(folder);
    }
    let unfinished = root.join(format!("{name}.unfinished"));
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    fs::create_dir_all(&unfinished)?;
    shell::step(format!("making {name} (kept in {})", root.display()));
    make(&unfinished)?;
    fs::rename(&unfinished, &folder)?;
    Ok(folder)
}

/// Makes `link` point to `target`, whatever was there.
///
/// # Errors
/// When `link` is a directory, or the file system refuses.
pub(crate) fn link(target: &Path, link: &Path) -> Result<()> {
    if fs::read_link(link).is_ok_and(|old| old == target) {
        return Ok(());
    }
    if link.is_dir() && !link.is_symlink() {
        bail!("{} is a folder, not a link", link.display());
    }
    let next = link.with_extension("next");
    let _ = fs::remove_file(&next);
    std::os::unix::fs::symlink(target, &next)?;
    fs::rename(&next, link).with_context(|| format!("cannot link {}", link.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_that_differ_only_in_boundaries_hash_differently() {
        let joined = Inputs::default().text("a", "bc").finish();
        let split = Inputs::default().text("ab", "c").finish();
        assert_ne!(joined, split);
    }
}
