//! The `qemu` driver: QEMU's `microvm` machine, emulated, for hosts without hardware virtualization.
//!
//! The same kernel, image and agent as under `kvm`. vsock is a vhost-user device served by `sandbox-vmm
//! vsock-backend`, shared directories are served by virtiofsd. The guest powers off through `isa-debug-exit`;
//! a reset, which is what a panic ends in, makes QEMU exit with 0 because of `-no-reboot`.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use sandbox_network::Nic;
use sandbox_types::GuestCid;
use sandbox_types::monitor::{DiskLimits, EXIT_PORT, POWER_OFF};
use sandbox_types::timeline::Phase;

use super::{
    DriverError, HypervisorDriver, MachineRequest, Parts, ROOT_SERIAL, open, open_disk,
    pass_queues, plumbing, tsc, virtiofsd,
};
use crate::console::Console;
use crate::event::DeathCause;
use crate::process::{Launch, Process, ProcessEnd, SpawnError};
use crate::share::TAG;

/// virtio-mmio transports of `microvm` without ACPI.
pub(super) const TRANSPORTS: usize = 8;

/// QEMU's exit status after the agent's power-off (`isa-debug-exit`: twice the value, plus one).
const POWER_OFF_STATUS: i32 = (POWER_OFF as i32) << 1 | 1;

#[derive(Debug)]
pub(super) struct Qemu;

impl HypervisorDriver for Qemu {
    fn start(&mut self, request: &mut MachineRequest<'_>) -> Result<Parts, DriverError> {
        let plan = request.plan;
        let config = &plan.basis.config;
        let mut helpers = Vec::new();
        let mut program = config.qemu_path()?;
        let mut kernel = config.kernel_path()?;
        let jail = match request.basis.jail {
            Some(jail) => {
                // Where its root has it, whatever links lead there.
                program = program.canonicalize().unwrap_or(program);
                let (description, inside) = jail.qemu(&program, &kernel)?;
                kernel = inside;
                Some(description)
            }
            None => None,
        };
        let mut launch = Launch::new("qemu", program);
        if let Some(jail) = jail {
            launch.jail_by(&config.monitor_path()?, jail, request.basis.dir)?;
        }
        request.basis.place(&mut launch)?;
        let memory = plan.basis.size.memory.get();
        launch
            // The local interrupt controller's timer is calibrated against the PIT, there being no other clock. For the time of day the
            // kernel waits a second where there is nobody to tell it.
            .arg("-M")
            .arg("microvm,acpi=off,pit=on,pic=on,rtc=on,x-option-roms=off,isa-serial=on,memory-backend=ram")
            .arg("-accel")
            .arg("tcg")
            .arg("-cpu")
            .arg("max")
            .arg("-smp")
            .arg(request.basis.most.vcpus.to_string())
            .arg("-m")
            .arg(format!("{memory}M"))
            .arg("-object")
            .arg(format!("memory-backend-memfd,id=ram,size={memory}M,share=on"))
            .arg("-nodefaults")
            .arg("-no-user-config")
            .arg("-display")
            .arg("none")
            .arg("-no-reboot")
            .arg("-sandbox")
            .arg("on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
            .arg("-global")
            .arg("virtio-mmio.force-legacy=false")
            .arg("-device")
            .arg(format!("isa-debug-exit,iobase={EXIT_PORT:#x}"))
            .arg("-chardev")
            .arg("stdio,id=console,signal=off")
            .arg("-serial")
            .arg("chardev:console")
            // For whoever lists processes.
            .arg("-name")
            .arg(escape(request.basis.dir))
            .arg("-kernel")
            .arg(kernel)
            .arg("-append")
            .arg(kernel_command_line(request));

        let mut taps = Vec::new();
        for nic in request.nics {
            taps.push((pass_queues(&mut launch, nic)?, nic));
        }
        let mut devices = Devices::new(&mut launch, &config.disk_limits());
        let image = open("the guest image", &config.image_path()?, true)?;
        devices.block("root", &image, true, ROOT_SERIAL)?;
        for (index, device) in plan.block.iter().enumerate() {
            let name = format!("disk{index}");
            let disk = open_disk(device)?;
            devices.block(&name, &disk, device.read_only, &device.serial)?;
        }
        if let Some(share) = request.share {
            let (path, process) = virtiofsd::start(request, &share.served())?;
            helpers.push(process);
            let fs = format!("vhost-user-fs-device,tag={TAG}");
            devices.vhost_user("fs", &path, plumbing("a connection to virtiofsd"), &fs)?;
        }
        let (path, process) = start_vsock(request)?;
        helpers.push(process);
        let refused = plumbing("a connection to the vsock back end");
        devices.vhost_user("vsock", &path, refused, "vhost-user-vsock-device")?;
        for (index, (fds, nic)) in taps.into_iter().enumerate() {
            devices.net(&format!("net{index}"), &fds, nic);
        }
        // Entropy comes from the processor too (random.trust_cpu), so this one yields its place.
        if devices.has_room() {
            devices.device("virtio-rng-device");
        }
        // Without it the guest keeps what it once had, which is all that is lost.
        if config.free_page_reporting && devices.has_room() {
            devices.device("virtio-balloon-device,free-page-reporting=on");
        }

        let console = Console::create(request.basis.dir).map_err(plumbing("the console's file"))?;
        launch.console(console.clone());
        request.timeline.mark(Phase::MonitorStarted);
        request.timeline.mark(Phase::FirstInstruction);
        let process = launch.spawn()?;
        request.record.add_process(process.name(), process.pid())?;
        Ok(Parts {
            process,
            helpers,
            console,
            memory: None,
        })
    }

    fn cause(&self, end: ProcessEnd, process: &Process, console: &Console) -> DeathCause {
        cause(end, || process.last_words(), console)
    }
}

/// The common command line, fitted to this machine.
///
/// - `reboot=t`: microvm has no keyboard controller to reset through.
/// - `init_on_alloc=1`, with a shared folder: QEMU's translator keeps code by physical page and sees only the guest's own writes. A page
///   that once held code and is then filled by another process, virtiofsd, with a program would run the old
///   code. A kernel that clears every page before it is used again makes the translator forget it.
/// - `tsc_early_khz=`: the time stamp counter is the host's. A kernel that measures it against the PIT gives it up where it is held up in
///   between, as it is on a host with other work, and has a clock then that moves on a hundred times a second, and timers that go by it.
fn kernel_command_line(request: &MachineRequest<'_>) -> String {
    let mut line = request
        .basis
        .command_line(None)
        .replace("reboot=k", "reboot=t");
    if request.share.is_some() {
        line.push_str(" init_on_alloc=1");
    }
    if let Some(khz) = tsc::khz() {
        line.push_str(&format!(" tsc_early_khz={khz}"));
    }
    line
}

fn start_vsock(
    request: &mut MachineRequest<'_>,
) -> Result<(std::path::PathBuf, Process), DriverError> {
    let (path, listener) = request.bind("vhost-vsock.sock")?;
    let mut launch = Launch::new(
        "sandbox-vmm vsock-backend",
        request.basis.config.monitor_path()?,
    );
    let vhost_fd = launch.pass(&listener)?;
    let listener_fd = launch.pass(request.vsock_listener)?;
    launch.arg("vsock-backend");
    if let Some(jail) = request.basis.jail {
        launch.jail(jail.vsock_backend(), request.basis.dir)?;
    }
    launch
        .arg("--cid")
        .arg(GuestCid::FIRST.get().to_string())
        .arg("--vhost-fd")
        .arg(vhost_fd.to_string())
        .arg("--listener-fd")
        .arg(listener_fd.to_string())
        .arg("--path")
        .arg(request.ports_inside());
    let process = launch.spawn()?;
    request.record.add_process(process.name(), process.pid())?;
    Ok((path, process))
}

/// Puts devices on transports. The kernel finds the highest first, so that one gets the guest image: `vda`.
struct Devices<'a> {
    launch: &'a mut Launch,
    free: usize,
    /// Whether the disks are in the throttle group [`LIMITS`].
    limited: bool,
}

/// The throttle group that all disks are in.
const LIMITS: &str = "limits";
/// QEMU takes no more (`THROTTLE_VALUE_MAX` in its `include/qemu/throttle.h`), which nothing reaches.
const MOST_PER_SECOND: u64 = 1_000_000_000_000_000;

impl<'a> Devices<'a> {
    fn new(launch: &'a mut Launch, limits: &DiskLimits) -> Self {
        let mut group = format!("throttle-group,id={LIMITS}");
        for (key, limit) in [
            ("x-bps-total", limits.bytes_per_second),
            ("x-iops-total", limits.operations_per_second),
        ] {
            // After a rest it lets pass what otherwise does in a tenth of a second, as the monitor does.
            if let Some(limit) = limit {
                group.push_str(&format!(",{key}={}", limit.get().min(MOST_PER_SECOND)));
            }
        }
        let limited = *limits != DiskLimits::default();
        if limited {
            launch.arg("-object").arg(group);
        }
        Self {
            launch,
            free: TRANSPORTS,
            limited,
        }
    }

    fn has_room(&self) -> bool {
        self.free > 0
    }

    fn device(&mut self, description: &str) {
        // What does not fit gets a transport that is not there, which QEMU refuses by name.
        self.free = self.free.saturating_sub(1);
        self.launch
            .arg("-device")
            .arg(format!("{description},bus=virtio-mmio-bus.{}", self.free));
    }

    /// A disk, which is open as `read_only` says: QEMU looks for a descriptor of the set with the access that it wants.
    fn block(
        &mut self,
        node: &str,
        file: &File,
        read_only: bool,
        serial: &str,
    ) -> Result<(), SpawnError> {
        let fd = self.launch.pass(file)?;
        let read_only = if read_only { "on" } else { "off" };
        let raw = if self.limited {
            format!("{node}-raw")
        } else {
            node.to_owned()
        };
        self.launch
            .arg("-add-fd")
            .arg(format!("fd={fd},set={fd}"))
            .arg("-blockdev")
            .arg(format!(
                "driver=raw,node-name={raw},read-only={read_only},discard=unmap,file.driver=file,file.filename=/dev/fdset/{fd}"
            ));
        if self.limited {
            self.launch.arg("-blockdev").arg(format!(
                "driver=throttle,node-name={node},read-only={read_only},discard=unmap,throttle-group={LIMITS},file={raw}"
            ));
        }
        self.device(&format!("virtio-blk-device,drive={node},serial={serial}"));
        Ok(())
    }

    /// A network device with a queue pair for each of the descriptors.
    fn net(&mut self, id: &str, fds: &[RawFd], nic: &Nic) {
        let fds: Vec<String> = fds.iter().map(ToString::to_string).collect();
        let (key, several) = match fds.len() {
            1 => ("fd", "off"),
            _ => ("fds", "on"),
        };
        self.launch
            .arg("-netdev")
            .arg(format!("tap,id={id},{key}={},vhost=off", fds.join(":")));
        self.device(&format!(
            "virtio-net-device,netdev={id},mac={},host_mtu={},mq={several}",
            nic.mac, nic.max_mtu
        ));
    }

    /// A device that the helper at `path` serves, which listens already unless it has ended: then it is `refused`.
    fn vhost_user(
        &mut self,
        id: &str,
        path: &Path,
        refused: impl FnOnce(std::io::Error) -> DriverError,
        description: &str,
    ) -> Result<(), DriverError> {
        let socket = UnixStream::connect(path).map_err(refused)?;
        let fd = self.launch.pass(&socket)?;
        self.launch
            .arg("-chardev")
            .arg(format!("socket,id={id},fd={fd}"));
        self.device(&format!("{description},chardev={id}"));
        Ok(())
    }
}

/// QEMU's option syntax: a comma within a value is doubled.
fn escape(path: &Path) -> OsString {
    let mut out = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        if byte == b',' {
            out.push(byte);
        }
        out.push(byte);
    }
    OsString::from_vec(out)
}

fn cause(end: ProcessEnd, last_words: impl FnOnce() -> String, console: &Console) -> DeathCause {
    match end {
        ProcessEnd::Exited(POWER_OFF_STATUS) => DeathCause::GuestShutdown,
        ProcessEnd::Exited(0) if console.shows_panic() => DeathCause::GuestPanic,
        ProcessEnd::Exited(0) => DeathCause::GuestReset,
        ProcessEnd::Exited(code) => DeathCause::MonitorFailed {
            code,
            detail: last_words(),
        },
        // By its own `-sandbox`.
        ProcessEnd::Killed(nix::libc::SIGSYS) => DeathCause::MonitorViolation {
            detail: last_words(),
        },
        ProcessEnd::Killed(signal) => DeathCause::MonitorKilled { signal },
        ProcessEnd::Unknown => DeathCause::MonitorFailed {
            code: -1,
            detail: last_words(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_status_tells_power_off_panic_and_reset_apart() {
        let folder = tempfile::tempdir().unwrap();
        let console = Console::create(folder.path()).unwrap();
        let cause_of = |code| cause(ProcessEnd::Exited(code), || "words".into(), &console);
        assert_eq!(cause_of(33), DeathCause::GuestShutdown);
        assert_eq!(cause_of(0), DeathCause::GuestReset);
        assert_eq!(
            cause_of(1),
            DeathCause::MonitorFailed {
                code: 1,
                detail: "words".into()
            }
        );
        console
            .push(b"[    1.0] Kernel panic - not syncing: x\r\n")
            .unwrap();
        assert_eq!(cause_of(0), DeathCause::GuestPanic);
        assert_eq!(
            cause(ProcessEnd::Killed(9), String::new, &console),
            DeathCause::MonitorKilled { signal: 9 }
        );
    }

    #[test]
    fn comma_in_a_path_is_doubled() {
        assert_eq!(escape(Path::new("/a,b")), "/a,,b");
    }
}
