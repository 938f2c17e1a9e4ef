//! Using up memory, and what is counted for the whole kernel.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::unistd::ForkResult;
use serde_json::{Value, json};

use super::{Attempt, number, raw, text};
use crate::look;

pub(super) const ALL: &[Attempt] = &[
    ("memory_use", memory_use),
    ("descriptors", descriptors),
    ("terminals", terminals),
    ("asynchronous", asynchronous),
    ("timers", timers),
    ("lookups", lookups),
];

/// Uses `mib` of memory in steps, in a process called `name`, which the kernel may kill; anonymous, or of a file in memory, which is
/// in `folder` if that is given, and has no name there any more.
fn memory_use(params: &Value) -> Value {
    let (reader, writer) = match nix::unistd::pipe() {
        Ok(ends) => ends,
        Err(errno) => return look::error(errno),
    };
    match raw::fork() {
        Ok(ForkResult::Child) => {
            drop(reader);
            // The first to be killed.
            let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
            super::processes::call_oneself(text(params, "name"));
            use_up(params, File::from(writer));
            loop {
                nix::unistd::pause();
            }
        }
        Ok(ForkResult::Parent { .. }) => drop(writer),
        Err(errno) => return look::error(errno),
    }
    let mut used = 0u64;
    let mut ended = "killed or refused";
    for line in BufReader::new(File::from(reader)).lines() {
        match line.as_deref() {
            Ok("done") => {
                ended = "done";
                break;
            }
            Ok(text) => used = text.parse().unwrap_or(used),
            Err(_) => break,
        }
    }
    json!({ "used_mib": used, "ended": ended })
}

/// Says after every 8 MiB how much it has.
fn use_up(params: &Value, mut tell: File) {
    const STEP: usize = 8;
    let shared = params["shared"].as_bool() == Some(true);
    let mut file = match text(params, "folder") {
        "" => memfd_create(c"probe", MFdFlags::empty())
            .map(File::from)
            .ok(),
        folder => {
            let path = format!("{folder}/{}", text(params, "name"));
            let file = File::create(&path);
            let _ = fs::remove_file(&path);
            file.ok()
        }
    };
    let mut used = 0;
    let mut kept = Vec::new();
    while used < number(params, "mib") {
        if shared {
            let block = vec![1u8; STEP << 20];
            let written = file.as_mut().map(|file| file.write_all(&block));
            if !matches!(written, Some(Ok(()))) {
                return;
            }
        } else {
            let mut block = vec![0u8; STEP << 20];
            for page in block.iter_mut().step_by(4096) {
                *page = 1;
            }
            kept.push(block);
        }
        used += STEP as u64;
        if writeln!(tell, "{used}").is_err() {
            break;
        }
    }
    let _ = writeln!(tell, "done");
    std::mem::forget((kept, file));
}

/// Allows itself as many descriptors as it may.
fn raise_descriptors() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Sets `count` timers, which go off in an hour.
fn timers(params: &Value) -> Value {
    raise_descriptors();
    let later = Expiration::OneShot(TimeSpec::new(3600, 0));
    let mut set = Vec::new();
    let mut end = Value::Null;
    while (set.len() as u64) < number(params, "count").min(4000) {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::empty())
            .and_then(|timer| timer.set(later, TimerSetTimeFlags::empty()).map(|()| timer));
        match timer {
            Ok(timer) => set.push(timer),
            Err(errno) => {
                end = look::error(errno);
                break;
            }
        }
    }
    let result = json!({ "set": set.len(), "end": end });
    std::mem::forget(set);
    result
}

/// Asks for `count` files of its root that are not there: the kernel keeps in memory that they are not.
fn lookups(params: &Value) -> Value {
    let name = text(params, "name");
    let missing = (0..number(params, "count").min(200_000))
        .filter(|index| fs::symlink_metadata(format!("/{name}-{index}")).is_err())
        .count();
    json!({ "missing": missing })
}

/// Opens files until there are `count`, or no more are given.
fn descriptors(params: &Value) -> Value {
    raise_descriptors();
    let mut open = Vec::new();
    let mut end = Value::Null;
    while (open.len() as u64) < number(params, "count").min(20_000) {
        match File::open("/dev/null") {
            Ok(file) => open.push(file),
            Err(error) => {
                end = look::io_error(&error);
                break;
            }
        }
    }
    let result = json!({ "open": open.len(), "end": end });
    std::mem::forget(open);
    result
}

/// Opens `count` pseudo-terminals.
fn terminals(params: &Value) -> Value {
    let mut open = 0u64;
    let mut end = Value::Null;
    while open < number(params, "count").min(256) {
        match File::options().read(true).write(true).open("/dev/ptmx") {
            Ok(terminal) => {
                open += 1;
                std::mem::forget(terminal);
            }
            Err(error) => {
                end = look::io_error(&error);
                break;
            }
        }
    }
    json!({ "open": open, "end": end })
}

/// Reserves room for `count` asynchronous operations (`/proc/sys/fs/aio-nr`).
fn asynchronous(params: &Value) -> Value {
    let count = u32::try_from(number(params, "count").min(4096)).unwrap_or(0);
    json!({ "reserved": look::outcome(raw::asynchronous_context(count)) })
}
