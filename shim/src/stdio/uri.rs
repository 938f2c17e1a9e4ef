//! What a stream's URI names (containerd's `core/runtime/v2/README.md`, "Logging").

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// Where a stream goes to, or comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// `fifo://PATH`, or a path alone.
    Fifo(PathBuf),
    /// `file://PATH`: a file that is appended to.
    File(PathBuf),
    /// `binary://PATH?ARGUMENTS`: a program that takes the output.
    Binary {
        /// The program.
        program: PathBuf,
        /// Its arguments: the names and values of the query, in order.
        arguments: Vec<OsString>,
    },
}

fn decoded(text: &str) -> OsString {
    OsString::from_vec(percent_encoding::percent_decode_str(text).collect())
}

/// Decodes one word of a query, in which a plus is a space.
fn decoded_word(text: &str) -> OsString {
    decoded(&text.replace('+', " "))
}

impl Target {
    /// `None` for a scheme that is not known, or a path that is not absolute.
    pub(crate) fn parse(uri: &str) -> Option<Self> {
        let Some((scheme, rest)) = uri.split_once("://") else {
            return Some(Self::Fifo(PathBuf::from(uri)));
        };
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = PathBuf::from(decoded(path));
        if !path.is_absolute() {
            return None;
        }
        match scheme {
            "fifo" => Some(Self::Fifo(path)),
            "file" => Some(Self::File(path)),
            "binary" => Some(Self::Binary {
                program: path,
                arguments: query
                    .split('&')
                    .filter(|pair| !pair.is_empty())
                    .flat_map(|pair| {
                        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                        let value = (!value.is_empty()).then(|| decoded_word(value));
                        std::iter::once(decoded_word(name)).chain(value)
                    })
                    .collect(),
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn target_is_told_by_the_scheme() {
        assert_eq!(Target::parse("/a/b"), Some(Target::Fifo("/a/b".into())));
        assert_eq!(
            Target::parse("fifo:///a%20b"),
            Some(Target::Fifo("/a b".into()))
        );
        assert_eq!(
            Target::parse("file:///var/log/x"),
            Some(Target::File("/var/log/x".into()))
        );
        assert_eq!(
            Target::parse("binary:///bin/logger?id=7&flag&to=a%26b+c"),
            Some(Target::Binary {
                program: "/bin/logger".into(),
                arguments: ["id", "7", "flag", "to", "a&b c"]
                    .map(OsString::from)
                    .to_vec(),
            })
        );
        for uri in ["npipe:///x", "binary://logger", "file://", "http://x/y"] {
            assert_eq!(Target::parse(uri), None, "{uri}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_uris_never_panic(uri in ".{0,40}") {
            let _ = Target::parse(&uri);
        }
    }
}
