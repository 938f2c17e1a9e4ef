//! Folders that the host shares, and what else of the host's a container was handed.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{AT_FDCWD, AtFlags, RenameFlags, renameat2};
use nix::mount::{MsFlags, mount};
use nix::unistd::{ForkResult, linkat};
use serde_json::{Value, json};

use super::{Attempt, number, raw, text, texts};
use crate::look;

pub(super) const ALL: &[Attempt] = &[
    ("share_hard_links", hard_links),
    ("share_parents", parents),
    ("share_names", names),
    ("grow", grow),
    ("flood", flood),
];

/// Tries to make the file `file`, shared read-only, one of the folder `path`, which is writable, and to write `text` to it: by links, by
/// renaming, and on the shares' file system mounted anew; and as it is.
fn hard_links(params: &Value) -> Value {
    let file = Path::new(text(params, "file"));
    let folder = Path::new(text(params, "path"));
    let write = |path: &Path| {
        let opened = OpenOptions::new().write(true).truncate(true).open(path);
        look::io_outcome(opened.and_then(|mut opened| {
            use std::io::Write as _;
            opened.write_all(text(params, "text").as_bytes())
        }))
    };
    let linked = fs::hard_link(file, folder.join("linked"));
    let linked = json!([look::io_outcome(linked), write(&folder.join("linked"))]);
    // By its descriptor, which names no mount.
    let descriptor = File::open(file).map(|opened| {
        let path = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
        let to = folder.join("by-descriptor");
        let made = linkat(AT_FDCWD, &path, AT_FDCWD, &to, AtFlags::AT_SYMLINK_FOLLOW);
        json!([look::outcome(made), write(&to)])
    });
    let renamed = fs::rename(file, folder.join("renamed"));
    let renamed = json!([look::io_outcome(renamed), write(&folder.join("renamed"))]);
    json!({
        "linked": linked,
        "by_descriptor": descriptor.unwrap_or_else(|error| look::io_error(&error)),
        "renamed": renamed,
        "mounted_anew": on_the_whole(file, &write),
        "as_it_is": write(file),
    })
}

/// The same between the entries of every virtio-fs device's root, where no mount of the guest's is in the way.
fn on_the_whole(file: &Path, write: &dyn Fn(&Path) -> Value) -> Value {
    let Some(name) = file.file_name() else {
        return Value::Null;
    };
    let mut seen = Vec::new();
    let devices = on_every_device(&mut |at| {
        let entries = entries_of(at);
        for from in entries.iter().map(|entry| entry.join(name)) {
            if !from.exists() {
                continue;
            }
            for to in entries.iter().map(|entry| entry.join("whole")) {
                let linked = look::io_outcome(fs::hard_link(&from, &to));
                seen.push(json!({ "linked": linked, "written": write(&to) }));
                let _ = fs::remove_file(&to);
            }
            seen.push(json!({ "written": write(&from) }));
        }
    });
    json!({ "devices": devices, "seen": seen })
}

fn entries_of(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect()
}

/// Has `look_around` at the root of every virtio-fs device, mounted anew. Says which there are and whether they could be mounted.
fn on_every_device(look_around: &mut dyn FnMut(&Path)) -> Value {
    let at = Path::new("/tmp/whole");
    let _ = fs::create_dir(at);
    let mut seen = Vec::new();
    for device in entries_of(Path::new("/sys/fs/virtiofs")) {
        let tag = fs::read_to_string(device.join("tag")).unwrap_or_default();
        let tag = tag.trim();
        let mounted = mount(
            Some(tag),
            at,
            Some("virtiofs"),
            MsFlags::empty(),
            None::<&str>,
        );
        seen.push(json!({ "tag": tag, "mounted": look::outcome(mounted) }));
        if mounted.is_ok() {
            look_around(at);
            let _ = nix::mount::umount(at);
        }
    }
    seen.into()
}

/// Makes a folder and a link to the root, called after `name`, in the folders `paths`, of which the mount at `mount` is made writable before, and at
/// the root of every virtio-fs device, and below what is there already; and gives that another name for a moment.
fn names(params: &Value) -> Value {
    let name = text(params, "name");
    let none = None::<&str>;
    let writable = mount(
        none,
        text(params, "mount"),
        none,
        MsFlags::MS_REMOUNT | MsFlags::MS_BIND,
        none,
    );
    let try_in = |folder: &Path| {
        let made = fs::create_dir(folder.join(name));
        let linked = std::os::unix::fs::symlink("/", folder.join(format!("{name}-link")));
        json!({
            "folder": folder,
            "made": look::io_outcome(made),
            "linked": look::io_outcome(linked),
        })
    };
    let mut seen: Vec<_> = texts(params, "paths")
        .iter()
        .map(|path| try_in(Path::new(path)))
        .collect();
    let devices = on_every_device(&mut |at| {
        seen.push(try_in(at));
        for entry in entries_of(at) {
            let moved = at.join(format!("{name}-moved"));
            let renamed = fs::rename(&entry, &moved);
            if renamed.is_ok() {
                // It is the guest's own share, which is needed for what follows.
                let _ = fs::rename(&moved, &entry);
            }
            seen.push(json!({ "entry": entry, "renamed": look::io_outcome(renamed) }));
            seen.push(try_in(&entry));
        }
    });
    json!({ "devices": devices, "writable": look::outcome(writable), "seen": seen })
}

/// Goes up by `..` to `target` from a folder of the share `path` that another process moves to another depth all the while, which
/// a server that follows such a path step by step can be led out by.
fn parents(params: &Value) -> Value {
    let folder = Path::new(text(params, "path"));
    let target = text(params, "target").trim_start_matches('/');
    let (deep, high) = (folder.join("deep/er/still"), folder.join("high"));
    let prepared =
        fs::create_dir_all(deep.join("in")).and_then(|()| fs::create_dir_all(high.join("in")));
    if let Err(error) = prepared {
        return json!({ "prepared": look::io_error(&error) });
    }
    let end = Instant::now() + Duration::from_millis(number(params, "for_ms").min(5_000));
    let mover = match raw::fork() {
        Ok(ForkResult::Child) => {
            while Instant::now() < end {
                let exchanged = renameat2(
                    AT_FDCWD,
                    &deep,
                    AT_FDCWD,
                    &high,
                    RenameFlags::RENAME_EXCHANGE,
                );
                if exchanged.is_err() {
                    let middle = folder.join("middle");
                    let _ = fs::rename(&deep, &middle);
                    let _ = fs::rename(&high, &deep);
                    let _ = fs::rename(&middle, &high);
                }
            }
            std::process::exit(0);
        }
        Ok(ForkResult::Parent { child }) => child,
        Err(errno) => return json!({ "prepared": look::error(errno) }),
    };
    let mut prefixes = vec![String::new()];
    prefixes.extend(
        texts(params, "roots")
            .iter()
            .map(|root| format!("{}/", root.trim_matches('/'))),
    );
    let (mut opened, mut found) = (0u64, None);
    while Instant::now() < end && found.is_none() {
        for up in 1..=12 {
            for prefix in &prefixes {
                opened += 1;
                let way = format!("in/{}{prefix}{target}", "../".repeat(up));
                let read = [&deep, &high].map(|from| fs::read_to_string(from.join(&way)).ok());
                found = found.or_else(|| read.into_iter().flatten().next());
            }
        }
    }
    let _ = nix::sys::signal::kill(mover, nix::sys::signal::Signal::SIGKILL);
    let _ = nix::sys::wait::waitpid(mover, None);
    json!({ "prepared": "ok", "opened": opened, "found": found })
}

/// Makes the files `paths` `bytes` long, without writing that much.
fn grow(params: &Value) -> Value {
    let bytes = number(params, "bytes").min(64 << 20);
    let grown = texts(params, "paths").into_iter().map(|path| {
        let opened = OpenOptions::new().write(true).open(path);
        look::io_outcome(opened.and_then(|file| file.set_len(bytes)))
    });
    json!({ "grown": grown.collect::<Vec<_>>() })
}

/// Writes 192 MiB to its standard output, as fast as they are taken: for a process of its own (`attempt flood`), whose output is nothing
/// else.
fn flood(_: &Value) -> Value {
    use std::io::Write as _;
    const BYTES: usize = 192 << 20;
    let block = vec![b'.'; 64 << 10];
    let mut output = std::io::stdout();
    let written = (0..BYTES / block.len()).try_for_each(|_| output.write_all(&block));
    json!({ "written": look::io_outcome(written) })
}
