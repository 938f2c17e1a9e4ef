//! System calls by what a process is for, from what strace(1) writes with `-f --pidns-translation`: a line for each call, with the number of
//! the thread that made it before.

use std::collections::BTreeMap;
use std::ops::{AddAssign, Sub};
use std::path::Path;
use std::process::Command;

/// What was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Calls {
    /// System calls.
    pub(crate) calls: u64,
    /// Of these: processes made.
    pub(crate) processes: u64,
    /// Threads made.
    pub(crate) threads: u64,
    /// Programs executed.
    pub(crate) programs: u64,
    /// Files opened, found or not.
    pub(crate) opens: u64,
}

impl AddAssign for Calls {
    fn add_assign(&mut self, other: Self) {
        self.calls += other.calls;
        self.processes += other.processes;
        self.threads += other.threads;
        self.programs += other.programs;
        self.opens += other.opens;
    }
}

impl Sub for Calls {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            calls: self.calls.saturating_sub(other.calls),
            processes: self.processes.saturating_sub(other.processes),
            threads: self.threads.saturating_sub(other.threads),
            programs: self.programs.saturating_sub(other.programs),
            opens: self.opens.saturating_sub(other.opens),
        }
    }
}

/// By what a process is for.
pub(crate) type Tally = BTreeMap<&'static str, Calls>;

/// What is in `after` and was not in `before`.
pub(crate) fn since(before: &Tally, after: &Tally) -> Tally {
    let rest = |(role, calls): (&&'static str, &Calls)| {
        (
            *role,
            *calls - before.get(role).copied().unwrap_or_default(),
        )
    };
    after.iter().map(rest).collect()
}

/// The same command under strace, whose descendants are traced too, into this file. The command's process stays the caller's child.
pub(crate) fn traced(command: &Command, file: &Path) -> Command {
    let mut traced = Command::new("strace");
    traced
        .args(["-D", "-f", "--pidns-translation", "-o"])
        .arg(file);
    traced.arg("--").arg(command.get_program());
    traced.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => traced.env(name, value),
            None => traced.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        traced.current_dir(folder);
    }
    traced
}

/// A call of a thread's, with its result if it has one.
struct Call {
    thread: u32,
    text: String,
}

impl Call {
    fn name(&self) -> &str {
        self.text.split('(').next().unwrap_or_default()
    }

    /// The thread or process that it made, and whether that is a thread.
    fn made(&self) -> Option<(u32, bool)> {
        if !matches!(self.name(), "clone" | "clone3" | "fork" | "vfork") {
            return None;
        }
        let (_, result) = self.text.rsplit_once(") ")?;
        let result = result.trim_start().strip_prefix("= ")?;
        // In another process namespace it has two numbers.
        let number = match result.split_once("/* ") {
            Some((_, ours)) => ours.split(' ').next()?,
            None => result.split(' ').next()?,
        };
        let child = number.parse().ok()?;
        Some((child, self.text.contains("CLONE_THREAD")))
    }

    /// The command line of a program that took the process's place.
    fn executed(&self) -> Option<String> {
        let rest = self.text.strip_prefix("execve(")?;
        rest.trim_end().ends_with("= 0").then_some(())?;
        // What is in quotes: the path, its name, and its arguments. The environment is an address.
        let words: Vec<&str> = rest.split('"').skip(1).step_by(2).collect();
        let (path, arguments) = words.split_first()?;
        let name = if path.starts_with("/proc/") {
            // Itself, from a descriptor.
            arguments.first().copied().unwrap_or(path)
        } else {
            path
        };
        let after = arguments.iter().skip(1).copied();
        Some(
            std::iter::once(name)
                .chain(after)
                .collect::<Vec<_>>()
                .join(" "),
        )
    }
}

/// Joins what strace tore apart because another thread came in between.
fn calls(trace: &str) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    let mut begun: BTreeMap<u32, usize> = BTreeMap::new();
    for line in trace.lines() {
        let Some((thread, rest)) = line.split_once(' ') else {
            continue;
        };
        let Ok(thread) = thread.parse::<u32>() else {
            continue;
        };
        let rest = rest.trim_start();
        if let Some(resumed) = rest.strip_prefix("<... ") {
            let end = resumed.split_once("resumed>").map_or("", |(_, end)| end);
            if let Some(call) = begun.remove(&thread).and_then(|call| calls.get_mut(call)) {
                call.text.push_str(end);
            }
            continue;
        }
        // Signals and ends begin otherwise.
        if !rest.starts_with(|first: char| first.is_ascii_lowercase() || first == '_') {
            continue;
        }
        let text = match rest.strip_suffix("<unfinished ...>") {
            Some(text) => {
                begun.insert(thread, calls.len());
                text.to_owned()
            }
            None => rest.to_owned(),
        };
        calls.push(Call { thread, text });
    }
    calls
}

/// What a program is for.
fn role(command: &str) -> &'static str {
    let name = command.split(' ').next().unwrap_or_default();
    let name = name.rsplit('/').next().unwrap_or_default();
    match name {
        "runc" => "runc",
        // It goes into the jail for another program.
        "sandbox-vmm" if command.contains("qemu-") => "QEMU",
        "sandbox-vmm" if command.contains("virtiofsd") => "virtiofsd",
        _ => crate::family::role(command).0,
    }
}

/// Counts, by the process that the calls are of. A process that has not executed anything is its parent's.
pub(crate) fn tally(trace: &str) -> Tally {
    let calls = calls(trace);
    let mut parents: BTreeMap<u32, (u32, bool)> = BTreeMap::new();
    for call in &calls {
        if let Some((child, is_thread)) = call.made() {
            parents.insert(child, (call.thread, is_thread));
        }
    }
    let mut process_of: BTreeMap<u32, u32> = BTreeMap::new();
    let mut roles: BTreeMap<u32, &'static str> = BTreeMap::new();
    let mut tally = Tally::new();
    for call in &calls {
        let process = settle(call.thread, &parents, &mut process_of, &mut roles);
        let role = roles.get(&process).copied().unwrap_or(UNKNOWN);
        let made = call.made();
        let executed = call.executed();
        *tally.entry(role).or_default() += Calls {
            calls: 1,
            processes: u64::from(made.is_some_and(|(_, is_thread)| !is_thread)),
            threads: u64::from(made.is_some_and(|(_, is_thread)| is_thread)),
            programs: u64::from(executed.is_some()),
            opens: u64::from(matches!(call.name(), "open" | "openat" | "openat2")),
        };
        if let Some(command) = executed {
            roles.insert(process, self::role(&command));
        }
    }
    tally
}

/// What was not seen to be made: the first process, before it has executed anything.
const UNKNOWN: &str = "shim";

/// The process of a thread, with its parent's role if it is new.
fn settle(
    thread: u32,
    parents: &BTreeMap<u32, (u32, bool)>,
    process_of: &mut BTreeMap<u32, u32>,
    roles: &mut BTreeMap<u32, &'static str>,
) -> u32 {
    if let Some(process) = process_of.get(&thread) {
        return *process;
    }
    // Taken for its own until its parents are known: numbers that lead to each other end here.
    process_of.insert(thread, thread);
    let Some((parent, is_thread)) = parents.get(&thread) else {
        return thread;
    };
    let parent = settle(*parent, parents, process_of, roles);
    let process = if *is_thread { parent } else { thread };
    process_of.insert(thread, process);
    if let Some(role) = roles.get(&parent).copied() {
        roles.entry(process).or_insert(role);
    }
    process
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TRACE: &str = r#"10 execve("/x/containerd-shim-sandbox-v2", ["/x/containerd-shim-sandbox-v2", "start"], 0x7ffe /* 3 vars */) = 0
10 openat(AT_FDCWD, "/etc/x", O_RDONLY) = -1 ENOENT (No such file or directory)
10 clone3({flags=CLONE_VM|CLONE_VFORK, exit_signal=SIGCHLD, stack=0x7f, stack_size=0x9000}, 88 <unfinished ...>
11 execve("/x/sandbox-vmm", ["/x/sandbox-vmm", "run"], 0x7ffe /* 3 vars */ <unfinished ...>
10 <... clone3 resumed>)              = 11
11 <... execve resumed>)                = 0
11 clone3({flags=CLONE_VM|CLONE_THREAD, child_tid=0x7f}, 88 <unfinished ...>
12 ioctl(3, KVM_RUN, 0) = 0
11 <... clone3 resumed> => {parent_tid=[2]}, 88) = 2 /* 12 in strace's PID NS */
12 openat(AT_FDCWD, "/dev/null", O_RDONLY) = 4
10 --- SIGCHLD {si_signo=SIGCHLD} ---
12 +++ exited with 0 +++
10 vfork( <unfinished ...>
13 execve("/proc/self/fd/6", ["runc", "init"], 0xc000 /* 4 vars */) = 0
10 <... vfork resumed>)                 = 13
13 getpid() = 1
13 execve("/bin/sh", ["sh", "-c", "echo \"up\""], 0xc000 /* 4 vars */) = 0
13 getpid() = 1
"#;

    #[test]
    fn calls_are_counted_by_what_made_them() {
        let tally = tally(TRACE);
        let of = |role: &str| tally.get(role).copied().unwrap_or_default();
        assert_eq!(
            of("shim"),
            Calls {
                calls: 6,
                processes: 2,
                threads: 0,
                programs: 3,
                opens: 1,
            }
        );
        assert_eq!(
            of("monitor"),
            Calls {
                calls: 3,
                processes: 0,
                threads: 1,
                programs: 0,
                opens: 1,
            }
        );
        assert_eq!(of("runc").calls, 2);
        assert_eq!(of("container's processes").calls, 1);
        assert_eq!(tally.values().map(|calls| calls.calls).sum::<u64>(), 12);
    }

    #[test]
    fn rest_is_what_came_since() {
        let lines: Vec<&str> = TRACE.split_inclusive('\n').collect();
        let before = tally(&lines[..10].concat());
        let after = tally(TRACE);
        assert_eq!(since(&before, &after)["monitor"], Calls::default());
        assert_eq!(since(&before, &after)["runc"].calls, 2);
        assert_eq!(since(&after, &after)["shim"], Calls::default());
    }

    #[test]
    fn programs_are_told_apart() {
        assert_eq!(role("/usr/sbin/runc --root /x create"), "runc");
        assert_eq!(
            role("/x/sandbox-vmm jailed --jail 9 -- /usr/bin/qemu-system-x86_64"),
            "QEMU"
        );
        assert_eq!(role("/x/sandbox-vmm run"), "monitor");
    }

    #[test]
    fn command_under_strace_is_the_same() {
        let mut command = Command::new("/x/a");
        command
            .arg("b")
            .env("C", "d")
            .env_remove("E")
            .current_dir("/f");
        let traced = traced(&command, Path::new("/t"));
        let arguments: Vec<_> = traced
            .get_args()
            .map(|one| one.to_string_lossy().into_owned())
            .collect();
        assert_eq!(
            arguments.join(" "),
            "-D -f --pidns-translation -o /t -- /x/a b"
        );
        assert_eq!(traced.get_envs().count(), 2);
        assert_eq!(traced.get_current_dir(), Some(Path::new("/f")));
    }

    proptest! {
        #[test]
        fn no_text_stops_the_counting(text in "([0-9]{1,2} ?(clone|execve|<\\.\\.\\. x resumed>|[ -~]{0,12})[(),=\" 0-9a-z/*]{0,20}\n){0,30}") {
            let _ = tally(&text);
        }
    }
}
