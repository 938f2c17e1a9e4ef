//! What the probe sees and can do inside, where runc is no measure: time, entropy, the ways out, and the processes
//! around it. The shim is spoken to directly, because these need a process described to the last member.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use sandbox_harness::World;
use sandbox_harness::bundle::{self, PROBE};
use sandbox_harness::shim::Shim;
use serde_json::{Value, json};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("inside_exec_is_what_its_own_process_says", exec_identity),
    ("inside_clock_and_entropy_are_good_from_the_start", clock),
    (
        "inside_clock_follows_the_host_through_a_pause",
        clock_after_pause,
    ),
    ("inside_vsock_is_refused_by_every_way", vsock),
    ("inside_out_of_memory_ends_with_137", out_of_memory),
    ("inside_ended_processes_leave_nothing", processes),
];

/// The guest's kernel is the same under every driver.
pub(crate) const ABOVE: &[Case] = &[("inside_kernel_is_hardened", hardened)];

/// How far the guest's clock may be from the host's: as long as the message that sets it may take, where the guest is emulated
/// on a machine with much to do.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(3);

fn now() -> Result<Duration> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?)
}

fn json(line: &str) -> Result<Value> {
    serde_json::from_str(line).with_context(|| line.to_owned())
}

/// Runs a container that does `args`, does something with it, and takes it down.
fn with_container(
    world: &World,
    spec: &Value,
    check: impl FnOnce(&Shim, String) -> Result<()>,
) -> Result<()> {
    let folder = bundle::make(world, "b", spec)?;
    let shim = Shim::start(world, "c", &folder)?;
    let checked = shim
        .run("c", false)
        .and_then(|mut output| output.line())
        .and_then(|line| check(&shim, line))
        .with_context(|| shim.log());
    let ended = shim.end("c");
    checked?;
    ended
}

/// Adds a process and returns its first line.
fn exec(shim: &Shim, id: &str, process: &Value) -> Result<String> {
    let mut output = shim.exec("c", id, process)?;
    let line = output.line()?;
    shim.wait("c", id)?;
    shim.delete("c", id)?;
    Ok(line)
}

fn exec_identity(world: &World) -> Result<()> {
    let look = ["look", "identity", "process"];
    let mut spec = bundle::spec(&[&[PROBE, "--hold"], &look[..]].concat());
    spec["process"]["noNewPrivileges"] = json!(false);
    with_container(world, &spec, |shim, line| {
        let init = json(&line)?;
        ensure!(init["identity"]["uid"] == "0 0 0 0", "{line}");
        ensure!(init["identity"]["no_new_privileges"] == "0", "{line}");

        let arguments = [&[PROBE], &look[..]].concat();
        let mut process = bundle::process(&arguments);
        process["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [5], "umask": 0o077});
        process["env"] = json!(["WHO=exec"]);
        process["cwd"] = json!("/tmp");
        process["noNewPrivileges"] = json!(true);
        let only = json!(["CAP_NET_RAW"]);
        process["capabilities"] = json!({
            "bounding": only, "effective": only, "permitted": only, "inheritable": only, "ambient": only,
        });
        let line = exec(shim, "e1", &process)?;
        let seen = json(&line)?;
        let identity = &seen["identity"];
        ensure!(identity["uid"] == "1000 1000 1000 1000", "{line}");
        ensure!(identity["gid"] == "1001 1001 1001 1001", "{line}");
        ensure!(identity["groups"].as_str() == Some("5"), "{line}");
        ensure!(identity["umask"] == "0077", "{line}");
        ensure!(identity["no_new_privileges"] == "1", "{line}");
        for set in [
            "bounding",
            "effective",
            "permitted",
            "inheritable",
            "ambient",
        ] {
            // CAP_NET_RAW is number 13.
            ensure!(
                identity["capabilities"][set] == "0000000000002000",
                "{set}: {line}"
            );
        }
        ensure!(seen["process"]["folder"] == "/tmp", "{line}");
        ensure!(seen["process"]["environment"]["WHO"] == "exec", "{line}");
        ensure!(seen["process"]["environment"]["PATH"].is_null(), "{line}");

        // The next one has nothing of that.
        let line = exec(shim, "e2", &bundle::process(&arguments))?;
        let seen = json(&line)?;
        ensure!(seen["identity"]["uid"] == "0 0 0 0", "{line}");
        ensure!(seen["identity"]["no_new_privileges"] == "0", "{line}");
        ensure!(seen["process"]["environment"]["WHO"].is_null(), "{line}");
        Ok(())
    })
}

/// The time that the line tells lies between `before` and now, within the tolerance.
fn check_clock(line: &str, before: Duration) -> Result<()> {
    let after = now()?;
    let seen = json(line)?;
    let told = Duration::from_nanos(
        seen["clock"]["unix_time_ns"]
            .as_u64()
            .with_context(|| line.to_owned())?,
    );
    ensure!(
        told + CLOCK_TOLERANCE >= before && told <= after + CLOCK_TOLERANCE,
        "the guest's clock said {told:?}, and the host's {before:?} before and {after:?} after"
    );
    Ok(())
}

fn clock(world: &World) -> Result<()> {
    let spec = bundle::spec(&[PROBE, "--hold", "try", "clock", "entropy"]);
    let before = now()?;
    with_container(world, &spec, |shim, line| {
        check_clock(&line, before)?;
        let first = json(&line)?;
        ensure!(first["entropy"]["differ"] == true, "{line}");

        let arguments = [PROBE, "try", "entropy"];
        let line = exec(shim, "e1", &bundle::process(&arguments))?;
        let second = json(&line)?;
        ensure!(
            first["entropy"]["bytes"] != second["entropy"]["bytes"],
            "{line}"
        );
        Ok(())
    })
}

/// Longer than the tolerance, so that a clock that had stood still would show.
const PAUSE: Duration = Duration::from_millis(7_500);

fn clock_after_pause(world: &World) -> Result<()> {
    let spec = bundle::spec(&[PROBE, "--hold", "try", "clock"]);
    with_container(world, &spec, |shim, _| {
        shim.pause("c")?;
        // Nothing to wait for but time itself.
        std::thread::sleep(PAUSE);
        shim.resume("c")?;
        let before = now()?;
        let arguments = [PROBE, "try", "clock"];
        let line = exec(shim, "e1", &bundle::process(&arguments))?;
        check_clock(&line, before)
    })
}

fn vsock(world: &World) -> Result<()> {
    let spec = bundle::spec(&[PROBE, "--hold", "try", "vsock"]);
    with_container(world, &spec, |shim, line| {
        let check = |line: &str| -> Result<()> {
            let seen = json(line)?;
            ensure!(
                seen["vsock"]["socket"]["error"] == "EAFNOSUPPORT",
                "by socket(2): {line}"
            );
            // Whether io_uring is refused as a whole or for this, there is no socket.
            ensure!(
                seen["vsock"]["io_uring"] != "ok",
                "through io_uring: {line}"
            );
            Ok(())
        };
        check(&line)?;
        check(&exec(
            shim,
            "e1",
            &bundle::process(&[PROBE, "try", "vsock"]),
        )?)
    })
}

fn out_of_memory(world: &World) -> Result<()> {
    let mut spec = bundle::spec(&[PROBE, "try", "memory=100"]);
    spec["linux"]["resources"] = json!({"memory": {"limit": 67_108_864, "swap": 67_108_864}});
    let folder = bundle::make(world, "b", &spec)?;
    let shim = Shim::start(world, "c", &folder)?;
    let mut output = shim.run("c", false)?;
    let status = shim.wait("c", "")?;
    let line = output.line();
    ensure!(
        status == 137,
        "exit status {status}, output {line:?}\n{}",
        shim.log()
    );
    ensure!(line.is_err(), "it had the memory: {line:?}");
    shim.delete("c", "")?;
    shim.shutdown("c")
}

fn processes(world: &World) -> Result<()> {
    // All that it starts itself has been started before it says so.
    let spec = bundle::spec(&["/bin/sh", "-c", "sleep 1000 & echo up; wait"]);
    with_container(world, &spec, |shim, line| {
        ensure!(line == "up", "{line}");
        let before = shim.pids("c")?.len();
        // Each leaves a process that outlives it, and a child that ended before it.
        let script = "sleep 1000 > /dev/null 2>&1 & true | true; echo done";
        for number in 0..5 {
            let id = format!("e{number}");
            let line = exec(shim, &id, &bundle::process(&["/bin/sh", "-c", script]))?;
            ensure!(line == "done", "{line}");
        }
        // The orphans belong to the container, and everything else is gone.
        let after = shim.pids("c")?;
        ensure!(
            after.len() == before + 5,
            "{before} processes, then {after:?}"
        );
        let line = exec(
            shim,
            "look",
            &bundle::process(&[
                "/bin/sh",
                "-c",
                "grep -l '^State:.Z' /proc/[0-9]*/status; echo end",
            ]),
        )?;
        ensure!(line == "end", "a zombie is left: {line}");
        Ok(())
    })
}

/// By a process that has every capability and may make and open any device. In a kernel that had them, `kexec_load` would say EINVAL to so many
/// segments, and `init_module` EFAULT to no module.
fn hardened(world: &World) -> Result<()> {
    let script = "echo $(cat /proc/sys/kernel/panic /proc/sys/kernel/panic_on_oops) $(busybox ls /proc | busybox grep -E '^(kcore|modules)$') \
        $(busybox mknod /dev/memory c 1 1 && cat /dev/memory 2>&1 | busybox head -c 200); exec sleep 1000";
    let mut spec = bundle::spec(&["busybox", "sh", "-c", script]);
    let mut all = spec["process"]["capabilities"]["bounding"].clone();
    if let Some(all) = all.as_array_mut() {
        all.extend(["CAP_SYS_BOOT", "CAP_SYS_MODULE", "CAP_SYS_RAWIO"].map(Value::from));
    }
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set] = all.clone();
    }
    let capabilities = spec["process"]["capabilities"].clone();
    spec["linux"]["resources"] = json!({ "devices": [{ "allow": true, "access": "rwm" }] });
    with_container(world, &spec, |shim, line| {
        // A panic is the end at once, an oops is a panic; then the list of files, which is empty; then what became of memory.
        let rest = line
            .strip_prefix("-1 1 cat: ")
            .with_context(|| line.clone())?;
        ensure!(rest.contains("No such device"), "{line}");
        let mut process = bundle::process(&[PROBE, "attempt", "system_calls"]);
        process["capabilities"] = capabilities.clone();
        let line = exec(shim, "e1", &process)?;
        let calls = &json(&line)?["calls"];
        for call in ["kexec_load", "init_module"] {
            ensure!(calls[call]["outcome"] == "ENOSYS", "{call}: {line}");
        }
        let mut process = bundle::process(&[PROBE, "attempt", "load_module"]);
        process["capabilities"] = capabilities;
        let line = exec(shim, "e2", &process)?;
        ensure!(json(&line)?["loaded"]["error"] == "ENOSYS", "{line}");
        Ok(())
    })
}
