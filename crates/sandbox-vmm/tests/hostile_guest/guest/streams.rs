//! Attacks by packets of the vsock device.

use crate::bench::Bench;
use crate::driver::QUEUE_SIZE;
use crate::machine::expect;
use crate::packet::{
    CREDIT_REQUEST, CREDIT_UPDATE, DEAF_PORT, ECHO_PORT, GUEST_CID, HOST_CID, NO_PORT, Packet,
    REQUEST, RESPONSE, RST, RW, TX, Vsock,
};

/// Packets that fit into the ring at once.
const BATCH: u32 = (QUEUE_SIZE / 2) as u32;
/// More than the device has.
const CONNECTIONS: u32 = 1500;
/// Connections of which the host reads none.
const DEAF: u32 = 200;
/// The longest payload.
const LARGE: u32 = 0x1_0000;
/// How many packets of no connection; and how many that are not even packets.
const STRAY: u32 = 8_000;

/// Credit that was not given, and credit that is taken back. The connection ends, and no other.
pub fn credit_lies(bench: &Bench) {
    let vsock = Vsock(bench.vsock);
    let bystander = vsock.fresh_port();
    expect(vsock.connect(bystander, ECHO_PORT), "no connection");
    // Bytes that were never sent are said to have been taken.
    for forwarded in [1, 0x7fff_ffff, 0x8000_0000] {
        let port = vsock.fresh_port();
        expect(vsock.connect(port, ECHO_PORT), "no connection");
        let mut packet = Packet::new(CREDIT_UPDATE, port, ECHO_PORT);
        packet.forwarded = forwarded;
        vsock.send(&packet);
        expect_reset(vsock, port);
    }
    // A request with bytes already taken.
    let port = vsock.fresh_port();
    let mut packet = Packet::new(REQUEST, port, ECHO_PORT);
    packet.forwarded = 7;
    vsock.send(&packet);
    expect_reset(vsock, port);
    // More than the host's side can take, which never reads.
    let port = vsock.fresh_port();
    expect(vsock.connect(port, DEAF_PORT), "no connection");
    let mut packet = Packet::new(RW, port, DEAF_PORT);
    packet.length = LARGE;
    let mut reset = false;
    for _ in 0..64 {
        vsock.send(&packet);
        while let Some((answer, _)) = vsock.poll() {
            reset |= answer.to == (GUEST_CID, port) && answer.operation == RST;
        }
    }
    expect(
        reset || vsock.receive_reset(port),
        "more was taken than there was credit for",
    );
    // No room at all, then all there is, then none again.
    let port = vsock.fresh_port();
    expect(vsock.connect(port, ECHO_PORT), "no connection");
    say_credit(vsock, port, 0);
    say_credit(vsock, port, u32::MAX);
    say_credit(vsock, port, 0);
    say_credit(vsock, port, 1);
    vsock.send(&Packet::new(RST, port, ECHO_PORT));
    // The connection from before still brings back what it is given.
    let mut packet = Packet::new(RW, bystander, ECHO_PORT);
    packet.length = 8;
    vsock.send(&packet);
    loop {
        let (answer, _) = vsock.receive(bystander);
        expect(answer.operation != RST, "another connection was ended");
        if answer.operation == RW {
            break;
        }
    }
    bench.answer();
}

/// Not inlined: of a list of numbers the compiler makes vector instructions, which KVM without hardware virtualization (PVM) does
/// not all emulate.
#[inline(never)]
fn say_credit(vsock: Vsock, port: u32, credit: u32) {
    let mut packet = Packet::new(RW, port, ECHO_PORT);
    packet.length = 512;
    packet.credit = credit;
    vsock.send(&packet);
}

fn expect_reset(vsock: Vsock, port: u32) {
    expect(
        vsock.receive_reset(port),
        "a connection went on after a lie",
    );
}

impl Vsock {
    fn receive_reset(self, port: u32) -> bool {
        // The device says little before it: an answer to the request, an update.
        for _ in 0..100 {
            if self.receive(port).0.operation == RST {
                return true;
            }
        }
        false
    }

    fn send_many(self, count: u32, packet: impl Fn(u32) -> Packet) {
        let mut number = 0;
        while number < count {
            let batch = BATCH.min(count - number);
            for _ in 0..batch {
                self.put(&packet(number));
                number += 1;
            }
            self.0.kick(TX);
            expect(self.0.drained(TX), "the vsock device takes no packets");
            while self.poll().is_some() {}
        }
    }
}

/// More connections than there can be, left open; then as many again, and all ended.
pub fn connection_flood(bench: &Bench) {
    let vsock = Vsock(bench.vsock);
    for _ in 0..2 {
        vsock.send_many(CONNECTIONS, |number| {
            Packet::new(REQUEST, 100_000 + number, DEAF_PORT)
        });
        bench.others_answer(bench.vsock);
        // The same ones again.
        vsock.send_many(64, |number| {
            Packet::new(REQUEST, 100_000 + number, DEAF_PORT)
        });
        vsock.send_many(CONNECTIONS, |number| {
            Packet::new(RST, 100_000 + number, DEAF_PORT)
        });
        bench.answer();
    }
    // Left open, and forgotten by a reset.
    vsock.send_many(CONNECTIONS, |number| {
        Packet::new(REQUEST, 200_000 + number, DEAF_PORT)
    });
    bench.recovers(bench.vsock);
}

/// All that a window holds on each of many connections, to a host that does not read.
pub fn host_that_does_not_read(bench: &Bench) {
    let vsock = Vsock(bench.vsock);
    vsock.send_many(DEAF, |number| {
        Packet::new(REQUEST, 300_000 + number, DEAF_PORT)
    });
    // As much as the smaller windows take, until the connection is ended for it.
    for _ in 0..8 {
        vsock.send_many(DEAF, |number| {
            let mut packet = Packet::new(RW, 300_000 + number, DEAF_PORT);
            packet.length = LARGE / 2;
            packet
        });
        bench.others_answer(bench.vsock);
    }
    bench.answer();
}

/// Packets of no connection, of other machines, of other kinds, and packets that are none, also while nothing can be received.
pub fn stray_packets_flood(bench: &Bench) {
    let vsock = Vsock(bench.vsock);
    let operations = [
        0,
        REQUEST,
        RESPONSE,
        RW,
        CREDIT_UPDATE,
        CREDIT_REQUEST,
        8,
        0xffff,
    ];
    let stray = |number: u32| {
        let operation = operations[(number % 8) as usize];
        let mut packet = Packet::new(operation, number, NO_PORT);
        match number % 5 {
            0 => packet.to.0 = HOST_CID + 5,
            1 => packet.kind = number as u16,
            2 => packet.flags = u32::MAX,
            _ => {}
        }
        packet
    };
    vsock.send_many(STRAY, stray);
    bench.answer();
    // Of another sender than this guest: no answer is due.
    vsock.send_many(STRAY, |number| {
        let mut packet = Packet::new(RW, number, NO_PORT);
        packet.from.0 = 77;
        packet
    });
    bench.answer();
    // Nothing can be received.
    bench.vsock.begin(crate::driver::VERSION_1);
    vsock.send_many_unheard(STRAY, stray);
    bench.others_answer(bench.vsock);
    bench.recovers(bench.vsock);
}

impl Vsock {
    fn send_many_unheard(self, count: u32, packet: impl Fn(u32) -> Packet) {
        for number in 0..count {
            self.put(&packet(number));
            if number % BATCH == BATCH - 1 || number + 1 == count {
                self.0.kick(TX);
                expect(self.0.drained(TX), "the vsock device takes no packets");
            }
        }
    }
}
