//! Where things are copied from and to.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

/// Why two places cannot be copied between.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlaceError {
    #[error("cannot copy from one container to another; copy to this host in between")]
    BetweenContainers,
    #[error("neither place is in a container; write CONTAINER:PATH for one of them")]
    NoContainer,
}

/// One place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// `-`: a tar archive.
    Stream,
    Local(PathBuf),
    Container {
        name: String,
        path: String,
    },
}

impl Place {
    /// `-`, `CONTAINER:PATH`, or a path of this host: one that begins with `/` or `.`, or has no colon.
    pub(super) fn parse(text: &str) -> Self {
        if text == "-" {
            return Self::Stream;
        }
        match text.split_once(':') {
            Some((name, path)) if !text.starts_with(['/', '.']) && !name.is_empty() => {
                Self::Container {
                    name: name.to_owned(),
                    path: path.to_owned(),
                }
            }
            _ => Self::Local(PathBuf::from(text)),
        }
    }
}

/// A path in the container: a relative one is below its root (docker). What it ends in stays, for it has a
/// meaning.
pub(super) fn inside(path: &str) -> String {
    if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    }
}

/// `FOLDER/.` asks for what is in the folder.
pub(super) fn asks_for_contents(path: &str) -> bool {
    path == "." || path.ends_with("/.")
}

/// What the archive of a path in the container is called, by the agent's rule (`programs::archive`): by its last
/// component; none for `.`, which stands for what has no name, such as the root.
pub(super) fn name(path: &str) -> Option<&OsStr> {
    match Path::new(path).components().next_back() {
        Some(Component::Normal(name)) => Some(name),
        _ => None,
    }
}

/// The folder of a path, and its last name; none for one that has no name.
pub(super) fn split(path: &str) -> Option<(String, String)> {
    let bare = path.trim_end_matches('/');
    let (folder, name) = bare.rsplit_once('/')?;
    if matches!(name, "" | "." | "..") {
        return None;
    }
    let folder = if folder.is_empty() { "/" } else { folder };
    Some((folder.to_owned(), name.to_owned()))
}

/// Where the symbolic link at `path` in the container leads to.
pub(super) fn followed(path: &str, target: &str) -> String {
    if target.starts_with('/') {
        return target.to_owned();
    }
    let bare = path.trim_end_matches("/.").trim_end_matches('/');
    let folder = bare.rsplit_once('/').map_or("", |(folder, _)| folder);
    format!("{folder}/{target}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_is_dockers() {
        let container = |name: &str, path: &str| Place::Container {
            name: name.to_owned(),
            path: path.to_owned(),
        };
        assert_eq!(Place::parse("-"), Place::Stream);
        assert_eq!(
            Place::parse("web:/etc/hosts"),
            container("web", "/etc/hosts")
        );
        assert_eq!(Place::parse("web:a:b"), container("web", "a:b"));
        for local in ["a", "/a:b", "./a:b", "../a:b", ":a"] {
            assert_eq!(Place::parse(local), Place::Local(local.into()), "{local}");
        }
    }

    #[test]
    fn archive_has_the_last_name() {
        for path in ["/a/f", "/f/", "/a/f/.", "//f"] {
            assert_eq!(name(path), Some(OsStr::new("f")), "{path}");
        }
        for path in ["/", "/.", "/a/..", "/a/../"] {
            assert_eq!(name(path), None, "{path}");
        }
    }

    #[test]
    fn paths_keep_what_they_mean() {
        assert_eq!(inside("etc/"), "/etc/");
        assert!(asks_for_contents("/a/.") && asks_for_contents(".") && !asks_for_contents("/a."));
        let split = |path: &str| split(path).unwrap();
        assert_eq!(split("/a/b/"), ("/a".to_owned(), "b".to_owned()));
        assert_eq!(split("/a"), ("/".to_owned(), "a".to_owned()));
        assert_eq!(super::split("/"), None);
        assert_eq!(super::split("/a/.."), None);
        assert_eq!(followed("/a/b", "c"), "/a/c");
        assert_eq!(followed("/a/b/", "../c"), "/a/../c");
        assert_eq!(followed("/a", "/x"), "/x");
    }
}
