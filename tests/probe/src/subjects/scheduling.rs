//! How the kernel schedules the process.

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::look;

/// Policy and priorities of `/proc/self/stat` (proc_pid_stat(5)): fields 18, 19, 40 and 41.
fn stat() -> Option<Value> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    // The first of these is field 3.
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).copied();
    Some(json!({
        "priority": field(18)?,
        "nice": field(19)?,
        "real_time_priority": field(40)?,
        "policy": field(41)?,
    }))
}

#[expect(unsafe_code, reason = "the C library has no wrapper for ioprio_get(2)")]
fn io_priority() -> nix::Result<i64> {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    // SAFETY: ioprio_get takes two numbers and touches no memory.
    Errno::result(unsafe { nix::libc::syscall(nix::libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0) })
}

fn processors() -> nix::Result<usize> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count())
        .filter(|number| set.is_set(*number).unwrap_or(false))
        .count())
}

/// Policy, priorities, processors.
pub(crate) fn look() -> Value {
    json!({
        "scheduler": stat(),
        "io_priority": look::or_error(io_priority()),
        "processors": look::or_error(processors()),
        "timer_slack": look::text("/proc/self/timerslack_ns"),
        "transparent_huge_pages": look::or_error(nix::sys::prctl::get_thp_disable().map(|off| !off)),
    })
}
