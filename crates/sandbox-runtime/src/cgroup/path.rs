//! Where a specification wants a control group (OCI runtime spec, "Cgroups Path").

use std::path::{Path, PathBuf};

/// What a slice's name ends with (systemd.slice(5)).
const SLICE: &str = ".slice";
/// The slice of whoever names none (runc's default, for root).
const DEFAULT_SLICE: &str = "system.slice";

/// A place for a control group that cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`linux.cgroupsPath` is {path:?}: {problem}")]
pub struct CgroupPathError {
    path: String,
    problem: &'static str,
}

/// The place of a control group below the root of each hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupPath {
    folder: PathBuf,
    name: String,
    is_of_systemd: bool,
}

impl CgroupPath {
    /// Reads `linux.cgroupsPath`: `/a/b/c`, or systemd's `SLICE:PREFIX:NAME`, which is
    /// the scope `PREFIX-NAME.scope` in the slice.
    ///
    /// # Errors
    /// [`CgroupPathError`] says what is wrong.
    pub fn parse(text: &str) -> Result<Self, CgroupPathError> {
        let parts: Vec<&str> = text.split(':').collect();
        let parsed = match parts.as_slice() {
            [slice, prefix, name] if !text.starts_with('/') => Self::of_unit(slice, prefix, name),
            _ => Self::of_folder(text),
        };
        parsed.map_err(|problem| CgroupPathError {
            path: text.to_owned(),
            problem,
        })
    }

    fn of_folder(text: &str) -> Result<Self, &'static str> {
        let mut folder = PathBuf::new();
        let mut last = None;
        for component in text.split('/') {
            match component {
                "" | "." => continue,
                ".." => return Err("a control group has no `..` in its path"),
                _ if component.contains('\0') => return Err("a path has no NUL in it"),
                _ => {}
            }
            folder.extend(last.replace(component));
        }
        let name = last.ok_or("the root is nobody's own")?;
        Ok(Self {
            folder,
            name: name.to_owned(),
            is_of_systemd: false,
        })
    }

    fn of_unit(slice: &str, prefix: &str, name: &str) -> Result<Self, &'static str> {
        let is_name = |text: &str| !text.contains(['/', '\0']);
        if name.is_empty() || !is_name(name) || !is_name(prefix) || name.ends_with(SLICE) {
            return Err("`SLICE:PREFIX:NAME` is to name a scope");
        }
        let slice = if slice.is_empty() {
            DEFAULT_SLICE
        } else {
            slice
        };
        let scope = match prefix {
            "" => format!("{name}.scope"),
            _ => format!("{prefix}-{name}.scope"),
        };
        Ok(Self {
            folder: expand(slice).ok_or("`SLICE:PREFIX:NAME` begins with the name of a slice")?,
            name: scope,
            is_of_systemd: true,
        })
    }

    /// The group that it is to be in; empty for the root.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The whole of it.
    pub(super) fn path(&self) -> PathBuf {
        self.folder.join(&self.name)
    }

    /// Whether its folder is a slice, which is systemd's to make.
    pub(super) fn is_of_systemd(&self) -> bool {
        self.is_of_systemd
    }
}

impl std::fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "/{}", self.path().display())
    }
}

/// Where systemd has a slice: `a-b.slice` is `a.slice/a-b.slice`, and `-.slice` the root.
fn expand(slice: &str) -> Option<PathBuf> {
    let name = slice.strip_suffix(SLICE)?;
    let mut path = PathBuf::new();
    if name == "-" {
        return Some(path);
    }
    let mut prefix = String::new();
    for part in name.split('-') {
        if part.is_empty() || part.contains(['/', '\0']) {
            return None;
        }
        prefix.push_str(part);
        path.push(format!("{prefix}{SLICE}"));
        prefix.push('-');
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> PathBuf {
        CgroupPath::parse(text).unwrap().path()
    }

    #[test]
    fn both_forms_are_read() {
        assert_eq!(path("/default/c1"), Path::new("default/c1"));
        assert_eq!(path("kubepods//x/./c:1"), Path::new("kubepods/x/c:1"));
        assert_eq!(path("/a:b:c"), Path::new("a:b:c"));
        assert_eq!(
            path("kubepods-besteffort-pod1_2.slice:cri-containerd:abc"),
            Path::new(
                "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice/cri-containerd-abc.scope"
            )
        );
        assert_eq!(
            path(":docker:abc"),
            Path::new("system.slice/docker-abc.scope")
        );
        assert_eq!(path("-.slice::abc"), Path::new("abc.scope"));
    }

    #[test]
    fn what_leads_elsewhere_is_refused_by_its_field() {
        for text in [
            "",
            "/",
            "/a/../b",
            "..",
            "/a\0b",
            "a/b.slice:x:y",
            "../a.slice:x:y",
            "a--b.slice:x:y",
            "-a.slice:x:y",
            "a:x:y",
            "a.slice:x:",
            "a.slice:../x:y",
            "a.slice:x:../y",
            "a.slice:x:y.slice",
        ] {
            let error = CgroupPath::parse(text).unwrap_err().to_string();
            assert!(error.starts_with("`linux.cgroupsPath`"), "{error}");
        }
    }
}
