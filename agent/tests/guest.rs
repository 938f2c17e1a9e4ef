//! The agent with real containers: in a guest under QEMU, and in namespaces of this machine.
//!
//! What a test needs and this machine lacks makes it skipped, with the reason. `SANDBOX_TEST_AGENT`,
//! `SANDBOX_TEST_KERNEL` and `SANDBOX_TEST_VMM` name parts that are not where a build leaves them.

#[path = "guest/cases.rs"]
mod cases;
#[path = "guest/client.rs"]
mod client;
#[path = "guest/control.rs"]
mod control;
#[path = "guest/machine.rs"]
mod machine;
#[path = "guest/oci.rs"]
mod oci;
#[path = "guest/runc.rs"]
mod runc;
#[path = "guest/spec.rs"]
mod spec;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use self::client::Host;
use self::machine::{Machine, Parts};

/// How long one test may take under emulation.
const LIMIT: Duration = Duration::from_secs(300);

fn part(variable: &str, default: &str) -> Result<PathBuf, String> {
    let path = match std::env::var_os(variable) {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../target")
            .join(default),
    };
    path.canonicalize()
        .map_err(|_| format!("{} is not built", path.display()))
}

fn program(name: &str) -> Result<(), String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .any(|folder| folder.join(name).exists())
        .then_some(())
        .ok_or_else(|| format!("{name} is not installed"))
}

fn agent() -> Result<PathBuf, String> {
    if !Path::new("/bin/busybox").exists() {
        return Err("busybox is not installed".to_owned());
    }
    part(
        "SANDBOX_TEST_AGENT",
        "x86_64-unknown-linux-gnu/release/sandbox-agent",
    )
}

fn parts() -> Result<Parts, String> {
    program("qemu-system-x86_64")?;
    program("mkfs.erofs")?;
    Ok(Parts {
        agent: agent()?,
        kernel: part("SANDBOX_TEST_KERNEL", "artifacts/vmlinux")?,
        vmm: part("SANDBOX_TEST_VMM", "release/sandbox-vmm")?,
    })
}

fn outside() -> Result<PathBuf, String> {
    if !rustix::process::geteuid().is_root() {
        return Err("needs root".to_owned());
    }
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return Err("cgroup v2 is not mounted at /sys/fs/cgroup".to_owned());
    }
    let agent = agent()?;
    // In a chroot, the root of a container's mount namespace is not the container's root.
    let root = std::process::Command::new("nsenter")
        .args(["--mount=/proc/self/ns/mnt", "test", "-x"])
        .arg(&agent)
        .status();
    match root {
        Ok(status) if status.success() => Ok(agent),
        Ok(_) => Err("this is a chroot".to_owned()),
        Err(_) => Err("nsenter is not installed".to_owned()),
    }
}

/// A machine that the tests of one kind share, started by the first.
struct Shared {
    machine: Mutex<Option<Machine>>,
    runtime: tokio::runtime::Runtime,
}

impl Shared {
    fn new() -> std::io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            machine: Mutex::new(None),
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?,
        }))
    }

    fn run(
        &self,
        start: impl FnOnce() -> anyhow::Result<Machine>,
        case: cases::Case,
    ) -> Result<Completion, Failed> {
        let mut machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        if machine.is_none() {
            *machine = Some(start().map_err(|error| format!("{error:#}"))?);
        }
        let Some(running) = machine.as_ref() else {
            return Err("no machine".into());
        };
        let result = self.runtime.block_on(async {
            let mut host = Host::new(running)?;
            tokio::time::timeout(LIMIT, case(&mut host)).await?
        });
        result
            .map(|()| Completion::Completed)
            .map_err(|error| format!("{error:#}\n{}", running.console()).into())
    }
}

fn main() -> std::io::Result<ExitCode> {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let (guest, namespaces) = (Shared::new()?, Shared::new()?);
    let mut trials = Vec::new();
    for (name, case) in cases::all() {
        let shared = guest.clone();
        trials.push(Trial::ignorable_test(
            format!("guest::{name}"),
            move || match parts() {
                Ok(parts) => shared.run(|| Machine::boot(&parts), case),
                Err(reason) => Ok(Completion::ignored_with(reason)),
            },
        ));
        let shared = namespaces.clone();
        trials.push(Trial::ignorable_test(
            format!("namespaces::{name}"),
            move || match outside() {
                Ok(agent) => shared.run(|| Machine::outside_guest(&agent), case),
                Err(reason) => Ok(Completion::ignored_with(reason)),
            },
        ));
    }
    trials.push(Trial::ignorable_test(
        "guest::shutdown_with_a_container_ends_the_machine",
        || match parts() {
            Ok(parts) => cases::shutdown_ends_the_machine(&parts)
                .map(|()| Completion::Completed)
                .map_err(|error| format!("{error:#}").into()),
            Err(reason) => Ok(Completion::ignored_with(reason)),
        },
    ));
    let conclusion = libtest_mimic::run(&arguments, trials);
    Ok(conclusion.exit_code())
}
