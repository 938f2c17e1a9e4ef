//! What /proc tells of the processes of a container (proc_pid_stat(5), proc_pid_status(5)).

use std::collections::HashMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use rustix::time::{ClockId, clock_gettime};
use sandbox_protocol::agent::list_processes_reply::Process;
use sandbox_protocol::limits::MAX_REPLY_BYTES;
use sandbox_types::ExecId;

use crate::cgroup;

/// The longest command line that is told, in bytes.
const MAX_COMMAND_BYTES: u64 = 4096;
/// All command lines of a reply together, in bytes; the rest of the processes are told by name.
const MAX_COMMANDS_BYTES: usize = MAX_REPLY_BYTES / 4;
/// Nanoseconds in a clock tick: `USER_HZ` is 100 on every architecture of ours.
const NS_PER_TICK: u64 = 10_000_000;
/// Majors of pseudo-terminals and how many minors each has (kernel `Documentation/admin-guide/devices.txt`).
const PTS_MAJORS: std::ops::RangeInclusive<u64> = 136..=143;
const PTS_PER_MAJOR: u64 = 256;

/// Describes these processes; those that have ended since are left out.
pub(crate) fn describe(pids: &[u32], added: &HashMap<u32, ExecId>) -> Vec<Process> {
    let started = boot_unix_ns();
    let mut room = MAX_COMMANDS_BYTES;
    pids.iter()
        .filter_map(|&pid| {
            let folder = PathBuf::from(format!("/proc/{pid}"));
            let mut process = of(&folder, started)?;
            process.pid = pid;
            if let Some(exec) = added.get(&pid) {
                process.exec_id = exec.to_string();
            }
            if let Some(command) = command_line(&folder).filter(|command| command.len() <= room) {
                room -= command.len();
                process.command = command;
            }
            Some(process)
        })
        .collect()
}

fn of(folder: &Path, boot_unix_ns: u64) -> Option<Process> {
    let mut process = parse_stat(&cgroup::read(&folder.join("stat"))?, boot_unix_ns)?;
    add_status(&mut process, &cgroup::read(&folder.join("status"))?);
    Some(process)
}

/// The guest's clock when its kernel started.
fn boot_unix_ns() -> u64 {
    let now = clock_gettime(ClockId::Realtime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let now = seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0));
    now.saturating_sub(crate::events::boot_time_ns())
}

fn parse_stat(stat: &str, boot_unix_ns: u64) -> Option<Process> {
    // The name is in brackets and may have any character, brackets too.
    let (start, rest) = stat.rsplit_once(')')?;
    let name = start.split_once('(')?.1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // Fields are numbered from 1, and the third is the first one here.
    let number = |field: usize| -> u64 {
        field
            .checked_sub(3)
            .and_then(|index| fields.get(index)?.parse().ok())
            .unwrap_or(0)
    };
    let ticks = number(14).saturating_add(number(15));
    Some(Process {
        parent_pid: u32::try_from(number(4)).unwrap_or(0),
        state: (*fields.first()?).to_owned(),
        started_unix_ns: boot_unix_ns.saturating_add(number(22).saturating_mul(NS_PER_TICK)),
        cpu_time_ns: ticks.saturating_mul(NS_PER_TICK),
        terminal: terminal(number(7)),
        command: name.to_owned(),
        ..Process::default()
    })
}

/// The name of a terminal by its device number as proc_pid_stat(5) has it: the minor in bits 0-7 and 20-31,
/// the major in bits 8-19.
fn terminal(device: u64) -> String {
    let major = (device >> 8) & 0xfff;
    let minor = (device & 0xff) | ((device >> 12) & 0xfff00);
    if device == 0 {
        String::new()
    } else if PTS_MAJORS.contains(&major) {
        format!(
            "pts/{}",
            (major - PTS_MAJORS.start()) * PTS_PER_MAJOR + minor
        )
    } else {
        format!("{major}:{minor}")
    }
}

fn add_status(process: &mut Process, status: &str) {
    for line in status.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let mut words = value.split_whitespace();
        match key {
            // Real, effective, saved, file system: ps(1) shows the effective one.
            "Uid" => process.uid = words.nth(1).and_then(|uid| uid.parse().ok()).unwrap_or(0),
            "VmRSS" => {
                let kib: u64 = words.next().and_then(|kib| kib.parse().ok()).unwrap_or(0);
                process.resident_bytes = kib.saturating_mul(1024);
            }
            _ => {}
        }
    }
}

/// `None` for a kernel thread or a zombie.
fn command_line(folder: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    let file = fs::File::open(folder.join("cmdline")).ok()?;
    file.take(MAX_COMMAND_BYTES).read_to_end(&mut bytes).ok()?;
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    for byte in &mut bytes {
        if *byte == 0 {
            *byte = b' ';
        }
    }
    (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STAT: &str = "7 (a) b) S 1 7 7 34816 7 4194304 0 0 0 0 12 3 0 0 20 0 1 0 500 0 0";

    #[test]
    fn stat_line_with_brackets_in_the_name_is_read() {
        let process = parse_stat(STAT, 1_000).unwrap();
        assert_eq!(process.command, "a) b");
        assert_eq!(process.state, "S");
        assert_eq!(process.parent_pid, 1);
        assert_eq!(process.terminal, "pts/0");
        assert_eq!(process.cpu_time_ns, 150_000_000);
        assert_eq!(process.started_unix_ns, 5_000_001_000);
    }

    #[test]
    fn terminal_is_named_by_its_device() {
        assert_eq!(terminal(0), "");
        assert_eq!(terminal(136 << 8 | 3), "pts/3");
        assert_eq!(terminal(137 << 8), "pts/256");
        assert_eq!(terminal(4 << 8 | 64), "4:64");
    }

    #[test]
    fn status_gives_the_effective_user_and_memory() {
        let mut process = Process::default();
        add_status(
            &mut process,
            "Name:\tx\nUid:\t1\t2\t3\t4\nVmRSS:\t   8 kB\n",
        );
        assert_eq!((process.uid, process.resident_bytes), (2, 8192));
    }

    #[test]
    fn this_process_is_described() {
        let pid = std::process::id();
        let all = describe(&[pid, u32::MAX], &HashMap::new());
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].pid, pid);
        assert!(all[0].resident_bytes > 0 && !all[0].command.is_empty());
    }

    proptest! {
        #[test]
        fn stat_line_of_any_text_does_not_panic(text in "[0-9() a-zS\\-]{0,80}") {
            let _ = parse_stat(&text, u64::MAX);
        }
    }
}
