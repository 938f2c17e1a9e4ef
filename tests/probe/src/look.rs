//! How looking at something becomes JSON.

use std::fs;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use serde_json::{Value, json};

/// An error by its name: numbers differ between nothing, but names can be read.
pub(crate) fn error(errno: Errno) -> Value {
    json!({ "error": format!("{errno:?}") })
}

/// As [`error`].
pub(crate) fn io_error(error: &io::Error) -> Value {
    match error.raw_os_error() {
        Some(number) => self::error(Errno::from_raw(number)),
        None => json!({ "error": error.to_string() }),
    }
}

/// The value, or the error in its place.
pub(crate) fn or_error<T: Into<Value>>(result: nix::Result<T>) -> Value {
    match result {
        Ok(value) => value.into(),
        Err(errno) => error(errno),
    }
}

/// "ok", or the error.
pub(crate) fn outcome<T>(result: nix::Result<T>) -> Value {
    or_error(result.map(|_| "ok"))
}

/// As [`outcome`].
pub(crate) fn io_outcome<T>(result: io::Result<T>) -> Value {
    match result {
        Ok(_) => "ok".into(),
        Err(error) => io_error(&error),
    }
}

/// The text of a small file without the white space around it, or the error.
pub(crate) fn text(path: impl AsRef<Path>) -> Value {
    match fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes)
            .trim_matches(['\0', '\n', ' ', '\t'])
            .into(),
        Err(error) => io_error(&error),
    }
}

/// The words of a small file, line by line, each line's white space made one space.
pub(crate) fn lines(path: impl AsRef<Path>) -> Value {
    match fs::read_to_string(path) {
        Ok(text) => text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect::<Vec<_>>()
            .into(),
        Err(error) => io_error(&error),
    }
}

/// A member of `/proc/self/status`.
pub(crate) fn status(member: &str) -> Value {
    let Ok(text) = fs::read_to_string("/proc/self/status") else {
        return Value::Null;
    };
    text.lines()
        .find_map(|line| line.strip_prefix(member)?.strip_prefix(':'))
        .map_or(Value::Null, |value| {
            value
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
                .into()
        })
}

/// What a link of `/proc/*/fd` or `/proc/*/ns` points to, without numbers that no two runs have alike.
pub(crate) fn anonymous(target: &Path) -> String {
    let target = target.to_string_lossy();
    match target.split_once(":[") {
        Some((kind, _)) => kind.to_owned(),
        None => target.into_owned(),
    }
}

/// What `each` says of these, `NAME` or `NAME=VALUE`, by their names.
///
/// # Errors
/// The first of `each`'s.
pub(crate) fn named(
    names: &[String],
    each: impl Fn(&str, Option<&str>) -> Result<Value, String>,
) -> Result<Value, String> {
    let mut seen = serde_json::Map::new();
    for name in names {
        let (name, value) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (name.as_str(), None),
        };
        seen.insert(name.to_owned(), each(name, value)?);
    }
    Ok(Value::Object(seen))
}
