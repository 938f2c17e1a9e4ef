//! The monitor against a guest that means it harm (`hostile_guest/guest`), from inside a real machine: whatever its drivers do, the
//! monitor lives, the other devices answer, those that were attacked do after a reset (all this the guest itself tries), the memory
//! of the monitor's process stays bounded, and what it says of the guest is counted and bounded, too.

#[path = "support/host.rs"]
mod host;
#[path = "hostile_guest/kernel.rs"]
mod kernel;
#[path = "boot/monitor.rs"]
mod monitor;
#[path = "hostile_guest/peers.rs"]
mod peers;

use std::fs::{self, File};
use std::io::{Read as _, Seek as _};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Completion, Trial};
use monitor::{Disk, Ended, Guest, Monitor, Place};
use peers::Peers;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sandbox_types::MemMib;
use sandbox_types::monitor::GuestExit;

const SECTORS: usize = 2048;
const SECTOR: usize = 512;
/// What the guest takes for its memory's end (`guest/machine.rs`).
const MEMORY_MIB: u64 = 64;
/// By how much more than with a driver that behaves the process may grow: the queues, packets and requests of every device, and
/// pages of the guest's memory that only an attack touches.
const GROWTH_KIB: i64 = 12 << 10;
/// The same where each of 200 connections holds what its window takes: 64 of 256 KiB, the others of 64 KiB.
const WINDOWS_KIB: i64 = 64 * 256 + 136 * 64;
/// Messages that the monitor writes at once, and after which time one more (`sandbox_vmm::log`).
const BURST: u64 = 16;
const REFILL: Duration = Duration::from_secs(2);

/// An attack, and what the monitor has to say of it.
struct Case {
    /// As the test is called.
    name: &'static str,
    /// As the guest calls it.
    attack: &'static str,
    /// How often, at least, something happens of which the monitor says something.
    events: u64,
    /// A part of what it says.
    says: &'static str,
    /// By how much the process may grow.
    growth_kib: i64,
}

const fn case(name: &'static str, attack: &'static str, events: u64, says: &'static str) -> Case {
    Case {
        name,
        attack,
        events,
        says,
        growth_kib: GROWTH_KIB,
    }
}

/// The numbers of events are those of the guest's own loops.
const CASES: &[Case] = &[
    case(
        "writes_to_a_read_only_disk_are_refused",
        "read-only",
        1000,
        "read-only",
    ),
    case(
        "accesses_of_odd_width_and_offset_do_nothing",
        "odd-accesses",
        0,
        "",
    ),
    case(
        "status_out_of_order_leaves_the_monitor_whole",
        "status-out-of-order",
        800,
        "virtio device of type",
    ),
    case(
        "rings_that_are_none_are_refused",
        "rings-that-are-none",
        30,
        "virtio device of type",
    ),
    case(
        "notifications_without_end_starve_nobody",
        "notifications",
        0,
        "",
    ),
    case(
        "floods_of_ports_are_survived_and_counted",
        "ports",
        10_000,
        "exit port",
    ),
    case(
        "indices_that_jump_stop_one_device_until_its_reset",
        "index-jumps",
        500,
        "broke the",
    ),
    case(
        "heads_outside_the_table_stop_one_device",
        "heads",
        8,
        "broke the",
    ),
    case(
        "loops_of_descriptors_end",
        "descriptor-loops",
        8,
        "malformed request",
    ),
    case(
        "buffers_zero_huge_and_overlapping_are_refused",
        "buffers",
        50,
        "malformed request",
    ),
    case("features_that_are_ignored_harm_nobody", "features", 0, ""),
    case("devices_reset_under_load_write_no_more", "resets", 0, ""),
    case(
        "malformed_requests_are_counted_and_said_now_and_then",
        "malformed",
        30_000,
        "malformed",
    ),
    case(
        "interrupts_never_acknowledged_stop_nobody",
        "interrupts",
        0,
        "",
    ),
    case(
        "credit_that_was_not_given_ends_its_connection_alone",
        "credit-lies",
        4,
        "broke the protocol",
    ),
    case(
        "connections_without_end_are_refused",
        "connections",
        100,
        "a connection over",
    ),
    case(
        "stray_packets_are_counted_and_said_now_and_then",
        "stray-packets",
        14_000,
        "machine 77",
    ),
    Case {
        growth_kib: GROWTH_KIB + WINDOWS_KIB,
        ..case(
            "host_that_does_not_read_costs_a_window_each",
            "deaf-host",
            0,
            "",
        )
    },
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    // The monitors inherit it: theirs is this much in their jail, too.
    let most = getrlimit(Resource::Nofile).maximum;
    let all = Rlimit {
        current: most,
        maximum: most,
    };
    if let Err(error) = setrlimit(Resource::Nofile, all) {
        eprintln!("cannot have more descriptors: {error}");
    }
    let mut trials = vec![
        trial("driver_that_behaves_is_served_without_a_word", honest),
        trial("device_left_broken_is_noticed_by_the_guest", broken),
        trial("memory_that_grows_is_noticed_by_the_host", grown),
    ];
    trials.extend(CASES.iter().map(|case| trial(case.name, || attack(case))));
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trial(name: &str, test: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    Trial::ignorable_test(name, move || {
        // Also where it cannot run: a test host with the same folders finds it.
        if let Err(error) = kernel::kernel() {
            return Err(format!("{error:#}").into());
        }
        if let Some(reason) = host::without_kvm() {
            return Ok(Completion::ignored_with(reason));
        }
        match test() {
            Ok(()) => Ok(Completion::Completed),
            Err(error) => Err(format!("{error:#}").into()),
        }
    })
}

/// What came of an attack.
struct Outcome {
    ended: Ended,
    log: String,
    took: Duration,
}

impl Outcome {
    /// Lines that the monitor wrote.
    fn lines(&self) -> u64 {
        self.log.lines().count() as u64
    }

    /// What happened of which it says something, whether it did each time or not.
    fn events(&self) -> Result<u64> {
        let mut dropped = 0;
        let mut said = 0;
        for line in self.log.lines() {
            let number = |text: &str, after: &str| -> Option<u64> {
                let (_, number) = text.split_once(after)?;
                number.split(' ').next()?.parse().ok()
            };
            if line.ends_with(" more messages dropped") {
                dropped += number(line, "sandbox-vmm: ").context("no number")?;
            } else {
                said += 1;
                if line.ends_with(" messages before it dropped)") {
                    let (before, count) = line.rsplit_once('(').context("no number")?;
                    ensure!(!before.is_empty(), "{line}");
                    dropped += number(count, "").context("no number")?;
                }
            }
        }
        Ok(said + dropped)
    }

    /// The guest says that all held, and the monitor ended as it should.
    fn held(&self) -> Result<&Self> {
        let explain = || format!("the monitor said:\n{}", self.log);
        self.ended
            .expect(&GuestExit::Shutdown)
            .with_context(explain)?;
        self.ended
            .hides("failed:")
            .and_then(|ended| ended.shows("held\n"))
            .with_context(explain)?;
        ensure!(!self.log.contains("panicked"), "{}", self.log);
        Ok(self)
    }

    /// No more was said than there may be.
    fn is_terse(&self) -> Result<&Self> {
        let refills = self.took.as_secs() / REFILL.as_secs() + 1;
        // And how many were dropped, in the end.
        let most = BURST + refills + 1;
        ensure!(
            self.lines() <= most,
            "{} lines in {:?}, not {most}:\n{}",
            self.lines(),
            self.took,
            self.log
        );
        Ok(self)
    }
}

/// Runs the guest with that attack.
fn run(attack: &str) -> Result<Outcome> {
    let kernel = kernel::kernel()?;
    let dir = tempfile::tempdir()?;
    let files = tempfile::tempdir()?;
    let disk = files.path().join("disk");
    let scratch = files.path().join("scratch");
    fs::write(&disk, sectors())?;
    fs::write(&scratch, sectors())?;
    let _peers = Peers::listen(dir.path())?;
    let mut log = tempfile::tempfile()?;
    let place = Place {
        dir,
        memory: MemMib::new(MEMORY_MIB)?,
        max_memory: MemMib::new(2 * MEMORY_MIB)?,
        log: Some(File::options().append(true).open(proc_path(&log))?),
        trace: None,
    };
    let guest = Guest {
        kernel: &kernel,
        disks: vec![
            Disk {
                path: disk.clone(),
                writable: false,
                serial: "disk",
            },
            Disk {
                path: scratch.clone(),
                writable: true,
                serial: "scratch",
            },
        ],
        memory: Vec::new(),
        shares: Vec::new(),
        taps: Vec::new(),
        vcpus: 1,
        arguments: format!("attack={attack}"),
    };
    let start = Instant::now();
    let ended = Monitor::start_at(place, guest)?.wait()?;
    let took = start.elapsed();
    let mut text = String::new();
    log.rewind()?;
    log.read_to_string(&mut text)?;
    ensure!(
        fs::read(&disk)? == sectors(),
        "the read-only disk was changed"
    );
    ensure!(
        fs::metadata(&scratch)?.len() == (SECTORS * SECTOR) as u64,
        "a disk has another size"
    );
    Ok(Outcome {
        ended,
        log: text,
        took,
    })
}

fn proc_path(file: &File) -> String {
    use std::os::fd::AsRawFd as _;
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Each sector is full of its number.
fn sectors() -> Vec<u8> {
    (0..SECTORS)
        .flat_map(|number| [number.to_le_bytes()[0]; SECTOR])
        .collect()
}

/// The most memory that a machine takes whose driver behaves.
fn honest_kib() -> Result<i64> {
    static PEAK: OnceLock<std::result::Result<i64, String>> = OnceLock::new();
    PEAK.get_or_init(|| {
        run("none")
            .and_then(|outcome| {
                outcome.held()?;
                Ok(outcome.ended.peak_kib)
            })
            .map_err(|error| format!("{error:#}"))
    })
    .clone()
    .map_err(|error| anyhow::anyhow!("a driver that behaves: {error}"))
}

fn honest() -> Result<()> {
    let outcome = run("none")?;
    outcome.held()?;
    ensure!(outcome.log.is_empty(), "{}", outcome.log);
    Ok(())
}

/// The control of what the guest looks at.
fn broken() -> Result<()> {
    let outcome = run("broken-disk")?;
    outcome
        .ended
        .expect(&GuestExit::Shutdown)?
        .shows("failed: the disk does not answer")?
        .hides("held\n")?;
    ensure!(outcome.log.contains("broke the ring"), "{}", outcome.log);
    Ok(())
}

/// The control of what the host looks at.
fn grown() -> Result<()> {
    let honest = honest_kib()?;
    let outcome = run("memory")?;
    outcome.held()?;
    let grown = outcome.ended.peak_kib - honest;
    ensure!(grown > GROWTH_KIB, "{grown} KiB are not noticed");
    Ok(())
}

fn attack(case: &Case) -> Result<()> {
    let honest = honest_kib()?;
    let outcome = run(case.attack)?;
    outcome.held()?.is_terse()?;
    let grown = outcome.ended.peak_kib - honest;
    ensure!(
        grown <= case.growth_kib,
        "the monitor grew by {grown} KiB, more than {}",
        case.growth_kib
    );
    let events = outcome.events()?;
    ensure!(
        events >= case.events && outcome.log.contains(case.says),
        "{events} events, not {}, or none with {:?}:\n{}",
        case.events,
        case.says,
        outcome.log
    );
    Ok(())
}
