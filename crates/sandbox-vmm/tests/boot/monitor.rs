//! A running monitor, as its parent sees it.
#![allow(
    dead_code,
    reason = "included by several test programs, of which each uses a part"
)]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, IoSlice, Seek, SeekFrom, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use command_fds::{CommandFdExt, FdMapping};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use sandbox_types::monitor::{
    BlockConfig, CONFIG_FD, CONTROL_FD, DiskLimits, GuestExit, MAX_PASSED_FDS, MachineDevices,
    MonitorConfig, MonitorEvent, MonitorRequest, NetConfig, PMEM_ALIGNMENT, PMEM_HEADER_BYTES,
    PmemConfig, PmemFileConfig, ShareConfig, VsockConfig, console_ring,
};
use sandbox_types::{GuestCid, MemMib, VcpuCount};

/// The longest that a guest may take to end, also under nested emulation on a busy machine.
const DEADLINE: Duration = Duration::from_secs(150);
const COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=4 8250.nr_uarts=1 root=/dev/vda \
    rootfstype=erofs ro init=/init panic=-1 oops=panic tsc=reliable no_timer_check \
    random.trust_cpu=on";
/// The first descriptor for what the configuration names.
const FIRST_FD: i32 = 10;

/// What to start.
pub(crate) struct Guest<'a> {
    pub(crate) kernel: &'a Path,
    /// `vda`, `vdb`, …; all but those named writable are read-only.
    pub(crate) disks: Vec<Disk>,
    /// What is in the persistent memory, each of at most [`PMEM_ALIGNMENT`] bytes and at a multiple of it.
    pub(crate) memory: Vec<PathBuf>,
    pub(crate) shares: Vec<(String, UnixStream)>,
    /// Open queues of taps.
    pub(crate) taps: Vec<File>,
    pub(crate) vcpus: u64,
    /// Appended to the command line.
    pub(crate) arguments: String,
}

pub(crate) struct Disk {
    pub(crate) path: PathBuf,
    pub(crate) writable: bool,
    pub(crate) serial: &'static str,
}

/// Where a machine runs.
pub(crate) struct Place {
    /// The vsock device's sockets are `vsock.sock` and `vsock.sock_PORT` in it.
    pub(crate) dir: tempfile::TempDir,
    pub(crate) memory: MemMib,
    /// What it may become.
    pub(crate) max_memory: MemMib,
    /// What the monitor says; without it, this program's standard error.
    pub(crate) log: Option<File>,
    /// A file for all system calls of the monitor, which then runs under strace.
    pub(crate) trace: Option<PathBuf>,
}

impl Place {
    pub(crate) fn usual() -> Result<Self> {
        Ok(Self {
            dir: tempfile::tempdir()?,
            memory: MemMib::new(192)?,
            max_memory: MemMib::new(448)?,
            log: None,
            trace: None,
        })
    }
}

/// A monitor process.
pub(crate) struct Monitor {
    child: Child,
    control: Option<BufReader<UnixStream>>,
    console: File,
    peak_kib: i64,
    _dir: tempfile::TempDir,
}

/// How a monitor ended.
pub(crate) struct Ended {
    pub(crate) events: Vec<MonitorEvent>,
    pub(crate) code: Option<i32>,
    pub(crate) console: String,
    /// The most memory that the process had at a time, what the guest touched of its own included.
    pub(crate) peak_kib: i64,
}

struct Descriptors(Vec<FdMapping>);

impl Descriptors {
    fn add(&mut self, fd: impl Into<OwnedFd>) -> Result<i32> {
        let child_fd = FIRST_FD + i32::try_from(self.0.len())?;
        self.at(child_fd, fd);
        Ok(child_fd)
    }

    fn at(&mut self, child_fd: i32, fd: impl Into<OwnedFd>) {
        self.0.push(FdMapping {
            parent_fd: fd.into(),
            child_fd,
        });
    }
}

/// Descriptors that come with the first request.
#[derive(Default)]
struct Passed(Vec<OwnedFd>);

impl Passed {
    fn add(&mut self, fd: impl Into<OwnedFd>) -> usize {
        self.0.push(fd.into());
        self.0.len() - 1
    }
}

fn persistent_memory(paths: &[PathBuf], fds: &mut Passed) -> Result<Option<PmemConfig>> {
    let mut files = Vec::new();
    let mut offset = PMEM_ALIGNMENT;
    for path in paths {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let bytes = file.metadata()?.len();
        files.push(PmemFileConfig {
            fd: fds.add(file),
            offset,
            bytes,
        });
        offset += PMEM_ALIGNMENT;
    }
    ensure!(PMEM_HEADER_BYTES <= PMEM_ALIGNMENT);
    Ok((!files.is_empty()).then_some(PmemConfig {
        files,
        bytes: offset,
    }))
}

fn devices(place: &Place, guest: Guest<'_>, passed: &mut Passed) -> Result<MachineDevices> {
    let block = guest
        .disks
        .iter()
        .map(|disk| {
            let file = fs::OpenOptions::new()
                .read(true)
                .write(disk.writable)
                .open(&disk.path)
                .with_context(|| format!("cannot open {}", disk.path.display()))?;
            Ok(BlockConfig {
                fd: passed.add(file),
                read_only: !disk.writable,
                serial: disk.serial.to_owned(),
                queues: 1,
            })
        })
        .collect::<Result<_>>()?;
    let pmem = persistent_memory(&guest.memory, passed)?;
    let shares = guest
        .shares
        .into_iter()
        .map(|(tag, socket)| ShareConfig {
            fd: passed.add(socket),
            tag,
        })
        .collect();
    let net = guest
        .taps
        .into_iter()
        .map(|tap| {
            Ok(NetConfig {
                fds: vec![passed.add(tap)],
                mac: "02:00:00:00:00:01".parse()?,
                mtu: 1500,
            })
        })
        .collect::<Result<_>>()?;
    let vsock = place.dir.path().join("vsock.sock");
    Ok(MachineDevices {
        block,
        pmem,
        disk_limits: DiskLimits::default(),
        net,
        shares,
        vsock: VsockConfig {
            cid: GuestCid::FIRST,
            listener_fd: passed.add(UnixListener::bind(&vsock)?),
            path: vsock
                .to_str()
                .context("the folder's name is no text")?
                .to_owned(),
        },
        free_page_reporting: true,
    })
}

impl Monitor {
    /// Starts a monitor for `guest`.
    pub(crate) fn start(guest: Guest<'_>) -> Result<Self> {
        Self::start_at(Place::usual()?, guest)
    }

    /// The same at a place.
    pub(crate) fn start_at(place: Place, guest: Guest<'_>) -> Result<Self> {
        let mut passed = Passed::default();
        let (kernel, arguments, vcpus) = (guest.kernel, guest.arguments.clone(), guest.vcpus);
        let devices = Box::new(devices(&place, guest, &mut passed)?);
        let shared = !devices.shares.is_empty();
        let mut monitor = Self::begin_at(place, kernel, &arguments, vcpus, shared)?;
        monitor.run(devices, &passed.0)?;
        Ok(monitor)
    }

    /// Starts a monitor that is not told its devices yet.
    pub(crate) fn begin_at(
        place: Place,
        kernel: &Path,
        arguments: &str,
        vcpus: u64,
        shared_memory: bool,
    ) -> Result<Self> {
        let mut fds = Descriptors(Vec::new());
        let console = console_file()?;
        let kvm = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")?;
        let config = MonitorConfig {
            kvm_fd: fds.add(kvm)?,
            kernel_fd: fds.add(File::open(kernel).context("cannot open the kernel")?)?,
            command_line: format!("{COMMAND_LINE} {arguments}"),
            memory: place.memory,
            max_memory: place.max_memory,
            vcpus: VcpuCount::new(vcpus)?,
            shared_memory,
            console_fd: fds.add(console.try_clone()?)?,
        };
        let config = serde_json::to_vec(&config)?;
        Self::spawn(&config, fds, console, place)
    }

    /// Tells it its devices.
    fn run(&mut self, devices: Box<MachineDevices>, passed: &[OwnedFd]) -> Result<()> {
        let mut line = serde_json::to_vec(&MonitorRequest::Run { devices })?;
        line.push(b'\n');
        let fds: Vec<_> = passed.iter().map(OwnedFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PASSED_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        ensure!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        let socket = self.control.as_ref().context("hung up")?.get_ref();
        let line = [IoSlice::new(&line)];
        match sendmsg(socket, &line, &mut control, SendFlags::NOSIGNAL) {
            // One that has failed by now says why.
            Ok(_) | Err(rustix::io::Errno::PIPE) => Ok(()),
            Err(errno) => Err(errno).context("cannot tell the monitor its devices"),
        }
    }

    /// Starts a monitor with `config` for its configuration and nothing else.
    pub(crate) fn start_with(config: &[u8]) -> Result<Self> {
        Self::spawn(
            config,
            Descriptors(Vec::new()),
            console_file()?,
            Place::usual()?,
        )
    }

    fn spawn(config: &[u8], mut fds: Descriptors, console: File, place: Place) -> Result<Self> {
        let (control, theirs) = UnixStream::pair()?;
        control.set_read_timeout(Some(DEADLINE))?;
        let mut file = File::from(memfd_create("config", MemfdFlags::CLOEXEC)?);
        file.write_all(config)?;
        file.seek(SeekFrom::Start(0))?;
        fds.at(CONFIG_FD, file);
        fds.at(CONTROL_FD, theirs);
        let program = env!("CARGO_BIN_EXE_sandbox-vmm");
        let mut command = match &place.trace {
            None => Command::new(program),
            Some(file) => {
                // Numbers as they are, with the name of the thread before each call.
                let mut command = Command::new("strace");
                command.args(["-f", "-Y", "-X", "raw", "-s", "0", "-o"]);
                command.arg(file).args(["--", program]);
                command
            }
        };
        command.arg("run").fd_mappings(fds.0)?;
        if let Some(log) = place.log {
            command.stderr(log);
        }
        let child = command.spawn().context("cannot start the monitor")?;
        // The command holds the other end of the socket, whose end we wait for.
        drop(command);
        Ok(Self {
            child,
            control: Some(BufReader::new(control)),
            console,
            peak_kib: 0,
            _dir: place.dir,
        })
    }

    /// Hangs up, as a shim that dies does.
    pub(crate) fn hang_up(&mut self) {
        self.control = None;
    }

    /// Asks for something.
    pub(crate) fn ask(&mut self, request: &MonitorRequest) -> Result<()> {
        let control = self.control.as_mut().context("hung up")?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        Ok(control.get_mut().write_all(&line)?)
    }

    /// The next event.
    pub(crate) fn event(&mut self) -> Result<Option<MonitorEvent>> {
        let control = self.control.as_mut().context("hung up")?;
        let mut line = String::new();
        match control.read_line(&mut line) {
            Ok(0) => Ok(None),
            // It ended without having read what it was asked.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(None),
            Ok(_) => Ok(Some(
                serde_json::from_str(&line).with_context(|| line.clone())?,
            )),
            Err(error) => Err(anyhow!(
                "no event from the monitor: {error}; console:\n{}",
                self.console()?
            )),
        }
    }

    /// Waits for the monitor's end.
    pub(crate) fn wait(mut self) -> Result<Ended> {
        let mut events = Vec::new();
        while let Some(event) = self.event()? {
            events.push(event);
        }
        let code = self.exit_code()?;
        Ok(Ended {
            events,
            code,
            console: self.console()?,
            peak_kib: self.peak_kib,
        })
    }

    /// Waits for the process; bounded.
    pub(crate) fn exit_code(&mut self) -> Result<Option<i32>> {
        let pid = rustix::process::Pid::from_child(&self.child);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
        let mut fds = [rustix::event::PollFd::new(
            &pidfd,
            rustix::event::PollFlags::IN,
        )];
        let limit = rustix::time::Timespec {
            tv_sec: 120,
            tv_nsec: 0,
        };
        if rustix::event::poll(&mut fds, Some(&limit))? == 0 {
            bail!("the monitor did not exit");
        }
        self.peak_kib = peak_kib(self.child.id())?;
        Ok(self.child.wait()?.code())
    }

    /// What the guest wrote on its console, as far as the ring keeps it.
    pub(crate) fn console(&self) -> Result<String> {
        let mut written = [0; 8];
        self.console.read_exact_at(&mut written, 0)?;
        let written = u64::from_le_bytes(written);
        let kept = u64::try_from(console_ring::DATA_BYTES)?;
        let mut data = vec![0; console_ring::DATA_BYTES];
        self.console
            .read_exact_at(&mut data, u64::try_from(console_ring::HEADER_BYTES)?)?;
        if written <= kept {
            data.truncate(usize::try_from(written)?);
        } else {
            data.rotate_left(usize::try_from(written % kept)?);
        }
        Ok(String::from_utf8_lossy(&data).into_owned())
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // Both fail when it has ended, as it should have.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    /// The guest ended like this, and the process with it.
    pub(crate) fn expect(&self, exit: &GuestExit) -> Result<&Self> {
        let wanted = MonitorEvent::Exited {
            reason: exit.clone(),
        };
        ensure!(
            self.events.last() == Some(&wanted),
            "the last event is not {wanted:?}: {:?}\n{}",
            self.events,
            self.console
        );
        let code = Some(i32::from(exit.exit_code()));
        ensure!(self.code == code, "exit code {:?}, not {code:?}", self.code);
        Ok(self)
    }

    /// The console shows `text`.
    pub(crate) fn shows(&self, text: &str) -> Result<&Self> {
        ensure!(
            self.console.contains(text),
            "the console does not show {text:?}:\n{}",
            self.console
        );
        Ok(self)
    }

    /// It does not.
    pub(crate) fn hides(&self, text: &str) -> Result<&Self> {
        ensure!(
            !self.console.contains(text),
            "the console shows {text:?}:\n{}",
            self.console
        );
        Ok(self)
    }
}

fn console_file() -> Result<File> {
    let file = memfd_create("console", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, u64::try_from(console_ring::FILE_BYTES)?)?;
    Ok(file.into())
}

/// The most memory that a process had that has ended and was not waited for yet. At least what its parent had when it started it.
#[expect(
    unsafe_code,
    reason = "only the kernel's own waitid tells the usage of a process without reaping it"
)]
fn peak_kib(process: u32) -> Result<i64> {
    // SAFETY: all zeroes is a value of both.
    let (mut info, mut usage): (libc::siginfo_t, libc::rusage) = unsafe { std::mem::zeroed() };
    let options = libc::WEXITED | libc::WNOWAIT;
    // SAFETY: both live until the call has returned.
    let done = unsafe {
        libc::syscall(
            libc::SYS_waitid,
            libc::P_PID,
            process,
            &raw mut info,
            options,
            &raw mut usage,
        )
    };
    ensure!(done == 0, std::io::Error::last_os_error());
    Ok(usage.ru_maxrss)
}
