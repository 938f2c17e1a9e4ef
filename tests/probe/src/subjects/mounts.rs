//! The file systems: how each is mounted, what is masked, and where one can write.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use nix::unistd::{AccessFlags, access};
use serde_json::{Map, Value, json};

use crate::look;

/// Optional fields of a line of mountinfo (proc_pid_mountinfo(5)), without the group's number.
fn propagation(fields: &[&str]) -> String {
    let words: Vec<&str> = fields
        .iter()
        .map(|field| field.split(':').next().unwrap_or(field))
        .filter(|word| *word != "propagate_from")
        .collect();
    if words.is_empty() {
        "private".to_owned()
    } else {
        words.join(" ")
    }
}

fn sorted(options: &str) -> String {
    // Options with paths name folders of whoever mounted it.
    let mut words: Vec<&str> = options
        .split(',')
        .filter(|word| !word.contains('/'))
        .collect();
    words.sort_unstable();
    words.join(",")
}

/// A line of mountinfo: where it is, and how.
fn mount(line: &str) -> Option<(String, Value)> {
    let fields: Vec<&str> = line.split(' ').collect();
    let dash = fields.iter().position(|field| *field == "-")?;
    let (root, point, options) = (fields.get(3)?, fields.get(4)?, fields.get(5)?);
    let (kind, superblock) = (fields.get(dash + 1)?, fields.get(dash + 3)?);
    // Where in its file system a folder of the caller's is, is the caller's business.
    let of_the_kernel = ["cgroup", "cgroup2", "proc", "sysfs", "devpts", "mqueue"].contains(kind);
    let mut seen = json!({
        "type": kind,
        "options": sorted(options),
        "superblock": sorted(superblock),
        "propagation": propagation(fields.get(6..dash)?),
    });
    if of_the_kernel {
        seen["root"] = (*root).into();
    }
    Some(((*point).to_owned(), seen))
}

/// Every mount by its place; a place with several has a list, the lowest first.
pub(crate) fn look() -> Value {
    let text = match fs::read_to_string("/proc/self/mountinfo") {
        Ok(text) => text,
        Err(error) => return look::io_error(&error),
    };
    let mut all: Map<String, Value> = Map::new();
    for (point, seen) in text.lines().filter_map(mount) {
        match all.get_mut(&point) {
            None => drop(all.insert(point, seen)),
            Some(Value::Array(list)) => list.push(seen),
            Some(first) => *first = json!([first.take(), seen]),
        }
    }
    Value::Object(all)
}

/// What kind of file this is.
pub(super) fn kind(metadata: &fs::Metadata) -> String {
    let kind = metadata.file_type();
    let device = || {
        let number = metadata.rdev();
        format!(
            "{}:{}",
            nix::sys::stat::major(number),
            nix::sys::stat::minor(number)
        )
    };
    if kind.is_char_device() {
        format!("character device {}", device())
    } else if kind.is_block_device() {
        format!("block device {}", device())
    } else if kind.is_dir() {
        "folder".to_owned()
    } else if kind.is_symlink() {
        "link".to_owned()
    } else if kind.is_fifo() {
        "fifo".to_owned()
    } else if kind.is_socket() {
        "socket".to_owned()
    } else {
        "file".to_owned()
    }
}

fn read_some(path: &Path, folder: bool) -> Value {
    use std::io::Read as _;
    let some = |some: bool| if some { "something" } else { "nothing" };
    if folder {
        return match fs::read_dir(path) {
            Ok(mut entries) => some(entries.next().is_some()).into(),
            Err(error) => look::io_error(&error),
        };
    }
    let mut byte = [0];
    match File::open(path).and_then(|mut file| file.read(&mut byte)) {
        Ok(length) => some(length > 0).into(),
        Err(error) => look::io_error(&error),
    }
}

/// Paths that runtimes mask or make read-only, and what is there. `/proc/kmsg` is not read: that would wait.
pub(crate) fn paths() -> Value {
    const PATHS: &[&str] = &[
        "/proc/acpi",
        "/proc/asound",
        "/proc/bus",
        "/proc/fs",
        "/proc/interrupts",
        "/proc/irq",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/proc/sys",
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/hostname",
        "/proc/sysrq-trigger",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/sys/devices/virtual/powercap",
        "/sys/firmware",
        "/sys/kernel",
    ];
    let look = |path: &&str| {
        let seen = match fs::symlink_metadata(path) {
            Ok(metadata) => json!({
                "kind": kind(&metadata),
                "mode": format!("{:o}", metadata.permissions().mode() & 0o7777),
                "reads": read_some(Path::new(path), metadata.is_dir()),
                "writable": look::outcome(access(*path, AccessFlags::W_OK)),
            }),
            Err(error) => look::io_error(&error),
        };
        ((*path).to_owned(), seen)
    };
    Value::Object(PATHS.iter().map(look).collect())
}

/// Where a file can be made, and a folder in the cgroup tree.
pub(crate) fn writable() -> Value {
    const FOLDERS: &[&str] = &[
        "/", "/bin", "/dev", "/dev/shm", "/etc", "/proc", "/run", "/sys", "/tmp", "/var",
    ];
    let attempt = |folder: &&str| {
        let path = Path::new(folder).join(".sandbox-probe");
        let made = OpenOptions::new().write(true).create_new(true).open(&path);
        if made.is_ok() {
            let _ = fs::remove_file(&path);
        }
        ((*folder).to_owned(), look::io_outcome(made))
    };
    let mut seen = Value::Object(FOLDERS.iter().map(attempt).collect());
    let group = Path::new("/sys/fs/cgroup/sandbox-probe");
    let made = fs::create_dir(group);
    if made.is_ok() {
        let _ = fs::remove_dir(group);
    }
    seen["/sys/fs/cgroup"] = look::io_outcome(made);
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_of_mountinfo_is_read_without_what_differs_from_run_to_run() {
        let line =
            "36 35 98:0 /mnt1 /mnt2 rw,noatime shared:7 master:1 - tmpfs x rw,size=4k,lowerdir=/a";
        let (point, seen) = mount(line).unwrap();
        assert_eq!(point, "/mnt2");
        assert_eq!(
            seen,
            json!({
                "type": "tmpfs",
                "options": "noatime,rw",
                "superblock": "rw,size=4k",
                "propagation": "shared master",
            })
        );
        assert!(mount("36 35 98:0").is_none());
    }
}
