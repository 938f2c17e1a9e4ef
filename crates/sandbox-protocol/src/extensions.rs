//! How a caller of the task service asks for what the OCI runtime spec has no words for. Both sides of the service
//! use these names: `sandboxctl` writes them, the shim understands them. containerd does not know them.

/// Annotation of a container's spec: which program of the agent's own its first process is (`AgentProgram`), one of
/// [`PROGRAM_INIT`], [`PROGRAM_ARCHIVE_READ`], [`PROGRAM_ARCHIVE_WRITE`], [`PROGRAM_PAUSE`].
pub const PROGRAM_ANNOTATION: &str = "dev.sandbox.program";

/// `AGENT_PROGRAM_INIT`.
pub const PROGRAM_INIT: &str = "init";
/// `AGENT_PROGRAM_ARCHIVE_READ`.
pub const PROGRAM_ARCHIVE_READ: &str = "archive-read";
/// `AGENT_PROGRAM_ARCHIVE_WRITE`.
pub const PROGRAM_ARCHIVE_WRITE: &str = "archive-write";
/// `AGENT_PROGRAM_PAUSE`.
pub const PROGRAM_PAUSE: &str = "pause";

/// Type of an exec's spec, in the place of containerd's, when the agent's own program is to run: behind it comes one
/// of the words above. The value is a `process` object in JSON as ever.
pub const EXEC_PROGRAM_TYPE: &str = "types.sandbox.dev/program/";

/// Option of a bind mount of a regular file: it is copied into the guest instead of being shared, so that later
/// changes on either side are not seen on the other. `x-` options are a caller's own (mount(8)).
pub const COPY_OPTION: &str = "x-sandbox.copy";
/// Option of a bind mount of a folder that can be written: while nothing is in it, the container's root is copied into it at that place
/// before the container is made, with owner and mode of the folder there.
pub const FILL_OPTION: &str = "x-sandbox.fill";
/// The folder in such a volume in which the copy is made, and from which it is moved when it is whole. Where it is the only thing, the
/// volume is empty: its copy was cut off.
pub const FILL_FOLDER: &str = ".x-sandbox.fill";
/// The largest file that [`COPY_OPTION`] takes, in bytes.
pub const MAX_COPIED_FILE_BYTES: u64 = 1024 * 1024;
