//! Identifiers of sandboxes, containers and exec'd processes.
//!
//! All three follow containerd's identifier grammar (`pkg/identifiers`): 1 to 76 characters, alphanumeric
//! runs joined by single `.`, `_` or `-`. Such a name cannot be `.`, `..` or hold a `/`, so it is safe as one
//! component of a path.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest identifier, in characters (containerd `pkg/identifiers`).
pub const MAX_ID_LEN: usize = 76;

/// Why a string is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The string is empty.
    #[error("an identifier cannot be empty")]
    Empty,
    /// The string is longer than [`MAX_ID_LEN`].
    #[error("an identifier has at most {MAX_ID_LEN} characters, this one has {len}")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// The string does not match the grammar.
    #[error("identifier {id:?} must be letters and digits joined by single '.', '_' or '-'")]
    Malformed {
        /// The string.
        id: String,
    },
}

fn check(id: &str) -> Result<(), IdError> {
    if id.is_empty() {
        return Err(IdError::Empty);
    }
    if id.len() > MAX_ID_LEN {
        return Err(IdError::TooLong { len: id.len() });
    }
    let well_formed = id
        .split(['.', '_', '-'])
        .all(|run| !run.is_empty() && run.bytes().all(|b| b.is_ascii_alphanumeric()));
    if well_formed {
        Ok(())
    } else {
        Err(IdError::Malformed { id: id.to_owned() })
    }
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Takes `id` if it follows the grammar.
            ///
            /// # Errors
            /// [`IdError`] says which rule it breaks.
            pub fn new(id: impl Into<String>) -> Result<Self, IdError> {
                let id = id.into();
                check(&id)?;
                Ok(Self(id))
            }

            /// The identifier as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(s: &str) -> Result<Self, IdError> {
                Self::new(s)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(s: String) -> Result<Self, IdError> {
                Self::new(s)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    };
}

identifier! {
    /// A pod: one virtual machine.
    SandboxId
}
identifier! {
    /// A container inside a pod.
    ContainerId
}
identifier! {
    /// A process added to a running container.
    ExecId
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn id_with_path_meaning_is_refused() {
        for id in ["", ".", "..", "a/b", "-a", "a-", "a..b", "a\0", "a b", "ä"] {
            assert!(ContainerId::new(id).is_err(), "{id:?}");
        }
    }

    #[test]
    fn id_longer_than_limit_is_refused() {
        assert!(ContainerId::new("a".repeat(MAX_ID_LEN)).is_ok());
        assert_eq!(
            ContainerId::new("a".repeat(MAX_ID_LEN + 1)),
            Err(IdError::TooLong {
                len: MAX_ID_LEN + 1
            })
        );
    }

    proptest! {
        #[test]
        fn id_that_is_taken_is_one_path_component(id in "\\PC{0,90}") {
            if let Ok(id) = SandboxId::new(id) {
                let path = std::path::Path::new(id.as_str());
                prop_assert_eq!(path.components().count(), 1);
                prop_assert_eq!(path.file_name().and_then(|n| n.to_str()), Some(id.as_str()));
            }
        }
    }
}
