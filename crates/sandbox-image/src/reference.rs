//! Names of images, in the form that people know from `docker run`.
//!
//! Grammar: `[registry/]repository[:tag][@digest]`, or an image ID (`sha256:…`, or at least four of its
//! hexadecimal digits). A name without a registry belongs to `docker.io`, there a repository of one
//! component to `library/`; a name without tag and digest means `latest`. The first component is a registry
//! if it holds a `.` or a `:` or is `localhost` (distribution's `reference` package, `splitDockerDomain`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, DigestError};

/// The longest repository name with its registry (distribution `reference.NameTotalLengthMax`).
pub(crate) const MAX_NAME_LEN: usize = 255;
/// The longest tag (distribution `reference.TagRegexp`).
pub(crate) const MAX_TAG_LEN: usize = 128;
/// The fewest hexadecimal digits that are looked up as the beginning of an image ID.
pub(crate) const MIN_ID_PREFIX: usize = 4;

const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";

/// Why a string is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing was given.
    #[error("an image name cannot be empty")]
    Empty,
    /// The name is too long.
    #[error("image name {text:?} is longer than {MAX_NAME_LEN} characters")]
    TooLong {
        /// What was given.
        text: String,
    },
    /// The repository has a character or a separator where none can be.
    #[error(
        "image name {text:?} is malformed at {part:?}: use lower-case letters and digits, joined by '.', '_', '__' or '-', components parted by '/'"
    )]
    Repository {
        /// What was given.
        text: String,
        /// The component that is wrong.
        part: String,
    },
    /// The registry is not `host[:port]`.
    #[error("image name {text:?} has a malformed registry {registry:?}")]
    Registry {
        /// What was given.
        text: String,
        /// The part before the first slash.
        registry: String,
    },
    /// The tag has a wrong character or length.
    #[error(
        "image name {text:?} has a malformed tag {tag:?}: use up to {MAX_TAG_LEN} letters, digits, '_', '.' and '-', not beginning with '.' or '-'"
    )]
    Tag {
        /// What was given.
        text: String,
        /// The part after the colon.
        tag: String,
    },
    /// The digest is not one.
    #[error("image name {text:?} has a malformed digest")]
    Digest {
        /// What was given.
        text: String,
        /// Why.
        source: DigestError,
    },
}

/// What a person calls an image. See the module's documentation for the grammar.
///
/// Two are equal if they name the same: `demo` and `docker.io/library/demo:latest` are.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Named {
        registry: String,
        repository: String,
        tag: Option<String>,
        digest: Option<Digest>,
        /// The text, if it could also be the beginning of an image ID.
        id_prefix: Option<String>,
    },
    Id(Digest),
}

impl Reference {
    /// The registry, repository and tag in full, `docker.io/library/demo:latest`; `None` for an image ID.
    ///
    /// A reference by name and digest without a tag is given as `:latest` too.
    #[must_use]
    pub fn canonical(&self) -> Option<String> {
        match &self.kind {
            Kind::Named {
                registry,
                repository,
                tag,
                ..
            } => {
                let tag = tag.as_deref().unwrap_or(DEFAULT_TAG);
                Some(format!("{registry}/{repository}:{tag}"))
            }
            Kind::Id(_) => None,
        }
    }

    /// The registry and repository, `docker.io/library/demo`; `None` for an image ID.
    #[must_use]
    pub fn repository(&self) -> Option<String> {
        match &self.kind {
            Kind::Named {
                registry,
                repository,
                ..
            } => Some(format!("{registry}/{repository}")),
            Kind::Id(_) => None,
        }
    }

    /// The registry, and the repository's path in it: `docker.io` and `library/demo`; `None` for an image ID.
    #[must_use]
    pub fn registry_and_path(&self) -> Option<(&str, &str)> {
        match &self.kind {
            Kind::Named {
                registry,
                repository,
                ..
            } => Some((registry, repository)),
            Kind::Id(_) => None,
        }
    }

    /// The tag, or the one that stands for none; `None` for an image ID.
    #[must_use]
    pub(crate) fn tag_or_default(&self) -> Option<&str> {
        match &self.kind {
            Kind::Named { tag, .. } => Some(tag.as_deref().unwrap_or(DEFAULT_TAG)),
            Kind::Id(_) => None,
        }
    }

    /// The name in full under which a pulled image is kept: as [`Self::canonical`], but with the digest alone where there is one
    /// and no tag, so that `x@sha256:…` does not become `x:latest`.
    #[must_use]
    pub(crate) fn pulled_name(&self) -> Option<String> {
        match &self.kind {
            Kind::Named {
                registry,
                repository,
                tag: None,
                digest: Some(digest),
                ..
            } => Some(format!("{registry}/{repository}@{digest}")),
            _ => self.canonical(),
        }
    }

    /// The tag that was given; `None` where it was left out.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        match &self.kind {
            Kind::Named { tag, .. } => tag.as_deref(),
            Kind::Id(_) => None,
        }
    }

    /// The name as people write it, without tag and digest: `demo` for `docker.io/library/demo`. `None` for an image ID.
    #[must_use]
    pub fn short_repository(&self) -> Option<String> {
        self.registry_and_path()
            .map(|(registry, repository)| short_name(registry, repository))
    }

    /// The digest that was given: of a name with a digest, or the whole image ID.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        match &self.kind {
            Kind::Named { digest, .. } => *digest,
            Kind::Id(digest) => Some(*digest),
        }
    }

    /// The text as the beginning of an image ID, if it can be one.
    #[must_use]
    pub(crate) fn id_prefix(&self) -> Option<&str> {
        match &self.kind {
            Kind::Named { id_prefix, .. } => id_prefix.as_deref(),
            Kind::Id(_) => None,
        }
    }

    /// The same, but never looked up as the beginning of an image ID.
    #[must_use]
    pub fn as_name_only(&self) -> Self {
        let mut only = self.clone();
        if let Kind::Named { id_prefix, .. } = &mut only.kind {
            *id_prefix = None;
        }
        only
    }
}

impl PartialEq for Reference {
    fn eq(&self, other: &Self) -> bool {
        self.canonical() == other.canonical() && self.digest() == other.digest()
    }
}

impl Eq for Reference {}

impl fmt::Display for Reference {
    /// The short form: `demo:latest` for `docker.io/library/demo:latest`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Id(digest) => digest.fmt(f),
            Kind::Named {
                registry,
                repository,
                tag,
                digest,
                ..
            } => {
                f.write_str(&short_name(registry, repository))?;
                match (tag, digest) {
                    (Some(tag), _) => write!(f, ":{tag}")?,
                    (None, None) => write!(f, ":{DEFAULT_TAG}")?,
                    (None, Some(_)) => {}
                }
                digest.map_or(Ok(()), |digest| write!(f, "@{digest}"))
            }
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let owned = || text.to_owned();
        if let Ok(digest) = text.parse::<Digest>() {
            return Ok(Self {
                kind: Kind::Id(digest),
            });
        }
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => {
                let digest = digest.parse().map_err(|source| ReferenceError::Digest {
                    text: owned(),
                    source,
                })?;
                (rest, Some(digest))
            }
        };
        // A colon before the last slash is a registry's port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if name.len() > MAX_NAME_LEN {
            return Err(ReferenceError::TooLong { text: owned() });
        }
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Tag {
                text: owned(),
                tag: tag.to_owned(),
            });
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, path)) if names_registry(first) => {
                if !is_registry(first) {
                    return Err(ReferenceError::Registry {
                        text: owned(),
                        registry: first.to_owned(),
                    });
                }
                (
                    if first == "index.docker.io" {
                        DEFAULT_REGISTRY
                    } else {
                        first
                    },
                    path,
                )
            }
            _ => (DEFAULT_REGISTRY, name),
        };
        if let Some(part) = path.split('/').find(|part| !is_component(part)) {
            return Err(ReferenceError::Repository {
                text: owned(),
                part: part.to_owned(),
            });
        }
        let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        Ok(Self {
            kind: Kind::Named {
                registry: registry.to_owned(),
                repository,
                tag: tag.map(str::to_owned),
                digest,
                id_prefix: is_id_prefix(text).then(owned),
            },
        })
    }
}

impl TryFrom<String> for Reference {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Self, ReferenceError> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

fn is_id_prefix(text: &str) -> bool {
    (MIN_ID_PREFIX..=64).contains(&text.len())
        && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_tag(tag: &str) -> bool {
    (1..=MAX_TAG_LEN).contains(&tag.len())
        && !tag.starts_with(['.', '-'])
        && tag
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// Registry and repository without what is understood, unless the rest would be read as another registry's, or with its tag as a digest.
fn short_name(registry: &str, repository: &str) -> String {
    let short = repository
        .strip_prefix("library/")
        .filter(|rest| !rest.contains('/'))
        .unwrap_or(repository);
    let is_misread = match short.split_once('/') {
        Some((first, _)) => names_registry(first),
        None => short == DIGEST_ALGORITHM,
    };
    if registry == DEFAULT_REGISTRY && !is_misread {
        short.to_owned()
    } else {
        format!("{registry}/{repository}")
    }
}

/// What a [`Digest`] begins with.
const DIGEST_ALGORITHM: &str = "sha256";

/// Whether the first of several components is taken for a registry.
fn names_registry(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost"
}

fn is_registry(registry: &str) -> bool {
    let (host, port) = registry.split_once(':').unwrap_or((registry, "0"));
    let host_ok = host.split('.').all(|label| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    });
    host_ok && !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit())
}

/// One component of a repository: runs of `[a-z0-9]` joined by `.`, `_`, `__` or dashes.
fn is_component(part: &str) -> bool {
    let is_alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let ends_ok = bytes.first().is_some_and(|b| is_alphanumeric(*b))
        && bytes.last().is_some_and(|b| is_alphanumeric(*b));
    ends_ok
        && part
            .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(|separator| {
                matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
            })
}

#[cfg(test)]
#[path = "../../../tests/fuzz/corpus.rs"]
mod corpus;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(text: &str) -> String {
        text.parse::<Reference>().unwrap().canonical().unwrap()
    }

    #[test]
    fn short_name_is_normalised_as_docker_does() {
        assert_eq!(canonical("demo"), "docker.io/library/demo:latest");
        assert_eq!(canonical("demo:1"), "docker.io/library/demo:1");
        assert_eq!(canonical("me/demo"), "docker.io/me/demo:latest");
        assert_eq!(canonical("docker.io/demo"), "docker.io/library/demo:latest");
        assert_eq!(
            canonical("index.docker.io/library/demo"),
            "docker.io/library/demo:latest"
        );
        assert_eq!(canonical("localhost/x"), "localhost/x:latest");
        assert_eq!(canonical("localhost:5000/x"), "localhost:5000/x:latest");
        assert_eq!(
            canonical("ghcr.io/a/b__c-d:v1.2_3"),
            "ghcr.io/a/b__c-d:v1.2_3"
        );
    }

    #[test]
    fn display_is_the_short_form() {
        for (text, shown) in [
            ("docker.io/library/demo", "demo:latest"),
            ("docker.io/me/demo:2", "me/demo:2"),
            ("library/sha256:abc", "docker.io/library/sha256:abc"),
            ("ghcr.io/x/y", "ghcr.io/x/y:latest"),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn digest_and_id_forms_are_told_apart() {
        let digest = Digest::of(b"x");
        let id: Reference = digest.to_string().parse().unwrap();
        assert_eq!(id.digest(), Some(digest));
        assert_eq!(id.canonical(), None);
        let named: Reference = format!("demo@{digest}").parse().unwrap();
        assert_eq!(named.digest(), Some(digest));
        assert_eq!(named.repository().unwrap(), "docker.io/library/demo");
        assert_eq!(
            "beef".parse::<Reference>().unwrap().id_prefix(),
            Some("beef")
        );
        assert_eq!("bee".parse::<Reference>().unwrap().id_prefix(), None);
        assert_eq!(
            "beef:latest".parse::<Reference>().unwrap().id_prefix(),
            None
        );
    }

    #[test]
    fn name_only_is_no_beginning_of_an_id() {
        let both: Reference = "beef".parse().unwrap();
        let only = both.as_name_only();
        assert_eq!(only.id_prefix(), None);
        assert_eq!(only, both);
    }

    #[test]
    fn malformed_names_are_refused() {
        for text in [
            "",
            "Demo",
            "a//b",
            "/a",
            "a/",
            "../x",
            "a/../b",
            "demo:",
            "demo:.x",
            "a b",
            "demo@x",
            "a___b",
            "-a",
            "a-",
            "ho_st.x:1/a",
            "x.y:port/a",
            "demo@sha256:00",
            "a\0b",
            "é",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
        assert!("a".repeat(300).parse::<Reference>().is_err());
    }

    /// Found by the fuzz target: shown as an image of another registry.
    #[test]
    fn repository_that_looks_like_a_registry_is_shown_whole() {
        for name in [
            "docker.io/library/registry.example/a:latest",
            "docker.io/registry.example/a:latest",
            "docker.io/localhost/a:latest",
            "docker.io/library/a/b:latest",
        ] {
            let reference: Reference = name.parse().unwrap();
            survives_its_own_display(name);
            let shown = reference.to_string();
            assert!(name.ends_with(&shown), "{name}: {shown}");
        }
        let short: Reference = "docker.io/library/demo".parse().unwrap();
        assert_eq!(short.to_string(), "demo:latest");
    }

    fn survives_its_own_display(text: &str) {
        if let Ok(reference) = text.parse::<Reference>() {
            let shown: Reference = reference.to_string().parse().unwrap();
            assert_eq!(shown.canonical(), reference.canonical());
            assert_eq!(shown.digest(), reference.digest());
        }
    }

    #[test]
    fn corpus_of_the_fuzz_target_survives_its_own_display() {
        let check = |bytes: &[u8]| {
            survives_its_own_display(&String::from_utf8_lossy(bytes));
            Ok(())
        };
        assert_eq!(corpus::replay("reference", 10, check), Ok(()));
    }

    proptest! {
        #[test]
        fn parsed_reference_survives_its_own_display(text in "\\PC{0,40}|[a-z0-9./:@_-]{1,40}") {
            survives_its_own_display(&text);
        }
    }
}
