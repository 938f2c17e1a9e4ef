//! System calls that a thread may make and never does: a machine with every kind of device is used for all that it offers
//! (`hostile_guest/guest/work.rs`) and traced, and what was made is held against the lists (`sandbox_vmm::seccomp::rules`). A call that
//! is there for every machine, and that no thread made, does not belong on a list. The list of the vsock back end beside QEMU is looked at in
//! `vsock_guest.rs`, where there is one.

#[path = "support/host.rs"]
mod host;
#[path = "hostile_guest/kernel.rs"]
mod kernel;
#[path = "boot/monitor.rs"]
mod monitor;
#[path = "hostile_guest/peers.rs"]
mod peers;
#[path = "support/tap.rs"]
mod tap;
#[path = "support/trace.rs"]
mod trace;
#[path = "boot/virtiofsd.rs"]
mod virtiofsd;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};
use libtest_mimic::{Arguments, Completion, Trial};
use monitor::{Disk, Guest, Monitor, Place};
use peers::Peers;
use sandbox_jail::seccomp::{Made, Rule};
use sandbox_types::MemMib;
use sandbox_types::monitor::GuestExit;
use sandbox_vmm::seccomp::ThreadKind;
use trace::Call;

fn main() -> ExitCode {
    let trials = vec![Trial::ignorable_test(
        "calls_that_are_allowed_are_made",
        || {
            if let Some(reason) = unable() {
                return Ok(Completion::ignored_with(reason));
            }
            match made_or_rare() {
                Ok(()) => Ok(Completion::Completed),
                Err(error) => Err(format!("{error:#}").into()),
            }
        },
    )];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Why it cannot run here, if so.
fn unable() -> Option<String> {
    if let Err(error) = kernel::kernel() {
        return Some(format!("{error:#}"));
    }
    host::without_kvm()
        .or_else(|| host::artifact("SANDBOX_TEST_VIRTIOFSD", "virtiofsd").err())
        .or_else(|| {
            let there = Command::new("strace").arg("-V").output().is_ok();
            (!there).then(|| "no strace".to_owned())
        })
}

/// Runs the machine, and returns the calls that its threads made once they were confined.
fn traced(folder: &Path) -> Result<Vec<Call>> {
    let kernel = kernel::kernel()?;
    let virtiofsd = host::artifact("SANDBOX_TEST_VIRTIOFSD", "virtiofsd");
    let virtiofsd = virtiofsd.map_err(anyhow::Error::msg)?;
    let shared = folder.join("shared");
    fs::create_dir(&shared)?;
    let (_server, share) = virtiofsd::serve(&virtiofsd, &shared)?;
    let disk = |name: &'static str, writable| -> Result<Disk> {
        let path = folder.join(name);
        let sectors: Vec<u8> = (0..=255_u8).flat_map(|number| [number; 512]).collect();
        fs::write(&path, sectors)?;
        Ok(Disk {
            path,
            writable,
            serial: name,
        })
    };
    let guest = Guest {
        kernel: &kernel,
        disks: vec![disk("disk", false)?, disk("scratch", true)?],
        memory: vec![disk("memory", false)?.path],
        shares: vec![("data".to_owned(), share)],
        taps: vec![tap::open()?],
        vcpus: 1,
        arguments: "attack=work".to_owned(),
    };
    let dir = tempfile::tempdir()?;
    let _peers = Peers::listen(dir.path())?;
    let file = folder.join("trace");
    let place = Place {
        dir,
        memory: MemMib::new(64)?,
        max_memory: MemMib::new(128)?,
        log: None,
        trace: Some(file.clone()),
    };
    let ended = Monitor::start_at(place, guest)?.wait()?;
    ended.expect(&GuestExit::Shutdown)?.shows("held\n")?;
    trace::confined(&fs::read_to_string(file)?, false)
}

/// By the names of the monitor's threads.
fn kind_of(thread: &str) -> Option<ThreadKind> {
    match thread {
        "sandbox-vmm" => Some(ThreadKind::Main),
        "rng" => Some(ThreadKind::Rng),
        "pmem" => Some(ThreadKind::Pmem),
        "mem" => Some(ThreadKind::Mem),
        "balloon" => Some(ThreadKind::Balloon),
        "vsock" => Some(ThreadKind::Vsock),
        "fs" => Some(ThreadKind::VhostUser),
        _ if thread.starts_with("vcpu") => Some(ThreadKind::Vcpu),
        _ if thread.starts_with("vd") => Some(ThreadKind::Block),
        _ if thread.starts_with("net") => Some(ThreadKind::Net),
        _ => None,
    }
}

fn made_or_rare() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let calls = traced(folder.path())?;
    let mut seen = BTreeSet::new();
    let mut made: BTreeSet<(ThreadKind, usize)> = BTreeSet::new();
    let rules = |kind: ThreadKind| kind.rules().iter().copied().flatten();
    for call in &calls {
        let kind = kind_of(&call.thread);
        let kind = kind.ok_or_else(|| anyhow::anyhow!("what is thread {:?}?", call.thread))?;
        seen.insert(kind);
        for (number, rule) in rules(kind).enumerate() {
            if call.is_by(rule) {
                made.insert((kind, number));
            }
        }
    }
    ensure!(
        seen.len() == ThreadKind::ALL.len(),
        "only {seen:?} were seen"
    );
    let mut never: Vec<&Rule> = Vec::new();
    for kind in ThreadKind::ALL {
        let unused: Vec<&Rule> = rules(kind)
            .enumerate()
            .filter(|(number, _)| !made.contains(&(kind, *number)))
            .map(|(_, rule)| rule)
            .collect();
        println!(
            "{} ({} of {} rules): never {}",
            kind.name(),
            rules(kind).count() - unused.len(),
            rules(kind).count(),
            unused
                .iter()
                .map(|rule| shown(rule))
                .collect::<Vec<_>>()
                .join(", ")
        );
        let is_made_elsewhere = |rule: &Rule| {
            ThreadKind::ALL.into_iter().any(|other| {
                rules(other)
                    .enumerate()
                    .any(|(number, same)| is_same(same, rule) && made.contains(&(other, number)))
            })
        };
        never.extend(
            unused
                .into_iter()
                .filter(|rule| rule.made == Made::Always && !is_made_elsewhere(rule)),
        );
    }
    ensure!(
        never.is_empty(),
        "allowed in every machine, and never made: {}",
        never
            .iter()
            .map(|rule| shown(rule))
            .collect::<Vec<_>>()
            .join(", ")
    );
    Ok(())
}

/// Whether they are one rule, of a list that several kinds have.
fn is_same(one: &Rule, other: &Rule) -> bool {
    (one.number, one.used_for, one.arguments) == (other.number, other.used_for, other.arguments)
}

fn shown(rule: &Rule) -> String {
    let name = rule.name.trim_start_matches("SYS_");
    match rule.made {
        Made::Always => format!("{name} ({})", rule.used_for),
        Made::Rarely => name.to_owned(),
    }
}
