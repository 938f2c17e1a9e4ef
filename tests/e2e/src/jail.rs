//! What the processes that touch a guest's bytes are held to, looked at from outside, in `/proc`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use sandbox_harness::process::{self, Running};
use sandbox_harness::{Driver, World};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "jail_every_thread_has_its_filter_of_system_calls",
        every_thread_is_filtered,
    ),
    ("jail_refused_call_is_named", refused_call_is_named),
    ("jail_holds_what_runs_the_guest", jailed),
    ("jail_holds_what_serves_files", file_server),
    (
        "jail_of_what_serves_files_may_do_without_handles",
        file_server_without_handles,
    ),
    (
        "jail_users_of_two_sandboxes_differ_and_are_free_afterwards",
        users_differ,
    ),
    ("jail_can_be_done_without", without_jail),
    ("jail_shim_keeps_of_root_what_it_needs", shim_is_bounded),
];

/// The first user of the default range.
const FIRST_USER: u32 = 1_900_000_000;
const NO_CAPABILITIES: &str = "0000000000000000";
/// What virtiofsd serves files with (`CHOWN`, `DAC_OVERRIDE`, `DAC_READ_SEARCH`, `FOWNER`, `FSETID`, `SETGID`, `SETUID`, `SETFCAP`), and
/// what its first process, which serves nothing, makes their root with (`SETPCAP`, `SYS_ADMIN`).
const FILE_SERVER: u64 =
    1 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 31 | 1 << 8 | 1 << 21;

/// What the shim keeps as long as it serves (`CHOWN`, `DAC_OVERRIDE`, `DAC_READ_SEARCH`, `FOWNER`, `FSETID`, `KILL`, `NET_ADMIN`,
/// `SYS_PTRACE`, `SYS_ADMIN`, `SETFCAP`).
const SHIM: u64 =
    1 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 12 | 1 << 19 | 1 << 21 | 1 << 31;

/// The fields of a status file of `/proc` (proc_pid_status(5)).
fn status(path: &Path) -> Result<BTreeMap<String, String>> {
    let text = fs::read_to_string(path).with_context(|| format!("no {}", path.display()))?;
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    Ok(fields
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect())
}

/// What runs our own code on what the guest writes: the monitor, or the vsock device beside QEMU.
fn ours(driver: Driver) -> &'static str {
    match driver {
        Driver::Kvm => driver.monitor(),
        Driver::Qemu => "vsock-backend",
    }
}

fn every_thread_is_filtered(world: &World) -> Result<()> {
    let mut running = world.start_waiting(&["--rm", "-i"])?;
    let pid = world.process(ours(world.setup().driver))?.pid;
    let mut threads = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let file = thread?.path().join("status");
        let status = match status(&file) {
            Ok(status) => status,
            // It has ended since it was listed.
            Err(_) if !file.exists() => continue,
            Err(error) => return Err(error),
        };
        let field = |name: &str| status.get(name).map_or("", String::as_str);
        let name = field("Name");
        // 2: a filter, not strict mode.
        ensure!(
            field("Seccomp") == "2",
            "{name}: Seccomp {}",
            field("Seccomp")
        );
        ensure!(field("NoNewPrivs") == "1", "{name}: may gain privileges");
        threads += 1;
    }
    // At least a main thread, one that runs the guest or the device, and one more.
    ensure!(threads >= 3, "only {threads} threads");
    running.close_stdin();
    running.finish()?.expect_code(0)?;
    Ok(())
}

/// A call cannot be put into a process that is not ours to debug; but what a filter's last resort sends can. It reaches only
/// who handles it: what is not handled does not reach the first process of a process namespace, as QEMU is of its own.
fn refused_call_is_named(world: &World) -> Result<()> {
    let running = world.start_waiting(&["--rm", "-i", "--name", "victim"])?;
    let driver = world.setup().driver;
    let process = world.process(ours(driver))?;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(process.pid),
        nix::sys::signal::Signal::SIGSYS,
    )?;
    let words = match driver {
        Driver::Kvm => "made a system call that it may not make",
        Driver::Qemu => "thread made system call",
    };
    running
        .finish()?
        .expect_code(125)?
        .expect_stderr(&[words])?;
    Ok(())
}

/// The processes that touch what the guest writes, beside virtiofsd.
fn unprivileged(driver: Driver) -> &'static [&'static str] {
    match driver {
        Driver::Kvm => &["sandbox-vmm run"],
        Driver::Qemu => &["qemu-system-x86_64", "vsock-backend"],
    }
}

/// What of the host's may be mounted in the root of one, beside the root itself.
fn may_be_mounted(part: &str) -> &'static [&'static str] {
    match part {
        "qemu-system-x86_64" => &[
            "/kernel",
            "/dev/null",
            "/usr",
            "/lib",
            "/lib64",
            "/bin",
            "/etc/ld.so.cache",
            "/nix/store",
        ],
        _ => &["/ports"],
    }
}

/// A process, looked at in `/proc`.
struct Looked {
    folder: PathBuf,
    status: BTreeMap<String, String>,
}

impl Looked {
    fn at(pid: i32) -> Result<Self> {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let status = status(&folder.join("status"))?;
        Ok(Self { folder, status })
    }

    fn field(&self, name: &str) -> &str {
        self.status.get(name).map_or("", String::as_str)
    }

    /// The user, which all four numbers of it and of the group must be.
    fn user(&self) -> Result<u32> {
        let words = |name| self.field(name).split_whitespace();
        let numbers: BTreeSet<_> = words("Uid").chain(words("Gid")).collect();
        ensure!(numbers.len() == 1, "users and groups {numbers:?}");
        let only = numbers.first().context("no user")?;
        Ok(only.parse()?)
    }

    fn expect(&self, fields: &[(&str, &str)]) -> Result<()> {
        for (name, wanted) in fields {
            let found = self.field(name);
            ensure!(
                found == *wanted,
                "{} has {name} {found:?}",
                self.field("Name")
            );
        }
        Ok(())
    }

    /// Shares none of these namespaces with us, and is the first process of its own.
    fn expect_namespaces(&self, names: &[&str]) -> Result<()> {
        for name in names {
            let file = format!("ns/{name}");
            let ours = fs::read_link(Path::new("/proc/self").join(&file))?;
            let own = fs::read_link(self.folder.join(&file))?;
            ensure!(own != ours, "it is in our {name} namespace");
        }
        let numbers: Vec<_> = self.field("NSpid").split_whitespace().collect();
        ensure!(
            numbers.len() >= 2 && numbers.last() == Some(&"1"),
            "NSpid {numbers:?}"
        );
        Ok(())
    }

    fn expect_limits(&self, zero: &[&str]) -> Result<()> {
        let text = fs::read_to_string(self.folder.join("limits"))?;
        for name in zero {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let words: Vec<_> = line.unwrap_or("").split_whitespace().take(2).collect();
            ensure!(words == ["0", "0"], "{name} is {words:?}");
        }
        Ok(())
    }

    /// No file becomes longer by it than the longest that is open already.
    fn expect_bounded_files(&self) -> Result<()> {
        let text = fs::read_to_string(self.folder.join("limits"))?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("Max file size"));
        let words: Vec<_> = line.unwrap_or("").split_whitespace().take(2).collect();
        let longest = fs::read_dir(self.folder.join("fd"))?
            .filter_map(|entry| fs::metadata(entry.ok()?.path()).ok())
            .filter(fs::Metadata::is_file)
            .map(|file| file.len())
            .max()
            .unwrap_or(0);
        let is_bounded = |word: &&str| word.parse::<u64>().is_ok_and(|limit| limit <= longest);
        ensure!(
            words.len() == 2 && words.iter().all(is_bounded),
            "Max file size is {line:?}, and the longest file has {longest} bytes"
        );
        Ok(())
    }

    /// Nothing is in its root but these, all of it read-only; nothing is open of the host's that could be entered.
    fn expect_root(&self, allowed: &[&str]) -> Result<()> {
        let table = fs::read_to_string(self.folder.join("mountinfo"))?;
        for line in table.lines() {
            let fields: Vec<_> = line.split(' ').collect();
            let (Some(place), Some(options)) = (fields.get(4), fields.get(5)) else {
                continue;
            };
            let options: Vec<_> = options.split(',').collect();
            ensure!(
                *place == "/" || allowed.contains(place),
                "{place} is mounted"
            );
            for option in ["ro", "nosuid", "nodev"] {
                let is_device = option == "nodev" && *place == "/dev/null";
                ensure!(
                    is_device || options.contains(&option),
                    "{place} is not {option}"
                );
            }
        }
        let names = |folder: &str| -> Result<BTreeSet<String>> {
            fs::read_dir(self.folder.join(folder))?
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect()
        };
        let tops: BTreeSet<_> = allowed
            .iter()
            .filter_map(|path| path.split('/').nth(1))
            .collect();
        for name in names("root/")? {
            ensure!(tops.contains(name.as_str()), "/{name} is there");
        }
        for fd in names("fd")? {
            let path = self.folder.join("fd").join(&fd);
            let is_folder = fs::metadata(&path).is_ok_and(|file| file.is_dir());
            ensure!(!is_folder, "a folder is open: {:?}", fs::read_link(&path));
        }
        Ok(())
    }

    /// It has no more of our environment than its own program sets.
    fn expect_no_environment(&self) -> Result<()> {
        let text = fs::read(self.folder.join("environ"))?;
        ensure!(
            text.is_empty(),
            "environment: {:?}",
            String::from_utf8_lossy(&text)
        );
        Ok(())
    }
}

fn jailed(world: &World) -> Result<()> {
    let mut running = world.start_waiting(&["--rm", "-i"])?;
    let driver = world.setup().driver;
    let mut users = BTreeSet::new();
    for part in unprivileged(driver) {
        let looked = || -> Result<u32> {
            let it = Looked::at(world.process(part)?.pid)?;
            let user = it.user()?;
            ensure!(user >= FIRST_USER, "user {user}");
            it.expect(&[
                ("Groups", ""),
                ("CapInh", NO_CAPABILITIES),
                ("CapPrm", NO_CAPABILITIES),
                ("CapEff", NO_CAPABILITIES),
                ("CapBnd", NO_CAPABILITIES),
                ("CapAmb", NO_CAPABILITIES),
                ("NoNewPrivs", "1"),
            ])?;
            it.expect_namespaces(&["mnt", "pid", "net", "ipc", "uts", "cgroup"])?;
            it.expect_limits(&["Max core file size", "Max locked memory"])?;
            if *part != "qemu-system-x86_64" {
                it.expect_bounded_files()?;
            }
            it.expect_root(may_be_mounted(part))?;
            it.expect_no_environment()?;
            // Nobody but root may look at a process that cannot be dumped. QEMU executes itself anew, which makes it so again.
            if *part != "qemu-system-x86_64" {
                let owner = fs::metadata(it.folder.join("environ"))?.uid();
                ensure!(owner == 0, "it can be dumped: its files are of {owner}");
            }
            Ok(user)
        };
        users.insert(looked().with_context(|| format!("{part} is not jailed"))?);
    }
    ensure!(users.len() == 1, "users {users:?} in one sandbox");
    running.close_stdin();
    running.finish()?.expect_code(0)?;
    Ok(())
}

/// Looks at every process of virtiofsd, which may have no more than these capabilities, and of which one is filtered, which serves.
fn expect_file_server(world: &World, capabilities: u64) -> Result<()> {
    let servers = sandbox_harness::leaks::processes(world.path());
    let mut servers = servers
        .iter()
        .filter(|process| process.command.contains("virtiofsd --fd"));
    let mut filtered = 0;
    servers.try_for_each(|process| -> Result<()> {
        let it = Looked::at(process.pid)?;
        let has = u64::from_str_radix(it.field("CapPrm"), 16)?;
        ensure!(has & !capabilities == 0, "capabilities {has:x}");
        it.expect(&[("CapInh", NO_CAPABILITIES), ("NoNewPrivs", "1")])?;
        it.expect_namespaces(&["mnt", "pid", "net", "ipc", "uts", "cgroup"])?;
        it.expect_limits(&["Max core file size", "Max locked memory"])?;
        it.expect_no_environment()?;
        filtered += u32::from(it.field("Seccomp") == "2");
        Ok(())
    })?;
    ensure!(filtered > 0, "nobody serves files, filtered");
    Ok(())
}

fn file_server(world: &World) -> Result<()> {
    let folder = world.path().join("shared");
    fs::create_dir(&folder)?;
    let volume = format!("{}:/shared", folder.display());
    let mut running = world.start_waiting(&["--rm", "-i", "-v", &volume])?;
    expect_file_server(world, FILE_SERVER)?;
    running.close_stdin();
    running.finish()?.expect_code(0)?;
    Ok(())
}

fn file_server_without_handles(world: &World) -> Result<()> {
    let folder = world.path().join("shared");
    fs::create_dir(&folder)?;
    fs::write(folder.join("file"), "of the host\n")?;
    let config = world.path().join("handles.toml");
    fs::write(&config, "share_file_handles = false\n")?;
    let volume = format!("{}:/shared", folder.display());
    let script = "cat /shared/file; mv /shared/file /shared/moved; echo more >>/shared/moved; cat";
    let arguments = [
        "run", "--rm", "-i", "-v", &volume, "demo", "sh", "-c", script,
    ];
    let mut command = world.sandboxctl_command(&arguments);
    command.env("SANDBOX_CONFIG", &config);
    let mut running = Running::start(&mut command, world.setup().limit)?;
    running.wait_for_line("of the host")?;
    // `DAC_READ_SEARCH` is number 2.
    expect_file_server(world, FILE_SERVER & !(1 << 2))?;
    running.close_stdin();
    running.finish()?.expect_code(0)?;
    let text = fs::read_to_string(folder.join("moved"))?;
    ensure!(text == "of the host\nmore\n", "{text}");
    Ok(())
}

fn users_differ(world: &World) -> Result<()> {
    // Room for two, so that the third finds none, and the fourth one that has become free.
    let config = world.path().join("users.toml");
    // Not the default's: sandboxes of others may run.
    let first = 1_800_000_000 + std::process::id();
    fs::write(
        &config,
        format!("jail_users = {{ first = {first}, count = 2 }}\n"),
    )?;
    let command = |name: &str| {
        let script = "echo up; cat";
        let arguments = [
            "run", "--rm", "-i", "--name", name, "demo", "sh", "-c", script,
        ];
        let mut command = world.sandboxctl_command(&arguments);
        command.env("SANDBOX_CONFIG", &config);
        command
    };
    let limit = world.setup().limit;
    let start = |name| -> Result<Running> {
        let mut running = Running::start(&mut command(name), limit)?;
        running.wait_for_line("up")?;
        Ok(running)
    };
    let mut one = start("one")?;
    let user = Looked::at(world.process(ours(world.setup().driver))?.pid)?.user()?;
    let mut two = start("two")?;
    let users: BTreeSet<u32> = sandbox_harness::leaks::processes(world.path())
        .iter()
        .filter(|process| process.command.contains(ours(world.setup().driver)))
        .map(|process| Looked::at(process.pid)?.user())
        .collect::<Result<_>>()?;
    ensure!(
        users == BTreeSet::from([first, first + 1]) && users.contains(&user),
        "users {users:?}"
    );
    process::run(&mut command("three"), b"", limit)?
        .expect_code(125)?
        .expect_stderr(&["jail_users", "in use"])?;
    one.close_stdin();
    one.finish()?.expect_code(0)?;
    let mut four = start("four")?;
    for running in [&mut two, &mut four] {
        running.close_stdin();
    }
    two.finish()?.expect_code(0)?;
    four.finish()?.expect_code(0)?;
    Ok(())
}

fn without_jail(world: &World) -> Result<()> {
    let config = world.path().join("open.toml");
    fs::write(&config, "jail = false\n")?;
    let mut command = world.sandboxctl_command(&["run", "--rm", "demo", "echo", "works"]);
    command.env("SANDBOX_CONFIG", &config);
    process::run(&mut command, b"", world.setup().limit)?
        .expect_code(0)?
        .expect_stdout("works\n")?;
    Ok(())
}

fn shim_is_bounded(world: &World) -> Result<()> {
    let mut running = world.start_waiting(&["--rm", "-i"])?;
    let pid = world.process("containerd-shim-sandbox-v2")?.pid;
    let threads = fs::read_dir(format!("/proc/{pid}/task"))?;
    for thread in threads {
        let file = thread?.path().join("status");
        let status = match status(&file) {
            Ok(status) => status,
            // It has ended since it was listed.
            Err(_) if !file.exists() => continue,
            Err(error) => return Err(error),
        };
        let set = |name: &str| -> Result<u64> {
            let text = status.get(name).map_or("", String::as_str);
            u64::from_str_radix(text, 16).with_context(|| format!("{name}: {text:?}"))
        };
        for name in ["CapPrm", "CapEff"] {
            ensure!(set(name)? & !SHIM == 0, "{name} is {:x}", set(name)?);
        }
        ensure!(
            set("CapInh")? == 0 && set("CapAmb")? == 0,
            "it hands some on"
        );
        ensure!(set("CapEff")? & (1 << 21) != 0, "it cannot mount");
    }
    running.close_stdin();
    running.finish()?.expect_code(0)?;
    Ok(())
}
