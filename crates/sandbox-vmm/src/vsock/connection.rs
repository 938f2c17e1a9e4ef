//! The life of one stream: what the guest and the host socket do goes in, what to do comes out. No I/O.
//!
//! ```text
//!   host client asks                        guest asks
//!   Requesting --REQUEST sent--> Requested    Responding
//!                                   |             |
//!                         RESPONSE  |             | RESPONSE sent
//!                                   v             v
//!                                  +------ Open -------+
//!          both ends closed by the |                   | both ends closed, and the guest
//!          host: SHUTDOWN sent     v                   v had a part in it; or an error
//!                               Closing --timeout--> Resetting
//!                                   |                   | RST sent
//!                                   +---RST received--> Gone
//! ```
//!
//! The two directions end apart from each other (VirtIO 1.3, 5.10.6.6). Host to guest ends with the
//! socket's end-of-file, which the guest hears as `SHUTDOWN(SEND)`, or with the guest's
//! `SHUTDOWN(RECEIVE)`. Guest to host ends with the guest's `SHUTDOWN(SEND)`, which the socket's peer
//! sees as end-of-file once every byte is out, or when the socket's peer is gone, which the guest hears as
//! `SHUTDOWN(RECEIVE)`.
//!
//! `RST` frees the guest's side at once. Bytes that the guest sent before still go to the host socket: a
//! connection that is [`Phase::Gone`] lives on, unknown to the guest, until they are out.

mod credit;

pub(crate) use credit::Credit;

use super::protocol::{
    Op, SHUTDOWN_BOTH, VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE, VIRTIO_VSOCK_SHUTDOWN_F_SEND,
};

/// Where a connection stands with the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// A host client asked; the guest does not know yet.
    Requesting,
    /// The guest was asked.
    Requested,
    /// The guest asked, and will be told yes.
    Responding,
    /// Both sides agree that there is a connection.
    Open,
    /// The guest was told that both directions are closed, and answers with `RST`.
    Closing,
    /// The guest is due a `RST`.
    Resetting,
    /// The guest knows of no connection any more.
    Gone,
}

/// A packet of the guest's for this connection, without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GuestPacket {
    pub(crate) op: Op,
    pub(crate) len: u32,
    pub(crate) flags: u32,
    pub(crate) buf_alloc: u32,
    pub(crate) fwd_cnt: u32,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The guest sent a packet.
    Guest(GuestPacket),
    /// The host socket took so many of the guest's bytes.
    Forwarded(u32),
    /// The host socket's peer sends no more.
    HostEof,
    /// The host socket's peer receives no more.
    HostReaderGone,
    /// The answer that [`Connection::waits_for`] names did not come in time.
    TimedOut,
    /// What [`Connection::next`] asked for is in the receive ring.
    Sent(Outgoing),
}

/// A packet to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outgoing {
    Request,
    Response,
    Reset,
    /// At most `max` bytes of the host socket's; in [`Event::Sent`], exactly so many.
    Data {
        max: u32,
    },
    Shutdown {
        flags: u32,
    },
    CreditUpdate,
    CreditRequest,
}

/// An answer of the guest's that does not come by itself if the guest is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// To a `REQUEST`.
    Response,
    /// To a `SHUTDOWN` of both directions.
    Reset,
}

/// What to do with the host socket now, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Actions {
    /// The payload of the packet is for the host.
    pub(crate) deliver: bool,
    /// The guest accepted: tell the host client.
    pub(crate) greet: bool,
    /// Drop the bytes that wait for the host socket.
    pub(crate) discard: bool,
    /// Shut the host socket down for writing: all bytes are out.
    pub(crate) shutdown_write: bool,
    /// Shut the host socket down for reading: the guest wants no more.
    pub(crate) shutdown_read: bool,
    /// The connection is over.
    pub(crate) close: bool,
    /// The guest broke the protocol.
    pub(crate) violation: bool,
}

/// One stream.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    phase: Phase,
    credit: Credit,
    /// `SHUTDOWN` flags that the guest sent.
    guest_shutdown: u32,
    /// `SHUTDOWN` flags that the guest was sent.
    told_shutdown: u32,
    host_eof: bool,
    host_reader_gone: bool,
    write_shut: bool,
    read_shut: bool,
    update_wanted: bool,
    credit_requested: bool,
}

impl Connection {
    /// A connection that a host client asks for; it may hold `window` bytes for a slow client.
    pub(crate) fn to_guest(window: u32) -> Self {
        Self::new(Phase::Requesting, Credit::new(window))
    }

    /// A connection that the guest asked for, with the credit that its `REQUEST` carried.
    pub(crate) fn from_guest(window: u32, buf_alloc: u32, fwd_cnt: u32) -> Self {
        let mut credit = Credit::new(window);
        // Nothing was sent yet: a count that says otherwise makes the first packet a violation.
        let phase = match credit.peer_says(buf_alloc, fwd_cnt) {
            Ok(()) => Phase::Responding,
            Err(_) => Phase::Resetting,
        };
        Self::new(phase, credit)
    }

    fn new(phase: Phase, credit: Credit) -> Self {
        Self {
            phase,
            credit,
            guest_shutdown: 0,
            told_shutdown: 0,
            host_eof: false,
            host_reader_gone: false,
            write_shut: false,
            read_shut: false,
            update_wanted: false,
            credit_requested: false,
        }
    }

    /// Where it stands with the guest.
    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// `buf_alloc` and `fwd_cnt` for the next packet to the guest.
    pub(crate) fn own_credit(&self) -> (u32, u32) {
        (self.credit.window(), self.credit.fwd_cnt())
    }

    /// The answer that is being waited for.
    pub(crate) fn waits_for(&self) -> Option<Wait> {
        match self.phase {
            Phase::Requested => Some(Wait::Response),
            Phase::Closing => Some(Wait::Reset),
            Phase::Requesting
            | Phase::Responding
            | Phase::Open
            | Phase::Resetting
            | Phase::Gone => None,
        }
    }

    /// The next packet to the guest, given whether the host socket may have bytes or its end to read.
    pub(crate) fn next(&self, host_readable: bool) -> Option<Outgoing> {
        match self.phase {
            Phase::Requesting => Some(Outgoing::Request),
            Phase::Responding => Some(Outgoing::Response),
            Phase::Resetting => Some(Outgoing::Reset),
            Phase::Open => self.next_open(host_readable),
            Phase::Requested | Phase::Closing | Phase::Gone => None,
        }
    }

    fn next_open(&self, host_readable: bool) -> Option<Outgoing> {
        let data_waits = host_readable && !self.host_eof && !self.guest_stopped();
        let max = self.credit.available();
        let flags = self.due_shutdown();
        if data_waits && max > 0 {
            Some(Outgoing::Data { max })
        } else if flags != self.told_shutdown {
            Some(Outgoing::Shutdown { flags })
        } else if self.update_wanted {
            Some(Outgoing::CreditUpdate)
        } else if data_waits && !self.credit_requested {
            Some(Outgoing::CreditRequest)
        } else {
            None
        }
    }

    /// Takes note of what happened and says what to do about it.
    pub(crate) fn handle(&mut self, event: Event) -> Actions {
        let mut actions = Actions::default();
        match event {
            Event::Guest(packet) => self.guest_packet(packet, &mut actions),
            Event::Forwarded(bytes) => {
                self.credit.forwarded(bytes);
                self.update_wanted |= self.credit.update_due();
            }
            Event::HostEof => self.host_eof = true,
            Event::HostReaderGone => {
                self.host_reader_gone = true;
                self.drop_buffered(&mut actions);
                if self.phase == Phase::Requesting {
                    self.phase = Phase::Gone;
                } else if self.phase == Phase::Requested {
                    self.phase = Phase::Resetting;
                }
            }
            Event::TimedOut => {
                if self.waits_for().is_some() {
                    self.phase = Phase::Resetting;
                }
            }
            Event::Sent(outgoing) => self.sent(outgoing),
        }
        self.settle(&mut actions);
        actions
    }

    fn guest_packet(&mut self, packet: GuestPacket, actions: &mut Actions) {
        if packet.op == Op::Rst {
            self.phase = Phase::Gone;
            return;
        }
        if matches!(self.phase, Phase::Resetting | Phase::Gone) {
            return;
        }
        if self
            .credit
            .peer_says(packet.buf_alloc, packet.fwd_cnt)
            .is_err()
        {
            self.abort(actions);
            return;
        }
        if self.credit.available() > 0 {
            self.credit_requested = false;
        }
        match (self.phase, packet.op) {
            (Phase::Requested, Op::Response) => {
                self.phase = Phase::Open;
                actions.greet = true;
            }
            (Phase::Open, Op::Rw) => self.guest_data(packet.len, actions),
            (Phase::Responding | Phase::Open | Phase::Closing, Op::Shutdown) => {
                self.guest_shutdown |= packet.flags & SHUTDOWN_BOTH;
            }
            (Phase::Responding | Phase::Open, Op::CreditRequest) => self.update_wanted = true,
            // Sent before the guest heard that nobody reads any more.
            (Phase::Closing, Op::Rw | Op::CreditRequest)
            | (Phase::Responding | Phase::Open | Phase::Closing, Op::CreditUpdate) => {}
            _ => self.abort(actions),
        }
    }

    fn guest_data(&mut self, len: u32, actions: &mut Actions) {
        if self.guest_finished() || self.credit.receive(len).is_err() {
            self.abort(actions);
        } else if self.host_reader_gone {
            self.drop_buffered(actions);
        } else {
            actions.deliver = len > 0;
        }
    }

    fn sent(&mut self, outgoing: Outgoing) {
        self.update_wanted = false;
        self.credit.told();
        match outgoing {
            Outgoing::Request => self.phase = Phase::Requested,
            Outgoing::Response => self.phase = Phase::Open,
            Outgoing::Reset => self.phase = Phase::Gone,
            Outgoing::Data { max } => self.credit.sent(max),
            Outgoing::Shutdown { flags } => self.told_shutdown |= flags,
            Outgoing::CreditRequest => self.credit_requested = true,
            Outgoing::CreditUpdate => {}
        }
    }

    /// The guest broke the protocol: nothing it sent is worth delivering.
    fn abort(&mut self, actions: &mut Actions) {
        self.phase = Phase::Resetting;
        actions.violation = true;
        self.drop_buffered(actions);
    }

    fn drop_buffered(&mut self, actions: &mut Actions) {
        self.credit.forwarded(self.credit.buffered());
        actions.discard = true;
    }

    fn guest_finished(&self) -> bool {
        self.guest_shutdown & VIRTIO_VSOCK_SHUTDOWN_F_SEND != 0
    }

    fn guest_stopped(&self) -> bool {
        self.guest_shutdown & VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE != 0
    }

    /// All `SHUTDOWN` flags that the guest should have been sent by now.
    fn due_shutdown(&self) -> u32 {
        let mut flags = self.told_shutdown;
        if self.host_eof && !self.guest_stopped() {
            flags |= VIRTIO_VSOCK_SHUTDOWN_F_SEND;
        }
        if self.host_reader_gone && !self.guest_finished() {
            flags |= VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE;
        }
        flags
    }

    /// Draws the conclusions that follow from the state, however it came about.
    fn settle(&mut self, actions: &mut Actions) {
        let told = self.told_shutdown;
        if self.phase == Phase::Open {
            let to_guest_over = self.guest_stopped() || told & VIRTIO_VSOCK_SHUTDOWN_F_SEND != 0;
            let to_host_over = self.guest_finished() || told & VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE != 0;
            if to_guest_over && to_host_over {
                self.phase = if told == SHUTDOWN_BOTH {
                    Phase::Closing
                } else {
                    Phase::Resetting
                };
            }
        }
        if self.phase == Phase::Closing && self.guest_shutdown == SHUTDOWN_BOTH {
            self.phase = Phase::Resetting;
        }
        let guest_left = matches!(self.phase, Phase::Resetting | Phase::Gone);
        let drained = self.credit.buffered() == 0;
        if (self.guest_finished() || guest_left) && drained && !self.write_shut {
            self.write_shut = true;
            actions.shutdown_write = true;
        }
        if (self.guest_stopped() || guest_left) && !self.read_shut {
            self.read_shut = true;
            actions.shutdown_read = true;
        }
        actions.close = self.phase == Phase::Gone && drained;
    }
}

#[cfg(test)]
mod tests;
