//! The muxer as a vhost-user back end, for QEMU's `vhost-user-vsock-device`.
//!
//! QEMU keeps the event queue to itself and hands over the other two. It asks for the guest's identifier
//! with `VHOST_USER_GET_CONFIG`, so the protocol feature `CONFIG` is required. When QEMU stops the rings,
//! because the guest reset the device or is gone, every host socket is closed; when it disconnects, the
//! program ends.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use sandbox_jail::seccomp::SeccompError;
use sandbox_types::{GuestCid, MachineSizeError, WithCauses};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Error as VhostUserError, Listener};
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringMutex, VringT};
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use super::error::VsockError;
use super::muxer::{Muxer, MuxerConfig};
use super::protocol::{FEATURES, RX_QUEUE, TX_QUEUE};
use super::service::serve;
use crate::fd::{FdError, Inherited};
use crate::jail::{EnterError, JailArguments};
use crate::log;
use crate::virtio::copy_config;

/// Queues that QEMU hands over: receive and transmit.
const SERVED_QUEUES: usize = 2;
/// The most entries of a queue: QEMU's virtio-mmio lets the driver choose up to its own
/// `VIRTQUEUE_MAX_SIZE` whatever the device wants, and Linux takes the most there is.
const QUEUE_SIZE: usize = 1024;
/// What the event loop calls the muxer; up to [`SERVED_QUEUES`] is its own.
const HOST_EVENT: u64 = SERVED_QUEUES as u64 + 1;

/// How to call the program.
const USAGE: &str = "sandbox-vmm vsock-backend [--jail FD] [--sandbox DIR] --cid N --vhost-fd FD --listener-fd FD --path PATH";

/// Why the back end did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackendError {
    /// An argument that it does not know.
    #[error("unknown argument {argument:?}; usage: {USAGE}")]
    UnknownArgument {
        /// The argument.
        argument: OsString,
    },
    /// An option without what belongs to it, or with something else.
    #[error("{option} wants a value, not {value:?}; usage: {USAGE}")]
    Value {
        /// The option.
        option: &'static str,
        /// What it was given, if anything.
        value: Option<OsString>,
    },
    /// A reserved context identifier.
    #[error(transparent)]
    Cid(#[from] MachineSizeError),
    /// A descriptor that is not there.
    #[error(transparent)]
    Fd(#[from] FdError),
    /// The device itself.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// A resource of the host was refused.
    #[error("cannot {action}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is not in its jail.
    #[error(transparent)]
    Jail(#[from] EnterError),
    /// It is not confined.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    /// The vhost-user protocol failed.
    #[error("the vhost-user connection failed")]
    VhostUser(#[source] VhostUserDaemonError),
}

/// `vhost_user_backend::Error` is no [`std::error::Error`].
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct VhostUserDaemonError(String);

impl From<vhost_user_backend::Error> for BackendError {
    fn from(error: vhost_user_backend::Error) -> Self {
        Self::VhostUser(VhostUserDaemonError(error.to_string()))
    }
}

/// Serves one vhost-user master until it disconnects. `arguments` are those behind `vsock-backend`:
/// `--vhost-fd` is a listening Unix socket for the master, `--listener-fd` that of the vsock device.
#[must_use]
pub fn main(arguments: &[OsString]) -> ExitCode {
    let served = Arguments::parse(arguments).and_then(run);
    log::close();
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sandbox-vmm vsock-backend: {}", WithCauses(&error));
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug)]
struct Arguments {
    jail: JailArguments,
    cid: GuestCid,
    vhost_fd: i32,
    listener_fd: i32,
    path: PathBuf,
}

impl Arguments {
    fn parse(arguments: &[OsString]) -> Result<Self, BackendError> {
        let (mut cid, mut vhost_fd, mut listener_fd, mut path) = (None, None, None, None);
        let (jail, arguments) = JailArguments::take(arguments)?;
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let slot = match argument.to_str() {
                Some("--cid") => &mut cid,
                Some("--vhost-fd") => &mut vhost_fd,
                Some("--listener-fd") => &mut listener_fd,
                Some("--path") => &mut path,
                _ => {
                    return Err(BackendError::UnknownArgument {
                        argument: argument.clone(),
                    });
                }
            };
            *slot = rest.next().cloned();
        }
        Ok(Self {
            jail,
            cid: GuestCid::new(number("--cid", cid)?)?,
            vhost_fd: number("--vhost-fd", vhost_fd)?,
            listener_fd: number("--listener-fd", listener_fd)?,
            path: path
                .ok_or(BackendError::Value {
                    option: "--path",
                    value: None,
                })?
                .into(),
        })
    }
}

fn number<T: std::str::FromStr>(
    option: &'static str,
    value: Option<OsString>,
) -> Result<T, BackendError> {
    let parsed = value.as_ref().and_then(|v| v.to_str()?.parse().ok());
    parsed.ok_or(BackendError::Value { option, value })
}

fn run(arguments: Arguments) -> Result<(), BackendError> {
    let host = |action| move |source| BackendError::Host { action, source };
    let mut inherited = Inherited::new();
    // Before anything is opened.
    arguments.jail.enter(&mut inherited)?;
    let master = inherited.take(arguments.vhost_fd, "the vhost-user socket")?;
    let listener = inherited.take(arguments.listener_fd, "the vsock socket")?;
    let master = UnixListener::from(master);
    // Whoever made it may have wanted it otherwise; accepting must wait.
    master
        .set_nonblocking(false)
        .map_err(host("make the vhost-user socket blocking"))?;
    let muxer = Muxer::new(MuxerConfig {
        guest_cid: arguments.cid,
        listener: UnixListener::from(listener),
        path: arguments.path,
    })?;
    let watched = std::os::fd::AsFd::as_fd(&muxer).as_raw_fd();
    let exit = new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)
        .map_err(host("make an exit event"))?;
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let backend = Arc::new(Mutex::new(Backend {
        muxer,
        memory: memory.clone(),
        broken: false,
        exit,
    }));
    // Before QEMU is heard, and before there are threads, which inherit it.
    sandbox_jail::seccomp::report_violations()?;
    crate::seccomp::backend_filter()?.install()?;
    let mut daemon = VhostUserDaemon::new("vhost-user".to_owned(), backend, memory)?;
    for handler in daemon.get_epoll_handlers() {
        handler
            .register_listener(watched, EventSet::IN, HOST_EVENT)
            .map_err(host("watch the vsock sockets"))?;
    }
    daemon.start(&mut Listener::from(master))?;
    match daemon.wait() {
        // How a master that ends goes, whatever it was about to say.
        Ok(())
        | Err(vhost_user_backend::Error::HandleRequest(
            VhostUserError::Disconnected
            | VhostUserError::PartialMessage
            | VhostUserError::SocketBroken(_),
        )) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What QEMU talks to.
struct Backend {
    muxer: Muxer,
    memory: GuestMemoryAtomic<GuestMemoryMmap>,
    /// The driver broke a ring: nothing is served until it resets the device.
    broken: bool,
    exit: (EventConsumer, EventNotifier),
}

impl Backend {
    /// One pass; says whether another is needed.
    fn pass(&mut self, rx: &VringMutex, tx: &VringMutex) -> Result<bool, VsockError> {
        let (mut rx, mut tx) = (rx.get_mut(), tx.get_mut());
        let ready = [&rx, &tx]
            .iter()
            .all(|ring| ring.is_enabled() && ring.get_queue().ready());
        if !ready || self.broken {
            // The host's clients are looked after, or their events would wake the loop for ever.
            self.muxer.process_host()?;
            return Ok(false);
        }
        let memory = self.memory.memory();
        let notify = serve(
            &mut self.muxer,
            &memory,
            rx.get_queue_mut(),
            tx.get_queue_mut(),
        )?;
        for (ring, wanted) in [(&rx, notify.rx), (&tx, notify.tx)] {
            if wanted {
                ring.signal_used_queue()
                    .map_err(VsockError::system("interrupt the driver"))?;
            }
        }
        Ok(notify.again)
    }
}

impl VhostUserBackendMut for Backend {
    type Bitmap = ();
    type Vring = VringMutex;

    fn num_queues(&self) -> usize {
        SERVED_QUEUES
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        FEATURES | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
    }

    fn set_event_idx(&mut self, _enabled: bool) {
        // The rings know, and nobody else asks.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let space = self.muxer.guest_cid().to_le_bytes();
        let size = usize::try_from(size).unwrap_or(0).min(space.len());
        let mut data = vec![0; size];
        copy_config(&space, offset.into(), &mut data);
        data
    }

    fn update_memory(&mut self, memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        self.memory = memory;
        Ok(())
    }

    fn stop_vring(&mut self, _queue: u32) -> io::Result<()> {
        self.muxer.reset();
        self.broken = false;
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        let (consumer, notifier) = &self.exit;
        Some((consumer.try_clone().ok()?, notifier.try_clone().ok()?))
    }

    fn handle_event(
        &mut self,
        _event: u16,
        _events: EventSet,
        vrings: &[VringMutex],
        _thread: usize,
    ) -> io::Result<()> {
        let (Some(rx), Some(tx)) = (vrings.get(RX_QUEUE), vrings.get(TX_QUEUE)) else {
            return Ok(());
        };
        loop {
            match self.pass(rx, tx) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error @ VsockError::CorruptRing { .. }) => {
                    // A driver can cause this as often as it resets the device.
                    log::guest(format_args!("vsock: {}", WithCauses(&error)));
                    self.broken = true;
                    self.muxer.reset();
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, BackendError> {
        let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        Arguments::parse(&arguments)
    }

    #[test]
    fn arguments_complete_are_parsed() {
        let arguments = parse("--cid 5 --vhost-fd 3 --listener-fd 4 --path /x/v").unwrap();
        assert_eq!(arguments.cid.get(), 5);
        assert_eq!((arguments.vhost_fd, arguments.listener_fd), (3, 4));
        assert_eq!(arguments.path, PathBuf::from("/x/v"));
    }

    #[test]
    fn arguments_wrong_are_named() {
        for (line, word) in [
            ("--cid 2 --vhost-fd 3 --listener-fd 4 --path /x", "reserved"),
            ("--cid x --vhost-fd 3 --listener-fd 4 --path /x", "--cid"),
            ("--cid 5 --listener-fd 4 --path /x", "--vhost-fd"),
            ("--cid 5 --vhost-fd 3 --listener-fd", "--listener-fd"),
            ("--cid 5 --vhost-fd 3 --listener-fd 4", "--path"),
            ("--hello 5", "--hello"),
        ] {
            let message = parse(line).unwrap_err().to_string();
            assert!(message.contains(word), "{line}: {message}");
        }
    }
}
