//! Files, mounts, device nodes and file handles.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::{Value, json};

use super::{Attempt, number, raw, text, texts};
use crate::look;

pub(super) const ALL: &[Attempt] = &[
    ("read", read),
    ("open_for_writing", open_for_writing),
    ("read_below", read_below),
    ("device_read", device_read),
    ("device_write", device_write),
    ("by_handle", by_handle),
    ("write_files", write_files),
    ("read_only_share", read_only_share),
    ("share_links", share_links),
    ("share_race", share_race),
    ("share_node", share_node),
    ("leaked_descriptors", leaked_descriptors),
    ("space", space),
    ("pages", pages),
    ("set_user_id", set_user_id),
    ("mounts", mounts),
    ("mount_tmpfs", mount_tmpfs),
];

/// The most that is read of one file.
const READ_BYTES: u64 = 128 << 10;

fn beginning(path: impl AsRef<Path>) -> std::io::Result<String> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let mut bytes = Vec::new();
    file.take(READ_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What the files `paths` begin with.
fn read(params: &Value) -> Value {
    let seen = texts(params, "paths").into_iter().map(|path| {
        let value = match beginning(path) {
            Ok(text) => text.into(),
            Err(error) => look::io_error(&error),
        };
        (path.to_owned(), value)
    });
    json!({ "files": seen.collect::<serde_json::Map<_, _>>() })
}

/// Whether the files `paths` open for writing, with nothing written; and what is in them.
fn open_for_writing(params: &Value) -> Value {
    let seen = texts(params, "paths").into_iter().map(|path| {
        let opened = OpenOptions::new().write(true).open(path);
        let content = beginning(path).unwrap_or_default();
        let value = json!({ "open": look::io_outcome(opened), "content": content.trim() });
        (path.to_owned(), value)
    });
    json!({ "files": seen.collect::<serde_json::Map<_, _>>() })
}

/// What can be read of `path` below every root that other processes have, and by every further way that is named.
fn read_below(params: &Value) -> Value {
    let path = text(params, "path").trim_start_matches('/');
    let mut roots: Vec<PathBuf> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("root"))
        .collect();
    roots.extend(texts(params, "roots").into_iter().map(PathBuf::from));
    let mut tried = 0;
    for root in &roots {
        tried += 1;
        if let Ok(content) = beginning(root.join(path)) {
            return json!({ "found": content, "at": root.join(path), "tried": tried });
        }
    }
    json!({ "tried": tried })
}

/// A node of the device `major`, `minor`, block or character, made where devices are allowed.
fn node(params: &Value) -> nix::Result<PathBuf> {
    let kind = if params["block"].as_bool() == Some(true) {
        SFlag::S_IFBLK
    } else {
        SFlag::S_IFCHR
    };
    let device = makedev(number(params, "major"), number(params, "minor"));
    let mut last = nix::errno::Errno::ENOENT;
    for folder in ["/dev", "/tmp"] {
        let path = Path::new(folder).join(format!("probe-{}", std::process::id()));
        match mknod(&path, kind, Mode::from_bits_truncate(0o600), device) {
            Ok(()) => return Ok(path),
            Err(errno) => last = errno,
        }
    }
    Err(last)
}

/// Makes a node of a device and reads `length` bytes at `offset`.
fn device_read(params: &Value) -> Value {
    let path = match node(params) {
        Ok(path) => path,
        Err(errno) => return json!({ "made": look::error(errno) }),
    };
    let opened = File::open(&path);
    let _ = fs::remove_file(&path);
    let mut file = match opened {
        Ok(file) => file,
        Err(error) => return json!({ "made": "ok", "opened": look::io_error(&error) }),
    };
    let length = usize::try_from(number(params, "length").min(4096)).unwrap_or(0);
    let mut bytes = vec![0; length];
    let read = file
        .seek(SeekFrom::Start(number(params, "offset")))
        .and_then(|_| file.read_exact(&mut bytes));
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    json!({ "made": "ok", "opened": "ok", "read": look::io_outcome(read), "bytes": hex })
}

/// Makes a node of a device and writes `text` to it, `times` times, opened anew each time: a kernel may slow down who has it open.
fn device_write(params: &Value) -> Value {
    let path = match node(params) {
        Ok(path) => path,
        Err(errno) => return json!({ "made": look::error(errno) }),
    };
    let times = number(params, "times").clamp(1, 1000);
    let write = |_: u64| {
        let mut file = OpenOptions::new().write(true).open(&path)?;
        file.write_all(text(params, "text").as_bytes())
    };
    let written = (0..times).try_for_each(write);
    let _ = fs::remove_file(&path);
    json!({ "made": "ok", "written": look::io_outcome(written) })
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .filter_map(|at| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok())
        .collect()
}

/// Opens a file by the handle that the host gave, on the file systems of `mounts`.
fn by_handle(params: &Value) -> Value {
    let kind = i32::try_from(number(params, "kind")).unwrap_or(0);
    let handle = unhex(text(params, "handle"));
    let mut seen = serde_json::Map::new();
    for path in texts(params, "mounts") {
        let opened = File::open(path)
            .map(OwnedFd::from)
            .map_err(|_| nix::errno::Errno::ENOENT)
            .and_then(|mount| raw::open_by_handle(&mount, kind, &handle));
        let value = match opened {
            Ok(file) => {
                let mut content = String::new();
                let read = File::from(file)
                    .take(READ_BYTES)
                    .read_to_string(&mut content);
                json!({ "read": look::io_outcome(read), "content": content })
            }
            Err(errno) => look::error(errno),
        };
        seen.insert(path.to_owned(), value);
    }
    json!({ "mounts": seen })
}

/// Writes `text` to each of `paths`.
fn write_files(params: &Value) -> Value {
    let seen = texts(params, "paths").into_iter().map(|path| {
        let written = fs::write(path, text(params, "text"));
        (path.to_owned(), look::io_outcome(written))
    });
    json!({ "written": seen.collect::<serde_json::Map<_, _>>() })
}

/// Tries to change the folder `path`, shared read-only, in which there is `file`: as it is, and mounted anew for writing.
fn read_only_share(params: &Value) -> Value {
    let folder = Path::new(text(params, "path"));
    let file = folder.join(text(params, "file"));
    let change = || {
        json!({
            "written": look::io_outcome(fs::write(&file, text(params, "text"))),
            "made": look::io_outcome(fs::write(folder.join("made"), text(params, "text"))),
            "mode": look::io_outcome(fs::set_permissions(&file, fs::Permissions::from_mode(0o777))),
        })
    };
    let before = change();
    let anew = [MsFlags::MS_BIND, MsFlags::empty()].map(|more| {
        let flags = MsFlags::MS_REMOUNT | more;
        look::outcome(mount(
            None::<&str>,
            folder,
            None::<&str>,
            flags,
            None::<&str>,
        ))
    });
    json!({ "as_it_is": before, "mounted_anew": anew, "after": change() })
}

/// Follows links out of the folder `path` to `target`, and up by `..`.
fn share_links(params: &Value) -> Value {
    let folder = Path::new(text(params, "path"));
    let target = text(params, "target");
    let relative = format!("{}{}", "../".repeat(32), target.trim_start_matches('/'));
    let absolute_link = folder.join("absolute");
    let relative_link = folder.join("relative");
    let made = [
        look::io_outcome(symlink(target, &absolute_link)),
        look::io_outcome(symlink(&relative, &relative_link)),
    ];
    let mut ways = vec![absolute_link, relative_link, folder.join(&relative)];
    ways.extend(
        texts(params, "roots")
            .iter()
            .map(|root| Path::new(root).join(target.trim_start_matches('/'))),
    );
    let found = ways.iter().find_map(|way| beginning(way).ok());
    json!({ "made": made, "ways": ways.len(), "found": found })
}

/// Swaps a folder of the share for a link to `target` again and again while another process opens the name below it.
fn share_race(params: &Value) -> Value {
    let folder = Path::new(text(params, "path"));
    let target = Path::new(text(params, "target"));
    let (Some(above), Some(name)) = (target.parent(), target.file_name()) else {
        return json!({ "error": "the target is not a file in a folder" });
    };
    let (race, spare) = (folder.join("race"), folder.join("spare"));
    let above = texts(params, "roots")
        .first()
        .map_or(above.to_owned(), |root| {
            Path::new(root).join(above.strip_prefix("/").unwrap_or(above))
        });
    let prepared = fs::create_dir(&race).and_then(|()| symlink(&above, &spare));
    if let Err(error) = prepared {
        return json!({ "prepared": look::io_error(&error) });
    }
    let end = Instant::now() + Duration::from_millis(number(params, "for_ms").min(5_000));
    let swapper = match raw::fork() {
        Ok(nix::unistd::ForkResult::Child) => {
            while Instant::now() < end {
                let exchanged = nix::fcntl::renameat2(
                    nix::fcntl::AT_FDCWD,
                    &race,
                    nix::fcntl::AT_FDCWD,
                    &spare,
                    nix::fcntl::RenameFlags::RENAME_EXCHANGE,
                );
                if exchanged.is_err() {
                    let middle = folder.join("middle");
                    let _ = fs::rename(&race, &middle);
                    let _ = fs::rename(&spare, &race);
                    let _ = fs::rename(&middle, &spare);
                }
            }
            std::process::exit(0);
        }
        Ok(nix::unistd::ForkResult::Parent { child }) => child,
        Err(errno) => return json!({ "prepared": look::error(errno) }),
    };
    let (mut opened, mut found) = (0u64, None);
    while Instant::now() < end && found.is_none() {
        opened += 1;
        found = beginning(race.join(name)).ok();
    }
    let _ = nix::sys::signal::kill(swapper, nix::sys::signal::Signal::SIGKILL);
    let _ = nix::sys::wait::waitpid(swapper, None);
    json!({ "prepared": "ok", "opened": opened, "found": found })
}

/// Makes a device node in the folder `path`.
fn share_node(params: &Value) -> Value {
    let folder = Path::new(text(params, "path"));
    let device = makedev(number(params, "major"), number(params, "minor"));
    let mode = Mode::from_bits_truncate(0o666);
    let made = mknod(&folder.join("node"), SFlag::S_IFCHR, mode, device);
    json!({ "node": look::outcome(made) })
}

/// Makes a program in the folder `path` that runs as root whoever starts it.
fn set_user_id(params: &Value) -> Value {
    let program = Path::new(text(params, "path")).join("program");
    let set = fs::write(&program, b"#!/bin/sh\n")
        .and_then(|()| fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)));
    json!({ "set": look::io_outcome(set) })
}

/// How much of the file `path` is in memory, without touching it.
fn pages(params: &Value) -> Value {
    let counted = File::open(text(params, "path")).and_then(|file| {
        let length = usize::try_from(file.metadata()?.len()).unwrap_or(0);
        Ok(raw::pages_in_memory(&file, length)?)
    });
    match counted {
        Ok((there, all)) => json!({ "in_memory": there, "pages": all }),
        Err(error) => look::io_error(&error),
    }
}

/// Follows every descriptor that this process or the first one has, upwards to the file `path`.
fn leaked_descriptors(params: &Value) -> Value {
    let path = text(params, "path").trim_start_matches('/');
    let mut targets = Vec::new();
    for process in ["self", "1"] {
        let folder = PathBuf::from(format!("/proc/{process}/fd"));
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            targets.push(target.to_string_lossy().into_owned());
            let up = entry.path().join("../".repeat(32)).join(path);
            if let Ok(found) = beginning(entry.path().join(path)).or_else(|_| beginning(up)) {
                return json!({ "found": found, "descriptor": entry.path(), "targets": targets });
            }
        }
    }
    json!({ "targets": targets })
}

/// How large the file system of `path` is.
fn space(params: &Value) -> Value {
    match nix::sys::statvfs::statvfs(text(params, "path")) {
        Ok(found) => json!({
            "bytes": found.blocks() * found.fragment_size(),
            "inodes": found.files(),
        }),
        Err(errno) => look::error(errno),
    }
}

/// The mounts, as the kernel lists them.
fn mounts(_: &Value) -> Value {
    json!({ "mounts": look::lines("/proc/self/mountinfo") })
}

/// Mounts a tmpfs on `path`.
fn mount_tmpfs(params: &Value) -> Value {
    let path = text(params, "path");
    let _ = fs::create_dir(path);
    let mounted = mount(
        Some(text(params, "source")),
        path,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("size=64k"),
    );
    json!({ "mounted": look::outcome(mounted) })
}
