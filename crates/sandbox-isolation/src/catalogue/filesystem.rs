//! Filesystem escape: files that are not the container's.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::PathBuf;

use serde_json::{Value, json};

use super::{brief, reads_secret, there};
use crate::case::{Case, Finding, Judge, Obstacle, Profile, Scene, Stage, Threat};
use crate::host::{self, raw, speakers::Speaker};

/// What is read where it should not be.
const FILE: &str = "a file of the host's that no container is given";

/// Where a container finds what its standard error goes to; the second only where it was leaked to it.
pub(super) const OUTPUTS: [&str; 2] = ["/proc/self/fd/2", "/proc/self/fd/4"];

/// A case of this file.
const FILESYSTEM: Case = Case {
    name: "",
    threat: Threat::FilesystemEscape,
    attempt: "",
    watch: "a file with a secret outside of every share",
    expected: "the secret is not read",
    profile: Profile::Granted,
    control: Profile::Host,
    stage: |_| Err(Obstacle(String::new())),
};

pub(super) const ALL: &[Case] = &[
    Case {
        name: "filesystem_roots_of_processes",
        attempt: "reads a file of the host's below /proc/*/root",
        stage: |stage| {
            let params = json!({ "path": stage.host.secret_path() });
            Ok(Scene::new("read_below", params, secret(stage)))
        },
        ..FILESYSTEM
    },
    Case {
        name: "filesystem_host_disk",
        attempt: "makes a node of the host's disk by its number and reads the file system's UUID",
        watch: "the UUID of the file system that containers are on",
        expected: "another disk, or none",
        control: Profile::Granted,
        stage: |stage| {
            let disk = host::disk_of(&stage.host.secret_path()).map_err(Obstacle)?;
            let params = json!({
                "block": true, "major": disk.major, "minor": disk.minor,
                "offset": disk.offset, "length": 16,
            });
            let identity = disk.identity;
            Ok(Scene::new(
                "device_read",
                params,
                reads_secret("the host's disk", identity),
            ))
        },
        ..FILESYSTEM
    },
    Case {
        name: "filesystem_file_handles",
        attempt: "opens a file of the host's by its handle, on its root and on its shares (open_by_handle_at)",
        control: Profile::Granted,
        stage: |stage| {
            let (kind, handle) = raw::handle_of(&stage.host.secret_path())?;
            let params = json!({
                "kind": kind, "handle": hex::encode(handle),
                "mounts": ["/", "/share", "/share-ro", "/etc/hosts"],
            });
            Ok(Scene::new("by_handle", params, secret(stage)))
        },
        ..FILESYSTEM
    },
    Case {
        name: "filesystem_leaked_descriptors",
        attempt: "follows every open descriptor upwards to a file of the host's (CVE-2024-21626)",
        profile: Profile::Plain,
        stage: |stage| {
            let params = json!({ "path": stage.host.secret_path() });
            Ok(Scene::new("leaked_descriptors", params, secret(stage)))
        },
        ..FILESYSTEM
    },
    Case {
        name: "filesystem_share_links",
        attempt: "follows absolute and relative links that it makes in a share, and `..`, to a file of the host's",
        stage: |stage| {
            let params = json!({
                "path": "/share", "target": stage.host.secret_path(), "roots": ["/host"],
            });
            Ok(Scene::new("share_links", params, secret(stage)))
        },
        ..FILESYSTEM
    },
    Case {
        name: "filesystem_share_race",
        attempt: "swaps a folder of a share for a link while it opens a file below it, for three seconds",
        stage: |stage| {
            let params = json!({
                "path": "/share", "target": stage.host.secret_path(), "roots": ["/host"], "for_ms": 3000,
            });
            Ok(Scene::new("share_race", params, secret(stage)))
        },
        ..FILESYSTEM
    },
    Case {
        name: "filesystem_share_parents",
        attempt: "goes up by `..` to a file of the host's from a folder of a share that is moved all the while, for a second",
        stage: |stage| {
            let params = json!({
                "path": "/share", "target": stage.host.secret_path(), "roots": ["/host"], "for_ms": 1000,
            });
            Ok(Scene::new("share_parents", params, secret(stage)))
        },
        ..FILESYSTEM
    },
    Case {
        name: "filesystem_share_hard_links",
        attempt: "makes a file of a read-only share one of a writable share: by links, by renaming, and between the roots of all shares mounted anew",
        watch: "the file, its names and what is in it",
        expected: "nothing changes",
        stage: |stage| {
            let file = stage.shares.read_only.join("once");
            fs::write(&file, "as it was")?;
            let params =
                json!({ "file": "/share-ro/once", "path": "/share", "text": host::token()? });
            let judge = changed("a file of a read-only share was changed, or has another name");
            Ok(
                Scene::new("share_hard_links", params, judge).watching(move |_| {
                    let as_it_was = fs::read(&file).is_ok_and(|content| content == b"as it was")
                        && fs::metadata(&file).is_ok_and(|found| found.nlink() == 1);
                    (!as_it_was).into()
                }),
            )
        },
        ..FILESYSTEM
    },
    Case {
        name: "filesystem_share_names",
        attempt: "makes a folder and a link, and moves what is there, around its shares: at the roots of all of them, mounted anew",
        watch: "the folder around its shares, and every tmpfs of the host's, for what was made",
        expected: "neither is there",
        stage: |stage| {
            let name = host::token()?;
            let around = stage.shares.writable.with_file_name("");
            let seen_there = format!("/host{}", around.display());
            let params = json!({ "name": name, "mount": "/host", "paths": [seen_there] });
            let judge = changed("a name was made around what is shared");
            Ok(Scene::new("share_names", params, judge).watching(move |_| {
                let names = [name.clone(), format!("{name}-link")];
                let folders = host::mounts_of("tmpfs").into_iter().chain([around.clone()]);
                let made: Vec<_> = folders
                    .flat_map(|folder| names.clone().map(|name| folder.join(name)))
                    .filter(|path| path.symlink_metadata().is_ok())
                    .collect();
                for path in &made {
                    let _ = fs::remove_dir(path).or_else(|_| fs::remove_file(path));
                }
                (!made.is_empty()).into()
            }))
        },
        ..FILESYSTEM
    },
    Case {
        name: "filesystem_standard_error",
        attempt: "opens what its standard error goes to for reading",
        watch: "a secret that it wrote to that file before, as a log has what others wrote",
        profile: Profile::Plain,
        stage: |stage| {
            use std::io::Write as _;
            let secret = host::token()?;
            let mut errors = fs::OpenOptions::new()
                .append(true)
                .open(&stage.shares.errors)?;
            writeln!(errors, "{secret}")?;
            let params = json!({ "paths": OUTPUTS });
            let judge = reads_secret("what others wrote to a file of the host's", secret);
            Ok(Scene::new("read", params, judge))
        },
        ..FILESYSTEM
    },
    Case {
        name: "filesystem_read_only_share",
        attempt: "changes a share that is read-only, as it is and mounted anew for writing",
        watch: "the folder, its file and its mode",
        expected: "nothing changes",
        control: Profile::Granted,
        stage: |stage| {
            let folder = stage.shares.read_only.clone();
            let (text, file) = (host::token()?, folder.join("file"));
            fs::write(&file, "as it was")?;
            let mode = fs::metadata(&file)?.mode();
            let params = json!({ "path": "/share-ro", "file": "file", "text": text });
            let judge = changed("a read-only share was changed");
            Ok(
                Scene::new("read_only_share", params, judge).watching(move |_| {
                    let as_it_was = fs::read(&file).is_ok_and(|content| content == b"as it was")
                        && fs::metadata(&file).is_ok_and(|found| found.mode() == mode)
                        && !folder.join("made").exists();
                    (!as_it_was).into()
                }),
            )
        },
        ..FILESYSTEM
    },
    Case {
        name: "filesystem_declared_share",
        attempt: "writes to a share, beside it, and to the host's path of it",
        watch: "the share, and the folder around it",
        expected: "what is written is in the share, where it was declared to be, and nowhere else",
        profile: Profile::Plain,
        control: Profile::Plain,
        stage: |stage| {
            let folder = stage.shares.writable.clone();
            let (text, name) = (host::token()?, host::token()?);
            let beside = stage.host.secret_path().with_file_name(&name);
            let params = json!({
                "text": text,
                "paths": [format!("/share/{name}"), format!("/share/../{name}"), beside],
            });
            let judge: Judge = Box::new(|seen, watched| match watched["outside"].as_u64() {
                Some(0) if watched["inside"] == true => {
                    Finding::Shared("a file in the folder that was shared".to_owned())
                }
                Some(0) => Finding::Blocked(format!("nothing arrived: {}", brief(seen))),
                _ => Finding::Reached("a file outside of the share".to_owned()),
            });
            Ok(Scene::new("write_files", params, judge).watching(move |_| {
                let has = |path: PathBuf| fs::read_to_string(path).is_ok_and(|found| found == text);
                let above = folder.with_file_name(&name);
                let outside = [beside.clone(), above]
                    .into_iter()
                    .filter(|path| path.exists());
                json!({ "inside": has(folder.join(&name)), "outside": outside.count() })
            }))
        },
        ..FILESYSTEM
    },
    Case {
        name: "filesystem_share_device",
        attempt: "makes a device node in a share",
        watch: "the share, for a device",
        expected: "no device appears on the host",
        control: Profile::Granted,
        stage: |stage| {
            let node = stage.shares.writable.join("node");
            let params = json!({ "path": "/share", "major": 1, "minor": 5 });
            let judge = changed("a device node is in the host's folder");
            Ok(Scene::new("share_node", params, judge).watching(move |_| {
                let found = fs::symlink_metadata(&node);
                let device = found.is_ok_and(|found| found.file_type().is_char_device());
                let _ = fs::remove_file(&node);
                device.into()
            }))
        },
        ..FILESYSTEM
    },
    Case {
        name: "filesystem_share_set_user_id",
        attempt: "makes a program in a share that runs as root whoever starts it",
        watch: "the share, for a program of root's with the set-user-ID bit",
        expected: "none, or one where it was shared: who can enter that folder on the host can run it",
        profile: Profile::Plain,
        control: Profile::Plain,
        stage: |stage| {
            let program = stage.shares.writable.join("program");
            let judge: Judge = Box::new(|seen, watched| {
                if watched == true {
                    let what = "a set-user-ID program of root's, in the folder that was shared";
                    Finding::Shared(what.to_owned())
                } else {
                    Finding::Blocked(format!("there is none: {}", brief(seen)))
                }
            });
            let params = json!({ "path": "/share" });
            Ok(Scene::new("set_user_id", params, judge).watching(move |_| {
                let set = fs::symlink_metadata(&program)
                    .is_ok_and(|found| found.uid() == 0 && found.mode() & 0o4000 != 0);
                let _ = fs::remove_file(&program);
                set.into()
            }))
        },
        ..FILESYSTEM
    },
    Case {
        name: "filesystem_share_socket",
        attempt: "connects to a socket of the host's that is in a share",
        watch: "a Unix socket that it listens at, and says a secret to whoever connects",
        profile: Profile::Plain,
        control: Profile::Plain,
        stage: |stage| {
            let secret = host::token()?;
            let path = stage.shares.writable.join("socket");
            let _ = fs::remove_file(&path);
            let speaker = Speaker::socket_file(&path, secret.clone())?;
            let params = json!({ "path": "/share/socket" });
            let judge = reads_secret("what a process of the host's says", secret);
            Ok(Scene::new("socket_file_connect", params, judge).keeping(speaker))
        },
        ..FILESYSTEM
    },
    Case {
        name: "filesystem_host_programs",
        attempt: "opens the program of a process of the host's by /proc/PID/exe, as is done to replace a container runtime",
        watch: "a process of its own, whose program ends in a secret",
        expected: "the secret is not read",
        stage: |stage| {
            let (name, secret) = (host::token()?, host::token()?);
            let decoy = stage.host.decoy(&name, &secret)?;
            let judge = reads_secret("the program of a process of the host's", secret);
            Ok(Scene::new("process_program", json!({ "name": name }), judge).keeping(decoy))
        },
        ..FILESYSTEM
    },
    Case {
        name: "filesystem_host_paths",
        attempt: "reads its list of mounts for paths of the host",
        watch: "the name of the folder that it shares",
        expected: "the name is not in the list",
        profile: Profile::Plain,
        control: Profile::Plain,
        stage: |stage| {
            let path = stage.shares.writable.to_string_lossy().into_owned();
            Ok(Scene::new(
                "mounts",
                Value::Null,
                reads_secret("a path of the host's", path),
            ))
        },
        ..FILESYSTEM
    },
    Case {
        name: "filesystem_sysfs",
        attempt: "opens settings of the host's hardware in sysfs for writing, and writes nothing",
        watch: "its own boot_id, beside the one that the attempt was made in",
        expected: "refused, or let through by a kernel that is not the host's",
        control: Profile::Granted,
        stage: |stage| {
            let paths = there(&[
                "/sys/kernel/mm/transparent_hugepage/enabled",
                "/sys/kernel/profiling",
                "/sys/power/state",
            ])?;
            let judge = super::of_this_kernel(stage, "writable settings", super::opens_one);
            Ok(Scene::new(
                "open_for_writing",
                json!({ "paths": paths }),
                judge,
            ))
        },
        ..FILESYSTEM
    },
];

fn secret(stage: &Stage<'_>) -> Judge {
    reads_secret(FILE, stage.host.secret())
}

/// Reached when the host saw the change.
fn changed(what: &'static str) -> Judge {
    Box::new(move |seen, watched| {
        if watched == true {
            Finding::Reached(what.to_owned())
        } else {
            Finding::Blocked(format!("nothing changed: {}", brief(seen)))
        }
    })
}
