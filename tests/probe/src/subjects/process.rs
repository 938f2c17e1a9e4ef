//! What the process was started with.

use std::fs;
use std::path::Path;

use nix::unistd;
use serde_json::{Map, Value, json};

use crate::look;

/// Arguments, environment, folder, and its place among processes.
pub(crate) fn look() -> Value {
    let environment: Map<String, Value> = std::env::vars_os()
        .map(|(name, value)| {
            (
                name.to_string_lossy().into_owned(),
                value.to_string_lossy().into(),
            )
        })
        .collect();
    let processes = fs::read_dir("/proc").map_or(0, |entries| {
        entries
            .flatten()
            .filter(|entry| {
                entry
                    .file_name()
                    .to_string_lossy()
                    .chars()
                    .all(|letter| letter.is_ascii_digit())
            })
            .count()
    });
    let pid = unistd::getpid();
    json!({
        "environment": environment,
        "folder": std::env::current_dir().map_or_else(
            |error| look::io_error(&error),
            |folder| folder.to_string_lossy().into(),
        ),
        "program": fs::read_link("/proc/self/exe").map_or_else(
            |error| look::io_error(&error),
            |path| path.to_string_lossy().into(),
        ),
        "name": look::text("/proc/self/comm"),
        "is_pid_1": pid.as_raw() == 1,
        "parent_is_visible": unistd::getppid().as_raw() != 0,
        "leads_its_session": unistd::getsid(None) == Ok(pid),
        "leads_its_group": unistd::getpgrp() == pid,
        "processes": processes,
        "personality": look::text("/proc/self/personality"),
    })
}

/// Signals 32 and 33: the C library's own (nptl(7)), which it sets up in any program that starts another.
const OF_THE_C_LIBRARY: u64 = 0b11 << 31;

/// Signal masks of `/proc/self/status`.
pub(crate) fn signals() -> Value {
    let mask = |member| {
        let text = look::status(member);
        let mask = text
            .as_str()
            .and_then(|mask| u64::from_str_radix(mask, 16).ok());
        match mask {
            Some(mask) => format!("{:#x}", mask & !OF_THE_C_LIBRARY).into(),
            None => text,
        }
    };
    json!({
        "blocked": mask("SigBlk"),
        "ignored": mask("SigIgn"),
        "caught": mask("SigCgt"),
        "pending": mask("SigPnd"),
    })
}

/// Every open file: its number and what it is. The first three by kind only, because they are the caller's.
pub(crate) fn descriptors() -> Value {
    let entries = match fs::read_dir("/proc/self/fd") {
        Ok(entries) => entries,
        Err(error) => return look::io_error(&error),
    };
    let numbers: Vec<String> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    // The folder's own descriptor is closed by now, and its number can no longer be read.
    let open: Map<String, Value> = numbers
        .into_iter()
        .filter_map(|number| {
            let target = fs::read_link(Path::new("/proc/self/fd").join(&number)).ok()?;
            Some((number, look::anonymous(&target).into()))
        })
        .collect();
    Value::Object(open)
}
