//! What is in `/dev`, and which devices can be used.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{
    FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

use nix::libc::O_NONBLOCK;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::{Map, Value, json};

use super::mounts::kind;
use crate::look;

fn open(path: &Path, write: bool) -> Value {
    look::io_outcome(
        OpenOptions::new()
            .read(true)
            .write(write)
            .custom_flags(O_NONBLOCK)
            .open(path),
    )
}

fn entry(path: &Path, metadata: &fs::Metadata) -> Value {
    if metadata.is_symlink() {
        return match fs::read_link(path) {
            Ok(target) => format!("-> {}", target.display()).into(),
            Err(error) => look::io_error(&error),
        };
    }
    let mut seen = json!({
        "kind": kind(metadata),
        "mode": format!("{:o}", metadata.permissions().mode() & 0o7777),
        "owner": format!("{}:{}", metadata.uid(), metadata.gid()),
    });
    if metadata.file_type().is_char_device() {
        seen["opens"] = open(path, true);
    }
    seen
}

/// Everything below `/dev` but what file systems of their own hold.
pub(crate) fn look() -> Value {
    let mut seen = Map::new();
    let mut folders = vec![PathBuf::from("/dev")];
    let device = fs::metadata("/dev").map(|metadata| metadata.dev());
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) => {
                seen.insert(folder.display().to_string(), look::io_error(&error));
                continue;
            }
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            let Ok(metadata) = fs::symlink_metadata(&path) else {
                continue;
            };
            if metadata.is_dir()
                && device
                    .as_ref()
                    .is_ok_and(|device| *device == metadata.dev())
            {
                folders.push(path.clone());
            }
            seen.insert(path.display().to_string(), entry(&path, &metadata));
        }
    }
    Value::Object(seen)
}

/// Devices of each kind: whether a node of it can be made, and opened for reading and for writing.
pub(crate) fn rules() -> Value {
    const DEVICES: &[(&str, SFlag, u64, u64)] = &[
        ("null", SFlag::S_IFCHR, 1, 3),
        ("port", SFlag::S_IFCHR, 1, 4),
        ("zero", SFlag::S_IFCHR, 1, 5),
        ("full", SFlag::S_IFCHR, 1, 7),
        ("random", SFlag::S_IFCHR, 1, 8),
        ("urandom", SFlag::S_IFCHR, 1, 9),
        ("kmsg", SFlag::S_IFCHR, 1, 11),
        ("tty", SFlag::S_IFCHR, 5, 0),
        ("console", SFlag::S_IFCHR, 5, 1),
        ("ptmx", SFlag::S_IFCHR, 5, 2),
        ("tun", SFlag::S_IFCHR, 10, 200),
        ("fuse", SFlag::S_IFCHR, 10, 229),
        ("kvm", SFlag::S_IFCHR, 10, 232),
        ("loop0", SFlag::S_IFBLK, 7, 0),
        ("vda", SFlag::S_IFBLK, 254, 0),
    ];
    let attempt = |&(name, kind, major, minor): &(&str, SFlag, u64, u64)| {
        let path = PathBuf::from(format!("/dev/.sandbox-probe-{name}"));
        let made = mknod(
            &path,
            kind,
            Mode::from_bits_truncate(0o666),
            makedev(major, minor),
        );
        let seen = match made {
            Ok(()) => {
                json!({ "make": "ok", "read": open(&path, false), "write": open(&path, true) })
            }
            Err(errno) => json!({ "make": look::error(errno) }),
        };
        let _ = fs::remove_file(&path);
        (name.to_owned(), seen)
    };
    Value::Object(DEVICES.iter().map(attempt).collect())
}
