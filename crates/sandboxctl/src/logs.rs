//! What a container wrote: kept by its attendant in the container's folder, and shown by `sandboxctl logs`.

mod encode;
mod reader;
mod show;
mod writer;

use serde::{Deserialize, Serialize};

pub(crate) use show::logs;
pub(crate) use writer::{Log, LogStream};

/// The file of a container's log; older ones have `.1`, `.2`… behind it.
const FILE: &str = "container.log";

/// How a container's output is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogOptions {
    /// `--log-driver`.
    pub(crate) driver: LogDriver,
    /// When a file has this many bytes the next one is begun.
    pub(crate) max_size: u64,
    /// How many files there are at most.
    pub(crate) max_file: u32,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            driver: LogDriver::JsonFile,
            max_size: 16 << 20,
            max_file: 2,
        }
    }
}

/// What keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogDriver {
    /// A file with a JSON object a line, as docker's
    JsonFile,
    /// Nothing
    None,
}

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry<'a> {
    /// With its newline, unless the line is longer than an entry or the stream ended without one.
    log: std::borrow::Cow<'a, str>,
    /// `stdout` or `stderr`.
    stream: std::borrow::Cow<'a, str>,
    /// RFC 3339, in UTC, with nanoseconds.
    time: std::borrow::Cow<'a, str>,
}
