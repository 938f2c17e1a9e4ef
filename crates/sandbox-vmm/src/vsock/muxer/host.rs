//! The host's side of the muxer: clients, sockets, time.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::super::connection::Connection;
use super::super::endpoint::{Endpoint, Ports};
use super::super::error::VsockError;
use super::super::handshake::{self, HandshakeError};
use super::{
    ACCEPT_PAUSE, FIRST_HOST_PORT, FIRST_ID, HANDSHAKE_TIMEOUT, Handshake, Id, LISTENER,
    MAX_CONNECTIONS, MAX_HANDSHAKES, Muxer, TIMER,
};

/// Sockets looked at in one call.
const EVENTS: usize = 64;
/// Clients accepted in one call.
const ACCEPTS: usize = 16;

impl Muxer {
    /// Looks at what happened on the host: new clients, sockets with data or room, answers overdue.
    /// Afterwards [`Muxer::process_rx`] may have something for the guest.
    ///
    /// # Errors
    /// [`VsockError::System`] when one of the muxer's own descriptors fails.
    pub(crate) fn process_host(&mut self) -> Result<(), VsockError> {
        let mut events = [const { std::mem::MaybeUninit::<Event>::uninit() }; EVENTS];
        let (ready, _) = match epoll::wait(
            &self.epoll,
            &mut events,
            Some(&rustix::time::Timespec::default()),
        ) {
            Ok(ready) => ready,
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(VsockError::system("wait for its sockets")(error)),
        };
        for event in ready.iter() {
            match event.data.u64() {
                LISTENER => self.accept()?,
                TIMER => self.expire()?,
                id => self.socket_event(id, event.flags),
            }
        }
        self.arm_timer()
    }

    /// Watches a socket edge-triggered: what it last said is kept in the endpoint.
    fn watch(&self, stream: &UnixStream, id: Id) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, stream, EventData::new_u64(id), flags)?;
        Ok(())
    }

    fn accept(&mut self) -> Result<(), VsockError> {
        for _ in 0..ACCEPTS {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                    ) =>
                {
                    continue;
                }
                // Out of descriptors or memory: the client stays in the listener's queue.
                Err(_) => {
                    self.accepting_again = Some(Instant::now() + ACCEPT_PAUSE);
                    self.watch_listener(EventFlags::empty())?;
                    break;
                }
            };
            if self.handshakes.len() >= MAX_HANDSHAKES {
                self.handshakes.pop_first();
                self.refused.clients = self.refused.clients.saturating_add(1);
            }
            let id = self.new_id();
            if stream.set_nonblocking(true).is_ok() && self.watch(&stream, id).is_ok() {
                let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
                self.handshakes.insert(id, Handshake { stream, deadline });
            }
        }
        Ok(())
    }

    fn watch_listener(&self, flags: EventFlags) -> Result<(), VsockError> {
        epoll::modify(
            &self.epoll,
            self.listener.as_fd(),
            EventData::new_u64(LISTENER),
            flags,
        )
        .map_err(VsockError::system("watch its listening socket"))
    }

    fn socket_event(&mut self, id: Id, flags: EventFlags) {
        if let Some(endpoint) = self.endpoints.get_mut(&id) {
            endpoint.host_event(
                flags.intersects(EventFlags::IN | EventFlags::RDHUP),
                flags.contains(EventFlags::OUT),
                flags.intersects(EventFlags::HUP | EventFlags::ERR),
            );
            self.review(id);
        } else if flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP) {
            self.handshake(id);
        }
    }

    /// A host client said something, or left.
    fn handshake(&mut self, id: Id) {
        let Some(client) = self.handshakes.get(&id) else {
            return;
        };
        let port = match handshake::read_port(&client.stream) {
            Ok(None) => return,
            Ok(Some(port)) if self.endpoints.len() < MAX_CONNECTIONS => Some(port),
            Ok(Some(_))
            | Err(HandshakeError::Gone | HandshakeError::Garbage | HandshakeError::Read(_)) => None,
        };
        let Some(client) = self.handshakes.remove(&id) else {
            return;
        };
        match port {
            Some(guest) => {
                let host = self.free_host_port(guest);
                let connection = Connection::to_guest(self.window());
                let ports = Ports { host, guest };
                self.insert(id, Endpoint::new(ports, connection, client.stream));
            }
            None => self.refused.clients = self.refused.clients.saturating_add(1),
        }
    }

    /// A host port that no connection with that guest port has; there are more ports than connections.
    fn free_host_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_host_port;
            // `VMADDR_PORT_ANY` is not a port.
            self.next_host_port = match host.checked_add(1) {
                Some(next) if next != u32::MAX => next,
                _ => FIRST_HOST_PORT,
            };
            if !self.by_ports.contains_key(&Ports { host, guest }) {
                return host;
            }
        }
    }

    /// Connects a stream that the guest opens to whoever listens for it on the host.
    pub(super) fn connect(&mut self, ports: Ports, buf_alloc: u32, fwd_cnt: u32) -> io::Result<()> {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{}", ports.host));
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
            None,
        )?;
        // A Unix socket connects at once or, with the listener's queue full, refuses.
        rustix::net::connect(&socket, &SocketAddrUnix::new(path.as_os_str())?)?;
        let stream = UnixStream::from(socket);
        let id = self.new_id();
        self.watch(&stream, id)?;
        let connection = Connection::from_guest(self.window(), buf_alloc, fwd_cnt);
        self.insert(id, Endpoint::new(ports, connection, stream));
        Ok(())
    }

    /// Acts on everything that is overdue.
    fn expire(&mut self) -> Result<(), VsockError> {
        self.armed = None;
        // The timer stays readable until it is read; that it was not due after all is no error.
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.timer, &mut count);
        let now = Instant::now();
        if self.accepting_again.is_some_and(|at| at <= now) {
            self.accepting_again = None;
            self.watch_listener(EventFlags::IN)?;
        }
        while let Some(entry) = self.handshakes.first_entry()
            && entry.get().deadline <= now
        {
            entry.remove();
            self.refused.clients = self.refused.clients.saturating_add(1);
        }
        while let Some((at, id)) = self.deadlines.first().copied()
            && at <= now
        {
            self.deadlines.remove(&(at, id));
            if let Some(endpoint) = self.endpoints.get_mut(&id) {
                endpoint.deadline = None;
                endpoint.timed_out();
            }
            self.review(id);
        }
        Ok(())
    }
}

const _: () = assert!(LISTENER < FIRST_ID && TIMER < FIRST_ID);
