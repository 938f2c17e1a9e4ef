//! Things to attempt, each reported with what became of it.

pub(crate) mod io_uring;

use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use serde_json::{Value, json};

use crate::look;

/// Attempts each of these, `NAME` or `NAME=VALUE`.
///
/// # Errors
/// When nothing is called so, or a value is wrong.
pub(crate) fn report(names: &[String]) -> Result<Value, String> {
    look::named(names, attempt)
}

fn attempt(name: &str, value: Option<&str>) -> Result<Value, String> {
    Ok(match (name, value) {
        ("clock", None) => json!({ "unix_time_ns": unix_time_ns() }),
        ("entropy", None) => entropy(),
        ("vsock", None) => vsock(),
        ("memory", Some(mib)) => memory(mib.parse().map_err(|_| "memory=MIB")?),
        _ => {
            return Err(format!(
                "there is no attempt {name:?} with the value {value:?}"
            ));
        }
    })
}

fn unix_time_ns() -> Option<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(now.as_nanos()).ok()
}

/// Random bytes without waiting for them (getrandom(2)), twice: they come at once, and differ.
#[expect(unsafe_code, reason = "getrandom(2) writes to memory that it is given")]
fn entropy() -> Value {
    let bytes = || {
        let mut bytes = [0u8; 32];
        // SAFETY: the kernel writes at most `len` bytes to `bytes`, which lives through the call.
        let length =
            unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), libc::GRND_NONBLOCK) };
        Errno::result(length).map(|length| (length, bytes))
    };
    match (bytes(), bytes()) {
        (Ok((32, first)), Ok((32, second))) => json!({
            "bytes": first.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
            "differ": first != second,
        }),
        (Err(errno), _) | (_, Err(errno)) => look::error(errno),
        _ => json!({ "error": "fewer bytes than asked for" }),
    }
}

/// A socket to the host's ports: by the system call, and by io_uring, which no system call filter sees.
fn vsock() -> Value {
    let by_call = socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::empty(),
        None,
    );
    json!({
        "socket": look::outcome(by_call),
        "io_uring": match io_uring::socket(libc::AF_VSOCK) {
            Ok(()) => "ok".into(),
            Err((step, errno)) => json!({ "step": step, "error": format!("{errno:?}") }),
        },
        // The same way to a socket that is allowed: without it, a refusal above would say nothing.
        "io_uring_unix": match io_uring::socket(libc::AF_UNIX) {
            Ok(()) => "ok".into(),
            Err((step, errno)) => json!({ "step": step, "error": format!("{errno:?}") }),
        },
    })
}

/// Uses this much memory, page by page.
fn memory(mib: usize) -> Value {
    let mut block = vec![0u8; mib << 20];
    for page in block.iter_mut().step_by(4096) {
        *page = 1;
    }
    json!({ "used_mib": mib, "sum": block.iter().map(|byte| u64::from(*byte)).sum::<u64>() })
}
