//! `sandboxctl run`: what the container is and what comes back.

use anyhow::{Result, ensure};
use sandbox_harness::{Driver, World};

use crate::Case;

/// In these the driver, its devices or its helpers take part.
pub(crate) const CASES: &[Case] = &[
    ("run_prints_what_the_container_prints", prints),
    ("run_is_behind_another_kernel", other_kernel),
    ("run_clock_is_a_counter_and_not_the_tick", clock),
    (
        "run_small_pieces_of_memory_are_reported_after_a_start_only",
        reports,
    ),
    ("run_exit_code_is_the_containers", exit_code),
    (
        "run_memory_limit_is_in_the_cgroup_and_sizes_the_machine",
        memory,
    ),
    (
        "run_cpus_limit_is_in_the_cgroup_and_sizes_the_machine",
        cpus,
    ),
    ("run_writes_do_not_reach_the_image", writes_stay),
    ("run_timings_are_in_order", timings),
    ("run_auto_says_when_it_emulates", auto_driver),
    ("run_devices_are_those_of_docker", devices),
];

/// In these what is above every driver.
pub(crate) const ABOVE: &[Case] = &[
    ("run_command_is_pid_1_of_its_own_namespace", pid_1),
    ("run_killed_by_signal_exits_128_plus_signal", exit_signal),
    (
        "run_missing_program_exits_127_and_names_it",
        missing_program,
    ),
    (
        "run_file_not_executable_exits_126_and_names_it",
        not_executable,
    ),
    ("run_environment_and_working_directory_are_set", environment),
    ("run_default_command_comes_from_the_image", default_command),
];

fn prints(world: &World) -> Result<()> {
    world
        .sandboxctl(&["run", "--rm", "demo", "echo", "hello"])?
        .expect_code(0)?
        .expect_stdout("hello\n")?;
    Ok(())
}

/// Where the kernel gives its counter up, its clock moves on a hundred times a second, and timers with it.
fn clock(world: &World) -> Result<()> {
    let file = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let source = world
        .sandboxctl(&["run", "--rm", "demo", "cat", file])?
        .expect_code(0)?
        .text();
    let expected: &[&str] = match world.setup().driver {
        Driver::Kvm => &["kvm-clock"],
        // The one until all is up.
        Driver::Qemu => &["tsc", "tsc-early"],
    };
    ensure!(expected.contains(&source.trim()), "{source}");
    Ok(())
}

/// By the order of blocks that the guest's kernel reports to the host: 32 KiB, then 2 MiB.
fn reports(world: &World) -> Result<()> {
    let script = "order=/sys/module/page_reporting/parameters/page_reporting_order; cat $order
        for second in $(seq 60); do grep -qx 9 $order && break; sleep 1; done; cat $order";
    let orders = world
        .sandboxctl(&["run", "--rm", "demo", "sh", "-c", script])?
        .expect_code(0)?
        .text();
    ensure!(orders == "3\n9\n", "{orders}");
    Ok(())
}

fn other_kernel(world: &World) -> Result<()> {
    let finished = world
        .sandboxctl(&["run", "--rm", "demo", "uname", "-r"])?
        .expect_code(0)?;
    let guest = finished.text();
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    ensure!(
        guest.trim().starts_with("6.12."),
        "not our kernel: {guest:?}"
    );
    ensure!(
        guest.trim() != host.trim(),
        "guest and host both run {guest:?}"
    );
    Ok(())
}

fn pid_1(world: &World) -> Result<()> {
    let finished = world
        .sandboxctl(&[
            "run",
            "--rm",
            "demo",
            "sh",
            "-c",
            "echo $$; cat /proc/1/comm; true",
        ])?
        .expect_code(0)?;
    finished.expect_stdout("1\nsh\n")?;
    Ok(())
}

fn exit_code(world: &World) -> Result<()> {
    world
        .sandboxctl(&["run", "--rm", "demo", "sh", "-c", "exit 42"])?
        .expect_code(42)?;
    Ok(())
}

fn exit_signal(world: &World) -> Result<()> {
    let script = "sh -c 'kill -9 $$'; echo inner $?; exit 0";
    world
        .sandboxctl(&["run", "--rm", "demo", "sh", "-c", script])?
        .expect_code(0)?
        .expect_stdout("inner 137\n")?;
    // PID 1 cannot be killed from inside its namespace; the abort of the whole container is the shim's to see.
    let running = world.start_waiting(&["--rm", "-i", "--name", "victim"])?;
    world
        .sandboxctl(&["kill", "-s", "KILL", "victim"])?
        .expect_code(0)?;
    running.finish()?.expect_code(137)?;
    Ok(())
}

fn missing_program(world: &World) -> Result<()> {
    world
        .sandboxctl(&["run", "--rm", "demo", "no-such-program", "x"])?
        .expect_code(127)?
        .expect_stderr(&["no-such-program"])?;
    Ok(())
}

fn not_executable(world: &World) -> Result<()> {
    world
        .sandboxctl(&["run", "--rm", "demo", "/etc/not-executable"])?
        .expect_code(126)?
        .expect_stderr(&["/etc/not-executable"])?;
    Ok(())
}

fn environment(world: &World) -> Result<()> {
    let script = "echo \"$GREETING\"; pwd";
    let run = [
        "run",
        "--rm",
        "-e",
        "GREETING=good morning",
        "-w",
        "/tmp",
        "demo",
        "sh",
        "-c",
        script,
    ];
    world
        .sandboxctl(&run)?
        .expect_code(0)?
        .expect_stdout("good morning\n/tmp\n")?;
    Ok(())
}

fn default_command(world: &World) -> Result<()> {
    world
        .sandboxctl_with_input(&["run", "--rm", "-i", "demo"], b"echo from the shell\n")?
        .expect_code(0)?
        .expect_stdout("from the shell\n")?;
    Ok(())
}

fn memory(world: &World) -> Result<()> {
    let script = "cat /sys/fs/cgroup/memory.max; grep MemTotal /proc/meminfo";
    let finished = world
        .sandboxctl(&[
            "run", "--rm", "--memory", "160m", "demo", "sh", "-c", script,
        ])?
        .expect_code(0)?;
    let text = finished.text();
    let mut lines = text.lines();
    ensure!(
        lines.next() == Some("167772160"),
        "memory.max is not 160 MiB: {text}"
    );
    let total: u64 = lines
        .next()
        .and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or_default();
    // The machine has the limit and some overhead, not the default size.
    ensure!(
        (150_000..320_000).contains(&total),
        "the machine has {total} KiB"
    );
    Ok(())
}

fn cpus(world: &World) -> Result<()> {
    let script = "cat /sys/fs/cgroup/cpu.max; grep -c ^processor /proc/cpuinfo";
    world
        .sandboxctl(&["run", "--rm", "--cpus", "1.5", "demo", "sh", "-c", script])?
        .expect_code(0)?
        .expect_stdout("150000 100000\n2\n")?;
    Ok(())
}

fn writes_stay(world: &World) -> Result<()> {
    let write = "echo changed > /etc/passwd && rm /etc/group && mkdir /new && cat /etc/passwd";
    world
        .sandboxctl(&["run", "--rm", "demo", "sh", "-c", write])?
        .expect_code(0)?
        .expect_stdout("changed\n")?;
    let read = "head -n 1 /etc/passwd; test -f /etc/group && test ! -e /new && echo as before";
    world
        .sandboxctl(&["run", "--rm", "demo", "sh", "-c", read])?
        .expect_code(0)?
        .expect_stdout("root:x:0:0:root:/root:/bin/sh\nas before\n")?;
    Ok(())
}

fn timings(world: &World) -> Result<()> {
    let finished = world
        .sandboxctl(&["run", "--rm", "--timings", "demo", "echo", "x"])?
        .expect_code(0)?;
    let mut rest = finished.stderr.as_str();
    for phase in [
        "image ready",
        "monitor started",
        "first guest instruction",
        "kernel to agent",
        "agent ready",
        "container created",
        "first output",
    ] {
        let at = rest.find(phase);
        ensure!(
            at.is_some(),
            "{phase:?} is missing or out of order in\n{}",
            finished.stderr
        );
        rest = &rest[at.unwrap_or(0)..];
    }
    Ok(())
}

fn auto_driver(world: &World) -> Result<()> {
    let finished = world
        .sandboxctl(&["run", "--hypervisor", "auto", "--rm", "demo", "echo", "x"])?
        .expect_code(0)?
        .expect_stdout("x\n")?;
    let notices = finished
        .stderr
        .lines()
        .filter(|line| line.contains("emulating"))
        .count();
    let expected = usize::from(world.setup().driver == Driver::Qemu);
    ensure!(
        notices == expected,
        "{notices} notices of emulation: {}",
        finished.stderr
    );
    Ok(())
}

/// What docker makes in a container's `/dev`. `console` is there with a terminal, `core` where the kernel has `/proc/kcore`.
const DEVICES: [&str; 16] = [
    "console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr",
    "stdin", "stdout", "tty", "urandom", "zero",
];

/// Nothing of the machine's own is among the devices: no disk (`vda`, `pmem0`), no console (`hvc0`), no way to the agent or the host
/// (`vsock`, `port`, `vport0p1`).
fn devices(world: &World) -> Result<()> {
    let listed = world
        .sandboxctl(&["run", "--rm", "demo", "ls", "-A", "/dev"])?
        .expect_code(0)?
        .text();
    let there: Vec<&str> = listed.lines().collect();
    let more: Vec<_> = there
        .iter()
        .filter(|name| !DEVICES.contains(name))
        .collect();
    ensure!(more.is_empty(), "docker makes none of {more:?}");
    for name in ["null", "urandom", "pts"] {
        ensure!(there.contains(&name), "no {name} in {there:?}");
    }
    Ok(())
}
