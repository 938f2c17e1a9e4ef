//! The monitor as its parent sees it: real kernels, booted to the end that each test wants.

#[path = "boot/guest.rs"]
mod guest;
#[path = "support/host.rs"]
mod host;
#[path = "boot/monitor.rs"]
mod monitor;
#[path = "boot/virtiofsd.rs"]
mod virtiofsd;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;

use anyhow::{Result, ensure};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use monitor::{Disk, Ended, Guest, Monitor, Place};
use sandbox_types::MemMib;
use sandbox_types::monitor::{GuestExit, MonitorEvent, MonitorRequest};
use sha2::{Digest, Sha256};

const SECTOR: usize = 512;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = vec![
        booting("power_off_port_ends_with_shutdown", power_off),
        booting("second_vcpu_comes_online", second_vcpu),
        booting(
            "vcpu_that_waits_costs_the_guest_nothing_until_it_is_brought_up",
            waiting_vcpu,
        ),
        booting("memory_grows_when_asked_for_and_is_used", more_memory),
        sharing(
            "memory_that_is_shared_grows_when_asked_for_and_is_used",
            more_shared_memory,
        ),
        booting("init_that_exits_is_a_panic", init_exits),
        booting("crash_by_sysrq_is_a_panic", sysrq_crash),
        booting("reboot_without_a_panic_is_a_reset", reboot),
        booting("reboot_by_triple_fault_is_told_apart", triple_fault),
        booting("disks_are_read_and_written_as_configured", disks),
        booting("rng_device_feeds_the_kernel", rng),
        booting("files_in_memory_are_read_and_writes_are_ignored", memory),
        booting("file_in_memory_that_is_cut_short_ends_the_guest", cut_short),
        booting("console_flood_keeps_the_tail", flood),
        sharing("shared_directory_is_mounted_and_written", share),
        booting("parent_that_hangs_up_ends_the_guest", hang_up),
        Trial::ignorable_test("kernel_that_is_none_is_reported", || {
            run(host::without_kvm(), bad_kernel)
        }),
        Trial::ignorable_test("monitor_that_is_left_waiting_ends_without_a_word", || {
            let kernel = match host::artifact("SANDBOX_TEST_KERNEL", "vmlinux") {
                Ok(kernel) => kernel,
                Err(reason) => return Ok(Completion::ignored_with(reason)),
            };
            run(host::without_kvm(), || left_waiting(&kernel))
        }),
        Trial::ignorable_test("request_that_names_no_devices_is_reported", || {
            let kernel = match host::artifact("SANDBOX_TEST_KERNEL", "vmlinux") {
                Ok(kernel) => kernel,
                Err(reason) => return Ok(Completion::ignored_with(reason)),
            };
            run(host::without_kvm(), || no_devices(&kernel))
        }),
        Trial::ignorable_test("configuration_that_is_none_is_reported", || {
            run(None, bad_configuration)
        }),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A test that needs a host on which the kernel runs.
fn booting(name: &str, test: fn(&Path) -> Result<()>) -> Trial {
    Trial::ignorable_test(name, move || {
        let kernel = match host::artifact("SANDBOX_TEST_KERNEL", "vmlinux") {
            Ok(kernel) => kernel,
            Err(reason) => return Ok(Completion::ignored_with(reason)),
        };
        run(host::without_virtualization(), || test(&kernel))
    })
}

/// A test that also needs virtiofsd.
fn sharing(name: &str, test: fn(&Path, &Path) -> Result<()>) -> Trial {
    Trial::ignorable_test(name, move || {
        let artifacts = host::artifact("SANDBOX_TEST_KERNEL", "vmlinux").and_then(|kernel| {
            let virtiofsd = host::artifact("SANDBOX_TEST_VIRTIOFSD", "virtiofsd")?;
            Ok((kernel, virtiofsd))
        });
        match artifacts {
            Ok((kernel, virtiofsd)) => {
                run(host::without_virtualization(), || test(&kernel, &virtiofsd))
            }
            Err(reason) => Ok(Completion::ignored_with(reason)),
        }
    })
}

fn run(
    unable: Option<String>,
    test: impl FnOnce() -> Result<()>,
) -> std::result::Result<Completion, Failed> {
    if let Some(reason) = unable {
        return Ok(Completion::ignored_with(reason));
    }
    match test() {
        Ok(()) => Ok(Completion::Completed),
        Err(error) => Err(format!("{error:#}").into()),
    }
}

/// The guest root, built once.
fn root() -> Result<PathBuf> {
    static ROOT: OnceLock<std::result::Result<(tempfile::TempDir, PathBuf), String>> =
        OnceLock::new();
    let built = ROOT.get_or_init(|| {
        let build = || -> Result<_> {
            let dir = tempfile::tempdir()?;
            let image = guest::build_root(dir.path())?;
            Ok((dir, image))
        };
        build().map_err(|error| format!("{error:#}"))
    });
    match built {
        Ok((_, image)) => Ok(image.clone()),
        Err(error) => Err(anyhow::anyhow!("cannot build the guest's root: {error}")),
    }
}

fn guest<'a>(kernel: &'a Path, arguments: &str) -> Result<Guest<'a>> {
    Ok(Guest {
        kernel,
        disks: vec![Disk {
            path: root()?,
            writable: false,
            serial: "guest-root",
        }],
        memory: Vec::new(),
        shares: Vec::new(),
        taps: Vec::new(),
        vcpus: 1,
        arguments: arguments.to_owned(),
    })
}

fn boot(kernel: &Path, arguments: &str) -> Result<Ended> {
    Monitor::start(guest(kernel, arguments)?)?.wait()
}

fn power_off(kernel: &Path) -> Result<()> {
    let ended = boot(kernel, "reboot=k scenario=power-off")?;
    ended.expect(&GuestExit::Shutdown)?;
    ended.shows("init: reached")?.shows("cpus=1")?;
    let Some(MonitorEvent::Started {
        process_ns,
        first_instruction_ns,
    }) = ended.events.first()
    else {
        anyhow::bail!("the first event is not Started: {:?}", ended.events);
    };
    ensure!(process_ns < first_instruction_ns, "{:?}", ended.events);
    Ok(())
}

fn second_vcpu(kernel: &Path) -> Result<()> {
    let mut guest = guest(kernel, "reboot=k scenario=power-off")?;
    guest.vcpus = 2;
    let ended = Monitor::start(guest)?.wait()?;
    ended.expect(&GuestExit::Shutdown)?.shows("cpus=2")?;
    Ok(())
}

fn waiting_vcpu(kernel: &Path) -> Result<()> {
    let mut guest = guest(kernel, "reboot=k maxcpus=1 scenario=bring-up")?;
    guest.vcpus = 3;
    let ended = Monitor::start(guest)?.wait()?;
    ended.expect(&GuestExit::Shutdown)?;
    ended.shows("before=1")?.shows("after=3")?;
    Ok(())
}

fn more_memory(kernel: &Path) -> Result<()> {
    grow(guest(kernel, GROW)?)
}

fn more_shared_memory(kernel: &Path, virtiofsd: &Path) -> Result<()> {
    let shared = tempfile::tempdir()?;
    let (_server, share) = virtiofsd::serve(virtiofsd, shared.path())?;
    let mut guest = guest(kernel, GROW)?;
    guest.shares.push(("data".to_owned(), share));
    grow(guest)
}

const GROW: &str = "reboot=k memhp_default_state=online scenario=grow";

/// The guest writes as much as it can only hold with what comes later; the monitor says that it has that before the guest has written it.
fn grow(guest: Guest<'_>) -> Result<()> {
    let mut monitor = Monitor::start(guest)?;
    let started = monitor.event()?;
    ensure!(
        matches!(started, Some(MonitorEvent::Started { .. })),
        "{started:?}"
    );
    let memory = MemMib::new(448)?;
    monitor.ask(&MonitorRequest::SetMemory { memory })?;
    let ended = monitor.wait()?;
    ended.expect(&GuestExit::Shutdown)?.shows("wrote=300")?;
    ensure!(
        ended.events.first() == Some(&MonitorEvent::MemorySet { memory }),
        "{:?}",
        ended.events
    );
    Ok(())
}

fn init_exits(kernel: &Path) -> Result<()> {
    let ended = boot(kernel, "reboot=k scenario=die")?;
    ended
        .expect(&GuestExit::Panic)?
        .shows("Attempted to kill init")?;
    Ok(())
}

fn sysrq_crash(kernel: &Path) -> Result<()> {
    let ended = boot(kernel, "reboot=k scenario=crash")?;
    ended.expect(&GuestExit::Panic)?.shows("Kernel panic")?;
    Ok(())
}

fn reboot(kernel: &Path) -> Result<()> {
    let ended = boot(kernel, "reboot=k scenario=reset")?;
    ended.expect(&GuestExit::Reset)?.hides("Kernel panic")?;
    Ok(())
}

fn triple_fault(kernel: &Path) -> Result<()> {
    let ended = boot(kernel, "reboot=t scenario=reset")?;
    ended.expect(&GuestExit::TripleFault)?;
    Ok(())
}

fn disks(kernel: &Path) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let content: Vec<u8> = (0_u32..(3 << 18) + 128)
        .flat_map(|word| word.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    ensure!(content.len().is_multiple_of(SECTOR));
    let (fixed, scratch) = (dir.path().join("fixed"), dir.path().join("scratch"));
    fs::write(&fixed, &content)?;
    fs::write(&scratch, vec![0; 1 << 20])?;
    let mut guest = guest(kernel, "reboot=k scenario=disks")?;
    guest.disks.push(Disk {
        path: fixed.clone(),
        writable: false,
        serial: "twenty-bytes-serial!",
    });
    guest.disks.push(Disk {
        path: scratch.clone(),
        writable: true,
        serial: "scratch",
    });
    let ended = Monitor::start(guest)?.wait()?;
    let sum = Sha256::digest(&content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<String>();
    ended
        .expect(&GuestExit::Shutdown)?
        .shows("serial=twenty-bytes-serial! ro=1")?
        .shows(&format!("sum={sum}"))?
        .hides("read-only was written")?
        .shows("wrote vdc")?;
    ensure!(fs::read(&fixed)? == content, "the read-only disk changed");
    let written = fs::read(&scratch)?;
    let expected = b"written by the guest";
    let at = 5 * SECTOR;
    ensure!(written.get(at..at + expected.len()) == Some(expected.as_slice()));
    Ok(())
}

fn rng(kernel: &Path) -> Result<()> {
    let ended = boot(kernel, "reboot=k scenario=rng")?;
    ended
        .expect(&GuestExit::Shutdown)?
        .shows("rng=virtio_rng")?
        .shows("bytes=4096")?;
    Ok(())
}

/// A file of the guest's memory, with a name of its own and content that is nowhere else.
fn in_memory(dir: &Path, name: &str, words: u32) -> Result<(PathBuf, String)> {
    let content: Vec<u8> = (0..words)
        .flat_map(|word| {
            (word ^ 0x5bd1_e995)
                .wrapping_mul(2_654_435_761)
                .to_le_bytes()
        })
        .collect();
    let path = dir.join(name);
    fs::write(&path, &content)?;
    let sum = Sha256::digest(&content);
    let sum = sum.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((path, sum))
}

fn memory(kernel: &Path) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (first, first_sum) = in_memory(dir.path(), "first", 1 << 18)?;
    let (second, second_sum) = in_memory(dir.path(), "second", 1 << 10)?;
    let mut guest = guest(kernel, "reboot=k scenario=memory")?;
    guest.memory = vec![first.clone(), second];
    let ended = Monitor::start(guest)?.wait()?;
    ended
        .expect(&GuestExit::Shutdown)?
        .shows("bytes=6291456")?
        .shows(&format!("first={first_sum}"))?
        .shows(&format!("second={second_sum}"))?
        .shows("between=0")?
        // The kernel of the guest believes that it wrote.
        .shows("wrote=0")?
        .shows(&format!("again={first_sum}"))?;
    let sum = Sha256::digest(fs::read(&first)?);
    let sum: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
    ensure!(sum == first_sum, "the guest changed a file of the host's");
    Ok(())
}

fn cut_short(kernel: &Path) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (path, _) = in_memory(dir.path(), "file", 1 << 18)?;
    let mut guest = guest(kernel, "reboot=k scenario=memory")?;
    guest.memory = vec![path.clone()];
    let mut monitor = Monitor::start(guest)?;
    let event = monitor.event()?;
    ensure!(
        matches!(event, Some(MonitorEvent::Started { .. })),
        "{event:?}"
    );
    // It is mapped, and the guest is far from reading it.
    fs::OpenOptions::new()
        .write(true)
        .open(&path)?
        .set_len(4096)?;
    let lost = GuestExit::FileLost {
        index: 0,
        bytes: 4096,
        expected: 1 << 20,
    };
    let ended = monitor.wait()?;
    ended.expect(&lost)?.hides("first=")?;
    Ok(())
}

fn flood(kernel: &Path) -> Result<()> {
    let ended = boot(kernel, "reboot=k scenario=flood")?;
    ended
        .expect(&GuestExit::Shutdown)?
        .shows("flooded")?
        .hides("init: reached")?;
    Ok(())
}

fn share(kernel: &Path, virtiofsd: &Path) -> Result<()> {
    let dir = tempfile::tempdir()?;
    fs::write(dir.path().join("from-host"), "hello from the host\n")?;
    let (_server, socket) = virtiofsd::serve(virtiofsd, dir.path())?;
    let mut guest = guest(kernel, "reboot=k scenario=share")?;
    guest.shares.push(("data".to_owned(), socket));
    let ended = Monitor::start(guest)?.wait()?;
    ended
        .expect(&GuestExit::Shutdown)?
        .shows("hello from the host")?
        .shows("shared")?;
    ensure!(fs::read_to_string(dir.path().join("from-guest"))? == "from-guest\n");
    Ok(())
}

fn hang_up(kernel: &Path) -> Result<()> {
    let mut monitor = Monitor::start(guest(kernel, "reboot=k scenario=idle")?)?;
    let event = monitor.event()?;
    ensure!(
        matches!(event, Some(MonitorEvent::Started { .. })),
        "{event:?}"
    );
    monitor.hang_up();
    monitor.exit_code()?;
    Ok(())
}

fn bad_kernel() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("kernel");
    fs::write(&path, "no kernel at all")?;
    let guest = Guest {
        kernel: &path,
        disks: Vec::new(),
        memory: Vec::new(),
        shares: Vec::new(),
        taps: Vec::new(),
        vcpus: 1,
        arguments: String::new(),
    };
    expect_failure(Monitor::start(guest)?.wait()?, "kernel")
}

fn left_waiting(kernel: &Path) -> Result<()> {
    for shared in [false, true] {
        let mut monitor = Monitor::begin_at(Place::usual()?, kernel, "", 1, shared)?;
        monitor.hang_up();
        let code = monitor.exit_code()?;
        ensure!(code == Some(0), "exit code {code:?}");
    }
    Ok(())
}

fn no_devices(kernel: &Path) -> Result<()> {
    let mut monitor = Monitor::begin_at(Place::usual()?, kernel, "", 1, false)?;
    let memory = MemMib::new(256)?;
    monitor.ask(&MonitorRequest::SetMemory { memory })?;
    expect_failure(monitor.wait()?, "devices")
}

fn bad_configuration() -> Result<()> {
    expect_failure(
        Monitor::start_with(b"{ \"vcpus\": 0 }")?.wait()?,
        "configuration",
    )
}

fn expect_failure(ended: Ended, names: &str) -> Result<()> {
    let [MonitorEvent::Failed { message }] = ended.events.as_slice() else {
        anyhow::bail!("not one Failed event: {:?}", ended.events);
    };
    ensure!(
        message.contains(names),
        "does not name the {names}: {message}"
    );
    ensure!(
        matches!(ended.code, Some(code) if code != 0 && code < 80),
        "exit code {:?}",
        ended.code
    );
    Ok(())
}
