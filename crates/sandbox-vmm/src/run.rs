//! `sandbox-vmm run`: from the configuration to the guest's end.

mod parts;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use sandbox_jail::seccomp::SeccompError;
use sandbox_types::WithCauses;
use sandbox_types::monitor::{
    CONFIG_FD, CONTROL_FD, GuestExit, MonitorConfig, MonitorEvent, MonitorRequest, console_ring,
};

use crate::control::{ConfigError, Control, FirstRequestError, read_config};
use crate::devices::{ConsoleError, ConsoleRing};
use crate::fd::{FdError, Inherited};
use crate::jail::{EnterError, JailArguments};
use crate::log;
use crate::machine::{
    self, LoadedMachine, Machine, MachineBasis, MachineError, MachineParts, RunningMachine,
};
use crate::memory::Sharing;
use crate::process;
use crate::seccomp::Confinement;
use crate::virtio::mem::MemorySize;

use parts::Devices;
pub(crate) use parts::DevicesError;

/// Exit code when the machine could not be built.
pub(crate) const EXIT_FAILED: u8 = 1;
/// Descriptors for which the kernel makes room at once: growing the table later, with threads, makes it wait
/// for a grace period each time.
const DESCRIPTORS: i32 = 512;

/// Why the machine could not be built or waited for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
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
    /// The request that names the devices.
    #[error(transparent)]
    FirstRequest(#[from] FirstRequestError),
    /// The devices.
    #[error(transparent)]
    Devices(#[from] DevicesError),
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

/// Builds and runs the machine of the configuration on [`CONFIG_FD`] and of the first request, and returns the process's exit code.
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
            let message = WithCauses(&error).to_string();
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
    let (basis, console) = basis(inherited, config)?;
    let mut loaded = LoadedMachine::load(basis)?;
    let confinement = Confinement::new()?;
    let Some((devices, passed)) = control.first_request()? else {
        return Ok(None);
    };
    if !devices.shares.is_empty() {
        loaded.share()?;
    }
    let devices = Devices::make(&loaded, devices, passed)?;
    let (size, file_bytes) = (devices.size, devices.file_bytes);
    let parts = MachineParts {
        window: devices.window,
        later: devices.later,
        devices: devices.all,
        console,
        confinement,
    };
    let machine = Machine::build(loaded, parts)?;
    bound_files(file_bytes)?;
    let (running, first_instruction_ns) = machine.start(monotonic_ns)?;
    control.tell(&MonitorEvent::Started {
        process_ns,
        first_instruction_ns,
    });
    for request in control.begun_requests() {
        serve(&request, control, size.as_ref());
    }
    let end = wait(&running, control, size.as_ref())?;
    // Neither joined nor dropped: taking a VM apart takes KVM milliseconds, which would delay the news of its
    // end. The process ends, and the kernel does it.
    std::mem::forget(running);
    Ok(end)
}

/// Lets no file become longer than the longest that the guest's devices write: who takes the monitor over does not fill the host's file systems by
/// its disks. Everything that the monitor makes itself has its length by now.
fn bound_files(device_bytes: u64) -> Result<(), RunError> {
    let console = u64::try_from(console_ring::FILE_BYTES).unwrap_or(u64::MAX);
    // What it says is not to fail: by hand, it may go to a file, which is as long as it is. The runtime reads it from a pipe.
    let errors = rustix::fs::fstat(rustix::stdio::stderr());
    if errors.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_file()) {
        return Ok(());
    }
    process::ignore_file_limit();
    let lowered = sandbox_jail::limits::lower_file_bytes(device_bytes.max(console));
    Ok(lowered.map_err(EnterError::from)?)
}

/// Duplicates a descriptor to a high number and closes it again.
fn make_room_for_descriptors(any: impl AsFd) {
    // Without it everything works, only slower.
    drop(rustix::io::fcntl_dupfd_cloexec(any, DESCRIPTORS - 1));
}

/// What the configuration names.
fn basis(
    inherited: &mut Inherited,
    config: MonitorConfig,
) -> Result<(MachineBasis, ConsoleRing), RunError> {
    let console = File::from(inherited.take(config.console_fd, "the console's memory file")?);
    let basis = MachineBasis {
        kvm: machine::from_fd(inherited.take(config.kvm_fd, "/dev/kvm")?),
        kernel: File::from(inherited.take(config.kernel_fd, "the guest kernel")?),
        command_line: config.command_line,
        memory: config.memory,
        max_memory: config.max_memory,
        sharing: match config.shared_memory {
            true => Sharing::Shared,
            false => Sharing::Private,
        },
        vcpus: config.vcpus,
    };
    Ok((basis, ConsoleRing::new(console)?))
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
    let message = match (request, size) {
        (MonitorRequest::SetMemory { memory }, Some(size)) => return size.request(*memory),
        (MonitorRequest::SetMemory { .. }, None) => "the machine has no memory device",
        (MonitorRequest::Run { .. }, _) => "the machine runs already",
    };
    control.tell(&MonitorEvent::Refused {
        message: message.to_owned(),
    });
}
