//! Bounds on what either side takes from the other.

use std::time::Duration;

/// The largest framed message (events, stream headers), in bytes.
pub const MAX_FRAME_BYTES: usize = 64 * 1024;
/// The largest question to, or answer of, the resolver on the host, in bytes: it travels in a frame.
pub const MAX_RESOLVER_MESSAGE_BYTES: usize = 60 * 1024;
/// How many questions to it may be without an answer at the same time; more are not answered.
pub const MAX_RESOLVER_QUERIES: usize = 256;
/// The largest ttrpc message that the host accepts from an agent, in bytes (ttrpc's own limit is 4 MiB). A longer one ends the
/// connection.
pub const MAX_REPLY_BYTES: usize = 1024 * 1024;
/// The most mounts of a guest that stay when their container goes.
pub const MAX_LASTING_MOUNTS: usize = 256;
/// How long the host waits for an answer to a control call that does no work worth mentioning.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the host waits for what is only looked at: statistics and lists of processes. Engines ask for those of all containers of a
/// host one after the other, and for a list before they serve anybody again.
pub const LOOK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the host waits for a container to be created or started. Emulated guests are slow.
pub const CREATE_TIMEOUT: Duration = Duration::from_secs(120);
