//! The files of a container's bundle that are known to more than who makes them.

/// The container's specification (OCI runtime spec, `bundle.md`).
pub const SPEC_FILE: &str = "config.json";
/// What the shim logs. Its caller makes it, as containerd does.
pub const LOG_FILE: &str = "log";
/// Where the shim listens, as it leaves it for containerd 1.x.
pub const ADDRESS_FILE: &str = "address";
/// What the sandbox died of, if it did so unasked: a JSON object with the members `cause`, which is one line, and `console_tail`, the
/// console's last lines.
pub const DEATH_FILE: &str = "death.json";
