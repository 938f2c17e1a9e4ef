//! A virtual machine that runs `guest.rs`, for the length of a test program.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// What a guest may take from power-on to its announcement; emulated, on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// What any read may wait: a stuck stream fails its case and not the whole run.
const IO_LIMIT: Duration = Duration::from_secs(120);
/// What QEMU answers for the guest's power-off: `isa-debug-exit` gives `value << 1 | 1`.
const POWERED_OFF: i32 = 0x10 << 1 | 1;

/// Why there is no machine.
pub(crate) enum BootError {
    /// Something that this test needs is not installed.
    Missing(String),
    /// It should have come up.
    Broken(String),
}

impl From<io::Error> for BootError {
    fn from(error: io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// A machine whose guest has announced itself.
pub(crate) struct Machine {
    qemu: Child,
    backend: Child,
    /// The guest waits for its end.
    _ready: UnixStream,
    directory: tempfile::TempDir,
}

impl Drop for Machine {
    fn drop(&mut self) {
        end_qemu(&mut self.qemu);
        end_backend(&mut self.backend);
    }
}

fn end_qemu(qemu: &mut Child) {
    let _ = qemu.kill();
    let _ = qemu.wait();
}

/// Ends the back end by a signal that strace, where it is between us, passes on. A strace that is killed would leave it behind.
fn end_backend(backend: &mut Child) {
    if matches!(backend.try_wait(), Ok(None)) {
        let _ = kill_process(Pid::from_child(backend), Signal::TERM);
        let _ = backend.wait();
    }
}

fn kernel() -> PathBuf {
    std::env::var_os("SANDBOX_TEST_KERNEL").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/artifacts/vmlinux"),
        PathBuf::from,
    )
}

fn run(command: &mut Command) -> Result<(), BootError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => BootError::Missing(format!("no {name}")),
        _ => error.into(),
    })?;
    if output.status.success() {
        Ok(())
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        Err(BootError::Broken(format!(
            "{name}: {}: {said}",
            output.status
        )))
    }
}

/// Builds the guest program and the image around it.
fn build_root(directory: &Path) -> Result<(), BootError> {
    let root = directory.join("root");
    for name in ["", "dev"] {
        std::fs::create_dir(root.join(name))?;
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vsock/guest.rs");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    run(Command::new(rustc)
        .args([
            "--edition",
            "2024",
            "-O",
            "-C",
            "target-feature=+crt-static",
        ])
        .args(["-C", "strip=symbols", "-o"])
        .arg(root.join("init"))
        .arg(source))?;
    run(Command::new("mkfs.erofs")
        .arg("--quiet")
        .arg(directory.join("root.erofs"))
        .arg(&root))
}

/// Starts the back end with its two sockets, and nothing else of ours, open; under strace, if there is a file for all its calls.
fn start_backend(directory: &Path, trace: Option<&Path>) -> io::Result<Child> {
    let sockets = ["vhost.sock", "v"].map(|name| UnixListener::bind(directory.join(name)));
    let [vhost, vsock] = sockets;
    let (vhost, vsock) = (vhost?, vsock?);
    let keep = |open| {
        let flags = if open {
            rustix::io::FdFlags::empty()
        } else {
            rustix::io::FdFlags::CLOEXEC
        };
        for fd in [vhost.as_fd(), vsock.as_fd()] {
            rustix::io::fcntl_setfd(fd, flags)?;
        }
        io::Result::Ok(())
    };
    let program = std::env::current_exe()?;
    let mut command = match trace {
        None => Command::new(program),
        Some(file) => {
            // Numbers as they are, with the name of the thread before each call.
            let mut command = Command::new("strace");
            command.args(["-f", "-Y", "-X", "raw", "-s", "0", "-o"]);
            command.arg(file).arg("--").arg(program);
            command
        }
    };
    keep(true)?;
    let child = command
        .args(["vsock-backend", "--cid", "3"])
        .args(["--vhost-fd", &vhost.as_raw_fd().to_string()])
        .args(["--listener-fd", &vsock.as_raw_fd().to_string(), "--path"])
        .arg(directory.join("v"))
        .spawn();
    keep(false)?;
    child
}

fn start_qemu(directory: &Path, kernel: &Path) -> Result<Child, BootError> {
    let at = |name: &str| directory.join(name).display().to_string();
    let console = File::create(directory.join("console"))?;
    Command::new("qemu-system-x86_64")
        .args([
            "-M",
            "microvm,acpi=off,rtc=on,x-option-roms=off,memory-backend=mem",
        ])
        .args(["-accel", "tcg", "-cpu", "max", "-m", "256"])
        .args(["-object", "memory-backend-memfd,id=mem,size=256M,share=on"])
        .args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"])
        .args([
            "-global",
            "virtio-mmio.force-legacy=false",
            "-serial",
            "stdio",
        ])
        .arg("-kernel")
        .arg(kernel)
        .args([
            "-append",
            "console=ttyS0 quiet reboot=t panic=-1 root=/dev/vda rootfstype=erofs ro init=/init",
        ])
        .args([
            "-drive",
            &format!(
                "id=r,file={},format=raw,readonly=on,if=none",
                at("root.erofs")
            ),
        ])
        .args(["-device", "virtio-blk-device,drive=r"])
        .args([
            "-chardev",
            &format!("socket,id=vs,path={}", at("vhost.sock")),
        ])
        .args(["-device", "vhost-user-vsock-device,chardev=vs"])
        .args(["-device", "isa-debug-exit,iobase=0x501"])
        .stdin(Stdio::null())
        .stdout(console)
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => BootError::Missing("no qemu-system-x86_64".into()),
            _ => error.into(),
        })
}

impl Machine {
    /// Boots it and waits for its announcement. A file gets all system calls of the back end, which then runs under strace.
    pub(crate) fn boot(trace: Option<&Path>) -> Result<Self, BootError> {
        let kernel = kernel();
        if !kernel.exists() {
            return Err(BootError::Missing(format!(
                "no kernel at {}",
                kernel.display()
            )));
        }
        let directory = tempfile::tempdir()?;
        build_root(directory.path())?;
        let listener = UnixListener::bind(directory.path().join("v_1000"))?;
        let mut backend = start_backend(directory.path(), trace)?;
        let mut qemu = match start_qemu(directory.path(), &kernel) {
            Ok(qemu) => qemu,
            Err(error) => {
                end_backend(&mut backend);
                return Err(error);
            }
        };
        let (announce, announced) = mpsc::channel();
        std::thread::spawn(move || announce.send(listener.accept()));
        let ready = announced.recv_timeout(BOOT_LIMIT);
        let console =
            || std::fs::read_to_string(directory.path().join("console")).unwrap_or_default();
        match ready {
            Ok(Ok((ready, _))) => Ok(Self {
                qemu,
                backend,
                _ready: ready,
                directory,
            }),
            other => {
                let reason = format!(
                    "the guest did not announce itself ({other:?}): {}",
                    console()
                );
                end_qemu(&mut qemu);
                end_backend(&mut backend);
                Err(BootError::Broken(reason))
            }
        }
    }

    /// A connection to a port of the guest's. `UnexpectedEof`: the guest refused.
    pub(crate) fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut stream = UnixStream::connect(self.directory.path().join("v"))?;
        stream.set_read_timeout(Some(IO_LIMIT))?;
        stream.set_write_timeout(Some(IO_LIMIT))?;
        writeln!(stream, "CONNECT {port}")?;
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            line.extend(byte);
        }
        if line.starts_with(b"OK ") {
            Ok(stream)
        } else {
            Err(io::ErrorKind::InvalidData.into())
        }
    }

    /// Takes the guest's connections to a host port.
    pub(crate) fn listen(&self, port: u32) -> io::Result<UnixListener> {
        UnixListener::bind(self.directory.path().join(format!("v_{port}")))
    }

    fn end(&mut self) -> io::Result<(Option<i32>, Option<i32>)> {
        match self.connect(9) {
            // The guest is gone before it can answer.
            Ok(mut stream) => drop(stream.read(&mut [0])),
            // Or before the host has seen that there is a connection. If it is still there, it refused.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let begun = Instant::now();
                while self.qemu.try_wait()?.is_none() {
                    if begun.elapsed() > IO_LIMIT {
                        return Err(error);
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
            Err(error) => return Err(error),
        }
        Ok((self.qemu.wait()?.code(), self.backend.wait()?.code()))
    }

    /// Ends the guest: QEMU must go by its power-off and the back end with QEMU.
    pub(crate) fn power_off(mut self) -> Result<(), String> {
        let ended = self.end().map_err(|error| format!("power-off: {error}"))?;
        match ended {
            (Some(POWERED_OFF), Some(0)) => Ok(()),
            (qemu, backend) => Err(format!(
                "QEMU ended with {qemu:?}, the back end with {backend:?}"
            )),
        }
    }
}
