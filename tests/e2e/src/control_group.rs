//! The control group of a sandbox on the host, of either version.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use containerd_shim_protos::api::KillRequest;
use sandbox_harness::process::{self, Running};
use sandbox_harness::task::{Shim, Streams, spec};
use sandbox_harness::{Driver, World, leaks};
use serde_json::Value;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("cgroup_holds_what_runs_the_guest", holds),
    ("cgroup_of_a_killed_shim_is_removed", killed_shim),
    ("cgroup_that_cannot_be_had_is_done_without", without),
    (
        "cgroup_limits_memory_and_processors_where_configured",
        limited,
    ),
];

/// The shim that serves, not the one that started it.
const SHIM: &str = "containerd-shim-sandbox-v2";
/// Less than any guest has touched by the time that its container runs.
const TOUCHED_BYTES: u64 = 16 << 20;
const MAX_PIDS: &str = "4096";

/// The group that a process is in, of the hierarchy with this controller (cgroups(7)): by its path there and on the host.
pub(crate) fn group(pid: i32, controller: &str) -> Result<(String, PathBuf)> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let lines = text.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    let (of_v1, of_v2): (Vec<_>, Vec<_>) = lines.partition(|(names, _)| !names.is_empty());
    let mut of_v1 = of_v1
        .into_iter()
        .filter(|(names, _)| names.split(',').any(|name| name == controller));
    let (root, path) = match (of_v1.next(), of_v2.first()) {
        (Some((names, path)), _) => (format!("/sys/fs/cgroup/{names}"), path),
        (None, Some((_, path))) => ("/sys/fs/cgroup".to_owned(), *path),
        (None, None) => anyhow::bail!("nothing has {controller}: {text}"),
    };
    Ok((path.to_owned(), PathBuf::from(format!("{root}{path}"))))
}

/// A place that nobody else uses, below a group that is not there.
pub(crate) fn place(name: &str) -> String {
    format!("/sandbox-test-{}-{name}/{name}", std::process::id())
}

fn in_group(place: &str) -> Value {
    let mut spec = spec(&["sleep", "1000"]);
    spec["linux"]["cgroupsPath"] = place.into();
    spec
}

/// What of the product serves the sandbox.
pub(crate) fn parts(driver: Driver) -> &'static [&'static str] {
    match driver {
        Driver::Kvm => &[SHIM, "sandbox-vmm run", "virtiofsd --fd"],
        Driver::Qemu => &[
            SHIM,
            "qemu-system-x86_64",
            "vsock-backend",
            "virtiofsd --fd",
        ],
    }
}

/// Requires that all of this world's sandbox is in the group. Returns it, for memory and for processes.
fn expect_all_in(world: &World, place: &str) -> Result<[PathBuf; 2]> {
    let processes = leaks::processes(world.path());
    for part in parts(world.setup().driver) {
        let mut those = processes
            .iter()
            .filter(|process| process.command.contains(part))
            .peekable();
        ensure!(those.peek().is_some(), "no {part}: {processes:?}");
        for process in those {
            for controller in ["memory", "pids", "cpu"] {
                let (path, _) = group(process.pid, controller)?;
                ensure!(path == place, "{}: {controller} {path}", process.command);
            }
        }
    }
    let monitor = world.process(world.setup().driver.monitor())?.pid;
    Ok([group(monitor, "memory")?.1, group(monitor, "pids")?.1])
}

/// Requires that the groups are gone, and what was made for them.
pub(crate) fn expect_gone(groups: &[PathBuf]) -> Result<()> {
    for group in groups {
        let above = group.parent().context("the root")?;
        ensure!(!group.exists(), "{} is left", group.display());
        ensure!(!above.exists(), "{} is left", above.display());
    }
    Ok(())
}

/// Requires that the kernel kills what runs and serves the guest as soon as a container with this would be, and the shim later.
fn expect_oom_scores(world: &World, wanted: i32) -> Result<()> {
    let score = |pid: i32| -> Result<i32> {
        let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?;
        Ok(text.trim().parse()?)
    };
    let ours = score(i32::try_from(std::process::id())?)?;
    let processes = leaks::processes(world.path());
    for part in parts(world.setup().driver) {
        let those = processes
            .iter()
            .filter(|process| process.command.contains(part));
        for process in those {
            let wanted = match *part {
                SHIM => (ours + 1).min(1000),
                _ => wanted,
            };
            let is = score(process.pid)?;
            ensure!(is == wanted, "{}: {is}, not {wanted}", process.command);
        }
    }
    Ok(())
}

/// The number in the first of these files that is there: they are called differently in the two versions.
fn number(group: &std::path::Path, files: [&str; 2]) -> Result<u64> {
    let text = files
        .iter()
        .find_map(|file| fs::read_to_string(group.join(file)).ok())
        .with_context(|| format!("{} has none of {files:?}", group.display()))?;
    text.trim().parse().context(text)
}

fn start(world: &World, id: &str, spec: &Value) -> Result<Shim> {
    let shim = Shim::start(world, id)?;
    shim.create(spec, &Streams::default())
        .with_context(|| shim.log())?;
    shim.start_process("")?;
    Ok(shim)
}

fn end(shim: &Shim, id: &str) -> Result<()> {
    let kill = KillRequest {
        id: id.to_owned(),
        signal: nix::libc::SIGKILL.cast_unsigned(),
        ..Default::default()
    };
    shim.client().kill(shim.call(), &kill)?;
    shim.wait("")?;
    shim.delete("")?;
    Ok(())
}

fn holds(world: &World) -> Result<()> {
    let place = place("holds");
    let mut wanted = in_group(&place);
    wanted["process"]["oomScoreAdj"] = 456.into();
    let shim = start(world, "c", &wanted)?;
    let groups = expect_all_in(world, &place)?;
    expect_oom_scores(world, 456)?;
    let [memory, pids] = &groups;
    let used = number(memory, ["memory.usage_in_bytes", "memory.current"])?;
    ensure!(used > TOUCHED_BYTES, "{used} bytes are charged");
    let max = fs::read_to_string(pids.join("pids.max"))?;
    ensure!(max.trim() == MAX_PIDS, "pids.max {max}");
    end(&shim, "c")?;
    expect_gone(&groups)?;
    // The shim outlives it, where it was before.
    let (path, _) = group(world.process(SHIM)?.pid, "memory")?;
    let (ours, _) = group(i32::try_from(std::process::id())?, "memory")?;
    ensure!(path == ours, "the shim is in {path}");
    shim.shutdown()
}

fn killed_shim(world: &World) -> Result<()> {
    let place = place("killed");
    let shim = start(world, "c", &in_group(&place))?;
    let groups = expect_all_in(world, &place)?;
    world.kill_process(SHIM)?;
    for group in &groups {
        ensure!(group.is_dir(), "{} is gone already", group.display());
    }
    process::run(&mut shim.delete_command(world), b"", world.setup().limit)?.expect_code(0)?;
    expect_gone(&groups)
}

fn without(world: &World) -> Result<()> {
    let shim = Shim::start(world, "c")?;
    shim.must_refuse(&in_group("/a/../b"), &["linux.cgroupsPath"])?;
    // A slice is systemd's to make.
    let slice = format!("sandboxtest{}.slice:test:c", std::process::id());
    shim.create(&in_group(&slice), &Streams::default())
        .with_context(|| shim.log())?;
    shim.start_process("")?;
    let log = shim.log();
    let warnings = log.matches("has no control group on the host").count();
    ensure!(warnings == 1, "{log}");
    end(&shim, "c")?;
    shim.shutdown()
}

fn limited(world: &World) -> Result<()> {
    let config = world.path().join("limited.toml");
    fs::write(
        &config,
        "memory_mib = 256\nvcpus = 2\nsandbox_memory_overhead_mib = 300\nsandbox_cpu_overhead_percent = 50\n",
    )?;
    let arguments = ["run", "--rm", "-i", "demo", "sh", "-c", "echo up; cat"];
    let mut command = world.sandboxctl_command(&arguments);
    command.env("SANDBOX_CONFIG", &config);
    let mut running = Running::start(&mut command, world.setup().limit)?;
    running.wait_for_line("up")?;
    let monitor = world.process(world.setup().driver.monitor())?.pid;
    let (path, folder) = group(monitor, "memory")?;
    ensure!(path.starts_with("/sandboxctl/"), "it is in {path}");
    let limit = number(&folder, ["memory.limit_in_bytes", "memory.max"])?;
    ensure!(limit == (256 + 300) << 20, "the limit is {limit}");
    let (_, time) = group(monitor, "cpu")?;
    let text = ["cpu.cfs_quota_us", "cpu.max"]
        .iter()
        .find_map(|name| fs::read_to_string(time.join(name)).ok())
        .context("no limit of processor time")?;
    let quota = text.split_whitespace().next();
    ensure!(quota == Some("250000"), "of 100 ms it may have {text} µs");
    running.close_stdin();
    running.finish()?.expect_code(0)?;
    ensure!(!folder.exists(), "{} is left", folder.display());
    Ok(())
}
