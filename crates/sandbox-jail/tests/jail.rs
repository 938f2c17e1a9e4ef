//! A process in its jail, asked from inside and looked at from outside, in `/proc`.
//!
//! The program starts itself again as the process that is jailed: it says what it found on standard output, and then waits
//! for the end of its standard input.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    DumpableBehavior, Pid, PidfdFlags, dumpable_behavior, getppid, parent_process_death_signal,
    pidfd_open,
};
use sandbox_jail::landlock::{self, Landlock};
use sandbox_jail::limits::lower_file_bytes;
use sandbox_jail::{JailError, enter};
use sandbox_types::jail::{JailAccess, JailConfig, JailLimits, JailMount, JailRoot};
use serde_json::{Value, json};

/// Holds the description of the jail, in the process that is to be jailed.
const JAILED: &str = "JAIL_TEST_CONFIG";
/// Holds the same, in a process that starts one that is jailed.
const BETWEEN: &str = "JAIL_TEST_BETWEEN";
/// A user that no account has.
const USER: u32 = 1_899_999_999;
/// `CAP_CHOWN`, and one with a high number, `CAP_SETFCAP`.
const SOME_CAPABILITIES: u64 = 1 | 1 << 31;

/// To what one that was given no limit of file sizes lowers it, in bytes.
const LOWERED: u64 = 4096;

type Case = fn() -> Result<()>;

const CASES: [(&str, Case); 5] = [
    ("jailed_process_is_nobody_and_sees_nothing", nobody),
    (
        "jailed_process_finds_in_its_root_what_is_named_and_cannot_change_it",
        named_mounts,
    ),
    (
        "process_that_keeps_its_root_has_no_more_than_the_named_capabilities",
        keeps_its_root,
    ),
    ("jailed_process_ends_with_its_parent", ends_with_parent),
    ("process_whose_parent_has_ended_is_refused", parent_ended),
];

fn main() -> ExitCode {
    if let Ok(config) = std::env::var(JAILED) {
        return jailed(&config);
    }
    if let Ok(config) = std::env::var(BETWEEN) {
        return between(&config);
    }
    let arguments = Arguments::from_args();
    let trials = CASES
        .iter()
        .map(|&(name, case)| Trial::ignorable_test(name, move || run(case)))
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn run(case: Case) -> Result<Completion, Failed> {
    if !rustix::process::geteuid().is_root() {
        return Ok(Completion::ignored_with("needs root"));
    }
    case().map_err(|error| Failed::from(format!("{error:#}")))?;
    Ok(Completion::Completed)
}

/// The process that is jailed.
fn jailed(config: &str) -> ExitCode {
    let entered = || -> Result<Value> {
        let config: JailConfig = serde_json::from_str(config)?;
        // Somebody else's descriptors, which nobody closed.
        std::mem::forget(File::open("/dev/null")?);
        std::mem::forget(UnixStream::pair()?);
        let parent = pidfd_open(getppid().context("no parent")?, PidfdFlags::empty())?;
        let landlock = enter(&config, parent)?;
        if config.limits.file_bytes.is_none() {
            lower_file_bytes(LOWERED)?;
            lower_file_bytes(LOWERED + 1)?;
        }
        Ok(report(&config, landlock))
    };
    let report = entered().unwrap_or_else(|error| json!({ "error": format!("{error:#}") }));
    println!("{report}");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    ExitCode::SUCCESS
}

/// What it finds inside.
fn report(config: &JailConfig, landlock: Landlock) -> Value {
    let outcome = |result: std::io::Result<()>| match result {
        Ok(()) => json!("done"),
        Err(error) => json!(error.raw_os_error()),
    };
    let mounts = config.root.iter().flat_map(|root| &root.mounts);
    let mounts: BTreeMap<String, Value> = mounts
        .map(|mount| {
            let path = mount.target.as_path();
            let made = || File::create(path.join("new")).map(drop);
            let seen = json!({
                "list": outcome(fs::read_dir(path).map(drop)),
                "read": outcome(fs::read(path.join("file")).map(drop)),
                "make": outcome(made()),
                "run": outcome(Command::new(path.join("program")).status().map(drop)),
                "connect": outcome(UnixStream::connect(path.join("socket")).map(drop)),
            });
            (path.display().to_string(), seen)
        })
        .collect();
    json!({
        "landlock": matches!(landlock, Landlock::InForce { .. }),
        "dumpable": dumpable_behavior().ok() != Some(DumpableBehavior::NotDumpable),
        "ends_with_parent": parent_process_death_signal().ok().flatten().is_some(),
        "host_name": rustix::system::uname().nodename().to_string_lossy(),
        "list_root": outcome(fs::read_dir("/").map(drop)),
        "make_in_root": outcome(File::create("/new").map(drop)),
        "null": outcome(File::options().read(true).write(true).open("/dev/null").map(drop)),
        "password_file": outcome(fs::read("/etc/passwd").map(drop)),
        "mounts": mounts,
    })
}

/// A process that starts one that is jailed, passes on what that says, and is killed.
fn between(config: &str) -> ExitCode {
    match Jailed::start(config) {
        Ok(jailed) => {
            println!("{}", jailed.child.id());
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A jailed process, which lives as long as this.
struct Jailed {
    child: Child,
    report: Value,
}

impl Drop for Jailed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ourselves(variable: &str, config: &str) -> Result<(Child, String)> {
    let mut child = Command::new(std::env::current_exe()?)
        .env_remove(BETWEEN)
        .env(variable, config)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = child.stdout.take().context("no pipe")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    Ok((child, line))
}

impl Jailed {
    fn start(config: &str) -> Result<Self> {
        let (child, line) = ourselves(JAILED, config)?;
        let report: Value = serde_json::from_str(&line).context("it said nothing")?;
        let jailed = Self { child, report };
        if let Some(error) = jailed.report["error"].as_str() {
            bail!("{error}");
        }
        Ok(jailed)
    }

    fn of(config: &JailConfig) -> Result<Self> {
        Self::start(&serde_json::to_string(config)?)
    }

    fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}", self.child.id())).join(name)
    }

    /// A field of its status (proc_pid_status(5)), with single spaces.
    fn status(&self, field: &str) -> Result<String> {
        let text = fs::read_to_string(self.proc("status"))?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let words = line
            .with_context(|| format!("no {field}"))?
            .split_whitespace();
        Ok(words.collect::<Vec<_>>().join(" "))
    }

    fn is_in_our(&self, namespace: &str) -> Result<bool> {
        let file = format!("ns/{namespace}");
        let ours = fs::read_link(Path::new("/proc/self").join(&file))?;
        Ok(fs::read_link(self.proc(&file))? == ours)
    }

    fn limit(&self, name: &str) -> Result<Vec<String>> {
        let text = fs::read_to_string(self.proc("limits"))?;
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let words = line
            .with_context(|| format!("no {name}"))?
            .split_whitespace();
        Ok(words.take(2).map(str::to_owned).collect())
    }
}

fn limits() -> JailLimits {
    JailLimits {
        open_files: 77,
        processes: Some(9),
        file_bytes: Some(0),
    }
}

/// A jail whose root has these folders, at `/0`, `/1`, ….
fn jail(place: &Path, folders: &[(&Path, JailAccess)]) -> JailConfig {
    let mounts = folders
        .iter()
        .enumerate()
        .map(|(index, (source, access))| JailMount {
            source: source.to_path_buf(),
            target: format!("/{index}").into(),
            access: *access,
        });
    JailConfig {
        user: Some(USER),
        root: Some(JailRoot {
            place: place.to_owned(),
            mounts: mounts.collect(),
            links: vec![("/link".into(), "0".into())],
        }),
        capabilities: 0,
        limits: limits(),
        keeps_network: false,
        parent_fd: -1,
        keep_fds: Vec::new(),
    }
}

fn expect(what: &str, found: impl AsRef<str>, wanted: &str) -> Result<()> {
    let found = found.as_ref();
    ensure!(found == wanted, "{what} is {found:?}, not {wanted:?}");
    Ok(())
}

fn nobody() -> Result<()> {
    let place = tempfile::tempdir()?;
    let jailed = Jailed::of(&jail(place.path(), &[]))?;
    let id = USER.to_string();
    let ids = [id.as_str(); 4].join(" ");
    for (field, wanted) in [
        ("Uid", ids.as_str()),
        ("Gid", &ids),
        ("Groups", ""),
        ("CapInh", "0000000000000000"),
        ("CapPrm", "0000000000000000"),
        ("CapEff", "0000000000000000"),
        ("CapBnd", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "1"),
    ] {
        expect(field, jailed.status(field)?, wanted)?;
    }
    for namespace in ["mnt", "net", "ipc", "uts", "cgroup"] {
        ensure!(
            !jailed.is_in_our(namespace)?,
            "it shares our {namespace} namespace"
        );
    }
    let root: Vec<_> = fs::read_dir(jailed.proc("root/"))?.collect::<Result<_, _>>()?;
    expect(
        "its root",
        format!(
            "{:?}",
            root.iter().map(fs::DirEntry::file_name).collect::<Vec<_>>()
        ),
        "[\"link\"]",
    )?;
    let mounts = fs::read_to_string(jailed.proc("mountinfo"))?;
    let [mount] = mounts.lines().collect::<Vec<_>>()[..] else {
        bail!("it has mounts beside its root:\n{mounts}");
    };
    ensure!(
        mount.contains(" / / ro,nosuid,nodev,noexec") && mount.contains(" - tmpfs jail ro"),
        "{mount}"
    );
    let mut open: Vec<_> = fs::read_dir(jailed.proc("fd"))?
        .map(|fd| Ok(fd?.file_name()))
        .collect::<Result<_>>()?;
    open.sort();
    expect(
        "what it has open",
        format!("{open:?}"),
        "[\"0\", \"1\", \"2\"]",
    )?;
    for (limit, wanted) in [
        ("Max core file size", "0"),
        ("Max locked memory", "0"),
        ("Max msgqueue size", "0"),
        ("Max open files", "77"),
        ("Max processes", "9"),
        ("Max file size", "0"),
    ] {
        let found = jailed.limit(limit)?;
        ensure!(found == [wanted, wanted], "{limit}: {found:?}");
    }
    let report = &jailed.report;
    expect(
        "its host's name",
        report["host_name"].to_string(),
        "\"sandbox\"",
    )?;
    expect("dumpable", report["dumpable"].to_string(), "false")?;
    expect(
        "parent-death signal",
        report["ends_with_parent"].to_string(),
        "true",
    )?;
    ensure!(
        report["password_file"] != "done" && report["make_in_root"] != "done",
        "{report}"
    );
    if landlock::version()?.is_some() {
        // Its root may be read by everyone; that it is not is Landlock's doing.
        ensure!(
            report["landlock"] == true && report["list_root"] == libc::EACCES,
            "{report}"
        );
    }
    // Nothing of it is seen outside.
    ensure!(
        fs::read_dir(place.path())?.next().is_none(),
        "its root is seen by us"
    );
    Ok(())
}

fn named_mounts() -> Result<()> {
    let place = tempfile::tempdir()?;
    let accesses = [JailAccess::Connect, JailAccess::Read, JailAccess::Execute];
    // Landlock knows folders, not mounts: one folder for each.
    let folders = accesses.map(|_| tempfile::tempdir());
    let folders = folders.into_iter().collect::<Result<Vec<_>, _>>()?;
    let mut listeners = Vec::new();
    for folder in folders.iter().map(tempfile::TempDir::path) {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o777))?;
        fs::write(folder.join("file"), "text")?;
        fs::copy("/bin/true", folder.join("program"))?;
        listeners.push(UnixListener::bind(folder.join("socket"))?);
        std::os::unix::fs::chown(folder.join("socket"), Some(USER), Some(USER))?;
    }
    let named: Vec<_> = folders
        .iter()
        .map(tempfile::TempDir::path)
        .zip(accesses)
        .collect();
    let mut config = jail(place.path(), &named);
    let null = PathBuf::from("/dev/null");
    config.root.iter_mut().for_each(|root| {
        root.mounts.push(JailMount {
            source: null.clone(),
            target: null.clone(),
            access: JailAccess::Device,
        });
    });
    config.limits.file_bytes = None;
    let jailed = Jailed::of(&config)?;
    ensure!(jailed.report["null"] == "done", "{}", jailed.report);
    let mounts = &jailed.report["mounts"];
    let has_landlock = landlock::version()?.is_some();
    for (index, _) in accesses.iter().enumerate() {
        let found = &mounts[format!("/{index}")];
        // Everyone may write there on the host.
        ensure!(found["make"] != "done", "/{index}: {found}");
        ensure!(found["connect"] == "done", "/{index}: {found}");
        let readable = index > 0 || !has_landlock;
        ensure!((found["read"] == "done") == readable, "/{index}: {found}");
        ensure!((found["list"] == "done") == readable, "/{index}: {found}");
        // Without a library to load it ends badly, but it runs.
        ensure!(
            (found["run"] == "done" || found["run"] == libc::ENOENT) == (index == 2),
            "/{index}: {found}"
        );
    }
    Ok(())
}

fn keeps_its_root() -> Result<()> {
    let mut config = jail(Path::new("/"), &[]);
    config.user = None;
    config.root = None;
    config.capabilities = SOME_CAPABILITIES;
    config.limits.file_bytes = None;
    let jailed = Jailed::of(&config)?;
    for (field, wanted) in [
        ("Uid", "0 0 0 0"),
        ("CapInh", "0000000000000000"),
        ("CapPrm", "0000000080000001"),
        ("CapEff", "0000000080000001"),
        ("CapBnd", "0000000080000001"),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "1"),
    ] {
        expect(field, jailed.status(field)?, wanted)?;
    }
    let lowered = LOWERED.to_string();
    ensure!(
        jailed.limit("Max file size")? == [lowered.as_str(), lowered.as_str()],
        "{:?}",
        jailed.limit("Max file size")?
    );
    for (namespace, ours) in [
        ("mnt", true),
        ("ipc", false),
        ("uts", false),
        ("cgroup", false),
    ] {
        ensure!(
            jailed.is_in_our(namespace)? == ours,
            "{namespace} namespace"
        );
    }
    Ok(())
}

fn ends_with_parent() -> Result<()> {
    let place = tempfile::tempdir()?;
    let config = serde_json::to_string(&jail(place.path(), &[]))?;
    let (mut parent, line) = ourselves(BETWEEN, &config)?;
    let pid = line.trim().parse().ok().and_then(Pid::from_raw);
    let jailed = pidfd_open(pid.context("it did not start one")?, PidfdFlags::empty())?;
    parent.kill()?;
    parent.wait()?;
    let patience = Timespec {
        tv_sec: 30,
        tv_nsec: 0,
    };
    let ended = poll(&mut [PollFd::new(&jailed, PollFlags::IN)], Some(&patience))?;
    ensure!(ended == 1, "it outlives its parent");
    Ok(())
}

fn parent_ended() -> Result<()> {
    let mut child = Command::new("/bin/true").spawn()?;
    let id = i32::try_from(child.id())?;
    let pidfd = pidfd_open(Pid::from_raw(id).context("no number")?, PidfdFlags::empty())?;
    child.wait()?;
    ensure!(pidfd.as_raw_fd() > 2);
    let refused = sandbox_jail::parent::die_with(&pidfd);
    ensure!(
        matches!(refused, Err(JailError::ParentEnded)),
        "{refused:?}"
    );
    rustix::process::set_parent_process_death_signal(None)?;
    Ok(())
}
