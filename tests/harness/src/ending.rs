//! The end of worlds that no test ends: those of a run that is interrupted, and those that a killed run left.
//!
//! A world's folder holds a locked file, `owner`, as long as the process that made it lives. [`begin`] ends every world whose file
//! nobody holds, and from then on an interruption (`SIGINT`, `SIGTERM`, `SIGHUP`) ends the worlds of this process before it ends
//! the process. Only what carries our marks is ended: processes that name the world, mounts below it, the control groups that its
//! sandboxes have on record, and network namespaces and control groups with the process id of a run that is gone.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::leaks::{self, Machine};
use crate::process;

/// What the names of worlds' folders begin with.
pub(crate) const PREFIX: &str = "sb-";
/// The file that the owner of a world holds locked.
const OWNER: &str = "owner";
/// How long the processes of a world may take to be gone, where nobody waits for a verdict.
const GONE: Duration = Duration::from_secs(20);
/// How long `ip` may take.
const IP_LIMIT: Duration = Duration::from_secs(30);

/// The worlds of this process, and the locks that it holds of them.
static WORLDS: Mutex<BTreeMap<PathBuf, File>> = Mutex::new(BTreeMap::new());
/// An interruption came: no world begins any more.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Notes a world of this process.
///
/// # Errors
/// When the file system refuses, or the run has been interrupted.
pub(crate) fn register(world: &Path) -> Result<()> {
    // Nobody sees it by its name before it is locked.
    let unlocked = world.join("owner.new");
    let mut owner = File::create(&unlocked)?;
    owner.lock().context("cannot lock a world's owner")?;
    writeln!(owner, "{}", std::process::id())?;
    fs::rename(&unlocked, world.join(OWNER))?;
    let mut worlds = WORLDS.lock().unwrap_or_else(PoisonError::into_inner);
    ensure!(
        !INTERRUPTED.load(Ordering::Relaxed),
        "the run was interrupted"
    );
    worlds.insert(world.to_owned(), owner);
    Ok(())
}

/// Forgets a world that has ended.
pub(crate) fn forget(world: &Path) {
    let mut worlds = WORLDS.lock().unwrap_or_else(PoisonError::into_inner);
    worlds.remove(world);
}

/// Ends what killed runs left, and makes an interruption end the worlds of this process. Says what was ended.
///
/// # Errors
/// When interruptions cannot be heard of.
pub fn begin() -> Result<Vec<String>> {
    let mut ended = sweep(&std::env::temp_dir());
    ended.extend(remove_named_after(|pid| {
        !Path::new(&format!("/proc/{pid}")).exists()
    }));
    on_interruption(|| {
        INTERRUPTED.store(true, Ordering::Relaxed);
        let worlds = std::mem::take(&mut *WORLDS.lock().unwrap_or_else(PoisonError::into_inner));
        eprintln!("interrupted: ending {} worlds", worlds.len());
        for (world, owner) in worlds {
            remove(&world);
            drop(owner);
        }
        remove_named_after(|pid| pid == std::process::id());
    })?;
    Ok(ended)
}

/// Waits for the end of the process if an interruption is ending its worlds: for the main thread, which would cut that short.
pub fn wait_if_interrupted() {
    while INTERRUPTED.load(Ordering::Relaxed) {
        thread::park();
    }
}

/// Runs `work` when the process is asked to end (`SIGINT`, `SIGTERM` and `SIGHUP`, but for those that it was started to ignore), then
/// ends it as a shell says it.
///
/// # Errors
/// When no signal can be listened for.
pub fn on_interruption(work: impl FnOnce() + Send + 'static) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let ignored = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut kinds = Vec::new();
    {
        let _entered = runtime.enter();
        for kind in [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ] {
            if !is_ignored(&ignored, kind.as_raw_value()) {
                kinds.push((signal(kind)?, kind.as_raw_value()));
            }
        }
    }
    let listen = move || {
        let number = runtime.block_on(async {
            std::future::poll_fn(|context| {
                for (signal, number) in &mut kinds {
                    if signal.poll_recv(context).is_ready() {
                        return std::task::Poll::Ready(*number);
                    }
                }
                std::task::Poll::Pending
            })
            .await
        });
        work();
        std::process::exit(128 + number);
    };
    thread::Builder::new()
        .name("interruption".to_owned())
        .spawn(listen)?;
    Ok(())
}

/// proc_pid_status(5): whether `SigIgn` has this signal.
fn is_ignored(status: &str, number: i32) -> bool {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| (mask >> (number - 1)) & 1 == 1)
}

/// Ends the worlds in `folder` whose owner is gone.
fn sweep(folder: &Path) -> Vec<String> {
    let mut ended = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let world = entry.path();
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let Ok(owner) = File::open(world.join(OWNER)) else {
            continue;
        };
        match owner.try_lock() {
            Ok(()) => {
                remove(&world);
                ended.push(world.display().to_string());
            }
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {}
        }
    }
    ended
}

/// Ends a world and removes its folder.
fn remove(world: &Path) {
    force_end(world);
    // Nothing is removed through a mount that would not go.
    if !leaks::mounts_below(world).is_empty() {
        eprintln!("cannot unmount everything in {}", world.display());
        return;
    }
    if let Err(error) = fs::remove_dir_all(world) {
        eprintln!("cannot remove {}: {error}", world.display());
    }
}

/// Kills the world's processes, and takes away its mounts and control groups.
pub(crate) fn force_end(world: &Path) {
    let groups = control_groups(&world.join("run"));
    // What dies may start something yet.
    let start = Instant::now();
    loop {
        leaks::kill_all(world);
        if leaks::processes(world).is_empty() || start.elapsed() > GONE {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    for point in leaks::mounts_below(world).iter().rev() {
        let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
    }
    for group in groups {
        remove_group(&group);
    }
}

/// What of a sandbox's record of control groups is of use here (`cgroup.json` of its runtime folder).
#[derive(Deserialize)]
struct RecordedGroup {
    mount: PathBuf,
    path: PathBuf,
    made: Vec<PathBuf>,
}

/// The control groups that the sandboxes of a runtime folder have on record, in the order in which they can be removed.
fn control_groups(run: &Path) -> Vec<PathBuf> {
    let mut groups = Vec::new();
    for sandbox in fs::read_dir(run).into_iter().flatten().flatten() {
        let Ok(text) = fs::read(sandbox.path().join("cgroup.json")) else {
            continue;
        };
        let recorded: Vec<RecordedGroup> = serde_json::from_slice(&text).unwrap_or_default();
        for group in recorded {
            let below = |path: &Path| group.mount.join(path.strip_prefix("/").unwrap_or(path));
            groups.push(below(&group.path));
            groups.extend(group.made.iter().rev().map(|path| below(path)));
        }
    }
    groups
}

/// Removes a control group and those in it; the kernel refuses for one in which something is.
fn remove_group(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}

/// Removes the network namespaces and control groups that are named after a process for which `is_over` holds. Says which.
fn remove_named_after(is_over: impl Fn(u32) -> bool) -> Vec<String> {
    let now: Machine = leaks::machine();
    let mut removed = Vec::new();
    for name in now.network_namespaces() {
        if leaks::process_in(name).is_some_and(&is_over) {
            let mut ip = Command::new("ip");
            ip.args(["netns", "del", name]);
            let _ = process::run(&mut ip, b"", IP_LIMIT);
            removed.push(format!("network namespace {name}"));
        }
    }
    for path in now.cgroups() {
        let name = path.rsplit('/').next().unwrap_or_default();
        if leaks::process_in(name).is_some_and(&is_over) {
            remove_group(Path::new(path));
            removed.push(format!("cgroup {path}"));
        }
    }
    removed
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader};
    use std::process::Stdio;

    use crate::World;

    /// In the environment of the process that [`world_of_a_killed_run_is_ended_by_the_next`] kills.
    const CHILD: &str = "SANDBOX_TEST_HOLDS_A_WORLD";

    /// Not a test by itself: the process that holds a world, with a process in it, until it is ended.
    #[test]
    fn holder_of_a_world() {
        if std::env::var_os(CHILD).is_none() {
            return;
        }
        begin().unwrap();
        let world = World::without_programs();
        let mut sleep = Command::new("sleep");
        world.adopt(sleep.arg("1000"));
        let mut sleep = sleep.spawn().unwrap();
        println!("world={}", world.path().display());
        let _ = sleep.wait();
        // The interruption ends the process.
        thread::sleep(Duration::from_secs(60));
    }

    /// Starts the holder with temporary files in `folder`; returns it and its world.
    fn holder(folder: &Path) -> (std::process::Child, PathBuf) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "ending::tests::holder_of_a_world", "--nocapture"])
            .env(CHILD, "1")
            .env("TMPDIR", folder)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let world = output.lines().find_map(|line| {
            let line = line.unwrap();
            Some(PathBuf::from(line.split_once("world=")?.1))
        });
        (child, world.unwrap())
    }

    #[test]
    fn world_of_a_killed_run_is_ended_by_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let (mut child, world) = holder(folder.path());
        // As long as its owner lives it is left alone.
        assert!(sweep(folder.path()).is_empty());
        assert_eq!(leaks::processes(&world).len(), 1);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(leaks::processes(&world).len(), 1);
        assert_eq!(sweep(folder.path()), [world.display().to_string()]);
        assert!(leaks::processes(&world).is_empty());
        assert!(!world.exists());
    }

    #[test]
    fn world_of_a_run_that_is_interrupted_is_ended_by_it() {
        let folder = tempfile::tempdir().unwrap();
        let (mut child, world) = holder(folder.path());
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
        assert!(leaks::processes(&world).is_empty());
        assert!(!world.exists());
    }

    #[test]
    fn folder_without_an_owner_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let other = folder.path().join("sb-other");
        fs::create_dir(&other).unwrap();
        assert!(sweep(folder.path()).is_empty());
        assert!(other.exists());
    }

    #[test]
    fn groups_are_removed_before_those_that_were_made_for_them() {
        let run = tempfile::tempdir().unwrap();
        fs::create_dir(run.path().join("c1")).unwrap();
        let record =
            r#"[{"mount":"/sys/fs/cgroup","path":"/a/b/c1","made":["/a","/a/b"],"home":"/"}]"#;
        fs::write(run.path().join("c1/cgroup.json"), record).unwrap();
        let groups = control_groups(run.path());
        let expected = ["a/b/c1", "a/b", "a"].map(|path| Path::new("/sys/fs/cgroup").join(path));
        assert_eq!(groups, expected);
    }

    #[test]
    fn signals_that_are_ignored_are_known() {
        let status = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n";
        assert!(is_ignored(status, 1));
        assert!(is_ignored(status, 13));
        assert!(!is_ignored(status, 2));
        assert!(!is_ignored("", 2));
    }
}
