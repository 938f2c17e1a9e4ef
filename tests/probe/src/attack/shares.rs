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
    let at = Path::new("/tmp/whole");
    let _ = fs::create_dir(at);
    let mut seen = Vec::new();
    for device in fs::read_dir("/sys/fs/virtiofs")
        .into_iter()
        .flatten()
        .flatten()
    {
        let tag = fs::read_to_string(device.path().join("tag")).unwrap_or_default();
        let tag = tag.trim();
        let mounted = mount(
            Some(tag),
            at,
            Some("virtiofs"),
            MsFlags::empty(),
            None::<&str>,
        );
        seen.push(json!({ "tag": tag, "mounted": look::outcome(mounted) }));
        if mounted.is_err() {
            continue;
        }
        let entries: Vec<PathBuf> = fs::read_dir(at)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
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
        let _ = nix::mount::umount(at);
    }
    seen.into()
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
