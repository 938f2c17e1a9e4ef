//! Resource limits (setrlimit(2)).

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sandbox_types::jail::JailLimits;

use crate::JailError;

/// Sets these, and that there is no core file, no locked memory and no POSIX message queue.
///
/// # Errors
/// [`JailError::Limit`].
pub fn set(limits: &JailLimits) -> Result<(), JailError> {
    let all = [
        ("core files", Resource::Core, Some(0)),
        ("locked memory", Resource::Memlock, Some(0)),
        ("message queues", Resource::Msgqueue, Some(0)),
        ("open files", Resource::Nofile, Some(limits.open_files)),
        ("processes", Resource::Nproc, limits.processes),
        ("file sizes", Resource::Fsize, limits.file_bytes),
    ];
    for (what, resource, limit) in all {
        let Some(limit) = limit else { continue };
        let both = Rlimit {
            current: Some(limit),
            maximum: Some(limit),
        };
        setrlimit(resource, both).map_err(|errno| JailError::Limit {
            what,
            source: errno.into(),
        })?;
    }
    Ok(())
}

/// Lets no file become longer than `bytes` by what the process does from now on, nor than it may become already. `SIGXFSZ`, which ends a process that
/// tries, is the caller's to ignore.
///
/// # Errors
/// [`JailError::Limit`].
pub fn lower_file_bytes(bytes: u64) -> Result<(), JailError> {
    let now = getrlimit(Resource::Fsize);
    let lower = |limit: Option<u64>| Some(limit.map_or(bytes, |limit| limit.min(bytes)));
    let lowered = Rlimit {
        current: lower(now.current),
        maximum: lower(now.maximum),
    };
    setrlimit(Resource::Fsize, lowered).map_err(|errno| JailError::Limit {
        what: "file sizes",
        source: errno.into(),
    })
}
