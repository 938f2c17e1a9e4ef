//! Loops that say how fast the machine is from in here.
//!
//! ```text
//! > sandbox-probe bench compute syscall read=/data/noise
//! < {"compute": {"ns_per_round": 1.9}, "syscall": {"ns": 78.1}, "read": {"first_mib_per_s": …}}
//! ```
//!
//! A loop runs for [`SPAN`], not for a number of rounds, so that an emulated processor is not waited for. The clock is the
//! machine's own.

mod files;
mod memory;
pub(crate) mod network;

use std::hint::black_box;
use std::time::{Duration, Instant};

use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, getppid};
use serde_json::{Value, json};

use crate::attack::raw;
use crate::look;

/// How long each loop runs.
const SPAN: Duration = Duration::from_millis(200);

/// Runs each of these, `NAME` or `NAME=VALUE`.
///
/// # Errors
/// When nothing is called so, or what it needs is not there.
pub(crate) fn report(names: &[String]) -> Result<Value, String> {
    look::named(names, measure)
}

fn measure(name: &str, value: Option<&str>) -> Result<Value, String> {
    Ok(match (name, value) {
        ("compute", None) => json!({ "ns_per_round": compute() }),
        ("syscall", None) => json!({ "ns": system_call() }),
        ("fork", None) => json!({ "us": fork()? }),
        ("round-trip", None) => json!({ "us": round_trip()? }),
        ("bandwidth", None) => memory::bandwidth(),
        ("random", None) => json!({ "ns": memory::random() }),
        ("fault", None) => json!({ "ns_per_page": memory::fault()? }),
        ("read", Some(path)) => files::read(path)?,
        ("block" | "shared-block", Some(path)) => files::block(path)?,
        ("cold", Some(path)) => files::once(path)?,
        ("tree", Some(path)) => files::tree(path)?,
        ("small" | "shared-small", Some(path)) => files::small(path)?,
        _ => {
            return Err(format!(
                "there is no loop {name:?} with the value {value:?}"
            ));
        }
    })
}

/// Calls `batch`, which does so many of something, until [`SPAN`] is over; nanoseconds for one.
fn each(many: u32, mut batch: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut batches = 0u32;
    loop {
        batch();
        batches += 1;
        let spent = start.elapsed();
        if spent >= SPAN {
            return spent.as_secs_f64() * 1e9 / f64::from(batches) / f64::from(many);
        }
    }
}

/// A mebibyte count and a time, as a rate.
fn mib_per_s(bytes: usize, spent: Duration) -> f64 {
    // A block of memory or a file: far below what a u32 of KiB holds.
    let kib = u32::try_from(bytes / 1024).unwrap_or(u32::MAX);
    f64::from(kib) / 1024.0 / spent.as_secs_f64().max(1e-9)
}

/// A pseudo-random number after this one (Marsaglia's xorshift).
fn next(mut state: u64) -> u64 {
    state ^= state << 13;
    state ^= state >> 7;
    state ^ (state << 17)
}

/// Arithmetic in registers, each round waiting for the one before.
fn compute() -> f64 {
    const ROUNDS: u32 = 100_000;
    let mut state = 0x9e37_79b9_7f4a_7c15;
    each(ROUNDS, || {
        for _ in 0..ROUNDS {
            state = next(state);
        }
        state = black_box(state);
    })
}

/// The cheapest system call that the C library does not answer itself.
fn system_call() -> f64 {
    const CALLS: u32 = 1_000;
    each(CALLS, || {
        for _ in 0..CALLS {
            black_box(getppid());
        }
    })
}

/// A byte to another process and back, through a Unix socket; in microseconds.
fn round_trip() -> Result<f64, String> {
    use std::io::{Read as _, Write as _};
    let failed = |error: std::io::Error| format!("cannot speak to another process: {error}");
    let (mut near, mut far) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
    let mut byte = [0u8; 1];
    let child = match raw::fork().map_err(|errno| format!("cannot fork: {errno}"))? {
        ForkResult::Child => {
            drop(near);
            while far.read_exact(&mut byte).is_ok() && far.write_all(&byte).is_ok() {}
            std::process::exit(0);
        }
        ForkResult::Parent { child } => child,
    };
    drop(far);
    let mut problem = None;
    let nanoseconds = each(1, || {
        let back = near
            .write_all(&byte)
            .and_then(|()| near.read_exact(&mut byte));
        problem = back.err().or(problem.take());
    });
    drop(near);
    let _ = waitpid(child, None);
    match problem {
        Some(error) => Err(failed(error)),
        None => Ok(nanoseconds / 1_000.0),
    }
}

/// A process that ends at once, and is waited for; in microseconds.
fn fork() -> Result<f64, String> {
    let mut failed = None;
    let nanoseconds = each(1, || match raw::fork() {
        Ok(ForkResult::Child) => std::process::exit(0),
        Ok(ForkResult::Parent { child }) => failed = waitpid(child, None).err(),
        Err(errno) => failed = Some(errno),
    });
    match failed {
        Some(errno) => Err(format!("cannot fork: {errno}")),
        None => Ok(nanoseconds / 1_000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loop_that_is_not_there_is_named() {
        let error = report(&["no".to_owned()]).unwrap_err();
        assert!(error.contains("\"no\""), "{error}");
        assert!(report(&["read".to_owned()]).is_err());
    }

    #[test]
    fn rate_is_bytes_over_time() {
        let rate = mib_per_s(3 << 20, Duration::from_millis(500));
        assert!((rate - 6.0).abs() < 1e-9, "{rate}");
    }

    #[test]
    fn file_reads_are_of_the_whole_file() {
        let path = std::env::temp_dir().join(format!("probe-bench-{}", std::process::id()));
        std::fs::write(&path, vec![7u8; 1 << 20]).unwrap();
        let seen = files::read(&path.to_string_lossy());
        std::fs::remove_file(&path).unwrap();
        assert_eq!(seen.unwrap()["bytes"], 1 << 20);
    }

    #[test]
    fn small_files_are_gone_afterwards_and_a_tree_is_counted() {
        let folder = std::env::temp_dir().join(format!("probe-tree-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("a/b")).unwrap();
        std::fs::write(folder.join("a/file"), "").unwrap();
        let small = files::small(&folder.join("small").to_string_lossy());
        let tree = files::tree(&folder.to_string_lossy());
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(small.unwrap()["create_us"].as_f64().unwrap() > 0.0);
        assert_eq!(tree.unwrap()["entries"], 3);
    }
}
