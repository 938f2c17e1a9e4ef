//! A machine without a shim: our monitor, told what to build as the shim tells it (`crates/sandbox-types`, `monitor`), or QEMU with the
//! command line of the `qemu` driver.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, IoSlice, Seek as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use command_fds::{CommandFdExt as _, FdMapping};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::time::{ClockId, clock_gettime};
use sandbox_harness::bundle::PROBE;
use serde_json::{Value as Json, json};

use super::Kind;
use crate::lab::{Lab, tool};
use crate::timed::Deadline;

/// The port, and the byte, by which a guest ends its machine, and what QEMU's exit status is then.
const END: (u16, u8) = (0x501, 0x10);
const QEMU_STATUS: i32 = 0x21;
/// The monitor's descriptors: its configuration, its control socket, and the first of the others.
const CONFIG_FD: i32 = 3;
const CONTROL_FD: i32 = 4;
const FIRST_FD: i32 = 10;
/// The size of the console's memory file.
const CONSOLE_BYTES: u64 = 64 + (64 << 10);
const MEMORY_MIB: u64 = 128;
/// What the shim tells its guests' kernel (`sandbox_runtime::driver`).
const COMMAND_LINE: &str =
    include_str!("../../../../../guest-image/kernel.command-line").trim_ascii();

/// What machines boot.
pub(super) struct Files {
    kernel: PathBuf,
    root: PathBuf,
    monitor: PathBuf,
}

/// A machine that runs.
pub(super) struct Machine {
    child: Child,
    kind: Kind,
    /// When it was started.
    begun: Duration,
    control: Option<BufReader<UnixStream>>,
    socket: Option<PathBuf>,
    _deadline: Deadline,
}

/// How long everything took, as far as it is known.
pub(super) struct Booted {
    /// From the command to the monitor's `main`.
    pub(super) process: Option<Duration>,
    /// To the first guest instruction.
    pub(super) build: Option<Duration>,
    /// To the end.
    pub(super) kernel: Option<Duration>,
}

/// The clock by which the monitor's marks are.
fn now() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default()
}

impl Files {
    /// Finds the kernel, and makes the image.
    ///
    /// # Errors
    /// When there is no kernel, or `mkfs.erofs` refuses.
    pub(super) fn make(lab: &Lab) -> Result<Self> {
        let setup = lab.world().setup();
        let tree = lab.world().path().join("bare");
        let program = tree.join(PROBE.trim_start_matches('/'));
        fs::create_dir_all(tree.join("dev"))?;
        fs::create_dir_all(program.parent().context("it is in a folder")?)?;
        fs::copy(&setup.probe, &program)?;
        let root = lab.world().path().join("bare.erofs");
        let mut command = Command::new("mkfs.erofs");
        command.arg("--quiet").arg(&root).arg(&tree);
        tool(&mut command, lab.limit())?;
        Ok(Self {
            kernel: lab.artifact("vmlinux")?,
            root,
            monitor: setup.binaries.join("sandbox-vmm"),
        })
    }

    /// Starts a machine.
    ///
    /// # Errors
    /// When that cannot be done.
    pub(super) fn start(&self, lab: &Lab, kind: Kind) -> Result<Machine> {
        match kind {
            Kind::Monitor => self.start_monitor(lab),
            Kind::QemuKvm => self.start_qemu(lab, kind, "kvm"),
            Kind::QemuEmulating => self.start_qemu(lab, kind, "tcg"),
        }
    }

    /// Words that the kernel does not know are init's. Not behind `--`: both monitors append the devices.
    fn command_line(reboot: &str) -> String {
        let (port, value) = END;
        let line = COMMAND_LINE
            .replace("init=/sbin/sandbox-agent", &format!("init={PROBE}"))
            .replace("reboot=k", &format!("reboot={reboot}"));
        format!("{line} end {port} {value}")
    }

    fn start_monitor(&self, lab: &Lab) -> Result<Machine> {
        let socket = lab.world().path().join(format!("{}.sock", lab.name()));
        let console = File::from(memfd_create("console", MemfdFlags::CLOEXEC)?);
        ftruncate(&console, CONSOLE_BYTES)?;
        let kvm = File::options().read(true).write(true).open("/dev/kvm")?;
        let given: [OwnedFd; 3] = [kvm.into(), File::open(&self.kernel)?.into(), console.into()];
        let passed: [OwnedFd; 2] = [
            File::open(&self.root)?.into(),
            UnixListener::bind(&socket)?.into(),
        ];
        let config = json!({
            "kvm_fd": FIRST_FD, "kernel_fd": FIRST_FD + 1, "command_line": Self::command_line("k"), "memory": MEMORY_MIB, "max_memory": MEMORY_MIB, "vcpus": 1,
            "shared_memory": false, "console_fd": FIRST_FD + 2,
        });
        let run = json!({"request": "run", "devices": {
            "block": [{"fd": 0, "read_only": true, "serial": "root", "queues": 1}], "pmem": null,
            "disk_limits": {"bytes_per_second": null, "operations_per_second": null}, "net": [], "shares": [],
            "vsock": {"cid": 3, "listener_fd": 1, "path": socket},
            "free_page_reporting": true,
        }});
        let mut file = File::from(memfd_create("config", MemfdFlags::CLOEXEC)?);
        file.write_all(config.to_string().as_bytes())?;
        file.rewind()?;
        let (control, theirs) = UnixStream::pair()?;
        control.set_read_timeout(Some(lab.limit()))?;
        // It waits in the socket until the monitor is there.
        send(&control, &format!("{run}\n"), &passed)?;
        let mut mappings = vec![mapping(file, CONFIG_FD), mapping(theirs, CONTROL_FD)];
        mappings.extend(
            (FIRST_FD..)
                .zip(given)
                .map(|(number, fd)| mapping(fd, number)),
        );
        let mut command = Command::new(&self.monitor);
        lab.world().adopt(&mut command);
        command.arg("run").fd_mappings(mappings)?;
        Machine::start(lab, command, Kind::Monitor, Some(control), Some(socket))
    }

    /// As the `qemu` driver starts it (`sandbox_runtime::driver::qemu`), without devices that others serve.
    fn start_qemu(&self, lab: &Lab, kind: Kind, accelerator: &str) -> Result<Machine> {
        let mut command = Command::new("qemu-system-x86_64");
        lab.world().adopt(&mut command);
        command
            .args(["-M", "microvm,acpi=off,pit=on,pic=on,rtc=on,x-option-roms=off,isa-serial=on,memory-backend=ram"])
            .args(["-accel", accelerator, "-cpu", "max", "-smp", "1", "-m"])
            .arg(format!("{MEMORY_MIB}M"))
            .arg("-object")
            .arg(format!("memory-backend-memfd,id=ram,size={MEMORY_MIB}M,share=on"))
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-global", "virtio-mmio.force-legacy=false", "-device"])
            .arg(format!("isa-debug-exit,iobase={:#x}", END.0))
            .args(["-chardev", "null,id=console", "-serial", "chardev:console", "-blockdev"])
            .arg(format!(
                "driver=raw,node-name=root,read-only=on,file.driver=file,file.filename={}",
                self.root.display()
            ))
            .args(["-device", "virtio-blk-device,drive=root,bus=virtio-mmio-bus.7"])
            .args(["-device", "virtio-rng-device,bus=virtio-mmio-bus.6", "-kernel"])
            .arg(&self.kernel)
            .arg("-append")
            .arg(Self::command_line("t"));
        Machine::start(lab, command, kind, None, None)
    }
}

fn send(control: &UnixStream, line: &str, fds: &[OwnedFd; 2]) -> Result<()> {
    let fds = fds.each_ref().map(OwnedFd::as_fd);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let line = [IoSlice::new(line.as_bytes())];
    sendmsg(control, &line, &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn mapping(parent_fd: impl Into<OwnedFd>, child_fd: i32) -> FdMapping {
    FdMapping {
        parent_fd: parent_fd.into(),
        child_fd,
    }
}

impl Machine {
    fn start(
        lab: &Lab,
        mut command: Command,
        kind: Kind,
        control: Option<UnixStream>,
        socket: Option<PathBuf>,
    ) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let begun = now();
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        // The command holds the other end of the socket, whose end is waited for.
        drop(command);
        Ok(Self {
            _deadline: Deadline::set(child.id(), lab.limit())?,
            child,
            kind,
            begun,
            control: control.map(BufReader::new),
            socket,
        })
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When that is not the one that the guest asked for.
    pub(super) fn wait(mut self) -> Result<Booted> {
        let mut booted = Booted {
            process: None,
            build: None,
            kernel: None,
        };
        if let Some(mut control) = self.control.take() {
            let started = event(&mut control)?;
            let at = |name: &str| started[name].as_u64().map(Duration::from_nanos);
            let (Some(process), Some(first)) = (at("process_ns"), at("first_instruction_ns"))
            else {
                bail!("the monitor said {started}");
            };
            let ended = event(&mut control)?;
            let end = now();
            ensure!(
                ended["reason"]["reason"] == "shutdown",
                "the monitor said {ended}"
            );
            booted = Booted {
                process: Some(process.saturating_sub(self.begun)),
                build: Some(first.saturating_sub(process)),
                kernel: Some(end.saturating_sub(first)),
            };
        }
        let status = self.child.wait()?;
        let wanted = match self.kind {
            Kind::Monitor => 0,
            Kind::QemuKvm | Kind::QemuEmulating => QEMU_STATUS,
        };
        ensure!(
            status.code() == Some(wanted),
            "{}: {status}",
            self.kind.label()
        );
        Ok(booted)
    }
}

fn event(control: &mut BufReader<UnixStream>) -> Result<Json> {
    let mut line = String::new();
    control.read_line(&mut line)?;
    ensure!(!line.is_empty(), "the monitor ended without a word");
    serde_json::from_str(&line).context(line)
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail when it has ended, as it should have.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(socket) = &self.socket {
            let _ = fs::remove_file(socket);
        }
    }
}
