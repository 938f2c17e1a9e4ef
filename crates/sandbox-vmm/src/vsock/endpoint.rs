//! A connection together with its host socket, and the guest's bytes that the socket did not take yet.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::backlog::Backlog;
use super::connection::{Actions, Connection, Event, GuestPacket, Outgoing, Phase, Wait};
use super::handshake;
use super::packet::{RxPacket, TxPacket};
use super::protocol::{Header, Op, VIRTIO_VSOCK_TYPE_STREAM};
use crate::log;

/// How long the guest may take to answer a `REQUEST` that is in its ring. Generous: an emulated guest on a
/// busy machine is slow, and each one costs no more than a slot.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the guest may take to answer a `SHUTDOWN` of both directions; that of Linux
/// (`VSOCK_CLOSE_TIMEOUT`).
const CLOSE_TIMEOUT: Duration = Duration::from_secs(8);

/// The ports of a connection; with the fixed identifiers of host and guest, its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Ports {
    pub(crate) host: u32,
    pub(crate) guest: u32,
}

/// What came of offering a receive buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filled {
    /// So many bytes of it are used.
    Bytes(u32),
    /// There was nothing to say after all.
    Nothing,
}

/// One stream with its two ends.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) ports: Ports,
    connection: Connection,
    stream: UnixStream,
    backlog: Backlog,
    /// Reading may give something: cleared only by `WouldBlock`, as the epoll is edge-triggered.
    readable: bool,
    writable: bool,
    over: bool,
    /// In the muxer's queue of those with something to say.
    pub(crate) queued: bool,
    /// When the answer being waited for is overdue.
    pub(crate) deadline: Option<(Wait, Instant)>,
}

impl Endpoint {
    pub(crate) fn new(ports: Ports, connection: Connection, stream: UnixStream) -> Self {
        Self {
            ports,
            connection,
            stream,
            backlog: Backlog::default(),
            readable: true,
            writable: true,
            over: false,
            queued: false,
            deadline: None,
        }
    }

    /// The guest knows nothing of it any more.
    pub(crate) fn is_gone(&self) -> bool {
        self.connection.phase() == Phase::Gone
    }

    /// Bytes of the guest's that wait for the host socket.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.backlog.len()
    }

    /// It can be dropped.
    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    /// It has a packet for the guest, or might have.
    pub(crate) fn wants_to_send(&self) -> bool {
        self.connection.next(self.readable).is_some()
    }

    /// The deadline that follows from the connection's state.
    pub(crate) fn deadline_now(&self) -> Option<(Wait, Instant)> {
        let wait = self.connection.waits_for()?;
        match self.deadline {
            Some((same, at)) if same == wait => Some((same, at)),
            _ => {
                let limit = match wait {
                    Wait::Response => REQUEST_TIMEOUT,
                    Wait::Reset => CLOSE_TIMEOUT,
                };
                Some((wait, Instant::now() + limit))
            }
        }
    }

    /// The answer did not come.
    pub(crate) fn timed_out(&mut self) {
        self.handle(Event::TimedOut);
    }

    /// The host socket can be read, written, or has lost its peer.
    pub(crate) fn host_event(&mut self, readable: bool, writable: bool, gone: bool) {
        self.readable |= readable;
        if gone {
            // Still read to the end what the peer left.
            self.readable = true;
            self.handle(Event::HostReaderGone);
        } else if writable {
            self.writable = true;
            self.flush();
        }
    }

    /// The guest sent a packet.
    pub(crate) fn guest_packet(&mut self, packet: &TxPacket<'_>) {
        let actions = self.handle(Event::Guest(GuestPacket {
            op: packet.header.op,
            len: packet.header.len,
            flags: packet.header.flags,
            buf_alloc: packet.header.buf_alloc,
            fwd_cnt: packet.header.fwd_cnt,
        }));
        if actions.greet {
            // Some tens of bytes into a fresh socket: less than all of them means that it is broken.
            let line = handshake::accepted(self.ports.host);
            if !matches!(io::Write::write(&mut self.stream, line.as_bytes()), Ok(n) if n == line.len())
            {
                self.handle(Event::HostReaderGone);
            }
        }
        if actions.deliver {
            self.deliver(packet);
        }
    }

    /// Moves the payload to the host socket, or what it does not take to the backlog.
    fn deliver(&mut self, packet: &TxPacket<'_>) {
        let mut done = 0;
        if self.backlog.is_empty() && self.writable {
            match packet.write_to(&mut self.stream) {
                Ok(count) => done = count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(_) => {
                    self.handle(Event::HostReaderGone);
                    return;
                }
            }
        }
        let backlog = &mut self.backlog;
        packet.copy_from(done, |bytes| backlog.push(bytes));
        if done > 0 {
            self.forwarded(done);
        }
        // A short write does not say that the socket is full: only `WouldBlock` arms the next edge.
        self.flush();
    }

    fn flush(&mut self) {
        if self.backlog.is_empty() || !self.writable {
            return;
        }
        match self.backlog.flush(&self.stream) {
            Ok(done) => {
                self.writable = self.backlog.is_empty();
                self.forwarded(done);
            }
            Err(_) => {
                self.handle(Event::HostReaderGone);
            }
        }
    }

    fn forwarded(&mut self, bytes: usize) {
        // At most the window.
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.handle(Event::Forwarded(bytes));
    }

    /// Puts the next packet in a receive buffer of the guest's.
    pub(crate) fn fill(&mut self, guest_cid: u64, buffer: &RxPacket<'_>) -> Filled {
        while let Some(outgoing) = self.connection.next(self.readable) {
            let outgoing = match outgoing {
                Outgoing::Data { max } => match buffer.read_from(&mut self.stream, max) {
                    Ok(0) => {
                        self.handle(Event::HostEof);
                        continue;
                    }
                    Ok(count) => Outgoing::Data {
                        max: u32::try_from(count).unwrap_or(max).min(max),
                    },
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.readable = false;
                        continue;
                    }
                    // The peer left without reading all it was sent; what it sent was read before this.
                    Err(_) => {
                        self.handle(Event::HostEof);
                        self.handle(Event::HostReaderGone);
                        continue;
                    }
                },
                control => control,
            };
            let header = self.header(guest_cid, outgoing);
            let used = buffer.finish(&header);
            self.handle(Event::Sent(outgoing));
            return Filled::Bytes(used);
        }
        Filled::Nothing
    }

    fn header(&self, guest_cid: u64, outgoing: Outgoing) -> Header {
        let (op, len, flags) = match outgoing {
            Outgoing::Request => (Op::Request, 0, 0),
            Outgoing::Response => (Op::Response, 0, 0),
            Outgoing::Reset => (Op::Rst, 0, 0),
            Outgoing::Data { max } => (Op::Rw, max, 0),
            Outgoing::Shutdown { flags } => (Op::Shutdown, 0, flags),
            Outgoing::CreditUpdate => (Op::CreditUpdate, 0, 0),
            Outgoing::CreditRequest => (Op::CreditRequest, 0, 0),
        };
        let (buf_alloc, fwd_cnt) = self.connection.own_credit();
        Header {
            src_cid: super::protocol::VMADDR_CID_HOST,
            dst_cid: guest_cid,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len,
            socket_type: VIRTIO_VSOCK_TYPE_STREAM,
            op,
            flags,
            buf_alloc,
            fwd_cnt,
        }
    }

    /// Tells the connection and does to the socket what it asks; `greet` and `deliver` are the caller's.
    fn handle(&mut self, event: Event) -> Actions {
        let actions = self.connection.handle(event);
        if actions.violation {
            let Ports { host, guest } = self.ports;
            log::guest(format_args!(
                "vsock: the guest broke the protocol on its connection from port {guest} to {host}, which is reset"
            ));
        }
        if actions.discard {
            self.backlog.clear();
        }
        // A socket that cannot be shut down has lost its peer already.
        if actions.shutdown_write {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        if actions.shutdown_read {
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        self.over |= actions.close;
        actions
    }
}
