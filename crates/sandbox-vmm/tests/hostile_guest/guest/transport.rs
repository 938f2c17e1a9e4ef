//! Attacks by registers and ports.

use crate::bench::Bench;
use crate::driver::{
    ACKNOWLEDGE, BEHIND_WINDOWS, DRIVER, Device, VERSION_1, WINDOW_BYTES, register,
};
use crate::machine::{self, EXIT_PORT, MEMORY_END, SERIAL_PORT, expect, peek, poke};

/// Every register, by every width and at every offset, from the first to behind the last, and over the windows' ends. Accesses
/// of odd width or offset do nothing, so that the devices go on as they were; nor does what is written to what is only read.
pub fn odd_accesses(bench: &Bench) {
    for device in bench.devices() {
        let before = device.contents();
        let offsets = (0..0x180).chain(WINDOW_BYTES - 8..WINDOW_BYTES);
        for at in offsets.map(|offset| device.window + offset) {
            let _: (u8, u16) = (peek(at), peek(at));
            let _: (u32, u64) = (peek(at), peek(at));
            for value in [0, 0xff] {
                let word = u64::from_ne_bytes([value; 8]);
                poke(at, value);
                poke(at, word as u16);
                poke(at, word);
                if !at.is_multiple_of(4) {
                    poke(at, word as u32);
                }
            }
        }
        for register in [
            register::MAGIC_VALUE,
            register::DEVICE_ID,
            register::DEVICE_FEATURES,
            register::QUEUE_SIZE_MAX,
            register::INTERRUPT_STATUS,
            register::CONFIG_GENERATION,
        ] {
            device.set(register, 0x5555_5555);
        }
        expect(device.contents() == before, "a driver changed what is read");
    }
    for at in BEHIND_WINDOWS.step_by(4) {
        poke(at, u32::MAX);
        expect(peek::<u32>(at) == 0, "something is behind the windows");
    }
    // Over the first window's beginning, and where there is nothing.
    let _: u64 = peek(0xcfff_fffd);
    for at in [0xcfff_ff00, 0xd00f_0000, 0xd010_0000, 0xf000_0001] {
        expect(peek::<u64>(at) == u64::MAX, "something is where nothing is");
        poke(at, 0_u64);
    }
}

/// The status register in every order, and queues and features at the wrong time.
pub fn status_out_of_order(bench: &Bench) {
    for device in bench.devices() {
        for first in 0..=32_u32 {
            device.reset();
            for step in [
                first,
                ACKNOWLEDGE,
                first << 1,
                ACKNOWLEDGE | DRIVER,
                first << 3,
                15,
                7,
                11,
            ] {
                device.set(register::STATUS, step);
                device.set_queue(0, 64, device.rings(0));
                device.set(register::DRIVER_FEATURES, step);
                device.kick(0);
            }
        }
        // Running without a queue: the device says so, each time, and the monitor does not.
        for _ in 0..200 {
            expect(device.negotiate(VERSION_1), "a device took nothing");
            device.run();
            expect(device.needs_reset(), "a device runs without queues");
            device.kick(0);
        }
        bench.others_answer_after(device);
    }
}

/// Rings that are nowhere, in devices, over the end of memory, over each other, and of sizes that are none.
pub fn rings_that_are_none(bench: &Bench) {
    for device in bench.devices() {
        let good = device.rings(0);
        for place in 0..9 {
            let mut rings = good;
            match place {
                0..3 => rings[place] = MEMORY_END - 2 - 2 * place as u64,
                3 => rings = rings.map(|ring| ring + 1),
                _ => {
                    let same = match place {
                        4 => u64::MAX - 15,
                        5 => u64::MAX & !0xfff,
                        6 => device.window,
                        7 => good[0],
                        _ => 0,
                    };
                    rings = rings.map(|_| same);
                }
            }
            for size in [64, 0, 1, 3, 256, 512, 0x1_0000, u32::MAX] {
                expect(device.negotiate(VERSION_1), "a device took nothing");
                device.set_queues();
                device.set_queue(0, size, rings);
                device.run();
                device.kick(0);
                // While it runs the queue is where it is.
                device.set_queue(0, 64, good);
                device.kick(1);
            }
        }
        bench.others_answer_after(device);
    }
}

/// Notifications of queues with nothing in them, and of queues that there are none of.
pub fn notifications_without_end(bench: &Bench) {
    for device in bench.devices() {
        for _ in 0..20_000 {
            device.kick(0);
        }
        for queue in 0..5000 {
            device.kick(queue * 7 + 3);
        }
        bench.answer();
    }
}

/// Ports: values that mean nothing, other widths, and the serial port in every state.
pub fn ports_flood(bench: &Bench) {
    // The test counts what the monitor says of these.
    for value in 0..10_000_u32 {
        machine::out8(EXIT_PORT, (value as u8) | 0x80);
    }
    for port in [
        0x60_u16, 0x61, 0x64, 0x70, 0x80, 0xcf8, 0x500, 0x502, 0xffff,
    ] {
        machine::out8(port, 0xaa);
        machine::out16(port, 0xaaaa);
        machine::out32(port, 0xaaaa_aaaa);
        let _ = machine::in32(port);
    }
    for register in 0..8 {
        for value in [0xff_u8, 0x00, 0x80, 0x1f, 0x55] {
            machine::out8(SERIAL_PORT + register, value);
            machine::out32(SERIAL_PORT + register, u32::from(value));
            let _ = machine::in32(SERIAL_PORT + register);
        }
    }
    // 8 bits, no loop, no interrupts.
    machine::out8(SERIAL_PORT + 3, 0x03);
    machine::out8(SERIAL_PORT + 4, 0);
    machine::out8(SERIAL_PORT + 1, 0);
    for byte in 0..100_000_u32 {
        machine::out8(SERIAL_PORT, b'a' + (byte % 26) as u8);
    }
    bench.answer();
}

impl Bench {
    /// The others while `device` is as it was left, and it after a reset.
    fn others_answer_after(&self, device: Device) {
        self.others_answer(device);
        self.recovers(device);
    }
}
