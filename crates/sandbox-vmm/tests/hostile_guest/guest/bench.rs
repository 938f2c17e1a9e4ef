//! The machine's devices, and the questions that show that they work.

use crate::driver::{Device, NEXT, VERSION_1, WRITE};
use crate::machine::{expect, fill, peek, poke};
use crate::packet::{self, Vsock};

pub const SECTOR: u32 = 512;
/// Types of requests to a disk (5.2.6).
const READ: u32 = 0;
const WRITE_OUT: u32 = 1;
pub const FLUSH: u32 = 4;
pub const GET_ID: u32 = 8;
/// Where the parts of a request to a disk are in the device's data.
pub const STATUS_AT: u64 = 0x100;
pub const PAYLOAD_AT: u64 = 0x1000;

/// What the test gave the machine.
#[derive(Clone, Copy)]
pub struct Bench {
    /// Each sector is full of its number.
    pub disk: Device,
    /// May be written to.
    pub scratch: Device,
    pub entropy: Device,
    pub vsock: Device,
}

/// One ring of one device.
#[derive(Clone, Copy)]
pub struct Ring {
    pub device: Device,
    pub queue: u64,
    /// The device looks at it only when it has something to say.
    pub is_receive: bool,
}

impl Bench {
    pub fn find() -> Self {
        Self {
            disk: Device::find(2, 0),
            scratch: Device::find(2, 1),
            entropy: Device::find(4, 0),
            vsock: Device::find(19, 0),
        }
    }

    pub fn devices(&self) -> [Device; 4] {
        [self.disk, self.scratch, self.entropy, self.vsock]
    }

    pub fn rings(&self) -> [Ring; 5] {
        let ring = |device, queue, is_receive| Ring {
            device,
            queue,
            is_receive,
        };
        [
            ring(self.disk, 0, false),
            ring(self.scratch, 0, false),
            ring(self.entropy, 0, false),
            ring(self.vsock, packet::RX, true),
            ring(self.vsock, packet::TX, false),
        ]
    }

    /// Sets all of them up and asks each.
    pub fn begin(&self) {
        for device in self.devices() {
            self.begin_one(device);
        }
        self.answer();
    }

    pub fn begin_one(&self, device: Device) {
        device.begin(VERSION_1);
        if device.window == self.vsock.window {
            Vsock(device).offer_buffers();
        }
    }

    pub fn answer(&self) {
        for device in self.devices() {
            self.answers(device);
        }
    }

    /// All but one.
    pub fn others_answer(&self, but: Device) {
        for device in self.devices() {
            if device.window != but.window {
                self.answers(device);
            }
        }
    }

    pub fn answers(&self, device: Device) {
        if device.window == self.disk.window {
            expect(reads(device, 9, 9), "the disk does not answer");
        } else if device.window == self.scratch.window {
            fill(device.data() + PAYLOAD_AT, 0x5a, u64::from(SECTOR));
            expect(
                transfer(device, WRITE_OUT, 3) == Some(0) && reads(device, 3, 0x5a),
                "the disk that may be written to does not answer",
            );
        } else if device.window == self.entropy.window {
            expect(is_random(device), "the entropy device does not answer");
        } else {
            Vsock(device).echoes();
        }
    }

    /// Resets it, sets it up properly, and asks it.
    pub fn recovers(&self, device: Device) {
        self.begin_one(device);
        self.answers(device);
    }

    /// Each ring: a device that is set up, the attack, the others, and the device after a reset.
    pub fn each_ring(&self, attack: fn(&Self, Ring)) {
        for ring in self.rings() {
            self.begin_one(ring.device);
            attack(self, ring);
            self.others_answer(ring.device);
            self.recovers(ring.device);
        }
    }
}

impl Ring {
    /// Tells the device to look at the ring; a receive ring is looked at when there is something to say, so that for one
    /// something is said that has to be answered.
    pub fn kick(self) {
        if self.is_receive {
            Vsock(self.device).provoke();
        }
        self.device.kick(self.queue);
    }

    /// The flag of a descriptor that this ring is for.
    pub fn direction(self, bench: &Bench) -> u16 {
        if self.is_receive || self.device.window == bench.entropy.window {
            WRITE
        } else {
            0
        }
    }
}

/// Writes to the disk that is read-only.
pub fn writes_refused(bench: &Bench) {
    for sector in 0..1000 {
        expect(
            transfer(bench.disk, WRITE_OUT, sector) == Some(1),
            "a write to the read-only disk was not refused",
        );
    }
    bench.answer();
}

pub fn header(device: Device, kind: u32, sector: u64) {
    poke(device.data(), kind);
    poke(device.data() + 4, 0_u32);
    poke(device.data() + 8, sector);
}

/// A request for one sector; its status, unless there was no answer.
fn transfer(device: Device, kind: u32, sector: u64) -> Option<u8> {
    let flags = if kind == READ { WRITE } else { 0 };
    let payload = (device.data() + PAYLOAD_AT, SECTOR, flags);
    request(device, kind, sector, Some(payload))
}

/// A request, its payload given as address, length and direction; its status, unless there was no answer.
pub fn request(
    device: Device,
    kind: u32,
    sector: u64,
    payload: Option<(u64, u32, u16)>,
) -> Option<u8> {
    let data = device.data();
    header(device, kind, sector);
    poke(data + STATUS_AT, 0xff_u8);
    let after = if payload.is_some() { 1 } else { 2 };
    device.descriptor(0, 0, (data, 16), NEXT, after);
    if let Some((address, length, flags)) = payload {
        device.descriptor(0, 1, (address, length), NEXT | flags, 2);
    }
    device.descriptor(0, 2, (data + STATUS_AT, 1), WRITE, 0);
    device.offer(0, 0);
    device.kick(0);
    device.drained(0).then(|| peek(data + STATUS_AT))
}

fn reads(device: Device, sector: u64, expected: u8) -> bool {
    let payload = device.data() + PAYLOAD_AT;
    fill(payload, !expected, u64::from(SECTOR));
    transfer(device, READ, sector) == Some(0)
        && (0..u64::from(SECTOR)).all(|at| peek::<u8>(payload + at) == expected)
}

fn is_random(device: Device) -> bool {
    let data = device.data();
    fill(data, 0, 64);
    device.descriptor(0, 0, (data, 64), WRITE, 0);
    let place = device.used(0);
    device.offer(0, 0);
    device.kick(0);
    device.drained(0)
        && device.used_element(0, place) == (0, 64)
        && (0..8).any(|word| peek::<u64>(data + word * 8) != 0)
}
