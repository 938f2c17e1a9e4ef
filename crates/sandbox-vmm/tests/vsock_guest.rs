//! The vsock device under a real guest kernel: `tests/vsock/guest.rs` as PID 1 in a virtual machine.
//!
//! The machine is QEMU's microvm under emulation with this crate's vhost-user back end. The same program
//! and cases are meant for our own monitor on KVM: only [`machine`] would differ. The kernel is
//! `SANDBOX_TEST_KERNEL`, or `target/artifacts/vmlinux`; without it, QEMU or `mkfs.erofs` every case is
//! reported as ignored, with the reason in its name.
//!
//! A machine of its own is used while strace looks at the back end, whose calls are held against its list of those that it may make.

#[path = "vsock/machine.rs"]
mod machine;
#[path = "vsock/pattern.rs"]
#[expect(
    clippy::cast_possible_truncation,
    reason = "shared with the guest; 64 bits on both sides"
)]
mod pattern;
#[path = "support/trace.rs"]
mod trace;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Instant;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use machine::{BootError, Machine};
use sandbox_jail::seccomp::Made;
use sandbox_vmm::seccomp::rules;

const TOTAL: u64 = 20 << 20;
/// What the throughput cases move.
const BULK: u64 = 64 << 20;

type Case = fn(&Machine) -> Result<(), Failed>;

const CASES: &[(&str, Case)] = &[
    (
        "host_connect_echoes_20_mib_byte_for_byte",
        host_connect_echoes,
    ),
    (
        "guest_connect_echoes_20_mib_byte_for_byte",
        guest_connect_echoes,
    ),
    (
        "host_half_close_after_20_mib_gets_the_answer",
        host_half_close,
    ),
    ("guest_close_after_20_mib_loses_nothing", guest_close),
    ("hundred_connections_at_once_keep_apart", hundred_at_once),
    (
        "hundred_guest_connections_in_turn_leave_nothing",
        guest_in_turn,
    ),
    ("slow_host_reader_holds_up_nobody", slow_host_reader),
    ("slow_guest_reader_holds_up_nobody", slow_guest_reader),
    (
        "guest_port_without_listener_ends_the_client",
        unknown_guest_port,
    ),
    (
        "host_port_without_listener_resets_the_guest",
        unknown_host_port,
    ),
    ("host_closing_early_ends_the_guest_writer", host_leaves),
    ("throughput_is_reported", throughput),
];

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == "vsock-backend") {
        // As the program itself does: else its allocator opens files now and then, for which a thread that is confined is ended.
        sandbox_vmm::process::prepare();
        let rest: Vec<_> = words.collect();
        return sandbox_vmm::vsock::backend::main(&rest);
    }
    let arguments = Arguments::from_args();
    let (machine, missing) = if arguments.list {
        (None, None)
    } else {
        match Machine::boot(None) {
            Ok(machine) => (Some(Arc::new(machine)), None),
            Err(BootError::Missing(reason)) => (None, Some(reason)),
            Err(BootError::Broken(reason)) => {
                eprintln!("vsock_guest: {reason}");
                return ExitCode::FAILURE;
            }
        }
    };
    let reason = missing.clone();
    let calls = Trial::ignorable_test(
        "qemu::calls_that_are_allowed_are_made",
        move || match reason {
            Some(reason) => Ok(Completion::ignored_with(reason)),
            None => calls_are_made(),
        },
    );
    let trials = CASES
        .iter()
        .map(|(name, case)| {
            let machine = machine.clone();
            let name = match &missing {
                Some(reason) => format!("qemu::{name} (skipped: {reason})"),
                None => format!("qemu::{name}"),
            };
            Trial::test(name, move || {
                machine.map_or(Ok(()), |machine| case(&machine))
            })
            .with_ignored_flag(missing.is_some())
        })
        .chain([calls])
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if let Some(machine) = machine.and_then(Arc::into_inner)
        && let Err(reason) = machine.power_off()
    {
        eprintln!("vsock_guest: {reason}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

/// What the back end's own list allows in every machine is made in a machine of its own, which is used. What it has in common with
/// threads of the monitor is looked at in `calls.rs`.
fn calls_are_made() -> Result<Completion, Failed> {
    if Command::new("strace").arg("-V").output().is_err() {
        return Ok(Completion::ignored_with("no strace"));
    }
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("trace");
    let machine = match Machine::boot(Some(&file)) {
        Ok(machine) => machine,
        Err(BootError::Missing(reason)) => return Ok(Completion::ignored_with(reason)),
        Err(BootError::Broken(reason)) => return Err(reason.into()),
    };
    let uses: [Case; 5] = [
        hundred_at_once,
        guest_in_turn,
        unknown_guest_port,
        unknown_host_port,
        host_leaves,
    ];
    for used in uses {
        used(&machine)?;
    }
    machine.power_off()?;
    let made = trace::confined(&fs::read_to_string(&file)?, true)?;
    let never: Vec<&str> = rules::BACKEND
        .iter()
        .filter(|rule| rule.made == Made::Always && !made.iter().any(|call| call.is_by(rule)))
        .map(|rule| rule.name)
        .collect();
    if never.is_empty() {
        return Ok(Completion::Completed);
    }
    let threads: BTreeSet<&str> = made.iter().map(|call| call.thread.as_str()).collect();
    Err(format!("allowed beside QEMU, and never made by {threads:?}: {never:?}").into())
}

/// Sends the pattern on a thread, ends, and expects all of it back.
fn echo(stream: &UnixStream, total: u64) -> Result<(), Failed> {
    let writer = stream.try_clone()?;
    let sending = std::thread::spawn(move || {
        pattern::send(&writer, total)?;
        writer.shutdown(Shutdown::Write)
    });
    pattern::expect(stream, total)?;
    sending.join().map_err(|_| "the sender panicked")??;
    Ok(())
}

fn text(mut stream: &UnixStream) -> Result<String, Failed> {
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn same(got: &str, wanted: &str) -> Result<(), Failed> {
    if got == wanted {
        Ok(())
    } else {
        Err(format!("{got:?} instead of {wanted:?}").into())
    }
}

fn host_connect_echoes(machine: &Machine) -> Result<(), Failed> {
    echo(&machine.connect(1)?, TOTAL)
}

/// Has the guest call a port, sending so much; returns what it says came of it.
fn have_called(machine: &Machine, port: u32, total: u64) -> Result<String, Failed> {
    let mut caller = machine.connect(6)?;
    writeln!(caller, "{port} {total}")?;
    caller.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    BufReader::new(caller).read_line(&mut answer)?;
    Ok(answer.trim_end().to_owned())
}

/// The host takes all of it before it sends any back: the guest reads long after its own end.
fn guest_connect_echoes(machine: &Machine) -> Result<(), Failed> {
    let listener = machine.listen(2000)?;
    let echoing = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all)?;
        stream.write_all(&all)
    });
    same(&have_called(machine, 2000, TOTAL)?, "ok")?;
    echoing.join().map_err(|_| "the echo panicked")??;
    Ok(())
}

fn host_half_close(machine: &Machine) -> Result<(), Failed> {
    let mut stream = machine.connect(2)?;
    writeln!(stream, "{TOTAL}")?;
    pattern::send(&stream, TOTAL)?;
    stream.shutdown(Shutdown::Write)?;
    same(&text(&stream)?, "ok")
}

fn guest_close(machine: &Machine) -> Result<(), Failed> {
    let mut stream = machine.connect(3)?;
    writeln!(stream, "{TOTAL}")?;
    Ok(pattern::expect(&stream, TOTAL)?)
}

fn hundred_at_once(machine: &Machine) -> Result<(), Failed> {
    let streams = (0..100)
        .map(|_| machine.connect(1))
        .collect::<Result<Vec<_>, _>>()?;
    let threads: Vec<_> = (0u64..)
        .zip(streams)
        .map(|(index, stream)| std::thread::spawn(move || echo(&stream, 100_000 + index)))
        .collect();
    for thread in threads {
        thread.join().map_err(|_| "an echo panicked")??;
    }
    Ok(())
}

fn guest_in_turn(machine: &Machine) -> Result<(), Failed> {
    let listener = machine.listen(2001)?;
    let echoing = std::thread::spawn(move || -> std::io::Result<()> {
        for _ in 0..100 {
            let (mut stream, _) = listener.accept()?;
            let mut reader = stream.try_clone()?;
            std::io::copy(&mut reader, &mut stream)?;
        }
        Ok(())
    });
    let mut caller = machine.connect(6)?;
    for _ in 0..100 {
        writeln!(caller, "2001 1000")?;
    }
    caller.shutdown(Shutdown::Write)?;
    same(&text(&caller)?, &"ok\n".repeat(100))?;
    echoing.join().map_err(|_| "the echo panicked")??;
    Ok(())
}

fn slow_host_reader(machine: &Machine) -> Result<(), Failed> {
    let mut slow = machine.connect(3)?;
    writeln!(slow, "{TOTAL}")?;
    echo(&machine.connect(1)?, 1 << 20)?;
    Ok(pattern::expect(&slow, TOTAL)?)
}

fn slow_guest_reader(machine: &Machine) -> Result<(), Failed> {
    let mut slow = machine.connect(4)?;
    let writer = slow.try_clone()?;
    writeln!(slow, "{TOTAL}")?;
    let sending = std::thread::spawn(move || {
        pattern::send(&writer, TOTAL)?;
        writer.shutdown(Shutdown::Write)
    });
    echo(&machine.connect(1)?, 1 << 20)?;
    drop(machine.connect(5)?);
    sending.join().map_err(|_| "the sender panicked")??;
    same(&text(&slow)?, "ok")
}

fn unknown_guest_port(machine: &Machine) -> Result<(), Failed> {
    match machine.connect(9999) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

fn unknown_host_port(machine: &Machine) -> Result<(), Failed> {
    same(&have_called(machine, 2999, 1)?, "connect: ConnectionReset")
}

/// The guest's writer must not wait for ever, and the device goes on.
fn host_leaves(machine: &Machine) -> Result<(), Failed> {
    for _ in 0..20 {
        let mut stream = machine.connect(3)?;
        writeln!(stream, "{TOTAL}")?;
        stream.read_exact(&mut [0; 100])?;
    }
    echo(&machine.connect(1)?, 1 << 20)
}

fn throughput(machine: &Machine) -> Result<(), Failed> {
    let rate = |what: &str, begin: Instant| {
        let seconds = begin.elapsed().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a few digits are enough")]
        let mib = (BULK >> 20) as f64;
        eprintln!("{what}: {:.0} MiB/s", mib / seconds);
    };
    let mut stream = machine.connect(7)?;
    let begin = Instant::now();
    std::io::copy(&mut std::io::repeat(0).take(BULK), &mut stream)?;
    stream.shutdown(Shutdown::Write)?;
    same(&text(&stream)?, &BULK.to_string())?;
    rate("host to guest", begin);
    let mut stream = machine.connect(8)?;
    let begin = Instant::now();
    writeln!(stream, "{BULK}")?;
    let count = std::io::copy(&mut stream, &mut std::io::sink())?;
    same(&count.to_string(), &BULK.to_string())?;
    rate("guest to host", begin);
    Ok(())
}
