//! What a driver does that behaves, and more than the questions of `bench`: everything that the devices are for.

use crate::bench::{Bench, FLUSH, GET_ID, PAYLOAD_AT, request};
use crate::driver::{Device, NEXT, WRITE};
use crate::machine::{expect, peek, poke};
use crate::packet::{CALL_PORT, OUR_PORT, Packet, REQUEST, RESPONSE, RST, RW, SHUTDOWN, Vsock};

/// Types of requests that name ranges (5.2.6).
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
/// Kinds of devices (5).
const NETWORK: u32 = 1;
const SHARED_FOLDER: u32 = 26;
const PERSISTENT_MEMORY: u32 = 27;
const BALLOON: u32 = 5;
/// Memory that nothing is in: its page, and what is reported as free from there on, in bytes.
const FREE_AT: u64 = 58 << 20;
const FREE_BYTES: u32 = 2 << 20;
/// The queue by which Linux reports free pages where the two before it are not there (`vm_find_vqs`).
const REPORTING_QUEUE: u64 = 2;

pub fn everything(bench: &Bench) {
    bench.answer();
    let disk = bench.scratch;
    let payload = disk.data() + PAYLOAD_AT;
    expect(request(disk, FLUSH, 0, None) == Some(0), "no flush");
    expect(
        request(disk, GET_ID, 0, Some((payload, 20, WRITE))) == Some(0),
        "no serial number",
    );
    for kind in [DISCARD, WRITE_ZEROES] {
        poke(payload, 16_u64);
        poke(payload + 8, 8_u32);
        poke(payload + 12, 0_u32);
        expect(
            request(disk, kind, 0, Some((payload, 16, 0))) == Some(0),
            "a range was refused",
        );
    }
    is_called(Vsock(bench.vsock));
    // A network device and a shared folder, where there are such: with all that they offer, a frame, and back again.
    for kind in [NETWORK, SHARED_FOLDER] {
        if let Some(device) = Device::look(kind, 0) {
            device.begin(device.offered());
            if kind == NETWORK {
                // The tap is looked at once there is room for what it has.
                device.descriptor(0, 0, (device.data() + PAYLOAD_AT, 1536), WRITE, 0);
                device.offer(0, 0);
                device.kick(0);
                device.descriptor(1, 0, (device.data(), 12 + 60), 0, 0);
                device.offer(1, 0);
                device.kick(1);
                expect(device.drained(1), "a frame was not taken");
            }
            device.reset();
        }
    }
    if let Some(device) = Device::look(PERSISTENT_MEMORY, 0) {
        device.begin(device.offered());
        poke(device.data(), 0_u32);
        device.descriptor(0, 0, (device.data(), 4), NEXT, 1);
        device.descriptor(0, 1, (device.data() + PAYLOAD_AT, 4), WRITE, 0);
        device.offer(0, 0);
        device.kick(0);
        expect(device.drained(0), "a flush was not taken");
        device.reset();
    }
    if let Some(device) = Device::look(BALLOON, 0) {
        device.begin(device.offered());
        poke(FREE_AT, 1_u64);
        device.descriptor(REPORTING_QUEUE, 0, (FREE_AT, FREE_BYTES), WRITE, 0);
        device.offer(REPORTING_QUEUE, 0);
        device.kick(REPORTING_QUEUE);
        expect(device.drained(REPORTING_QUEUE), "a report was not taken");
        expect(peek::<u64>(FREE_AT) == 0, "a free page is not empty");
        device.reset();
    }
    // Devices are given back and taken again.
    for device in bench.devices() {
        bench.recovers(device);
    }
}

/// Asks the host to call, answers, sends back what it hears, and is told that the host is through.
fn is_called(vsock: Vsock) {
    let port = vsock.fresh_port();
    expect(vsock.connect(port, CALL_PORT), "the host does not call");
    let (call, _) = vsock.receive(OUR_PORT);
    expect(call.operation == REQUEST, "the host does not ask");
    let caller = call.from.1;
    vsock.send(&Packet::new(RESPONSE, OUR_PORT, caller));
    loop {
        let (said, payload) = vsock.receive(OUR_PORT);
        match said.operation {
            RW => {
                let word: u64 = peek(payload);
                poke(vsock.0.data() + crate::packet::PAYLOAD_AT, word);
                let mut packet = Packet::new(RW, OUR_PORT, caller);
                packet.length = said.length;
                packet.forwarded = said.length;
                vsock.send(&packet);
            }
            SHUTDOWN => break,
            _ => {}
        }
    }
    let mut packet = Packet::new(SHUTDOWN, OUR_PORT, caller);
    packet.flags = 3;
    vsock.send(&packet);
    vsock.send(&Packet::new(RST, OUR_PORT, caller));
}
