//! What a guest has of the host's memory: as much as it uses, and no longer.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use sandbox_harness::process::{Running, wait_until};
use sandbox_harness::{World, leaks};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("memory_that_is_freed_goes_back_to_the_host", |world| {
        freed(world, &[])
    }),
    (
        "memory_that_is_freed_goes_back_where_a_folder_is_shared",
        |world| {
            let folder = world.path().join("shared");
            fs::create_dir(&folder)?;
            freed(world, &["-v", &format!("{}:/shared", folder.display())])
        },
    ),
];

/// Fills memory, and frees it when it is told to.
const FILL: &str = "echo up; read x; dd if=/dev/zero of=/fill/f bs=1M count=150 2>/dev/null; echo full; read x; \
    rm /fill/f; echo free; cat";
const FILLED_KIB: u64 = 150 << 10;
/// Of what was freed, what the guest's kernel may keep in pieces that are too small to be reported, or use for something else.
const KEPT_KIB: u64 = 30 << 10;

/// A sandbox, and the process that has its memory.
struct Guest {
    running: Running,
    pid: i32,
    before_kib: u64,
    full_kib: u64,
}

/// What a process has of the host's memory (proc_pid_status(5)).
fn resident_kib(pid: i32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.context(text.clone())?.parse()?)
}

impl Guest {
    fn start(world: &World, options: &[&str], config: Option<&PathBuf>) -> Result<Self> {
        let part = world.setup().driver.monitor();
        let known: Vec<i32> = leaks::processes(world.path())
            .iter()
            .map(|process| process.pid)
            .collect();
        let fixed = [
            "run",
            "--rm",
            "-i",
            "--memory",
            "256m",
            "--tmpfs",
            "/fill:size=200m",
        ];
        let arguments = [&fixed, options, &["demo", "sh", "-c", FILL]].concat();
        let mut command = world.sandboxctl_command(&arguments);
        if let Some(config) = config {
            command.env("SANDBOX_CONFIG", config);
        }
        let mut running = Running::start(&mut command, world.setup().limit)?;
        running.wait_for_line("up")?;
        let pid = leaks::processes(world.path())
            .into_iter()
            .find(|process| process.command.contains(part) && !known.contains(&process.pid))
            .with_context(|| format!("no new {part}"))?
            .pid;
        let before_kib = resident_kib(pid)?;
        running.write(b"fill\n")?;
        running.wait_for_line("full")?;
        let full_kib = resident_kib(pid)?;
        // As much as was written was not there before, but for what other pages of the guest's were given back meanwhile.
        ensure!(
            full_kib >= FILLED_KIB,
            "{before_kib} KiB, and {full_kib} KiB with {FILLED_KIB} KiB more"
        );
        running.write(b"free\n")?;
        running.wait_for_line("free")?;
        Ok(Self {
            running,
            pid,
            before_kib,
            full_kib,
        })
    }

    fn end(mut self) -> Result<()> {
        self.running.close_stdin();
        self.running.finish()?.expect_code(0)?;
        Ok(())
    }
}

/// One sandbox gives back what its container freed; the other, which freed it earlier, is told not to.
fn freed(world: &World, options: &[&str]) -> Result<()> {
    let config = world.path().join("kept.toml");
    let defaults = fs::read_to_string(world.path().join("defaults.toml"))?;
    fs::write(&config, format!("{defaults}free_page_reporting = false\n"))?;
    let kept = Guest::start(world, options, Some(&config))?;
    let given = Guest::start(world, options, None)?;
    let enough = given.full_kib.saturating_sub(FILLED_KIB - KEPT_KIB);
    wait_until(
        &format!(
            "{} KiB of {} KiB, {} KiB before",
            enough, given.full_kib, given.before_kib
        ),
        world.setup().limit,
        || {
            resident_kib(given.pid)
                .is_ok_and(|now| now <= enough)
                .then_some(())
        },
    )?;
    let still = resident_kib(kept.pid)?;
    ensure!(
        still >= FILLED_KIB,
        "without reporting {still} KiB are left of {} KiB",
        kept.full_kib
    );
    given.end()?;
    kept.end()
}
