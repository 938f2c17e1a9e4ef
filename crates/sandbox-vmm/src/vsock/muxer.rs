//! All connections of a device, the host's sockets and the two rings. No threads: whoever owns the rings
//! calls [`Muxer::process_host`] when [`Muxer::as_fd`] is readable, [`Muxer::process_tx`] when the guest
//! sent, and [`Muxer::process_rx`] after either and when the guest added buffers. Each call does a
//! bounded amount of work and says whether there is more.
//!
//! Connections with something to say stand in one queue and take turns packet by packet. Everything that
//! the guest or a host client can make grow is bounded here: see the constants.

mod guest;
mod host;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use sandbox_types::GuestCid;

use super::endpoint::{Endpoint, Ports};
use super::error::VsockError;
use super::protocol::Header;

/// The most connections, those included that only drain to a slow host socket.
pub(crate) const MAX_CONNECTIONS: usize = 1024;
/// The most host clients that have not said where they want to go. One more drops the oldest.
pub(crate) const MAX_HANDSHAKES: usize = 64;
/// The most `RST` answers to packets of no connection that wait for a receive buffer; more are dropped,
/// and the guest's own time limit stands in for them.
pub(crate) const MAX_REFUSALS: usize = 256;
/// How long a host client may take to say where it wants to go.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long no client is accepted after the process ran out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);
/// Bytes of the guest's held for a slow host socket, `buf_alloc`: enough to keep a pipe full for the first
/// connections, less for each after, so that all together hold at most 76 MiB.
const LARGE_WINDOW: u32 = 256 * 1024;
const SMALL_WINDOW: u32 = 64 * 1024;
const LARGE_WINDOWS: usize = 64;
/// The longest `_<port>`.
const PORT_SUFFIX_BYTES: usize = "_4294967295".len();
/// `sun_path` without its terminating zero.
const UNIX_PATH_BYTES: usize = 107;
/// Host ports of connections that host clients open: out of the way of well-known ports.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// Names a connection or handshake for as long as the muxer lives; never used twice.
type Id = u64;
/// What `epoll` says for the muxer's own descriptors.
const LISTENER: Id = 0;
const TIMER: Id = 1;
const FIRST_ID: Id = 2;

/// What a muxer needs.
#[derive(Debug)]
pub struct MuxerConfig {
    /// The guest's context identifier.
    pub guest_cid: GuestCid,
    /// Where host clients connect.
    pub listener: UnixListener,
    /// Prefix of the sockets that guest-opened connections go to.
    pub path: PathBuf,
}

/// How far a call came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Progress {
    /// Buffers were handed back to the driver.
    pub used: bool,
    /// The bound on the work of one call was reached; call again.
    pub more: bool,
}

/// Counts of what was refused. For diagnostics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Refused {
    /// Guest packets that were not packets, or not for or from this device.
    pub malformed: u64,
    /// Guest packets of no connection, or connects that nobody took; each was answered by `RST`.
    pub unknown: u64,
    /// `RST` answers that did not fit.
    pub answers: u64,
    /// Host clients that were dropped before they had a connection.
    pub clients: u64,
}

/// A host client that has not said where it wants to go.
#[derive(Debug)]
struct Handshake {
    stream: UnixStream,
    deadline: Instant,
}

/// All connections of a device.
#[derive(Debug)]
pub(crate) struct Muxer {
    guest_cid: u64,
    path: PathBuf,
    listener: UnixListener,
    accepting_again: Option<Instant>,
    epoll: OwnedFd,
    timer: OwnedFd,
    armed: Option<Instant>,
    endpoints: HashMap<Id, Endpoint>,
    by_ports: HashMap<Ports, Id>,
    handshakes: BTreeMap<Id, Handshake>,
    /// Deadlines of connections; those of handshakes are in the order of their ids.
    deadlines: BTreeSet<(Instant, Id)>,
    /// Connections with something to say, each once.
    queue: VecDeque<Id>,
    refusals: VecDeque<Header>,
    refused: Refused,
    next_id: Id,
    next_host_port: u32,
}

impl AsFd for Muxer {
    /// Readable when [`Muxer::process_host`] has something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Muxer {
    /// A muxer without connections.
    ///
    /// # Errors
    /// [`VsockError::PathTooLong`], or [`VsockError::System`] when the kernel gives no descriptors.
    pub(crate) fn new(config: MuxerConfig) -> Result<Self, VsockError> {
        let length = config.path.as_os_str().as_bytes().len();
        let limit = UNIX_PATH_BYTES - PORT_SUFFIX_BYTES;
        if length > limit {
            return Err(VsockError::PathTooLong {
                path: config.path,
                length,
                limit,
            });
        }
        config
            .listener
            .set_nonblocking(true)
            .map_err(VsockError::system("make the listening socket non-blocking"))?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(VsockError::system("create an epoll"))?;
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )
        .map_err(VsockError::system("create a timer"))?;
        for (fd, id) in [(config.listener.as_fd(), LISTENER), (timer.as_fd(), TIMER)] {
            epoll::add(
                &epoll,
                fd,
                epoll::EventData::new_u64(id),
                epoll::EventFlags::IN,
            )
            .map_err(VsockError::system("watch its own descriptors"))?;
        }
        Ok(Self {
            guest_cid: config.guest_cid.get(),
            path: config.path,
            listener: config.listener,
            accepting_again: None,
            epoll,
            timer,
            armed: None,
            endpoints: HashMap::new(),
            by_ports: HashMap::new(),
            handshakes: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            queue: VecDeque::new(),
            refusals: VecDeque::new(),
            refused: Refused::default(),
            next_id: FIRST_ID,
            next_host_port: FIRST_HOST_PORT,
        })
    }

    /// The guest's context identifier.
    #[must_use]
    pub(crate) fn guest_cid(&self) -> u64 {
        self.guest_cid
    }

    /// What was refused since the start.
    #[cfg(test)]
    pub(crate) fn refused(&self) -> Refused {
        self.refused
    }

    /// Connections, those included that only drain to the host.
    #[cfg(test)]
    pub(crate) fn connections(&self) -> usize {
        self.endpoints.len()
    }

    /// Something waits for a receive buffer. (A connection may turn out to have nothing after all.)
    #[must_use]
    pub(crate) fn has_pending_rx(&self) -> bool {
        !self.refusals.is_empty() || !self.queue.is_empty()
    }

    /// The guest reset the device: every host socket is closed, and clients that wait are turned away.
    pub(crate) fn reset(&mut self) {
        self.endpoints.clear();
        self.by_ports.clear();
        self.handshakes.clear();
        self.deadlines.clear();
        self.queue.clear();
        self.refusals.clear();
    }

    fn new_id(&mut self) -> Id {
        let id = self.next_id;
        // At a billion connections a second this lasts for five centuries.
        self.next_id = self.next_id.saturating_add(1);
        id
    }

    fn window(&self) -> u32 {
        if self.endpoints.len() < LARGE_WINDOWS {
            LARGE_WINDOW
        } else {
            SMALL_WINDOW
        }
    }

    fn insert(&mut self, id: Id, endpoint: Endpoint) {
        self.by_ports.insert(endpoint.ports, id);
        self.endpoints.insert(id, endpoint);
        self.review(id);
    }

    /// Brings queue, deadlines and tables in line with a connection that something happened to.
    fn review(&mut self, id: Id) {
        let Some(endpoint) = self.endpoints.get_mut(&id) else {
            return;
        };
        let deadline = endpoint.deadline_now();
        if deadline != endpoint.deadline {
            if let Some((_, at)) = endpoint.deadline {
                self.deadlines.remove(&(at, id));
            }
            if let Some((_, at)) = deadline {
                self.deadlines.insert((at, id));
            }
            endpoint.deadline = deadline;
        }
        if endpoint.is_gone() && self.by_ports.get(&endpoint.ports) == Some(&id) {
            // The guest may use the ports again while the rest drains to the host.
            self.by_ports.remove(&endpoint.ports);
        }
        if endpoint.is_over() {
            // Closing the socket takes it out of the epoll.
            if endpoint.queued {
                self.queue.retain(|queued| *queued != id);
            }
            self.endpoints.remove(&id);
        } else if endpoint.wants_to_send() && !endpoint.queued {
            endpoint.queued = true;
            self.queue.push_back(id);
        }
    }

    /// Sets the timer to the earliest deadline.
    fn arm_timer(&mut self) -> Result<(), VsockError> {
        let earliest = [
            self.deadlines.first().map(|(at, _)| *at),
            self.handshakes.first_key_value().map(|(_, h)| h.deadline),
            self.accepting_again,
        ]
        .into_iter()
        .flatten()
        .min();
        // Later than armed is left: it fires early once, and is set anew then.
        let soon_enough = match (self.armed, earliest) {
            (_, None) => true,
            (Some(armed), Some(earliest)) => armed <= earliest,
            (None, Some(_)) => false,
        };
        if soon_enough {
            return Ok(());
        }
        self.armed = earliest;
        let wait = earliest
            .map(|at| at.saturating_duration_since(Instant::now()))
            .unwrap_or_default()
            // Zero would disarm.
            .max(Duration::from_nanos(1));
        let value = Timespec::try_from(wait).unwrap_or(Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        });
        let spec = Itimerspec {
            it_interval: Timespec::default(),
            it_value: value,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec)
            .map_err(VsockError::system("set its timer"))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
