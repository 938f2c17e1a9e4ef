//! What is planted on this machine for a case, and what is seen on it. Everything planted goes when it is dropped.

pub(crate) mod log;
pub(crate) mod raw;
pub(crate) mod speakers;
pub(crate) mod weight;

use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;

/// How long the kernel may take from a signal that kills to the end of the process, on a machine with much to do.
const END_TAKES: Duration = Duration::from_secs(2);

/// This machine, with a file on it that no container is given.
pub(crate) struct Host {
    folder: PathBuf,
    probe: PathBuf,
    secret: String,
    /// `/proc/sys/kernel/random/boot_id`: whose kernel it is.
    pub(crate) boot_id: String,
}

impl Host {
    /// Plants the file below `folder`.
    pub(crate) fn new(folder: &Path, probe: &Path) -> io::Result<Self> {
        let host = Self {
            folder: folder.to_owned(),
            probe: probe.to_owned(),
            secret: token()?,
            boot_id: first_line("/proc/sys/kernel/random/boot_id"),
        };
        fs::create_dir(folder.join("host"))?;
        fs::write(host.secret_path(), &host.secret)?;
        Ok(host)
    }

    /// The file.
    pub(crate) fn secret_path(&self) -> PathBuf {
        self.folder.join("host/secret")
    }

    /// What is in it.
    pub(crate) fn secret(&self) -> String {
        self.secret.clone()
    }

    /// A process with this name, and with `secret` in its environment and at the end of its program.
    pub(crate) fn decoy(&self, name: &str, secret: &str) -> io::Result<Decoy> {
        let program = self.folder.join("host").join(name);
        fs::copy(&self.probe, &program)?;
        let mut end = fs::OpenOptions::new().append(true).open(&program)?;
        end.write_all(secret.as_bytes())?;
        drop(end);
        let mut command = Command::new(&program);
        command
            .arg("serve")
            .env_clear()
            .env("SECRET", secret)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let deadline = Instant::now() + Duration::from_secs(10);
        let spawned = loop {
            match command.spawn() {
                // A child that another thread was just starting has the copy open for writing, as we had.
                Err(error)
                    if error.kind() == io::ErrorKind::ExecutableFileBusy
                        && Instant::now() < deadline =>
                {
                    thread::sleep(Duration::from_millis(10));
                }
                spawned => break spawned,
            }
        };
        let child = spawned.inspect_err(|_| drop(fs::remove_file(&program)))?;
        let mut decoy = Decoy { child, program };
        // Whoever starts a process goes on before it has its name and environment (execve(2)); what it says, it says afterwards.
        match &mut decoy.child.stdout {
            Some(stdout) => stdout.read_exact(&mut [0])?,
            None => return Err(io::ErrorKind::BrokenPipe.into()),
        }
        Ok(decoy)
    }
}

/// Where file systems of this type are mounted (proc_pid_mountinfo(5)); paths with blanks are left out.
pub(crate) fn mounts_of(file_system: &str) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table
        .lines()
        .filter_map(|line| {
            let (mount, of) = line.split_once(" - ")?;
            let path = mount.split(' ').nth(4)?;
            (of.split(' ').next() == Some(file_system)).then(|| PathBuf::from(path))
        })
        .collect()
}

/// A process of ours that an attack may end.
pub(crate) struct Decoy {
    child: Child,
    program: PathBuf,
}

impl Decoy {
    /// Which process traces it; 0 is none.
    pub(crate) fn tracer(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.unwrap_or_default();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("TracerPid:"));
        line.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    /// Whether it was sent a signal that kills (proc(5), `SigPnd`), which kill(2) has noted when it returns: on a machine with much
    /// to do, the process's turn to die may be far off.
    fn is_to_die(&self) -> bool {
        const KILL: u64 = 1 << (libc::SIGKILL - 1);
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.unwrap_or_default();
        let mut pending = status.lines().filter_map(|line| {
            let (name, mask) = line.split_once(':')?;
            matches!(name, "SigPnd" | "ShdPnd")
                .then(|| u64::from_str_radix(mask.trim(), 16).ok())?
        });
        pending.any(|mask| mask & KILL != 0)
    }

    /// Whether it still runs, after as long as the end of a process takes that has been killed (kill(2) does not wait for it).
    pub(crate) fn runs(&mut self) -> bool {
        let deadline = Instant::now() + END_TAKES;
        loop {
            if !matches!(self.child.try_wait(), Ok(None)) || self.is_to_die() {
                return false;
            }
            if Instant::now() >= deadline {
                return true;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Decoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.program);
    }
}

/// Puts the file out of this machine's memory, as far as the kernel does it.
pub(crate) fn evict(path: &Path) -> io::Result<()> {
    let file = fs::File::open(path)?;
    file.sync_all()?;
    let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
    Ok(nix::fcntl::posix_fadvise(&file, 0, 0, advice)?)
}

/// A word that nobody has seen: short enough to be a process's name (`TASK_COMM_LEN`).
pub(crate) fn token() -> io::Result<String> {
    let mut bytes = [0u8; 7];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("x{}", hex::encode(bytes)))
}

/// A number from 1 to 2³⁰, by chance: the key of something in inter-process communication.
pub(crate) fn key() -> io::Result<u32> {
    let mut bytes = [0u8; 4];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok((u32::from_ne_bytes(bytes) >> 2) | 1)
}

/// The first line of a small file; empty when it cannot be read.
pub(crate) fn first_line(path: impl AsRef<Path>) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}

/// A number in a small file: the first.
pub(crate) fn number(path: &str) -> Option<u64> {
    first_line(path).split_whitespace().next()?.parse().ok()
}

/// How many timers are set, in the whole kernel (`/proc/timer_list`).
pub(crate) fn timers() -> Option<u64> {
    let text = fs::read_to_string("/proc/timer_list").ok()?;
    let set = text.lines().filter(|line| line.starts_with(" #")).count();
    u64::try_from(set).ok()
}

/// How many keys root has that count against its quota (`/proc/key-users`: user, usage, keys, those that count, bytes).
pub(crate) fn root_keys() -> Option<u64> {
    let text = fs::read_to_string("/proc/key-users").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("0:"))?;
    let counted = line.split_whitespace().nth(2)?;
    counted.split('/').next()?.parse().ok()
}

/// How many packets the kernel took in, for whatever namespace (`/proc/net/softnet_stat`: a line of hexadecimal numbers for each
/// processor, of which the first is that).
pub(crate) fn packets() -> Option<u64> {
    let text = fs::read_to_string("/proc/net/softnet_stat").ok()?;
    let of = |line: &str| u64::from_str_radix(line.split_whitespace().next()?, 16).ok();
    text.lines().map(of).sum()
}

/// How many processes are called so, and how much memory and how many threads they have together.
pub(crate) fn processes_called(name: &str) -> Processes {
    let mut found = Processes::default();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name_there = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if name_there.trim() != name {
            continue;
        }
        found.count += 1;
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let member = |member: &str| -> u64 {
            status
                .lines()
                .find_map(|line| line.strip_prefix(member))
                .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
                .unwrap_or(0)
        };
        found.resident_mib += member("VmRSS:") >> 10;
        found.threads += member("Threads:");
    }
    found
}

/// What is seen of processes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Processes {
    pub(crate) count: u64,
    pub(crate) resident_mib: u64,
    pub(crate) threads: u64,
}

/// The disk that a file is on, and what says that it is that one.
pub(crate) struct Disk {
    pub(crate) major: u64,
    pub(crate) minor: u64,
    /// Where on the disk the identity is, in bytes.
    pub(crate) offset: u64,
    /// The file system's UUID.
    pub(crate) identity: String,
}

/// Of ext2 to ext4 (`fs/ext4/ext4.h`): the superblock, its magic number, its UUID.
const SUPERBLOCK: u64 = 1024;
const MAGIC_AT: usize = 0x38;
const UUID_AT: usize = 0x68;
const MAGIC: [u8; 2] = [0x53, 0xef];

/// The disk that `path` is on, read by its number.
pub(crate) fn disk_of(path: &Path) -> Result<Disk, String> {
    let device = fs::metadata(path).map_err(|error| error.to_string())?.dev();
    let (major, minor) = (
        u64::from(libc::major(device)),
        u64::from(libc::minor(device)),
    );
    let none =
        || format!("the files of this host are not on a disk that is known ({major}:{minor})");
    let node = fs::read_dir("/dev")
        .map_err(|error| error.to_string())?
        .flatten()
        .map(|entry| entry.path())
        .find(|node| {
            use std::os::unix::fs::FileTypeExt as _;
            fs::metadata(node)
                .is_ok_and(|found| found.file_type().is_block_device() && found.rdev() == device)
        })
        .ok_or_else(none)?;
    let mut superblock = [0u8; 0x100];
    fs::File::open(&node)
        .and_then(|mut file| {
            file.seek(SeekFrom::Start(SUPERBLOCK))?;
            file.read_exact(&mut superblock)
        })
        .map_err(|error| format!("cannot read {}: {error}", node.display()))?;
    if superblock[MAGIC_AT..MAGIC_AT + 2] != MAGIC {
        return Err(format!("{} holds no ext4 file system", node.display()));
    }
    Ok(Disk {
        major,
        minor,
        offset: SUPERBLOCK + UUID_AT as u64,
        identity: hex::encode(&superblock[UUID_AT..UUID_AT + 16]),
    })
}

/// How large the file system of `path` is, in bytes and files.
pub(crate) fn space(path: &Path) -> Option<(u64, u64)> {
    let found = nix::sys::statvfs::statvfs(path).ok()?;
    Some((found.blocks() * found.fragment_size(), found.files()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoy_has_its_name_at_once_and_is_seen_to_be_killed() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("probe");
        fs::write(&script, "#!/bin/sh\necho ready\nread -r end\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&script, mode).unwrap();
        let host = Host::new(folder.path(), &script).unwrap();
        let mut decoy = host.decoy("x-decoy", "secret").unwrap();
        let pid = decoy.child.id();
        assert_eq!(first_line(format!("/proc/{pid}/comm")), "x-decoy");
        assert!(first_line(format!("/proc/{pid}/environ")).contains("SECRET=secret"));
        assert!(!decoy.is_to_die());
        decoy.child.kill().unwrap();
        assert!(!decoy.runs());
    }

    #[test]
    fn tokens_differ_and_fit_a_process() {
        let (one, other) = (token().unwrap(), token().unwrap());
        assert_ne!(one, other);
        assert!(one.len() <= 15);
    }

    #[test]
    fn process_is_found_by_its_name() {
        let name = first_line("/proc/self/comm");
        let found = processes_called(&name);
        assert!(found.count >= 1 && found.threads >= 1);
        assert_eq!(processes_called("no-such-name").count, 0);
    }
}
