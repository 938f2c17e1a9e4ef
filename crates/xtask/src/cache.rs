//! What is expensive to make is made once per set of inputs and kept in the user's cache folder, so that a
//! fresh clone finds it: `${XDG_CACHE_HOME:-~/.cache}/sandbox-runtime/<kind>-<hash of the inputs>/`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::shell;

/// What the log of a build is called in its folder.
const LOGS: [&str; 3] = ["build.log", "source/build.log", "log"];

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

/// What says that a product in the cache is whole.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Check {
    /// Its files have the sizes that are noted beside it.
    Sizes,
    /// It is there.
    Presence,
}

/// The folder that holds the product of `inputs`; `make` fills it when it is not there yet, or not as it was made: a file is
/// missing, or has another size. Two processes that make the same product at once do so one after the other. It is filled
/// under another name, written to the disk, and renamed. A `make` that fails leaves nothing but its log.
///
/// # Errors
/// What `make` says, or the file system.
pub(crate) fn product(
    kind: &str,
    inputs: Inputs,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    product_in(&root()?, kind, inputs, Check::Sizes, make)
}

/// As [`product`], of a folder that is large, or changed by its users: it is made once, and not looked into afterwards.
///
/// # Errors
/// As [`product`].
pub(crate) fn folder(
    kind: &str,
    inputs: Inputs,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    product_in(&root()?, kind, inputs, Check::Presence, make)
}

fn product_in(
    root: &Path,
    kind: &str,
    inputs: Inputs,
    check: Check,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    fs::create_dir_all(root).with_context(|| format!("cannot create {}", root.display()))?;
    let name = format!("{kind}-{}", inputs.finish());
    let folder = root.join(&name);
    let is_whole = || match check {
        Check::Presence => Ok(folder.is_dir()),
        Check::Sizes => is_as_noted(&folder, &root.join(format!("{name}.manifest"))),
    };
    if is_whole()? {
        return Ok(folder);
    }
    let lock = fs::File::create(root.join(format!("{name}.lock")))?;
    if lock.try_lock().is_err() {
        shell::step(format!("waiting for another build, which makes {name}"));
        lock.lock().context("cannot lock the cache")?;
    }
    if is_whole()? {
        return Ok(folder);
    }
    let unfinished = root.join(format!("{name}.unfinished"));
    for old in [&unfinished, &folder] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("cannot remove {}", old.display()))?;
        }
    }
    fs::create_dir_all(&unfinished)?;
    shell::step(format!("making {name} (kept in {})", root.display()));
    if let Err(error) = make(&unfinished) {
        let log = keep_log(&unfinished, &root.join(format!("{name}.log")));
        let _ = fs::remove_dir_all(&unfinished);
        return Err(match log {
            Some(log) => error.context(format!("the log is {}", log.display())),
            None => error,
        });
    }
    if check == Check::Sizes {
        let manifest = root.join(format!("{name}.manifest"));
        fs::write(&manifest, manifest_of(&unfinished)?)
            .with_context(|| format!("cannot write {}", manifest.display()))?;
    }
    // A folder that has its name is on the disk, whatever ends the machine.
    nix::unistd::syncfs(fs::File::open(&unfinished)?)?;
    fs::rename(&unfinished, &folder)?;
    Ok(folder)
}

/// Whether a product is there and has the files that its manifest names. One without a manifest, which an older version made, is taken
/// as it is, and gets one. What not everybody may read, because of the umask under which it was made, is made readable.
fn is_as_noted(folder: &Path, manifest: &Path) -> Result<bool> {
    if !folder.is_dir() {
        return Ok(false);
    }
    let found = manifest_of(folder)?;
    match fs::read_to_string(manifest) {
        Ok(noted) if noted == found => Ok(true),
        Ok(_) => {
            shell::step(format!(
                "{} is not as it was made, and is made anew",
                folder.display()
            ));
            Ok(false)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            fs::write(manifest, found)?;
            Ok(true)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", manifest.display())),
    }
}

/// The files in a folder, each with its size: a line each, sorted. All of it is made readable for everybody.
fn manifest_of(folder: &Path) -> Result<String> {
    let mut lines = Vec::new();
    note_files(folder, folder, &mut lines)
        .with_context(|| format!("cannot look through {}", folder.display()))?;
    lines.sort();
    Ok(lines.concat())
}

fn note_files(root: &Path, folder: &Path, lines: &mut Vec<String>) -> std::io::Result<()> {
    make_readable(folder, 0o555)?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        let kind = entry.file_type()?;
        if kind.is_dir() {
            note_files(root, &path, lines)?;
            continue;
        }
        if kind.is_file() {
            make_readable(&path, 0o444)?;
        }
        let name = path.strip_prefix(root).unwrap_or(&path);
        lines.push(format!("{} {}\n", entry.metadata()?.len(), name.display()));
    }
    Ok(())
}

/// Adds these permissions where they are missing.
fn make_readable(path: &Path, permissions: u32) -> std::io::Result<()> {
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & permissions == permissions {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode | permissions))
}

/// Keeps the log of a build that failed.
fn keep_log(unfinished: &Path, kept: &Path) -> Option<PathBuf> {
    LOGS.iter()
        .any(|name| fs::rename(unfinished.join(name), kept).is_ok())
        .then(|| kept.to_owned())
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

    fn make(root: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let inputs = Inputs::default().text("a", "b");
        product_in(root, "thing", inputs, Check::Sizes, make)
    }

    fn write(folder: &Path) -> Result<()> {
        fs::create_dir(folder.join("in"))?;
        Ok(fs::write(folder.join("in/file"), "whole")?)
    }

    #[test]
    fn file_that_was_cut_short_or_lost_is_made_anew() {
        let root = tempfile::tempdir().unwrap();
        let folder = make(root.path(), write).unwrap();
        assert_eq!(make(root.path(), |_| bail!("again")).unwrap(), folder);
        fs::write(folder.join("in/file"), "who").unwrap();
        make(root.path(), write).unwrap();
        assert_eq!(fs::read(folder.join("in/file")).unwrap(), b"whole");
        fs::remove_file(folder.join("in/file")).unwrap();
        make(root.path(), write).unwrap();
        assert_eq!(fs::read(folder.join("in/file")).unwrap(), b"whole");
    }

    #[test]
    fn folder_without_a_manifest_is_taken_as_it_is_and_gets_one() {
        let root = tempfile::tempdir().unwrap();
        let folder = make(root.path(), write).unwrap();
        let manifest = PathBuf::from(format!("{}.manifest", folder.display()));
        let noted = fs::read_to_string(&manifest).unwrap();
        assert_eq!(noted, "5 in/file\n");
        fs::remove_file(&manifest).unwrap();
        assert_eq!(make(root.path(), |_| bail!("again")).unwrap(), folder);
        assert_eq!(fs::read_to_string(&manifest).unwrap(), noted);
    }

    #[test]
    fn build_that_fails_leaves_its_log_alone() {
        let root = tempfile::tempdir().unwrap();
        let error = make(root.path(), |folder| {
            fs::write(folder.join("build.log"), "why")?;
            fs::write(folder.join("half"), "")?;
            bail!("no")
        });
        let error = format!("{:#}", error.unwrap_err());
        let mut names: Vec<String> = fs::read_dir(root.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert!(names[0].ends_with(".lock") && names[1].ends_with(".log"));
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(error.contains(&names[1]) && error.contains("no"), "{error}");
        let folder = make(root.path(), write).unwrap();
        assert!(folder.join("in/file").exists());
    }

    #[test]
    fn product_of_a_narrow_umask_is_readable_all_the_same() {
        let root = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let narrow = |folder: &Path| {
            write(folder)?;
            let file = folder.join("in/file");
            fs::set_permissions(file, fs::Permissions::from_mode(0o600))?;
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
            Ok(())
        };
        let folder = make(root.path(), narrow).unwrap();
        assert_eq!(mode(&folder), 0o755);
        assert_eq!(mode(&folder.join("in/file")), 0o644);
        // So is one that an older version left.
        let file = folder.join("in/file");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        make(root.path(), |_| bail!("again")).unwrap();
        assert_eq!(mode(&file), 0o644);
    }
}
