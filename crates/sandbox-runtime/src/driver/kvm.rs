//! The `kvm` driver: our monitor, `sandbox-vmm run`, described in [`sandbox_types::monitor`].
//!
//! It gets every file it needs as an open descriptor: what it can begin with, and its configuration as JSON, when it is started, the rest
//! with a request on the socket on which it reports what happens. It ends when that socket does.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::MemfdFlags;
use sandbox_types::monitor::{
    BlockConfig, CONFIG_FD, CONTROL_FD, FILE_LOST_EXIT_CODE, GuestExit, MAX_DISK_QUEUES,
    MachineDevices, MonitorConfig, MonitorEvent, NetConfig, PmemConfig, PmemFileConfig,
    ShareConfig, VsockConfig,
};
use sandbox_types::timeline::Phase;
use sandbox_types::{GuestCid, MemMib};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::sync::watch;

use super::passing::Passing;
use super::{
    BegunMachine, DriverError, HypervisorDriver, MachineBasis, MachineRequest, MemoryControl,
    Parts, ROOT_SERIAL, SentRequests, open, open_disk, plumbing, virtiofsd,
};
use crate::cleanup::Record;
use crate::console::{Console, printable};
use crate::event::DeathCause;
use crate::process::{Launch, Process, ProcessEnd};
use crate::rootfs::window::{MappedLayer, device_bytes};
use crate::share::TAG;
use crate::timeline::Timeline;

/// The longest event, in bytes.
const MAX_EVENT_BYTES: usize = 64 * 1024;
/// The most that is kept of what the monitor says of a failure.
const MAX_DETAIL_BYTES: usize = 4096;

/// What the monitor has said so far.
#[derive(Debug, Default)]
struct Report {
    exit: Option<GuestExit>,
    failure: Option<String>,
}

#[derive(Debug)]
pub(super) struct Kvm {
    report: Arc<Mutex<Report>>,
    /// The files that the guest has as memory, in the order of the monitor's configuration.
    mapped: Vec<PathBuf>,
}

impl Kvm {
    pub(super) fn new() -> Self {
        Self {
            report: Arc::default(),
            mapped: Vec::new(),
        }
    }
}

/// A monitor that has been started, loads the kernel, and then waits to be told its devices.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) process: Process,
    console: Console,
    control: UnixStream,
    /// Where the guest has been told that its image is in memory.
    root: Option<MappedLayer>,
}

impl Waiting {
    /// Starts one.
    pub(super) fn begin(basis: MachineBasis<'_>, record: &mut Record) -> Result<Self, DriverError> {
        let config = basis.config;
        let mut launch = Launch::new("sandbox-vmm", config.monitor_path()?);
        launch.arg("run");
        if let Some(jail) = basis.jail {
            launch.jail(jail.monitor(), basis.dir)?;
        }
        basis.place(&mut launch)?;
        let console = Console::create(basis.dir).map_err(plumbing("the console's file"))?;
        let root = basis.image_in_memory();
        let monitor_config = MonitorConfig {
            kvm_fd: launch.pass(open("the KVM device", Path::new("/dev/kvm"), false)?)?,
            kernel_fd: launch.pass(open("the guest kernel", &config.kernel_path()?, true)?)?,
            command_line: basis.command_line(root.as_ref()),
            memory: basis.size.memory,
            max_memory: basis.most.memory,
            vcpus: basis.most.vcpus,
            shared_memory: basis.shared_memory,
            console_fd: launch.pass(&console)?,
        };
        let (control, theirs) = UnixStream::pair().map_err(plumbing("the control socket"))?;
        let config_file =
            config_file(&monitor_config).map_err(plumbing("the monitor's configuration"))?;
        launch
            .pass_as(config_file, CONFIG_FD)
            .pass_as(theirs.into(), CONTROL_FD);
        let process = launch.spawn()?;
        record.add_process(process.name(), process.pid())?;
        Ok(Self {
            process,
            console,
            control,
            root,
        })
    }
}

impl HypervisorDriver for Kvm {
    fn start(&mut self, request: &mut MachineRequest<'_>) -> Result<Parts, DriverError> {
        let plan = request.plan;
        let config = &plan.basis.config;
        let waiting = match request.begun.take() {
            Some(BegunMachine(waiting)) => waiting,
            None => Waiting::begin(request.basis, request.record)?,
        };
        let mut passing = Passing::default();
        let mut helpers = Vec::new();
        let mut shares = Vec::new();
        if let Some(share) = request.share {
            let (path, process) = virtiofsd::start(request, &share.served())?;
            helpers.push(process);
            let stream =
                UnixStream::connect(path).map_err(plumbing("a connection to virtiofsd"))?;
            shares.push(ShareConfig {
                fd: passing.pass(&stream)?,
                tag: TAG.to_owned(),
            });
        }
        let image = config.image_path()?;
        let mut block = vec![BlockConfig {
            fd: passing.pass(open("the guest image", &image, true)?)?,
            read_only: true,
            serial: ROOT_SERIAL.to_owned(),
            // It is read when the guest starts, if at all.
            queues: 1,
        }];
        let vcpus = usize::from(plan.basis.size.vcpus.get());
        for device in &plan.block {
            block.push(BlockConfig {
                fd: passing.pass(open_disk(device)?)?,
                read_only: device.read_only,
                serial: device.serial.clone(),
                queues: vcpus.min(MAX_DISK_QUEUES),
            });
        }
        let mapped: Vec<_> = waiting.root.iter().chain(&plan.layers).collect();
        self.mapped = mapped.iter().map(|one| one.path.clone()).collect();
        let pmem = persistent_memory(&mut passing, &mapped)?;
        let mut net = Vec::new();
        for nic in request.nics {
            let queues = nic.queues.iter();
            net.push(NetConfig {
                fds: queues
                    .map(|queue| passing.pass(queue))
                    .collect::<Result<_, _>>()?,
                mac: nic.mac,
                mtu: nic.max_mtu,
            });
        }
        let devices = MachineDevices {
            block,
            pmem,
            disk_limits: config.disk_limits(),
            net,
            shares,
            vsock: VsockConfig {
                cid: GuestCid::FIRST,
                listener_fd: passing.pass(request.vsock_listener)?,
                path: request.ports_inside().display().to_string(),
            },
            free_page_reporting: config.free_page_reporting,
        };
        let Waiting {
            mut process,
            console,
            control,
            ..
        } = waiting;
        passing.send(devices, &control)?;
        let control = control
            .set_nonblocking(true)
            .and_then(|()| tokio::net::UnixStream::from_std(control))
            .map_err(plumbing("the control socket"))?;
        let (events, requests) = control.into_split();
        let (said, set) = watch::channel(None);
        let sent = SentRequests::default();
        process.attach(tokio::spawn(read_events(
            events,
            Arc::clone(&self.report),
            Arc::clone(&request.timeline),
            sent.clone(),
            said,
        )));
        Ok(Parts {
            process,
            helpers,
            console,
            memory: Some(MemoryControl::new(requests, sent, set)),
        })
    }

    fn cause(&self, end: ProcessEnd, process: &Process, console: &Console) -> DeathCause {
        let report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        cause(&report, end, || process.last_words(), console, &self.mapped)
    }
}

/// The device of what the guest gets as memory, if it does: its own image, and the layers.
fn persistent_memory(
    passing: &mut Passing,
    mapped: &[&MappedLayer],
) -> Result<Option<PmemConfig>, DriverError> {
    let Some(last) = mapped.last() else {
        return Ok(None);
    };
    let mut files = Vec::with_capacity(mapped.len());
    for one in mapped {
        files.push(PmemFileConfig {
            fd: passing.pass(open("an image to map", &one.path, true)?)?,
            offset: one.offset,
            bytes: one.bytes,
        });
    }
    Ok(Some(PmemConfig {
        files,
        bytes: device_bytes(last),
    }))
}

fn config_file(config: &MonitorConfig) -> std::io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create(
        "sandbox-vmm-config",
        MemfdFlags::CLOEXEC,
    )?);
    file.write_all(&serde_json::to_vec(config)?)?;
    file.rewind()?;
    Ok(file.into())
}

/// Reads events until the monitor is gone. It runs a guest that may have taken it over, so its lines are bounded, and so is how often it is heard to
/// refuse a request: once for each that was sent.
async fn read_events(
    control: impl AsyncRead + Unpin,
    report: Arc<Mutex<Report>>,
    timeline: Arc<Timeline>,
    sent: SentRequests,
    memory: watch::Sender<Option<MemMib>>,
) {
    let mut control = BufReader::new(control);
    let mut refused = 0_usize;
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut control).take(MAX_EVENT_BYTES as u64);
        match bounded.read_until(b'\n', &mut line).await {
            Ok(1..) if line.ends_with(b"\n") => {}
            _ => return,
        }
        let event = match serde_json::from_slice(&line) {
            Ok(event) => event,
            Err(error) => {
                tracing::warn!(%error, "the monitor sent what is no event");
                return;
            }
        };
        let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            MonitorEvent::Started {
                process_ns,
                first_instruction_ns,
            } => {
                timeline.mark_at(Phase::MonitorStarted, process_ns);
                timeline.mark_at(Phase::FirstInstruction, first_instruction_ns);
            }
            MonitorEvent::Failed { message } => {
                report.failure = Some(printable(message.as_bytes(), MAX_DETAIL_BYTES));
            }
            MonitorEvent::MemorySet { memory: now } => {
                memory.send_replace(Some(now));
            }
            MonitorEvent::Refused { .. } if refused >= sent.count() => {
                tracing::warn!("the monitor refuses what it was not asked for");
                return;
            }
            MonitorEvent::Refused { message } => {
                refused = refused.saturating_add(1);
                let message = printable(message.as_bytes(), MAX_DETAIL_BYTES);
                tracing::warn!(reason = message, "the monitor refuses a request");
            }
            MonitorEvent::Exited { reason } => report.exit = Some(reason),
        }
    }
}

fn cause(
    report: &Report,
    end: ProcessEnd,
    last_words: impl FnOnce() -> String,
    console: &Console,
    mapped: &[PathBuf],
) -> DeathCause {
    if end.is_violation() {
        // Whatever it reported before.
        return DeathCause::MonitorViolation {
            detail: last_words(),
        };
    }
    if let Some(exit) = &report.exit {
        return match exit {
            GuestExit::Shutdown => DeathCause::GuestShutdown,
            GuestExit::Panic => DeathCause::GuestPanic,
            GuestExit::Reset if console.shows_panic() => DeathCause::GuestPanic,
            GuestExit::Reset => DeathCause::GuestReset,
            GuestExit::TripleFault => DeathCause::TripleFault,
            GuestExit::KvmError { detail } => {
                DeathCause::KvmError(printable(detail.as_bytes(), MAX_DETAIL_BYTES))
            }
            GuestExit::FileLost {
                index,
                bytes,
                expected,
            } => {
                let file = usize::try_from(*index)
                    .ok()
                    .and_then(|index| mapped.get(index));
                let name = file.map_or_else(|| "a layer".to_owned(), |f| f.display().to_string());
                DeathCause::LayerLost(format!("{name} has {bytes} of its {expected} bytes left"))
            }
        };
    }
    if end == ProcessEnd::Exited(FILE_LOST_EXIT_CODE.into()) {
        return DeathCause::LayerLost(last_words().trim().to_owned());
    }
    let detail = match &report.failure {
        Some(message) => message.clone(),
        None => last_words(),
    };
    match end {
        ProcessEnd::Killed(signal) => DeathCause::MonitorKilled { signal },
        ProcessEnd::Exited(code) => DeathCause::MonitorFailed { code, detail },
        ProcessEnd::Unknown => DeathCause::MonitorFailed { code: -1, detail },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_types::monitor::VIOLATION_EXIT_CODE;

    fn cause_of(exit: Option<GuestExit>, failure: Option<&str>, end: ProcessEnd) -> DeathCause {
        let report = Report {
            exit,
            failure: failure.map(str::to_owned),
        };
        let folder = tempfile::tempdir().unwrap();
        let console = Console::create(folder.path()).unwrap();
        let layers = ["/l/0.erofs", "/l/1.erofs"].map(PathBuf::from);
        cause(&report, end, || "words".to_owned(), &console, &layers)
    }

    #[test]
    fn cause_is_what_the_monitor_reported() {
        let end = ProcessEnd::Exited(80);
        assert_eq!(
            cause_of(Some(GuestExit::Panic), None, end),
            DeathCause::GuestPanic
        );
        assert_eq!(
            cause_of(Some(GuestExit::TripleFault), None, end),
            DeathCause::TripleFault
        );
        assert_eq!(
            cause_of(None, Some("no memory"), ProcessEnd::Exited(1)),
            DeathCause::MonitorFailed {
                code: 1,
                detail: "no memory".into()
            }
        );
    }

    #[test]
    fn cause_is_the_layer_that_was_lost() {
        let lost = |index| GuestExit::FileLost {
            index,
            bytes: 1,
            expected: 2,
        };
        let end = ProcessEnd::Exited(FILE_LOST_EXIT_CODE.into());
        for (exit, told) in [
            (Some(lost(1)), "/l/1.erofs has 1 of its 2 bytes left"),
            (Some(lost(2)), "a layer has 1 of its 2 bytes left"),
            (None, "words"),
        ] {
            let cause = cause_of(exit, None, end);
            assert_eq!(cause, DeathCause::LayerLost(told.to_owned()));
        }
    }

    #[test]
    fn cause_is_the_call_that_was_refused_whatever_was_reported() {
        for end in [
            ProcessEnd::Exited(VIOLATION_EXIT_CODE.into()),
            ProcessEnd::Killed(nix::libc::SIGSYS),
        ] {
            assert_eq!(
                cause_of(Some(GuestExit::Shutdown), None, end),
                DeathCause::MonitorViolation {
                    detail: "words".into()
                }
            );
        }
    }

    #[test]
    fn cause_without_report_is_how_the_monitor_ended() {
        assert_eq!(
            cause_of(None, None, ProcessEnd::Killed(9)),
            DeathCause::MonitorKilled { signal: 9 }
        );
        assert_eq!(
            cause_of(None, None, ProcessEnd::Exited(101)),
            DeathCause::MonitorFailed {
                code: 101,
                detail: "words".into()
            }
        );
    }

    #[tokio::test]
    async fn events_are_read_and_nonsense_ends_the_reading() {
        let (mut monitor, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let ours = tokio::net::UnixStream::from_std(ours).unwrap();
        monitor
            .write_all(
                b"{\"event\":\"started\",\"process_ns\":1,\"first_instruction_ns\":2}\n\
                  {\"event\":\"memory-set\",\"memory\":256}\nnonsense\n",
            )
            .unwrap();
        let report = Arc::default();
        let timeline = Arc::new(Timeline::new(None));
        let (said, set) = watch::channel(None);
        let sent = SentRequests::default();
        read_events(ours, Arc::clone(&report), Arc::clone(&timeline), sent, said).await;
        assert_eq!(*set.borrow(), Some(MemMib::new(256).unwrap()));
        assert_eq!(timeline.marks().len(), 2);
        assert!(report.lock().unwrap().exit.is_none());
    }

    #[tokio::test]
    async fn monitor_that_refuses_more_than_it_is_asked_is_heard_no_more() {
        let refused = b"{\"event\":\"refused\",\"message\":\"no\"}\n";
        let set = b"{\"event\":\"memory-set\",\"memory\":256}\n";
        for (requests, is_heard) in [(0, false), (1, false), (2, true), (3, true)] {
            let sent = SentRequests::default();
            (0..requests).for_each(|_| sent.add());
            let (said, heard) = watch::channel(None);
            let events = [&refused[..], refused, set].concat();
            let timeline = Arc::new(Timeline::new(None));
            read_events(&events[..], Arc::default(), timeline, sent, said).await;
            assert_eq!(heard.borrow().is_some(), is_heard, "{requests}");
        }
    }
}
