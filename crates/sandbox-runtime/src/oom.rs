//! Whom the host's kernel kills first when it runs out of memory: `/proc/PID/oom_score_adj` (proc_pid_oom_score_adj(5)).
//!
//! A process has that of whoever started it, and an engine's is close to "never". The guest's memory is its monitor's, so what runs and serves
//! a guest is to have what the pod's containers would have. To raise it takes no privilege; to lower it again neither, down to what it was
//! begun with.

use std::fs;
use std::io;
use std::path::Path;

/// The most that there is.
const MOST: i32 = 1000;

/// One step more than whoever started this process, for the process itself: its engine outlives it.
///
/// # Errors
/// When the kernel has no such file, or does not take it.
pub fn raise_own() -> io::Result<()> {
    let path = Path::new("/proc/self/oom_score_adj");
    let text = fs::read_to_string(path)?;
    let own: i32 = text.trim().parse().map_err(io::Error::other)?;
    fs::write(path, own.saturating_add(1).min(MOST).to_string())
}

/// Gives a process this, and what it has started.
///
/// # Errors
/// The first that there was; the others have it all the same. A process that has ended needs none.
pub(crate) fn set(pid: u32, score: i32) -> io::Result<()> {
    let mut result = Ok(());
    let mut left = vec![pid];
    while let Some(pid) = left.pop() {
        // Those that it starts from now on have it already.
        let written = fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string());
        match written {
            Err(error) if !has_ended(&error) => result = result.and(Err(error)),
            _ => {}
        }
        left.extend(children(pid));
    }
    result
}

fn has_ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ESRCH)
}

/// What a process has started and not yet waited for; none where the kernel does not say (`PROC_CHILDREN`).
fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    threads
        .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok())
        .flat_map(|text| {
            text.split_ascii_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<u32>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::process::{Command, Stdio};

    use super::*;

    fn score(pid: u32) -> i32 {
        let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        text.trim().parse().unwrap()
    }

    #[test]
    fn score_is_given_to_a_process_and_to_what_it_has_started_and_may_fall_again() {
        let own = score(std::process::id());
        let mut parent = Command::new("sh")
            .args(["-c", "sleep 1000 & echo up; wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut up = [0; 2];
        parent.stdout.take().unwrap().read_exact(&mut up).unwrap();
        let child = children(parent.id());
        assert_eq!(child.len(), 1);
        for more in [7, 3] {
            set(parent.id(), own + more).unwrap();
            assert_eq!(score(parent.id()), own + more);
            assert_eq!(score(child[0]), own + more);
        }
        let end = nix::unistd::Pid::from_raw(child[0].cast_signed());
        nix::sys::signal::kill(end, nix::sys::signal::SIGKILL).unwrap();
        parent.wait().unwrap();
        set(parent.id(), own).unwrap();
    }
}
