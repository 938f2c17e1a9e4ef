//! Attacks, one after the other, as `sandboxctl isolation-test` asks for them.
//!
//! ```text
//! > {"id": 1, "attempt": "read", "params": {"path": "/proc/cmdline"}}     a line on stdin
//! < {"id": 1, "seen": {…}}  or  {"id": 1, "failed": "why"}                a line on stdout
//! > {"id": 1, "release": true}
//! < {"id": 1, "released": true}
//! ```
//!
//! Every attempt is a child of its own, in its own process group, and keeps what it has (processes, memory, sockets,
//! descriptors) until it is released, so that the host can look at it. An attempt that is killed, or takes too long,
//! is reported as failed and disturbs none after it. No attempt changes or uses up what the parameters do not bound.

mod files;
mod ipc;
mod kernel;
mod keys;
mod memory;
mod network;
mod privilege;
mod processes;
pub(crate) mod raw;
mod shares;

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, pause, setpgid};
use serde_json::{Value, json};

/// An attempt's name, and how it is made.
type Attempt = (&'static str, fn(&Value) -> Value);

/// How long an attempt may take.
const LIMIT: Duration = Duration::from_secs(60);
/// The most that an attempt may say, in bytes.
const ANSWER_BYTES: u64 = 1 << 20;

/// Every attempt.
const ALL: &[&[Attempt]] = &[
    files::ALL,
    ipc::ALL,
    kernel::ALL,
    keys::ALL,
    memory::ALL,
    network::ALL,
    privilege::ALL,
    processes::ALL,
    shares::ALL,
];

/// A string parameter; empty when it is not given.
fn text<'a>(params: &'a Value, name: &str) -> &'a str {
    params[name].as_str().unwrap_or_default()
}

/// A number parameter; zero when it is not given.
fn number(params: &Value, name: &str) -> u64 {
    params[name].as_u64().unwrap_or_default()
}

/// The members of a parameter that is a list of strings.
fn texts<'a>(params: &'a Value, name: &str) -> Vec<&'a str> {
    let list = params[name].as_array().map(Vec::as_slice);
    list.unwrap_or_default()
        .iter()
        .filter_map(Value::as_str)
        .collect()
}

/// Answers requests until there are none.
///
/// # Errors
/// When the caller is gone, or asks for what there is not.
pub(crate) fn serve() -> Result<(), String> {
    let mut line = String::new();
    let mut stdin = BufReader::new(std::io::stdin());
    say(&json!({ "ready": true }))?;
    loop {
        line.clear();
        let read = stdin.read_line(&mut line);
        if read.map_err(|error| format!("cannot read: {error}"))? == 0 {
            return Ok(());
        }
        let request: Value =
            serde_json::from_str(&line).map_err(|error| format!("not a request: {error}"))?;
        match called(text(&request, "attempt")) {
            Ok(attempt) => make(attempt, &request, &mut stdin)?,
            Err(failed) => say(&json!({ "id": request["id"], "failed": failed }))?,
        }
    }
}

/// The attempt of this name.
fn called(name: &str) -> Result<fn(&Value) -> Value, String> {
    let mut known = ALL.iter().flat_map(|part| part.iter());
    let found = known.find(|(known, _)| *known == name);
    found
        .map(|(_, attempt)| *attempt)
        .ok_or_else(|| format!("this probe knows no attempt {name:?}"))
}

/// What an attempt without parameters sees, made by this process itself.
///
/// # Errors
/// When there is none of this name.
pub(crate) fn once(name: &str) -> Result<Value, String> {
    Ok(with_boot_id(called(name)?(&Value::Null)))
}

/// With whose kernel it was, so that what is allowed can be told from what it reaches.
fn with_boot_id(mut seen: Value) -> Value {
    if let Some(object) = seen.as_object_mut() {
        object.insert("boot_id".to_owned(), boot_id().into());
    }
    seen
}

/// Of this kernel; empty where it is not to be read.
fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    text.unwrap_or_default().trim().to_owned()
}

fn say(value: &Value) -> Result<(), String> {
    let mut out = std::io::stdout();
    writeln!(out, "{value}")
        .and_then(|()| out.flush())
        .map_err(|error| format!("cannot answer: {error}"))
}

/// Makes one attempt, and keeps it until it is released.
fn make(
    attempt: fn(&Value) -> Value,
    request: &Value,
    stdin: &mut BufReader<std::io::Stdin>,
) -> Result<(), String> {
    let (reader, writer) =
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|errno| errno.to_string())?;
    let id = &request["id"];
    let child = match raw::fork().map_err(|errno| errno.to_string())? {
        ForkResult::Child => {
            drop(reader);
            attempt_in_child(attempt, &request["params"], writer)
        }
        ForkResult::Parent { child } => child,
    };
    drop(writer);
    // Whichever of us is first.
    let _ = setpgid(child, child);
    match answer(reader) {
        Ok(seen) => say(&json!({ "id": id, "seen": seen }))?,
        Err(why) => {
            let why = death(child).unwrap_or(why);
            say(&json!({ "id": id, "failed": why }))?;
        }
    }
    let mut line = String::new();
    stdin
        .read_line(&mut line)
        .map_err(|error| format!("cannot read: {error}"))?;
    let _ = killpg(child, Signal::SIGKILL);
    // Also what the attempt left to us, if we are the first process.
    while waitpid(child, None).is_ok() {}
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            break;
        }
    }
    say(&json!({ "id": id, "released": true }))
}

fn attempt_in_child(attempt: fn(&Value) -> Value, params: &Value, writer: OwnedFd) -> ! {
    let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
    let seen = with_boot_id(attempt(params));
    let mut writer = File::from(writer);
    let _ = writeln!(writer, "{seen}");
    drop(writer);
    loop {
        pause();
    }
}

/// The line that the child writes.
fn answer(reader: OwnedFd) -> Result<Value, String> {
    let start = Instant::now();
    let mut file = File::from(reader);
    let mut said = Vec::new();
    let mut part = [0u8; 4096];
    loop {
        let left = LIMIT.saturating_sub(start.elapsed());
        let mut wait = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        match poll(&mut wait, timeout) {
            Ok(0) => return Err(format!("no end after {} s", LIMIT.as_secs())),
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(errno) => return Err(errno.to_string()),
        }
        let length = file.read(&mut part).map_err(|error| error.to_string())?;
        said.extend_from_slice(part.get(..length).unwrap_or_default());
        if said.last() == Some(&b'\n') {
            return serde_json::from_slice(&said).map_err(|error| error.to_string());
        }
        if length == 0 {
            return Err("ended without an answer".to_owned());
        }
        if said.len() as u64 > ANSWER_BYTES {
            return Err("the answer has no end".to_owned());
        }
    }
}

/// How the child ended, if it did.
fn death(child: Pid) -> Option<String> {
    match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::Signaled(_, signal, _)) => Some(format!("killed by {signal}")),
        Ok(WaitStatus::Exited(_, code)) => Some(format!("exited with {code}")),
        _ => None,
    }
}
