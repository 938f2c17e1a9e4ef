//! Packets of the vsock device (VirtIO 1.3, 5.10).

use crate::driver::{Device, NEXT, QUEUE_SIZE, WRITE};
use crate::machine::{expect, fail, fill, peek, poke};

pub const RX: u64 = 0;
pub const TX: u64 = 1;
pub const GUEST_CID: u64 = 3;
pub const HOST_CID: u64 = 2;
pub const HEADER_BYTES: u32 = 44;
/// Sends back what it gets, until its end.
pub const ECHO_PORT: u32 = 1000;
/// Takes connections, and never reads.
pub const DEAF_PORT: u32 = 1001;
/// Calls [`OUR_PORT`] when it is called, says eight bytes, and hears them again.
pub const CALL_PORT: u32 = 1003;
/// Of this guest's.
pub const OUR_PORT: u32 = 52;
/// Nobody is there.
pub const NO_PORT: u32 = 1002;

/// Operations (5.10.6).
pub const REQUEST: u16 = 1;
pub const RESPONSE: u16 = 2;
pub const RST: u16 = 3;
pub const SHUTDOWN: u16 = 4;
pub const RW: u16 = 5;
pub const CREDIT_UPDATE: u16 = 6;
pub const CREDIT_REQUEST: u16 = 7;

/// Receive buffers.
const BUFFERS: u16 = 32;
const BUFFER_BYTES: u32 = 0x1000;
const BUFFERS_AT: u64 = 0x8_0000;
/// What this driver notes: how many of the used receive buffers it has seen, and the last port it used.
const SEEN_AT: u64 = 0xf_0000;
const PORT_AT: u64 = 0xf_0008;
/// Headers of packets to be sent, one for each descriptor; payload, the same for all.
const HEADERS_AT: u64 = 0x1000;
pub const PAYLOAD_AT: u64 = 0x2_0000;
const PAYLOAD_BYTES: u64 = 0x1_0000;
/// What this guest says it can take.
const CREDIT: u32 = 1 << 20;

/// A header, of this guest's unless it says otherwise.
#[derive(Clone, Copy)]
pub struct Packet {
    pub from: (u64, u32),
    pub to: (u64, u32),
    pub length: u32,
    pub kind: u16,
    pub operation: u16,
    pub flags: u32,
    pub credit: u32,
    pub forwarded: u32,
}

impl Packet {
    pub fn new(operation: u16, from: u32, to: u32) -> Self {
        Self {
            from: (GUEST_CID, from),
            to: (HOST_CID, to),
            length: 0,
            kind: 1,
            operation,
            flags: 0,
            credit: CREDIT,
            forwarded: 0,
        }
    }

    fn put(&self, at: u64) {
        poke(at, self.from.0);
        poke(at + 8, self.to.0);
        poke(at + 16, self.from.1);
        poke(at + 20, self.to.1);
        poke(at + 24, self.length);
        poke(at + 28, self.kind);
        poke(at + 30, self.operation);
        poke(at + 32, self.flags);
        poke(at + 36, self.credit);
        poke(at + 40, self.forwarded);
    }

    fn get(at: u64) -> Self {
        Self {
            from: (peek(at), peek(at + 16)),
            to: (peek(at + 8), peek(at + 20)),
            length: peek(at + 24),
            kind: peek(at + 28),
            operation: peek(at + 30),
            flags: peek(at + 32),
            credit: peek(at + 36),
            forwarded: peek(at + 40),
        }
    }
}

/// The vsock device.
#[derive(Clone, Copy)]
pub struct Vsock(pub Device);

impl Vsock {
    fn seen(self) -> u16 {
        peek(self.0.data() + SEEN_AT)
    }

    /// A port that was not used before.
    pub fn fresh_port(self) -> u32 {
        let last: u32 = peek(self.0.data() + PORT_AT);
        poke(self.0.data() + PORT_AT, last + 1);
        last + 2000
    }

    pub fn offer_buffers(self) {
        poke(self.0.data() + SEEN_AT, 0_u16);
        for index in 0..BUFFERS {
            let at = self.0.data() + BUFFERS_AT + u64::from(index) * u64::from(BUFFER_BYTES);
            self.0.descriptor(RX, index, (at, BUFFER_BYTES), WRITE, 0);
            self.0.offer(RX, index);
        }
        self.0.kick(RX);
    }

    /// Puts a packet, with as many bytes of payload as it says, in the ring.
    pub fn put(self, packet: &Packet) {
        let device = self.0;
        let pair = device.available(TX) % (QUEUE_SIZE / 2);
        let at = device.data() + HEADERS_AT + u64::from(pair) * 64;
        packet.put(at);
        let flags = if packet.length > 0 { NEXT } else { 0 };
        device.descriptor(TX, pair * 2, (at, HEADER_BYTES), flags, pair * 2 + 1);
        let payload = (device.data() + PAYLOAD_AT, packet.length);
        device.descriptor(TX, pair * 2 + 1, payload, 0, 0);
        device.offer(TX, pair * 2);
    }

    pub fn send(self, packet: &Packet) {
        self.put(packet);
        self.0.kick(TX);
        expect(self.0.drained(TX), "the vsock device takes no packets");
    }

    /// The next packet that is there now, its payload's place with it. Its buffer is given back.
    pub fn poll(self) -> Option<(Packet, u64)> {
        let device = self.0;
        let seen = self.seen();
        if device.used(RX) == seen {
            return None;
        }
        let (head, _) = device.used_element(RX, seen);
        let at = device.data() + BUFFERS_AT + u64::from(head) * u64::from(BUFFER_BYTES);
        poke(device.data() + SEEN_AT, seen.wrapping_add(1));
        device.offer(RX, head as u16);
        device.kick(RX);
        Some((Packet::get(at), at + u64::from(HEADER_BYTES)))
    }

    /// The next packet for a port of this guest's; others are passed over.
    pub fn receive(self, port: u32) -> (Packet, u64) {
        let mut found = None;
        crate::machine::eventually(|| {
            if let Some(packet) = self.poll()
                && packet.0.to == (GUEST_CID, port)
            {
                found = Some(packet);
            }
            found.is_some()
        });
        match found {
            Some(packet) => packet,
            None => fail("the vsock device does not answer"),
        }
    }

    /// Opens a connection; whether the host took it.
    pub fn connect(self, from: u32, to: u32) -> bool {
        self.send(&Packet::new(REQUEST, from, to));
        loop {
            match self.receive(from).0.operation {
                RESPONSE => return true,
                RST => return false,
                _ => {}
            }
        }
    }

    /// Says something that is answered, whatever it is.
    pub fn provoke(self) {
        self.put(&Packet::new(RW, 1, NO_PORT));
        self.0.kick(TX);
    }

    /// Opens a connection to the echo, says something, and hears it again.
    pub fn echoes(self) {
        let port = self.fresh_port();
        expect(
            self.connect(port, ECHO_PORT),
            "the vsock device does not connect",
        );
        let word = u64::from(port) << 8 | 0x45;
        fill(self.0.data() + PAYLOAD_AT, 0, PAYLOAD_BYTES);
        poke(self.0.data() + PAYLOAD_AT, word);
        let mut packet = Packet::new(RW, port, ECHO_PORT);
        packet.length = 8;
        self.send(&packet);
        loop {
            let (answer, payload) = self.receive(port);
            if answer.operation == RW {
                // Eight bytes into a socket are eight bytes out of it.
                expect(
                    answer.length == 8 && peek::<u64>(payload) == word,
                    "the vsock device brings something else back",
                );
                break;
            }
            expect(
                answer.operation == CREDIT_UPDATE || answer.operation == CREDIT_REQUEST,
                "the vsock device ends a connection by itself",
            );
        }
        self.send(&Packet::new(RST, port, ECHO_PORT));
    }
}
