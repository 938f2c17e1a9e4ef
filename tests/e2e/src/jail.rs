//! What the processes that touch a guest's bytes are held to, looked at from outside, in `/proc`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use sandbox_harness::{Driver, World};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "jail_every_thread_has_its_filter_of_system_calls",
        every_thread_is_filtered,
    ),
    ("jail_refused_call_is_named", refused_call_is_named),
];

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

/// A call cannot be put into a process that is not ours to debug; but what a filter's last resort sends can.
fn refused_call_is_named(world: &World) -> Result<()> {
    let running = world.start_waiting(&["--rm", "-i", "--name", "victim"])?;
    let process = world.process(world.setup().driver.monitor())?;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(process.pid),
        nix::sys::signal::Signal::SIGSYS,
    )?;
    running
        .finish()?
        .expect_code(125)?
        .expect_stderr(&["made a system call that it may not make"])?;
    Ok(())
}
