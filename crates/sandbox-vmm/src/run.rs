//! `sandbox-vmm run`: from the configuration to the guest's end.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use sandbox_jail::seccomp::SeccompError;
use sandbox_types::MemMib;
use sandbox_types::monitor::{
    BlockConfig, CONFIG_FD, CONTROL_FD, GuestExit, MonitorConfig, MonitorEvent, MonitorRequest,
    NetConfig, PmemConfig,
};

use crate::control::{ConfigError, Control, read_config};
use crate::devices::{ConsoleError, ConsoleRing};
use crate::fd::{FdError, Inherited};
use crate::jail::{EnterError, JailArguments};
use crate::log;
use crate::machine::{self, Machine, MachineConfig, MachineError, RunningMachine};
use crate::memory::Sharing;
use crate::memory::later::Later;
use crate::memory::window::{Window, WindowError, WindowFile};
use crate::seccomp::Confinement;
use crate::virtio::VirtioDevice;
use crate::virtio::balloon::Balloon;
use crate::virtio::block::Block;
use crate::virtio::block::error::BlockError;
use crate::virtio::block::pace::DiskPace;
use crate::virtio::fs::{FsDevice, FsError};
use crate::virtio::mem::{Mem, MemorySize};
use crate::virtio::net::Net;
use crate::virtio::net::error::NetError;
use crate::virtio::net::tap::Tap;
use crate::virtio::pmem::Pmem;
use crate::virtio::rng::Rng;
use crate::vsock::{MuxerConfig, Vsock, VsockError};

/// Exit code when the machine could not be built.
pub const EXIT_FAILED: u8 = 1;
/// Descriptors for which the kernel makes room at once: growing the table later, with threads, makes it wait
/// for a grace period each time.
const DESCRIPTORS: i32 = 512;

/// Why the machine could not be built or waited for.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// An argument that it does not know.
    #[error("unknown argument {argument:?}")]
    Argument {
        /// The argument.
        argument: OsString,
    },
    /// It is not in its jail.
    #[error(transparent)]
    Jail(#[from] EnterError),
    /// A descriptor that is not there.
    #[error(transparent)]
    Descriptor(#[from] FdError),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The console.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// A disk.
    #[error("disk {index} ({serial:?})")]
    Block {
        /// Its place in the configuration.
        index: usize,
        /// Its serial number.
        serial: String,
        /// What is wrong.
        source: BlockError,
    },
    /// Persistent memory.
    #[error("persistent memory")]
    Pmem(#[from] WindowError),
    /// The memory device.
    #[error("the memory device has no event descriptor")]
    Mem {
        /// What the kernel said.
        source: io::Error,
    },
    /// A network device.
    #[error("network device {index}")]
    Net {
        /// Its place in the configuration.
        index: usize,
        /// What is wrong.
        source: NetError,
    },
    /// A shared directory.
    #[error("shared directory {tag:?}")]
    Share {
        /// Its tag.
        tag: String,
        /// What is wrong.
        source: FsError,
    },
    /// The vsock device.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// What its threads are to be confined to.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    /// The main thread cannot wait.
    #[error("cannot wait for the end of the guest")]
    Wait {
        /// What the kernel said.
        source: io::Error,
    },
}

/// Now, as the shim understands it.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(now.tv_sec)
        .saturating_mul(1_000_000_000)
        .saturating_add(part(now.tv_nsec))
}

/// Builds and runs the machine of the configuration on [`CONFIG_FD`], and returns the process's exit code.
/// `arguments` are those behind `run`, `process_ns` is when `main` began.
///
/// The devices and vCPUs still exist when it returns; the process is to exit at once.
#[must_use]
pub fn run(arguments: &[OsString], process_ns: u64) -> u8 {
    let mut inherited = Inherited::new();
    let mut control = match inherited.take(CONTROL_FD, "the control socket") {
        Ok(fd) => Control::new(fd),
        Err(error) => {
            eprintln!("sandbox-vmm: {error}; it is started by the runtime, not by hand");
            return EXIT_FAILED;
        }
    };
    let end = run_machine(arguments, &mut inherited, &mut control, process_ns);
    log::close();
    match end {
        Ok(Some(reason)) => {
            let code = reason.exit_code();
            control.tell(&MonitorEvent::Exited { reason });
            code
        }
        // The other side is gone: nobody is left to be told.
        Ok(None) => 0,
        Err(error) => {
            let message = crate::error_chain(&error);
            eprintln!("sandbox-vmm: {message}");
            control.tell(&MonitorEvent::Failed { message });
            EXIT_FAILED
        }
    }
}

fn run_machine(
    arguments: &[OsString],
    inherited: &mut Inherited,
    control: &mut Control,
    process_ns: u64,
) -> Result<Option<GuestExit>, RunError> {
    let (jail, rest) = JailArguments::take(arguments)?;
    if let Some(argument) = rest.first().cloned() {
        return Err(RunError::Argument { argument });
    }
    // Before anything is looked at that a guest can touch.
    jail.enter(inherited)?;
    let config = read_config(inherited.take(CONFIG_FD, "the configuration")?)?;
    make_room_for_descriptors(&*control);
    let (config, size) = machine_config(inherited, config)?;
    let machine = Machine::build(config)?;
    let (running, first_instruction_ns) = machine.start(monotonic_ns)?;
    control.tell(&MonitorEvent::Started {
        process_ns,
        first_instruction_ns,
    });
    let end = wait(&running, control, size.as_ref())?;
    // Neither joined nor dropped: taking a VM apart takes KVM milliseconds, which would delay the news of its
    // end. The process ends, and the kernel does it.
    std::mem::forget(running);
    Ok(end)
}

/// Duplicates a descriptor to a high number and closes it again.
fn make_room_for_descriptors(any: impl AsFd) {
    // Without it everything works, only slower.
    drop(rustix::io::fcntl_dupfd_cloexec(any, DESCRIPTORS - 1));
}

fn machine_config(
    inherited: &mut Inherited,
    config: MonitorConfig,
) -> Result<(MachineConfig, Option<MemorySize>), RunError> {
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    let pace = DiskPace::new(&config.disk_limits);
    for (index, disk) in config.block.iter().enumerate() {
        let fd = inherited.take(disk.fd, "a disk")?;
        devices.push(Box::new(block(index, disk, fd, pace.clone())?));
    }
    let window = match &config.pmem {
        Some(pmem) => Some(window(inherited, config.memory, pmem)?),
        None => None,
    };
    if let Some(window) = &window {
        devices.push(Box::new(Pmem::new(window.range())));
    }
    devices.push(Box::new(Rng::new()));
    if config.free_page_reporting {
        devices.push(Box::new(Balloon::new()));
    }
    let window_bytes = window.as_ref().map_or(0, |window| window.range().length);
    let later = Later::new(config.memory, config.max_memory, window_bytes);
    let size = match later {
        Some(later) => {
            let size = MemorySize::new(config.memory, later);
            Some(size.map_err(|source| RunError::Mem { source })?)
        }
        None => None,
    };
    if let Some(size) = &size {
        devices.push(Box::new(Mem::new(size.clone())));
    }
    let listener = inherited.take(config.vsock.listener_fd, "the vsock listener")?;
    devices.push(Box::new(Vsock::new(MuxerConfig {
        guest_cid: config.vsock.cid,
        listener: UnixListener::from(listener),
        path: PathBuf::from(config.vsock.path),
    })?));
    for (index, net) in config.net.iter().enumerate() {
        devices.push(Box::new(network(inherited, index, net)?));
    }
    for share in &config.shares {
        let fd = inherited.take(share.fd, "a vhost-user back end")?;
        let device =
            FsDevice::new(&share.tag, UnixStream::from(fd)).map_err(|source| RunError::Share {
                tag: share.tag.clone(),
                source,
            })?;
        devices.push(Box::new(device));
    }
    let console = File::from(inherited.take(config.console_fd, "the console's memory file")?);
    let config = MachineConfig {
        kvm: machine::from_fd(inherited.take(config.kvm_fd, "/dev/kvm")?),
        kernel: File::from(inherited.take(config.kernel_fd, "the guest kernel")?),
        command_line: config.command_line,
        memory: config.memory,
        sharing: if config.shares.is_empty() {
            Sharing::Private
        } else {
            Sharing::Shared
        },
        window,
        later,
        vcpus: config.vcpus,
        devices,
        console: ConsoleRing::new(console)?,
        confinement: Confinement::new()?,
    };
    Ok((config, size))
}

fn network(inherited: &mut Inherited, index: usize, net: &NetConfig) -> Result<Net, RunError> {
    let mut queues = Vec::with_capacity(net.fds.len());
    for fd in &net.fds {
        queues.push(File::from(inherited.take(*fd, "a queue of a tap")?));
    }
    queues
        .into_iter()
        .map(Tap::new)
        .collect::<Result<Vec<_>, _>>()
        .and_then(|taps| Net::new(&format!("net{index}"), taps, net.mac, net.mtu))
        .map_err(|source| RunError::Net { index, source })
}

fn window(
    inherited: &mut Inherited,
    memory: MemMib,
    pmem: &PmemConfig,
) -> Result<Window, RunError> {
    let mut files = Vec::with_capacity(pmem.files.len());
    for file in &pmem.files {
        files.push(WindowFile {
            file: File::from(inherited.take(file.fd, "a file for persistent memory")?),
            offset: file.offset,
            bytes: file.bytes,
        });
    }
    Ok(Window::map(memory, pmem.bytes, files)?)
}

fn block(
    index: usize,
    disk: &BlockConfig,
    fd: OwnedFd,
    pace: Option<DiskPace>,
) -> Result<Block, RunError> {
    // Linux's name of the disk: there are fewer than 26.
    let letter = u8::try_from(index)
        .ok()
        .and_then(|index| b'a'.checked_add(index))
        .map_or('?', char::from);
    Block::new(
        &format!("vd{letter}"),
        File::from(fd),
        disk.read_only,
        &disk.serial,
    )
    .and_then(|block| match pace {
        Some(pace) => block.with_pace(pace),
        None => Ok(block),
    })
    .map_err(|source| RunError::Block {
        index,
        serial: disk.serial.clone(),
        source,
    })
}

/// Waits until the guest ends, or the other side of the control socket is gone (`None`), and does what that asks for meanwhile.
fn wait(
    running: &RunningMachine,
    control: &mut Control,
    size: Option<&MemorySize>,
) -> Result<Option<GuestExit>, RunError> {
    let end = running.end();
    loop {
        let mut fds = vec![
            PollFd::new(end, PollFlags::IN),
            PollFd::new(&*control, PollFlags::IN),
        ];
        if let Some(size) = size {
            let settled = crate::fd::borrow(size.settled());
            fds.push(PollFd::from_borrowed_fd(settled, PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => {
                return Err(RunError::Wait {
                    source: errno.into(),
                });
            }
        }
        let control_ready = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        if let Some(exit) = end.get() {
            return Ok(Some(exit.clone()));
        }
        if control_ready {
            let Some(requests) = control.requests() else {
                return Ok(None);
            };
            for request in requests {
                serve(&request, control, size);
            }
        }
        if let Some(memory) = size.and_then(MemorySize::take_settled) {
            control.tell(&MonitorEvent::MemorySet { memory });
        }
    }
}

fn serve(request: &MonitorRequest, control: &mut Control, size: Option<&MemorySize>) {
    match (request, size) {
        (MonitorRequest::SetMemory { memory }, Some(size)) => size.request(*memory),
        (MonitorRequest::SetMemory { .. }, None) => control.tell(&MonitorEvent::Refused {
            message: "the machine has no memory device".to_owned(),
        }),
    }
}
