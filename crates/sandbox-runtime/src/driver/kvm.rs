//! The `kvm` driver: our monitor, `sandbox-vmm run`, described in [`sandbox_types::monitor`].
//!
//! It gets every file it needs as an open descriptor, its configuration as JSON on descriptor 3 and a socket on
//! descriptor 4, on which it reports what happens; it ends when that socket does.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::MemfdFlags;
use sandbox_types::GuestCid;
use sandbox_types::monitor::{
    BlockConfig, CONFIG_FD, CONTROL_FD, GuestExit, MonitorConfig, MonitorEvent, NetConfig,
    ShareConfig, VsockConfig,
};
use sandbox_types::timeline::Phase;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use super::{
    DriverError, HypervisorDriver, MachineRequest, Parts, ROOT_SERIAL, open, plumbing, virtiofsd,
};
use crate::console::{Console, printable};
use crate::event::DeathCause;
use crate::process::{Launch, Process, ProcessEnd};
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
}

impl Kvm {
    pub(super) fn new() -> Self {
        Self {
            report: Arc::default(),
        }
    }
}

impl HypervisorDriver for Kvm {
    fn start(&mut self, request: &mut MachineRequest<'_>) -> Result<Parts, DriverError> {
        let plan = request.plan;
        let config = &plan.config;
        let mut launch = Launch::new("sandbox-vmm", config.monitor_path()?);
        launch.arg("run");
        if let Some(jail) = request.jail {
            launch.jail(jail.monitor(), request.dir)?;
        }
        request.place(&mut launch)?;
        let console = Console::create(request.dir).map_err(plumbing("the console's file"))?;
        let mut helpers = Vec::new();
        let mut shares = Vec::new();
        if let Some(share) = request.share {
            let (path, process) = virtiofsd::start(request, share.folder())?;
            helpers.push(process);
            let stream =
                UnixStream::connect(path).map_err(plumbing("a connection to virtiofsd"))?;
            shares.push(ShareConfig {
                fd: launch.pass(&stream)?,
                tag: TAG.to_owned(),
            });
        }
        let image = config.image_path()?;
        let mut block = vec![BlockConfig {
            fd: launch.pass(open("the guest image", &image, true)?)?,
            read_only: true,
            serial: ROOT_SERIAL.to_owned(),
        }];
        for device in &plan.block {
            block.push(BlockConfig {
                fd: launch.pass(open("the disk image", &device.path, device.read_only)?)?,
                read_only: device.read_only,
                serial: device.serial.clone(),
            });
        }
        let mut net = Vec::new();
        for nic in request.nics {
            net.push(NetConfig {
                fd: launch.pass(&nic.queue)?,
                mac: nic.mac,
                mtu: nic.max_mtu,
            });
        }
        let monitor_config = MonitorConfig {
            kvm_fd: launch.pass(open("the KVM device", Path::new("/dev/kvm"), false)?)?,
            kernel_fd: launch.pass(open("the guest kernel", &config.kernel_path()?, true)?)?,
            command_line: request.command_line(),
            memory: plan.memory,
            vcpus: plan.vcpus,
            block,
            net,
            shares,
            vsock: VsockConfig {
                cid: GuestCid::FIRST,
                listener_fd: launch.pass(request.vsock_listener)?,
                path: request.ports_inside().display().to_string(),
            },
            console_fd: launch.pass(&console)?,
        };
        let (ours, theirs) = UnixStream::pair().map_err(plumbing("the control socket"))?;
        let config_file =
            config_file(&monitor_config).map_err(plumbing("the monitor's configuration"))?;
        launch
            .pass_as(config_file, CONFIG_FD)
            .pass_as(theirs.into(), CONTROL_FD);
        let mut process = launch.spawn()?;
        request.record.add_process(process.name(), process.pid())?;
        ours.set_nonblocking(true)
            .and_then(|()| tokio::net::UnixStream::from_std(ours))
            .map(|control| {
                process.attach(tokio::spawn(read_events(
                    control,
                    Arc::clone(&self.report),
                    Arc::clone(&request.timeline),
                )));
            })
            .map_err(plumbing("the control socket"))?;
        Ok(Parts {
            process,
            helpers,
            console,
        })
    }

    fn cause(&self, end: ProcessEnd, process: &Process, console: &Console) -> DeathCause {
        let report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        cause(&report, end, || process.last_words(), console)
    }
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

/// Reads events until the monitor is gone. It runs a guest that may have taken it over, so its lines are bounded.
async fn read_events(
    control: tokio::net::UnixStream,
    report: Arc<Mutex<Report>>,
    timeline: Arc<Timeline>,
) {
    let raw = control.as_raw_fd();
    let mut control = BufReader::new(control);
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
                tracing::warn!(fd = raw, %error, "the monitor sent what is no event");
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
            MonitorEvent::Exited { reason } => report.exit = Some(reason),
        }
    }
}

fn cause(
    report: &Report,
    end: ProcessEnd,
    last_words: impl FnOnce() -> String,
    console: &Console,
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
        };
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
        cause(&report, end, || "words".to_owned(), &console)
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
                b"{\"event\":\"started\",\"process_ns\":1,\"first_instruction_ns\":2}\nnonsense\n",
            )
            .unwrap();
        let report = Arc::default();
        let timeline = Arc::new(Timeline::new(None));
        read_events(ours, Arc::clone(&report), Arc::clone(&timeline)).await;
        assert_eq!(timeline.marks().len(), 2);
        assert!(report.lock().unwrap().exit.is_none());
    }
}
