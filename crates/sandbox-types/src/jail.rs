//! What the runtime tells a program that is to jail itself, or to jail another and become it.
//!
//! The description is JSON on a descriptor that the command line names. The program is in a process namespace of its own
//! already: whoever starts it makes that.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Everything that a process is to give up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailConfig {
    /// The user and, with the same number, the only group that it becomes. Without one it stays who it is.
    pub user: Option<u32>,
    /// The root that it gets, with namespaces of its own for mounts and network, and Landlock. Without one it keeps
    /// its root, for programs that make a root of their own.
    pub root: Option<JailRoot>,
    /// It has begun in a network namespace that is for it, and stays there.
    pub keeps_network: bool,
    /// The capabilities that it may still have, a bit each (capabilities(7)). A process with a [`Self::user`] has none
    /// of its own; for another they are the most that it can ever have.
    pub capabilities: u64,
    /// What it may use.
    pub limits: JailLimits,
    /// A descriptor of the process whose end must be its own (pidfd_open(2)).
    pub parent_fd: i32,
    /// The descriptors that it keeps, beside the standard three.
    pub keep_fds: Vec<i32>,
}

/// A root in which nothing is but what is named: a read-only tmpfs with read-only mounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailRoot {
    /// An empty folder of the host's over which it is made; nobody else sees it there.
    pub place: PathBuf,
    /// What of the host's is in it.
    pub mounts: Vec<JailMount>,
    /// Symbolic links in it: where, and to what.
    pub links: Vec<(PathBuf, PathBuf)>,
}

/// A file or folder of the host's in the root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailMount {
    /// Where it is on the host. What is mounted below it does not come along.
    pub source: PathBuf,
    /// Where it is in the root.
    pub target: PathBuf,
    /// What it is for.
    pub access: JailAccess,
}

/// What may be done with what is mounted in a jail's root. No file system can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JailAccess {
    /// Connect to the sockets in it.
    Connect,
    /// Read it.
    Read,
    /// Read and execute it.
    Execute,
    /// Read and write the device that it is.
    Device,
}

/// Resource limits (setrlimit(2)), soft and hard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailLimits {
    /// The highest descriptor, plus one.
    pub open_files: u64,
    /// Processes and threads of the user.
    pub processes: Option<u64>,
    /// The largest file that may be written, in bytes.
    pub file_bytes: Option<u64>,
}
