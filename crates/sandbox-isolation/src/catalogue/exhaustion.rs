//! Resource exhaustion: does what the container uses up count against its limits, or against the host?
//!
//! Every attempt is bounded, because the control uses up this machine's.

use serde_json::{Value, json};

use super::filesystem::OUTPUTS;
use crate::case::{Case, Finding, Flood, Judge, Obstacle, Profile, Scene, Stage, Threat};
use crate::host;

/// Processes that the bomb is made of.
const BOMB: u64 = 256;
/// Memory that the hog asks for, in MiB.
const HOG_MIB: u64 = 192;
/// What fits into `/dev/shm`, in MiB, in steps of the hog's.
const TMPFS_MIB: u64 = 56;
/// What a process writes that is added to the container, in MiB: as much as the probe does, which cannot be told a number there.
const FLOOD_MIB: u64 = 192;
/// So much of that in this machine's memory is too much; it has buffers, and a guest grows a little.
const HELD_MIB: u64 = FLOOD_MIB / 2;

/// What a file of the host's is made long to, in bytes.
const OUTPUT_BYTES: u64 = 64 << 20;

/// A case of this file.
const EXHAUSTION: Case = Case {
    name: "",
    threat: Threat::ResourceExhaustion,
    attempt: "",
    watch: "",
    expected: "the host's count does not rise",
    profile: Profile::Plain,
    control: Profile::Plain,
    stage: |_| Err(Obstacle(String::new())),
};

pub(super) const ALL: &[Case] = &[
    Case {
        name: "exhaustion_processes",
        attempt: "makes 256 processes where 64 are allowed",
        watch: "how many processes of that name it has itself",
        expected: "no more than the limit, of the host's none",
        profile: Profile::Limited,
        stage: |_| many("fork", |found| found.count),
        ..EXHAUSTION
    },
    Case {
        name: "exhaustion_threads",
        attempt: "makes 256 threads where 64 are allowed",
        watch: "how many threads processes of that name have",
        expected: "no more than the limit, of the host's none",
        profile: Profile::Limited,
        stage: |_| many("threads", |found| found.threads),
        ..EXHAUSTION
    },
    Case {
        name: "exhaustion_memory",
        attempt: "touches 192 MiB where 48 MiB are allowed",
        watch: "the size of the process, if it sees it",
        expected: "stopped at the limit",
        profile: Profile::Limited,
        stage: |_| fill(json!({ "mib": HOG_MIB, "shared": false })),
        ..EXHAUSTION
    },
    Case {
        name: "exhaustion_shared_memory",
        attempt: "fills a file in memory (memfd) with 192 MiB where 48 MiB are allowed",
        watch: "the size of the process, if it sees it",
        expected: "stopped at the limit",
        profile: Profile::Limited,
        stage: |_| fill(json!({ "mib": HOG_MIB, "shared": true })),
        ..EXHAUSTION
    },
    Case {
        name: "exhaustion_tmpfs",
        attempt: "fills 56 MiB of /dev/shm where 48 MiB of memory are allowed",
        watch: "the size of the process, if it sees it",
        expected: "stopped at the limit",
        profile: Profile::Limited,
        stage: |_| fill(json!({ "mib": TMPFS_MIB, "shared": true, "folder": "/dev/shm" })),
        ..EXHAUSTION
    },
    Case {
        name: "exhaustion_timers",
        attempt: "sets 1000 timers",
        watch: "its own kernel's list of timers (timer_list)",
        stage: |_| {
            rises(
                "timers",
                host::timers,
                ("timers", json!({ "count": 1000 })),
                900,
            )
        },
        ..EXHAUSTION
    },
    Case {
        name: "exhaustion_keys",
        attempt: "adds 100 keys to a keyring",
        watch: "its own kernel's count of root's keys (key-users)",
        profile: Profile::Granted,
        control: Profile::Granted,
        stage: |_| {
            rises(
                "root's keys",
                host::root_keys,
                ("keys", json!({ "count": 100 })),
                90,
            )
        },
        ..EXHAUSTION
    },
    Case {
        name: "exhaustion_directory_entries",
        attempt: "asks for 100 000 files that are not there, which the kernel remembers",
        watch: "its own kernel's count of remembered names (dentry-state)",
        stage: |_| {
            let params = json!({ "count": 100_000, "name": host::token()? });
            let path = "/proc/sys/fs/dentry-state";
            rises(
                "remembered names",
                move || host::number(path),
                ("lookups", params),
                80_000,
            )
        },
        ..EXHAUSTION
    },
    Case {
        name: "exhaustion_packets",
        attempt: "sends 50 000 datagrams to itself, as fast as it can",
        watch: "its own kernel's count of packets that it took in (softnet_stat)",
        stage: |_| {
            rises(
                "packets",
                host::packets,
                ("datagrams", json!({ "count": 50_000 })),
                45_000,
            )
        },
        ..EXHAUSTION
    },
    Case {
        name: "exhaustion_open_files",
        attempt: "opens 8000 files",
        watch: "its own kernel's count of open files (file-nr)",
        stage: |_| counted("/proc/sys/fs/file-nr", "descriptors", 8000, 6000),
        ..EXHAUSTION
    },
    Case {
        name: "exhaustion_terminals",
        attempt: "opens 48 pseudo-terminals",
        watch: "its own kernel's count of them (pty/nr)",
        stage: |_| counted("/proc/sys/kernel/pty/nr", "terminals", 48, 40),
        ..EXHAUSTION
    },
    Case {
        name: "exhaustion_asynchronous_operations",
        attempt: "reserves room for 4096 asynchronous operations",
        watch: "its own kernel's count of them (aio-nr)",
        stage: |_| counted("/proc/sys/fs/aio-nr", "asynchronous", 4096, 4000),
        ..EXHAUSTION
    },
    Case {
        name: "exhaustion_kernel_log",
        attempt: "writes 100 lines to the kernel's log, which push out what is there and go to the console, as fast as it can",
        watch: "its own kernel's log, for the lines",
        expected: "none arrives",
        profile: Profile::Granted,
        control: Profile::Granted,
        stage: |_| {
            let (mark, lines) = (host::token()?, 100);
            let log = host::log::KernelLog::from_now_on()?;
            let text = format!("isolation-test {mark}\n");
            let params = json!({ "major": 1, "minor": 11, "text": text, "times": lines });
            let judge: Judge = Box::new(move |seen, watched| {
                let said = format!("{watched} lines in the host's log: {}", super::brief(seen));
                match watched.as_u64() {
                    Some(there) if there >= lines => Finding::Reached(said),
                    _ => Finding::Blocked(said),
                }
            });
            Ok(Scene::new("device_write", params, judge)
                .watching(move |_| log.count(&mark, lines).into()))
        },
        ..EXHAUSTION
    },
    Case {
        name: "exhaustion_output_file",
        attempt: "makes what its standard error goes to 64 MiB long, without writing anything",
        watch: "the size of the file, which is its own",
        expected: "the file is as it was: only what is written arrives",
        control: Profile::Host,
        stage: |stage| {
            let errors = stage.shares.errors.clone();
            let before = std::fs::metadata(&errors)?.len();
            let params = json!({ "paths": OUTPUTS, "bytes": OUTPUT_BYTES });
            let judge: Judge = Box::new(|seen, watched| {
                let said = format!("the file has {watched} bytes: {}", super::brief(seen));
                match watched.as_u64() {
                    Some(OUTPUT_BYTES..) => Finding::Reached(said),
                    _ => Finding::Blocked(said),
                }
            });
            Ok(Scene::new("grow", params, judge).watching(move |_| {
                let now = std::fs::metadata(&errors).map_or(0, |found| found.len());
                if now >= OUTPUT_BYTES
                    && let Ok(file) = std::fs::OpenOptions::new().write(true).open(&errors)
                {
                    let _ = file.set_len(before);
                }
                now.into()
            }))
        },
        ..EXHAUSTION
    },
    Case {
        name: "exhaustion_unread_output",
        attempt: "writes 192 MiB to the output of an added process (exec), as fast as it can, while nobody reads; in the control, what reads it keeps it all",
        watch: "the memory of its processes that serve the container, and whether both containers, and one more added process, still answer",
        expected: "what is written does not come to be in its memory, everybody answers, and the writer ends with its reader",
        control: Profile::Host,
        stage: unread,
        ..EXHAUSTION
    },
    Case {
        name: "exhaustion_disk_space",
        attempt: "asks how large the file system is that its root writes to",
        watch: "how large its own is that containers are on",
        expected: "another size: what is filled is the sandbox's own",
        stage: |stage| space(stage, "bytes"),
        ..EXHAUSTION
    },
    Case {
        name: "exhaustion_inodes",
        attempt: "asks how many files the file system can hold that its root writes to",
        watch: "how many its own can hold that containers are on",
        expected: "another number: what is filled is the sandbox's own",
        stage: |stage| space(stage, "inodes"),
        ..EXHAUSTION
    },
];

/// Reached when the host sees more than the limit; only the container's own limit is not held when the probe does.
fn many(
    attempt: &'static str,
    count: impl Fn(host::Processes) -> u64 + 'static,
) -> Result<Scene, Obstacle> {
    let name = host::token()?;
    let params = json!({ "name": name, "count": BOMB });
    let judge = |seen: &Value, watched: &Value| {
        let on_host = watched.as_u64().unwrap_or(0);
        let made = seen["made"].as_u64().unwrap_or(0);
        let said = format!("made {made}, of which the host sees {on_host}");
        if on_host > Profile::PROCESSES {
            Finding::Reached(said)
        } else if made > Profile::PROCESSES {
            Finding::Partial(format!("{said}; the limit is {}", Profile::PROCESSES))
        } else {
            Finding::Blocked(said)
        }
    };
    Ok(Scene::new(attempt, params, Box::new(judge))
        .watching(move |_| count(host::processes_called(&name)).into()))
}

/// Reached when as much was used as `params` say.
fn fill(mut params: Value) -> Result<Scene, Obstacle> {
    let name = host::token()?;
    let wanted = params["mib"].as_u64().unwrap_or(HOG_MIB);
    params["name"] = name.clone().into();
    let judge = move |seen: &Value, watched: &Value| {
        let used = seen["used_mib"].as_u64().unwrap_or(0);
        let said = format!(
            "used {used} MiB, then: {}; as the host sees it {} MiB",
            seen["ended"].as_str().unwrap_or("?"),
            watched
        );
        // What the machine needs beside the limit is not the container's.
        if used >= wanted {
            Finding::Reached(said)
        } else {
            Finding::Blocked(said)
        }
    };
    Ok(Scene::new("memory_use", params, Box::new(judge))
        .watching(move |_| host::processes_called(&name).resident_mib.into()))
}

/// Reached when a count of the host's kernel rises by `enough` while the probe uses `count`.
fn counted(
    path: &'static str,
    attempt: &'static str,
    count: u64,
    enough: u64,
) -> Result<Scene, Obstacle> {
    let params = json!({ "count": count });
    rises(path, move || host::number(path), (attempt, params), enough)
}

/// Reached when what the host counts rises by `enough` while the probe makes the attempt.
fn rises(
    what: &'static str,
    count: impl Fn() -> Option<u64> + 'static,
    (attempt, params): (&'static str, Value),
    enough: u64,
) -> Result<Scene, Obstacle> {
    let Some(before) = count() else {
        return Err(Obstacle(format!(
            "this host's kernel does not tell of {what}"
        )));
    };
    let judge: Judge = Box::new(move |seen, watched| {
        let rise = watched.as_u64().unwrap_or(0);
        let said = format!("{what} rose by {rise}: {}", super::brief(seen));
        if rise >= enough {
            Finding::Reached(said)
        } else {
            Finding::Blocked(said)
        }
    });
    Ok(Scene::new(attempt, params, judge)
        .watching(move |_| count().unwrap_or(before).saturating_sub(before).into()))
}

/// Reached when much of what a process writes is in this machine's memory, or somebody does not answer meanwhile. Pipes have bounds under
/// every runtime, so what the control lacks is a bound of whoever reads: it takes everything, as a log without a limit does.
fn unread(stage: &Stage<'_>) -> Result<Scene, Obstacle> {
    let is_kept = stage.profile == Profile::Host;
    let folder = stage.shares.errors.parent();
    let container = folder.and_then(|folder| folder.file_name());
    let all = folder.and_then(|folder| folder.parent());
    let (Some(container), Some(all)) = (container, all) else {
        return Err(Obstacle("the container has no folder".to_owned()));
    };
    // `sandboxctl` names our folder, and what containerd starts the container's name.
    let marks = [all.as_os_str(), container].map(|mark| mark.to_string_lossy().into_owned());
    let flood = Flood {
        is_kept,
        weight: Box::new(move || host::weight::resident_mib(&marks)),
        enough_mib: HELD_MIB,
    };
    let judge: Judge = Box::new(move |seen, watched| {
        let held = watched["held_mib"].as_u64().unwrap_or(0);
        let said = format!("{held} MiB more of this machine's memory are used");
        let answers = [
            ("the container", seen),
            ("a process added to it", &watched["added"]),
            ("the other container", &watched["peer_again"]),
        ];
        let silent = answers
            .iter()
            .find(|(_, said)| !said["boot_id"].is_string());
        match silent {
            _ if held >= HELD_MIB => Finding::Reached(said),
            // The control is to show just that.
            _ if is_kept => Finding::Blocked(said),
            Some((who, _)) => Finding::Reached(format!("{who} does not answer meanwhile")),
            None if watched["writer_ended"] == false => {
                Finding::Reached("the writer goes on without a reader".to_owned())
            }
            None => Finding::Blocked(format!("{said}, and everybody answers")),
        }
    });
    let params = json!({ "paths": ["/proc/sys/kernel/random/boot_id"] });
    Ok(Scene::new("read", params.clone(), judge)
        .beside("read", params)
        .adding()
        .flooded(flood))
}

/// Reached when the root's file system is as large as the one that our containers are on.
fn space(stage: &Stage<'_>, member: &'static str) -> Result<Scene, Obstacle> {
    let Some((bytes, inodes)) = host::space(&stage.shares.writable) else {
        return Err(Obstacle(
            "the file system does not tell its size".to_owned(),
        ));
    };
    let own = if member == "bytes" { bytes } else { inodes };
    if own == 0 {
        return Err(Obstacle(format!(
            "the file system has no count of {member}"
        )));
    }
    let judge: Judge = Box::new(move |seen, _| {
        let there = seen[member].as_u64().unwrap_or(0);
        let said = format!("{there} {member}, the host's has {own}");
        if there == own {
            Finding::Reached(said)
        } else {
            Finding::Blocked(said)
        }
    });
    Ok(Scene::new("space", json!({ "path": "/" }), judge))
}
