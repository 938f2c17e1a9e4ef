//! Counts that do not depend on a clock: what a start and an exec cost wherever time is not that of hardware.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result};
use sandbox_harness::bundle;

use super::{SETTLES, SHIMS};
use crate::exits::{Exits, Reasons};
use crate::family::{family, role};
use crate::lab::{About, Lab, Root, SCRIPT};
use crate::order::Turns;
use crate::report::{Part, Unit, Value, number};
use crate::smaps::{self, Kind, Owner};
use crate::strace::{self, Tally};
use crate::subject::{Runtime, is_installed};

const ABOUT: About = About {
    name: "counts",
    title: "Counts",
    about: "What does not depend on a clock, of one start (from the shim's to the container's first output) and of one exec of `true` by calls to the shim; and of ten seconds in which the container does nothing. System calls, the processes, \
            threads, programs and files among them: under `strace`, in a start of its own; what a container's processes do on the host's kernel is apart and in no sum. Minor faults are of the \
            processes that live when it is read and of their children that have ended, bytes are those of their `read` and `write` calls. Exits are counted by the host's kernel, where it can.",
    one_scale: false,
};

/// Counts do not scatter as times do.
const MAX_RUNS: usize = 3;
/// How long a container that does nothing is watched.
const IDLE: Duration = Duration::from_secs(10);
/// Whose calls are in no sum: on the host's kernel they are the program's own.
const CONTAINER: &str = "container's processes";

pub(super) fn measure(lab: &Lab) -> Part {
    let turns = Turns::warmed_up(lab.runs().min(MAX_RUNS));
    let folder = lab.world().path().join("exits");
    let mut part = ABOUT.measure(lab.contenders(&SHIMS), turns, |subject| {
        let runtime = SHIMS[subject].runtime;
        let mut values = plain(lab, runtime, &folder)?;
        if is_installed("strace") {
            values.extend(under_strace(lab, runtime)?);
        }
        Ok(values)
    });
    let exits = Exits::start(&folder)
        .err()
        .map(|error| format!("exits by reason: {error:#}"));
    let exits = exits.or_else(|| {
        let counted = part.rows.iter().any(|row| row.what.contains(EXITS));
        (!counted).then(|| "exits by reason: no machine here runs on KVM".to_owned())
    });
    let calls =
        (!is_installed("strace")).then(|| "system calls: strace is not installed".to_owned());
    for (measured, subject) in part.subjects.iter_mut().zip(SHIMS) {
        if measured.problems.is_empty() {
            let exits = exits.clone().filter(|_| subject.runtime != Runtime::Runc);
            measured
                .problems
                .extend(exits.into_iter().chain(calls.clone()));
        }
    }
    part
}

/// What is read of processes that are not disturbed.
fn plain(lab: &Lab, runtime: Runtime, folder: &Path) -> Result<Vec<Value>> {
    let exits = (runtime != Runtime::Runc)
        .then(|| Exits::start(folder).ok())
        .flatten();
    let before: BTreeSet<i32> = family(lab).into_iter().map(|one| one.pid).collect();
    let (mut task, _) = lab.start_task(runtime, Root::Image)?;
    let started = Reading::take(lab, &before, exits.as_ref())?;
    task.exec()?;
    let executed = Reading::take(lab, &before, exits.as_ref())?;
    sleep(SETTLES);
    let settled = Reading::take(lab, &before, exits.as_ref())?;
    sleep(IDLE);
    let idle = Reading::take(lab, &before, exits.as_ref())?;
    task.end()?;
    let mut values = started.values("start");
    if runtime != Runtime::Runc {
        values.push(Value::new(
            "start: guest memory that the host has",
            Unit::Mebibytes,
            number(started.guest_kib) / 1024.0,
        ));
    }
    values.extend(executed.since(&started).values("exec"));
    values.extend(idle.since(&settled).values("10 s idle"));
    Ok(values)
}

/// In the name of every row of exits.
const EXITS: &str = "exits of the guest";

/// What processes have had so far.
#[derive(Debug, Default)]
struct Reading {
    /// Minor faults, and bytes of `read` and of `write`, by what a process is for.
    by_role: BTreeMap<&'static str, [u64; 3]>,
    exits: Reasons,
    guest_kib: u64,
}

impl Reading {
    fn take(lab: &Lab, before: &BTreeSet<i32>, exits: Option<&Exits>) -> Result<Self> {
        let mut reading = Self::default();
        let mut threads = BTreeSet::new();
        for process in family(lab) {
            if before.contains(&process.pid) {
                continue;
            }
            let (role, owner) = role(&process.command);
            // One that has ended meanwhile has nothing.
            let read = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", process.pid));
            let (Ok(stat), Ok(io)) = (read("stat"), read("io")) else {
                continue;
            };
            let counts = [
                faults(&stat).unwrap_or(0),
                field(&io, "rchar").unwrap_or(0),
                field(&io, "wchar").unwrap_or(0),
            ];
            let sums = reading.by_role.entry(role).or_default();
            for (sum, count) in sums.iter_mut().zip(counts) {
                *sum += count;
            }
            if owner == Owner::Machine {
                threads.extend(tasks(process.pid));
                // Proportional: who serves a device may have the same pages.
                let parts = smaps::split(process.pid, owner).unwrap_or_default();
                let guest = parts.get(&Kind::Guest).copied().unwrap_or_default();
                reading.guest_kib += guest.proportional_kib;
            }
        }
        if let Some(exits) = exits {
            reading.exits = exits.read(&threads)?;
        }
        Ok(reading)
    }

    fn since(&self, before: &Self) -> Self {
        let rest = |(role, now): (&&'static str, &[u64; 3])| {
            let then = before.by_role.get(role).copied().unwrap_or_default();
            let mut left = *now;
            for (left, then) in left.iter_mut().zip(then) {
                *left = left.saturating_sub(then);
            }
            (*role, left)
        };
        let exits = self.exits.iter().map(|(reason, count)| {
            let then = before.exits.get(reason).copied().unwrap_or(0);
            (reason.clone(), count.saturating_sub(then))
        });
        Self {
            by_role: self.by_role.iter().map(rest).collect(),
            exits: exits.filter(|(_, count)| *count > 0).collect(),
            guest_kib: 0,
        }
    }

    fn values(&self, phase: &str) -> Vec<Value> {
        let mut values = Vec::new();
        for (role, [faults, read, written]) in &self.by_role {
            values.push(Value::count(
                format!("{phase}: minor faults, {role}"),
                *faults,
            ));
            if *role == CONTAINER {
                continue;
            }
            for (what, bytes) in [("read", read), ("written", written)] {
                let what = format!("{phase}: bytes {what}, {role}");
                values.push(Value::new(what, Unit::Kibibytes, number(*bytes) / 1024.0));
            }
        }
        if !self.exits.is_empty() {
            let all = self.exits.values().sum();
            values.push(Value::count(format!("{phase}: {EXITS}, all"), all));
        }
        for (reason, count) in &self.exits {
            values.push(Value::count(format!("{phase}: {EXITS}, {reason}"), *count));
        }
        values
    }
}

/// The threads of a process.
fn tasks(pid: i32) -> Vec<u32> {
    let entries = fs::read_dir(format!("/proc/{pid}/task"));
    let entries = entries.into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Minor faults of a process and of its children that were waited for: the fields 10 and 11 of `/proc/<pid>/stat` (proc(5)).
fn faults(stat: &str) -> Option<u64> {
    let (_, behind) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = behind.split_ascii_whitespace().collect();
    let number = |place: usize| fields.get(place)?.parse::<u64>().ok();
    Some(number(7)? + number(8)?)
}

/// A line `name: number`.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.strip_prefix(':')?.trim().parse().ok()
}

fn read_trace(file: &Path) -> Result<Tally> {
    let bytes = fs::read(file).context("strace wrote nothing")?;
    Ok(strace::tally(&String::from_utf8_lossy(&bytes)))
}

/// The system calls of a start and of an exec.
fn under_strace(lab: &Lab, runtime: Runtime) -> Result<Vec<Value>> {
    let file = lab.world().path().join(format!("{}.strace", lab.name()));
    let spec = bundle::spec(&["sh", "-c", SCRIPT]);
    let (mut task, _) = lab.start_task_traced(runtime, Root::Image, &spec, Some(&file))?;
    let started = read_trace(&file)?;
    task.exec()?;
    let executed = read_trace(&file)?;
    task.end()?;
    let mut values = calls("start", &started);
    values.extend(calls("exec", &strace::since(&started, &executed)));
    Ok(values)
}

fn calls(phase: &str, tally: &Tally) -> Vec<Value> {
    let mut sum = strace::Calls::default();
    for (_, calls) in tally.iter().filter(|(role, _)| **role != CONTAINER) {
        sum += *calls;
    }
    let mut values = vec![
        Value::count(format!("{phase}: system calls, all"), sum.calls),
        Value::count(format!("{phase}: processes made"), sum.processes),
        Value::count(format!("{phase}: threads made"), sum.threads),
        Value::count(format!("{phase}: programs executed"), sum.programs),
        Value::count(format!("{phase}: files opened"), sum.opens),
    ];
    values.extend(
        tally.iter().map(|(role, calls)| {
            Value::count(format!("{phase}: system calls, {role}"), calls.calls)
        }),
    );
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_and_bytes_are_found() {
        let stat = "12 (a) b) S 1 12 12 0 -1 4194560 500 70 3 4 1 2 3 4 20 0 1 0 9";
        assert_eq!(faults(stat), Some(570));
        assert_eq!(faults("12 (a"), None);
        let io = "rchar: 323\nwchar: 4\nsyscr: 7\n";
        assert_eq!(
            (field(io, "rchar"), field(io, "wchar"), field(io, "x")),
            (Some(323), Some(4), None)
        );
    }

    #[test]
    fn exec_is_what_came_since_the_start() {
        let reading = |faults, halts| Reading {
            by_role: BTreeMap::from([("shim", [faults, 2048, 0])]),
            exits: Reasons::from([("halt".to_owned(), halts)]),
            guest_kib: 1,
        };
        let values = reading(12, 5).since(&reading(10, 2)).values("exec");
        let of = |what: &str| {
            values
                .iter()
                .find(|value| value.what == what)
                .map(|value| value.value)
        };
        assert_eq!(of("exec: minor faults, shim"), Some(2.0));
        assert_eq!(of("exec: bytes read, shim"), Some(0.0));
        assert_eq!(of("exec: exits of the guest, all"), Some(3.0));
    }

    #[test]
    fn container_is_in_no_sum() {
        let made = |calls| strace::Calls {
            calls,
            ..Default::default()
        };
        let values = calls(
            "start",
            &Tally::from([("shim", made(3)), (CONTAINER, made(5))]),
        );
        assert_eq!(values[0], Value::count("start: system calls, all", 3));
        assert!(values.contains(&Value::count(
            "start: system calls, container's processes",
            5
        )));
    }
}
