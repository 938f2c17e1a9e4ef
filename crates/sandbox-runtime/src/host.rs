//! What the host offers: which driver can run a guest here, and what is missing.
//!
//! That `/dev/kvm` opens is not the test. On a host whose KVM has only the paravirtual PVM back end (a virtual machine
//! itself, without nested virtualization) it opens and creates machines, but an ordinary kernel in one is
//! interpreted by an instruction emulator and dies at the first instruction that it does not know.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::cgroup;
use crate::config::{Config, ConfigError, Hypervisor, UserRange};
use crate::driver::Driver;

/// Whether a requirement holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RequirementState {
    /// It does.
    Holds,
    /// It does not, and nothing runs without it.
    Missing,
    /// It does not; something runs slower or less well.
    Degraded,
}

/// One thing the host must have.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Requirement {
    /// What.
    pub name: &'static str,
    /// Whether it holds.
    pub state: RequirementState,
    /// What was found.
    pub detail: String,
    /// What to do, a package or a command; empty when it holds.
    pub next_step: String,
}

impl Requirement {
    fn holds(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            name,
            state: RequirementState::Holds,
            detail: detail.into(),
            next_step: String::new(),
        }
    }

    fn missing(name: &'static str, detail: impl Into<String>, next_step: &str) -> Self {
        Self {
            name,
            state: RequirementState::Missing,
            detail: detail.into(),
            next_step: next_step.to_owned(),
        }
    }

    fn degraded(self) -> Self {
        Self {
            state: match self.state {
                RequirementState::Holds => RequirementState::Holds,
                RequirementState::Missing | RequirementState::Degraded => {
                    RequirementState::Degraded
                }
            },
            ..self
        }
    }
}

/// Why no driver can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// KVM was asked for and cannot run a guest here.
    #[error(
        "hypervisor = \"kvm\", but {reason}; with hypervisor = \"qemu\" the guest is emulated instead, which is slower"
    )]
    KvmUnusable {
        /// Why.
        reason: String,
    },
    /// Neither KVM nor emulation.
    #[error(
        "{reason}, and emulation is not allowed; set `allow_emulation = true` (or `hypervisor = \"qemu\"`) in the configuration to run slowly without hardware virtualization"
    )]
    NoDriver {
        /// Why KVM cannot be used.
        reason: String,
    },
}

/// What is known of the host's virtualization.
#[derive(Debug, Clone, PartialEq, Eq)]
struct KvmFacts {
    /// Why `/dev/kvm` cannot be opened, if it cannot.
    open_error: Option<String>,
    /// The processor has `vmx` or `svm`.
    hardware_flag: bool,
    /// The PVM back end is loaded.
    pvm: bool,
}

impl KvmFacts {
    fn gather() -> Self {
        let opened = OpenOptions::new().read(true).write(true).open("/dev/kvm");
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            open_error: opened.err().map(|e| e.to_string()),
            hardware_flag: has_hardware_flag(&cpuinfo),
            pvm: Path::new("/sys/module/kvm_pvm").exists(),
        }
    }

    /// Why a guest cannot run under KVM here, in words that follow "because".
    fn obstacle(&self) -> Option<String> {
        match (&self.open_error, self.hardware_flag, self.pvm) {
            (_, false, true) => Some(
                "KVM has only the paravirtual PVM back end, which cannot run an ordinary kernel: the processor shows neither vmx nor svm"
                    .to_owned(),
            ),
            (Some(error), true, _) => Some(format!("/dev/kvm cannot be opened: {error}")),
            (_, false, false) => {
                Some("the processor shows neither vmx nor svm".to_owned())
            }
            (None, true, _) => None,
        }
    }
}

fn has_hardware_flag(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .flat_map(|line| line.split_ascii_whitespace())
        .any(|flag| flag == "vmx" || flag == "svm")
}

/// The driver for this host and configuration, and a line to show when it is emulation that was not asked for.
///
/// # Errors
/// [`HostError`] names the reason and the setting.
pub fn choose_driver(config: &Config) -> Result<(Driver, Option<String>), HostError> {
    choose(config, &KvmFacts::gather())
}

fn choose(config: &Config, facts: &KvmFacts) -> Result<(Driver, Option<String>), HostError> {
    match (config.hypervisor, facts.obstacle()) {
        (Hypervisor::Qemu, _) => Ok((Driver::Qemu, None)),
        (Hypervisor::Kvm | Hypervisor::Auto, None) => Ok((Driver::Kvm, None)),
        (Hypervisor::Kvm, Some(reason)) => Err(HostError::KvmUnusable { reason }),
        (Hypervisor::Auto, Some(reason)) if config.allow_emulation => Ok((
            Driver::Qemu,
            Some(format!(
                "no hardware virtualization here ({reason}); emulating with QEMU, which is slower"
            )),
        )),
        (Hypervisor::Auto, Some(reason)) => Err(HostError::NoDriver { reason }),
    }
}

/// Everything that is asked of the host, whether it holds, and what to do.
#[must_use]
pub fn requirements(config: &Config) -> Vec<Requirement> {
    let facts = KvmFacts::gather();
    let driver = choose(config, &facts).map(|(driver, _)| driver);
    let mut all = vec![
        root(),
        hardware(&facts),
        kvm_device(&facts),
        qemu(config),
        driver_choice(config, &facts),
        file("guest kernel", config.kernel_path()),
        file("guest image", config.image_path()),
        file("monitor", config.monitor_path()),
        file("virtio-fs server", config.virtiofsd_path()),
        file("writable layer template", config.scratch_path()),
        run_dir(config),
        memory(config),
        cgroups(),
        jail(config),
        io_uring(),
    ];
    // What the driver in use does not need is no obstacle.
    for requirement in &mut all {
        let unused = match requirement.name {
            "QEMU" => driver == Ok(Driver::Kvm),
            "hardware virtualization" | "/dev/kvm" => driver == Ok(Driver::Qemu),
            _ => false,
        };
        if unused {
            *requirement = requirement.clone().degraded();
        }
    }
    all
}

fn root() -> Requirement {
    const NAME: &str = "root";
    if rustix::process::geteuid().is_root() {
        Requirement::holds(NAME, "running as root")
    } else {
        Requirement::missing(NAME, "not running as root", "run it with sudo")
    }
}

fn hardware(facts: &KvmFacts) -> Requirement {
    const NAME: &str = "hardware virtualization";
    if facts.hardware_flag {
        Requirement::holds(NAME, "the processor has vmx or svm")
    } else {
        let detail = facts.obstacle().unwrap_or_default();
        Requirement::missing(
            NAME,
            detail,
            "enable virtualization in the firmware, or nested virtualization for this virtual machine; else use hypervisor = \"qemu\"",
        )
    }
}

fn kvm_device(facts: &KvmFacts) -> Requirement {
    const NAME: &str = "/dev/kvm";
    match &facts.open_error {
        None => Requirement::holds(NAME, "opens for reading and writing"),
        Some(error) => Requirement::missing(
            NAME,
            error.clone(),
            "modprobe kvm_intel (or kvm_amd), and give this user access to /dev/kvm",
        ),
    }
}

fn driver_choice(config: &Config, facts: &KvmFacts) -> Requirement {
    const NAME: &str = "hypervisor driver";
    match choose(config, facts) {
        Ok((driver, None)) => Requirement::holds(NAME, driver.to_string()),
        Ok((driver, Some(_))) => Requirement {
            name: NAME,
            state: RequirementState::Degraded,
            detail: format!("{driver}, which emulates and is slower"),
            next_step: "use a host with hardware virtualization".to_owned(),
        },
        Err(error) => Requirement::missing(
            NAME,
            error.to_string(),
            "set `allow_emulation = true` or `hypervisor = \"qemu\"`",
        ),
    }
}

fn qemu(config: &Config) -> Requirement {
    const NAME: &str = "QEMU";
    const NEXT: &str =
        "apt-get install qemu-system-x86 (10.0 or newer; on Debian 12 from bookworm-backports)";
    let path = match config.qemu_path() {
        Ok(path) => path,
        Err(error) => return Requirement::missing(NAME, error.to_string(), NEXT),
    };
    let output = Command::new(&path)
        .arg("--version")
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            let line = text.lines().next().unwrap_or_default();
            Requirement::holds(NAME, format!("{} ({line})", path.display()))
        }
        Ok(output) => Requirement::missing(
            NAME,
            format!("{} --version: {}", path.display(), output.status),
            NEXT,
        ),
        Err(error) => Requirement::missing(NAME, format!("{}: {error}", path.display()), NEXT),
    }
}

fn file(name: &'static str, path: Result<std::path::PathBuf, ConfigError>) -> Requirement {
    match path {
        Ok(path) => Requirement::holds(name, path.display().to_string()),
        Err(error) => Requirement::missing(name, error.to_string(), "make"),
    }
}

fn run_dir(config: &Config) -> Requirement {
    const NAME: &str = "run directory";
    let dir = &config.run_dir;
    // The nearest parent that exists is where it would be made.
    let existing = dir.ancestors().find(|path| path.exists());
    match existing.map(|path| (path, rustix::fs::access(path, rustix::fs::Access::WRITE_OK))) {
        Some((_, Ok(()))) => Requirement::holds(NAME, dir.display().to_string()),
        Some((path, Err(errno))) => Requirement::missing(
            NAME,
            format!("{} is not writable: {errno}", path.display()),
            "set `run_dir` to a writable directory",
        ),
        None => Requirement::missing(
            NAME,
            format!("{} cannot be made", dir.display()),
            "set `run_dir` to a writable directory",
        ),
    }
}

fn memory(config: &Config) -> Requirement {
    const NAME: &str = "memory";
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let Some(available) = available_mib(&meminfo) else {
        return Requirement::missing(NAME, "/proc/meminfo does not tell", "mount /proc").degraded();
    };
    let needed = u64::from(config.memory_mib);
    let detail = format!("{available} MiB available, one sandbox has {needed} MiB");
    if available >= needed {
        Requirement::holds(NAME, detail)
    } else {
        Requirement::missing(NAME, detail, "free some memory, or set `memory_mib` lower").degraded()
    }
}

fn available_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib / 1024)
}

/// The namespaces that a jail consists of, as `/proc/self/ns` names them.
const JAIL_NAMESPACES: [&str; 6] = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];

fn jail(config: &Config) -> Requirement {
    const NAME: &str = "jail";
    if !config.jail {
        let next = "remove `jail = false` from the configuration";
        return Requirement::missing(NAME, "switched off", next).degraded();
    }
    let without = |name: &&str| !Path::new("/proc/self/ns").join(name).exists();
    if let Some(name) = JAIL_NAMESPACES.iter().find(|name| without(name)) {
        let next = "use a kernel with CONFIG_NAMESPACES and all of its kinds";
        return Requirement::missing(NAME, format!("the kernel has no {name} namespaces"), next);
    }
    let UserRange { first, count } = config.jail_users;
    let last = first.saturating_add(count - 1);
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    if !is_mapped(&map, first, last) {
        return Requirement::missing(
            NAME,
            format!("users {first} to {last} are not all in /proc/self/uid_map"),
            "set `jail_users` to a range that is",
        );
    }
    let users = format!("users {first} to {last}");
    // The file is there where securityfs is mounted.
    match std::fs::read_to_string("/sys/kernel/security/lsm") {
        Ok(modules) if modules.trim().split(',').any(|name| name == "landlock") => {
            Requirement::holds(NAME, format!("{users}, with Landlock"))
        }
        Ok(_) => Requirement::missing(
            NAME,
            format!("{users}, without Landlock, one wall of several"),
            "start the kernel with landlock among the names of `lsm=`",
        )
        .degraded(),
        Err(_) => Requirement::holds(NAME, users),
    }
}

/// Whether all of these users are in a map of user_namespaces(7), in one line of it.
fn is_mapped(map: &str, first: u32, last: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line
            .split_ascii_whitespace()
            .map_while(|word| word.parse().ok());
        let (Some(inside), Some(_), Some(length)): (Option<u64>, Option<u64>, Option<u64>) =
            (numbers.next(), numbers.next(), numbers.next())
        else {
            return false;
        };
        inside <= first.into() && u64::from(last) < inside + length
    })
}

fn cgroups() -> Requirement {
    const NAME: &str = "cgroup version";
    let versions = cgroup::versions();
    if versions.is_empty() {
        Requirement::missing(
            NAME,
            "none: limits inside the guest hold, accounting on the host does not",
            "mount -t cgroup2 none /sys/fs/cgroup",
        )
        .degraded()
    } else {
        Requirement::holds(NAME, versions.join(" and "))
    }
}

/// What a monitor's disks wait with. It runs as a user of its own, to whom the middle setting of the kernel's three is closed too.
fn io_uring() -> Requirement {
    const NAME: &str = "io_uring";
    let setting = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    let setting = setting.as_deref().unwrap_or("0").trim().to_owned();
    let obstacle = match io_uring::IoUring::new(1) {
        _ if setting != "0" => format!("kernel.io_uring_disabled is {setting}"),
        Ok(_) => return Requirement::holds(NAME, "disks do many reads at the same time"),
        Err(error) => format!("the kernel says: {error}"),
    };
    Requirement::missing(
        NAME,
        format!("{obstacle}: reads that the host has not in memory are done one after the other"),
        "sysctl kernel.io_uring_disabled=0, or leave it if disks need not be fast",
    )
    .degraded()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(open: bool, hardware_flag: bool, pvm: bool) -> KvmFacts {
        KvmFacts {
            open_error: (!open).then(|| "no such device".to_owned()),
            hardware_flag,
            pvm,
        }
    }

    fn config(hypervisor: Hypervisor, allow_emulation: bool) -> Config {
        Config {
            hypervisor,
            allow_emulation,
            ..Config::default()
        }
    }

    #[test]
    fn users_are_mapped_when_one_line_has_them_all() {
        let whole = "         0          0 4294967295\n";
        assert!(is_mapped(whole, 1_900_000_000, 1_900_065_535));
        let two = "0 100000 65536\n65536 1000 1\n";
        assert!(is_mapped(two, 1, 65_535));
        assert!(!is_mapped(two, 1, 65_536));
        assert!(!is_mapped(two, 1_900_000_000, 1_900_000_000));
        assert!(!is_mapped("nonsense\n", 0, 0));
    }

    #[test]
    fn driver_auto_takes_kvm_where_it_is_real() {
        let chosen = choose(&config(Hypervisor::Auto, true), &facts(true, true, false));
        assert_eq!(chosen, Ok((Driver::Kvm, None)));
    }

    #[test]
    fn driver_auto_on_pvm_emulates_with_a_line_that_says_why() {
        let (driver, line) =
            choose(&config(Hypervisor::Auto, true), &facts(true, false, true)).unwrap();
        assert_eq!(driver, Driver::Qemu);
        let line = line.unwrap();
        assert!(
            line.starts_with("no hardware virtualization here (KVM has only the paravirtual PVM"),
            "{line}"
        );
        assert!(
            line.ends_with("; emulating with QEMU, which is slower"),
            "{line}"
        );
        assert_eq!(line.lines().count(), 1);
    }

    #[test]
    fn driver_auto_without_leave_to_emulate_names_the_setting() {
        let error = choose(&config(Hypervisor::Auto, false), &facts(false, true, false))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("no such device") && error.contains("allow_emulation"),
            "{error}"
        );
    }

    #[test]
    fn driver_kvm_asked_for_where_it_cannot_run_is_an_error() {
        for facts in [
            facts(true, false, true),
            facts(false, false, false),
            facts(false, true, false),
        ] {
            assert!(matches!(
                choose(&config(Hypervisor::Kvm, true), &facts),
                Err(HostError::KvmUnusable { .. })
            ));
        }
    }

    #[test]
    fn driver_qemu_asked_for_needs_no_line() {
        let chosen = choose(&config(Hypervisor::Qemu, false), &facts(true, true, false));
        assert_eq!(chosen, Ok((Driver::Qemu, None)));
    }

    #[test]
    fn flags_are_found_as_whole_words() {
        assert!(has_hardware_flag("processor: 0\nflags\t\t: fpu vmx sse\n"));
        assert!(has_hardware_flag("flags : svm\n"));
        assert!(!has_hardware_flag(
            "flags : svm_lock vmxx\nmodel name : svm\n"
        ));
    }

    #[test]
    fn requirement_that_does_not_hold_has_a_next_step() {
        let config = Config {
            kernel: Some("/nonexistent".into()),
            run_dir: "/proc/nonexistent/run".into(),
            ..Config::default()
        };
        let all = requirements(&config);
        for requirement in &all {
            assert_eq!(
                requirement.state == RequirementState::Holds,
                requirement.next_step.is_empty(),
                "{requirement:?}"
            );
        }
        let kernel = all.iter().find(|r| r.name == "guest kernel").unwrap();
        assert_eq!(kernel.state, RequirementState::Missing);
    }

    #[test]
    fn memory_available_is_read() {
        assert_eq!(
            available_mib("MemTotal: 9 kB\nMemAvailable:   204800 kB\n"),
            Some(200)
        );
        assert_eq!(available_mib(""), None);
    }
}
