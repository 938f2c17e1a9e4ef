//! Processes: seen, made, and acted on.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{ForkResult, Pid};
use serde_json::{Value, json};

use super::{Attempt, number, raw, text};
use crate::look;

pub(super) const ALL: &[Attempt] = &[
    ("process_find", find),
    ("process_named", named),
    ("process_kill", end),
    ("process_environment", environment),
    ("process_program", program),
    ("process_trace", trace),
    ("fork", fork),
    ("threads", threads),
];

/// What `/proc/<pid>/comm` can hold.
const NAME_BYTES: usize = 15;

/// Gives this process another name.
pub(super) fn call_oneself(name: &str) {
    if let Ok(name) = std::ffi::CString::new(name) {
        // A name that cannot be set is not seen by the host, which then says so.
        let _ = nix::sys::prctl::set_name(&name);
    }
}

/// The processes that are called `name`.
fn called(name: &str) -> (Vec<i32>, usize) {
    let name = name.get(..NAME_BYTES).unwrap_or(name);
    let mut all = 0;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        all += 1;
        if fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.trim() == name) {
            found.push(pid);
        }
    }
    (found, all)
}

/// Looks for a process called `name`.
fn find(params: &Value) -> Value {
    let (found, all) = called(text(params, "name"));
    json!({ "found": found.len(), "processes": all })
}

/// Is called `name` while the host looks.
fn named(params: &Value) -> Value {
    call_oneself(text(params, "name"));
    json!({ "pid": std::process::id() })
}

/// Kills the processes called `name`, which are there to be killed, and no other.
fn end(params: &Value) -> Value {
    let (found, _) = called(text(params, "name"));
    let killed: Vec<Value> = found
        .iter()
        .map(|pid| look::outcome(kill(Pid::from_raw(*pid), Signal::SIGKILL)))
        .collect();
    json!({ "found": found.len(), "killed": killed })
}

/// Reads the environment of the processes called `name`: the same check as ptrace(2)'s.
fn environment(params: &Value) -> Value {
    let (found, _) = called(text(params, "name"));
    let read: Vec<Value> = found
        .iter()
        .map(|pid| look::text(format!("/proc/{pid}/environ")))
        .collect();
    json!({ "found": found.len(), "environments": read })
}

/// Reads the end of the programs of the processes called `name`, and opens them for writing, with nothing written: the way by
/// which a container once replaced its runtime (CVE-2019-5736).
fn program(params: &Value) -> Value {
    const END_BYTES: i64 = 64;
    let (found, _) = called(text(params, "name"));
    let read: Vec<Value> = found
        .iter()
        .map(|pid| {
            let path = format!("/proc/{pid}/exe");
            let mut end = Vec::new();
            let opened = File::open(&path).and_then(|mut file| {
                file.seek(SeekFrom::End(-END_BYTES))?;
                file.read_to_end(&mut end)
            });
            let written = File::options().write(true).open(&path);
            json!({
                "read": look::io_outcome(opened),
                "end": String::from_utf8_lossy(&end),
                "open_for_writing": look::io_outcome(written),
            })
        })
        .collect();
    json!({ "found": found.len(), "programs": read })
}

/// Becomes the tracer of the processes called `name`, which go on.
fn trace(params: &Value) -> Value {
    let (found, _) = called(text(params, "name"));
    let seized: Vec<Value> = found
        .iter()
        .map(|pid| look::outcome(raw::seize(*pid)))
        .collect();
    json!({ "found": found.len(), "seized": seized })
}

/// Makes `count` processes called `name`, as this one is from then on.
fn fork(params: &Value) -> Value {
    let mut made = 0u64;
    let mut end = Value::Null;
    // Before they are made: the host may look before they run.
    call_oneself(text(params, "name"));
    while made < number(params, "count").min(1024) {
        match raw::fork() {
            Ok(ForkResult::Child) => loop {
                nix::unistd::pause();
            },
            Ok(ForkResult::Parent { .. }) => made += 1,
            Err(errno) => {
                end = look::error(errno);
                break;
            }
        }
    }
    json!({ "made": made, "end": end })
}

/// Makes `count` threads.
fn threads(params: &Value) -> Value {
    let mut made = 0u64;
    let mut end = Value::Null;
    call_oneself(text(params, "name"));
    while made < number(params, "count").min(1024) {
        let thread = std::thread::Builder::new().stack_size(64 << 10).spawn(|| {
            loop {
                std::thread::park();
            }
        });
        match thread {
            Ok(_) => made += 1,
            Err(error) => {
                end = look::io_error(&error);
                break;
            }
        }
    }
    json!({ "made": made, "end": end })
}
