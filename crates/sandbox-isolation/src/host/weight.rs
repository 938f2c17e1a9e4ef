//! How much of this machine's memory the processes have that serve a container.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// A process, as far as it matters here.
struct Process {
    id: u32,
    parent: u32,
    /// Whether its command line or environment has a mark in it.
    is_marked: bool,
    /// Memory of its own and shared memory, but no files (proc_pid_status(5)).
    kib: u64,
}

impl Process {
    fn read(id: u32, marks: &[String]) -> Option<Self> {
        let folder = Path::new("/proc").join(id.to_string());
        let status = fs::read_to_string(folder.join("status")).ok()?;
        let member = |name: &str| -> Option<u64> {
            let value = status.lines().find_map(|line| line.strip_prefix(name))?;
            value.split_whitespace().next()?.parse().ok()
        };
        let is_marked = ["cmdline", "environ"].into_iter().any(|file| {
            let text = fs::read(folder.join(file)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            marks.iter().any(|mark| text.contains(mark.as_str()))
        });
        Some(Self {
            id,
            parent: u32::try_from(member("PPid:")?).ok()?,
            is_marked,
            kib: member("RssAnon:").unwrap_or(0) + member("RssShmem:").unwrap_or(0),
        })
    }
}

/// What these have together, in MiB: this process, those whose command line or environment has one of `marks` in it, and whatever any of
/// them started.
pub(crate) fn resident_mib(marks: &[String]) -> u64 {
    let all: Vec<Process> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Process::read(entry.file_name().to_str()?.parse().ok()?, marks))
        .collect();
    let marked = all.iter().filter(|one| one.is_marked).map(|one| one.id);
    let mut ours: BTreeSet<u32> = marked.chain([std::process::id()]).collect();
    loop {
        let started: Vec<u32> = all
            .iter()
            .filter(|one| ours.contains(&one.parent) && !ours.contains(&one.id))
            .map(|one| one.id)
            .collect();
        if started.is_empty() {
            break;
        }
        ours.extend(started);
    }
    let kib = all
        .iter()
        .filter(|one| ours.contains(&one.id))
        .map(|one| one.kib);
    kib.sum::<u64>() >> 10
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn what_a_process_with_a_mark_uses_is_seen() {
        let mark = "x-marked-for-its-weight";
        // It keeps 20 MB, of which this process has none.
        let mut marked = Command::new("sh")
            .args([
                "-c",
                "a=$(head -c 20000000 /dev/zero | tr '\\0' x); echo; read b",
            ])
            .env("MARK", mark)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // What says something has its environment, and all that it keeps.
        let stdout = marked.stdout.as_mut().unwrap();
        stdout.read_exact(&mut [0]).unwrap();
        let seen = Process::read(marked.id(), &[mark.to_owned()]);
        let unmarked = Process::read(marked.id(), &["y-of-nobody".to_owned()]);
        let together = resident_mib(&[]);
        marked.kill().unwrap();
        marked.wait().unwrap();
        let (seen, unmarked) = (seen.unwrap(), unmarked.unwrap());
        assert!(seen.is_marked && !unmarked.is_marked);
        assert_eq!(seen.parent, std::process::id());
        assert!(seen.kib >= 18_000, "{} KiB", seen.kib);
        assert!(together >= 17, "{together} MiB with what it started");
    }
}
