//! Attacks by what is in the rings, and in the descriptors that they name.

use crate::bench::{Bench, Ring, header};
use crate::driver::{
    Device, EVENT_IDX, INDIRECT, INDIRECT_DESC, NEXT, QUEUE_SIZE, VERSION_1, WRITE, put_descriptor,
};
use crate::machine::{MEMORY_END, cycles, expect, fill, pause, peek};
use crate::packet::Vsock;

/// A place in a device's data for buffers and tables of attacks.
const PLACE: u64 = 0x4_0000;
/// After the rings that this driver uses.
const LAST: u16 = QUEUE_SIZE - 1;
const LARGE: u32 = 32 * 1024;
/// Cycles that are more than enough for a device: tens of milliseconds.
const LONG: u64 = 100_000_000;

/// The index of the available ring jumps over more than the ring has: the device wants to be reset, each time.
pub fn index_jumps(bench: &Bench) {
    bench.each_ring(|bench, ring| {
        for round in 0..100_u16 {
            let jump = [QUEUE_SIZE + 1, 0x8000, 0xffbf, 0x7fff][usize::from(round % 4)];
            let index = ring.device.available(ring.queue);
            ring.device
                .set_available(ring.queue, index.wrapping_add(jump));
            ring.kick();
            expect(
                crate::machine::eventually(|| ring.device.needs_reset()),
                "a device did not notice that an index jumped",
            );
            // Broken devices are told to go on, which they must not.
            ring.kick();
            bench.begin_one(ring.device);
        }
    });
}

/// Heads that no queue has.
pub fn heads_outside_the_table(bench: &Bench) {
    bench.each_ring(|bench, ring| {
        for head in [QUEUE_SIZE, QUEUE_SIZE + 1, 0x7fff, 0xffff] {
            ring.device.offer(ring.queue, head);
            ring.kick();
            settle(bench, ring);
        }
    });
}

/// Descriptors that lead to themselves, to each other, out of the table, and into tables that are none.
pub fn descriptor_loops(bench: &Bench) {
    bench.each_ring(|bench, ring| {
        let device = ring.device;
        let table = device.data() + PLACE;
        let flags = ring.direction(bench);
        let buffer = (device.data() + PLACE + 0x1_0000, 64);
        for shape in 0..9 {
            fill(table, 0, 0x1000);
            let set = |index, buffer, more, next| {
                device.descriptor(ring.queue, index, buffer, flags | more, next);
            };
            match shape {
                0 => set(LAST, buffer, NEXT, LAST),
                1 => {
                    set(LAST, buffer, NEXT, LAST - 1);
                    set(LAST - 1, buffer, NEXT, LAST);
                }
                2 => set(LAST, buffer, NEXT, QUEUE_SIZE),
                3 => set(LAST, buffer, NEXT, 0xffff),
                // A table that holds itself, one of odd length, an empty one, one of the whole memory, one that is nowhere.
                4 => {
                    set(LAST, (table, 32), INDIRECT, 0);
                    put_descriptor(table, (table, 32), INDIRECT | NEXT, 1);
                    put_descriptor(table + 16, (table, 32), INDIRECT, 0);
                }
                5 => set(LAST, (table, 17), INDIRECT, 0),
                6 => set(LAST, (table, 0), INDIRECT, 0),
                7 => set(LAST, (table, u32::MAX), INDIRECT | NEXT, LAST),
                _ => set(LAST, (u64::MAX - 31, 32), INDIRECT, 0),
            }
            device.offer(ring.queue, LAST);
            ring.kick();
            settle(bench, ring);
        }
        // A loop through a table, as long as tables may be.
        for index in 0..4096_u64 {
            put_descriptor(
                table + index * 16,
                buffer,
                flags | NEXT,
                (index as u16 + 1) % 4096,
            );
        }
        device.descriptor(ring.queue, LAST, (table, 4096 * 16), INDIRECT, 0);
        device.offer(ring.queue, LAST);
        ring.kick();
        settle(bench, ring);
    });
}

/// Buffers of no byte, of all bytes, over the end of memory, over devices, over the rings, and over each other.
pub fn buffers_zero_huge_and_overlapping(bench: &Bench) {
    bench.each_ring(|bench, ring| {
        let device = ring.device;
        let rings = device.rings(ring.queue);
        let data = device.data();
        let buffers = [
            (data, 0),
            (data, u32::MAX),
            (0, u32::MAX),
            (u64::MAX - 3, 8),
            (MEMORY_END - 1, 2),
            (MEMORY_END, 4096),
            (device.window, 4096),
            (0xfee0_0000, 4096),
            (1 << 63, 1 << 31),
            (rings[0], 4096),
            (rings[1], 4096),
            (rings[2], 4096),
            (data, 4096),
        ];
        for buffer in buffers {
            for place in 0..3_u16 {
                for flags in [0, WRITE] {
                    chain_with(device, ring.queue, place, buffer, flags);
                    ring.kick();
                    settle(bench, ring);
                    bench.begin_one(device);
                }
            }
        }
    });
}

/// Header, data and status of a request to read, of which one is `bad`.
fn chain_with(device: Device, queue: u64, place: u16, bad: (u64, u32), flags: u16) {
    let data = device.data() + PLACE;
    header(device, 0, 1);
    let good = [
        (device.data(), 16, 0),
        (data, 512, WRITE),
        (data + 0x1000, 1, WRITE),
    ];
    for (index, (address, length, direction)) in (0_u16..).zip(good) {
        let (buffer, flags) = match index == place {
            true => (bad, flags),
            false => ((address, length), direction),
        };
        let more = if index < 2 { NEXT } else { 0 };
        device.descriptor(
            queue,
            LAST - 2 + index,
            buffer,
            flags | more,
            LAST - 1 + index,
        );
    }
    device.offer(queue, LAST - 2);
}

/// Features that were never offered, or that were acknowledged and are not kept to.
pub fn features_ignored(bench: &Bench) {
    for device in bench.devices() {
        let offered = device.offered();
        for bit in 0..64 {
            if offered & 1 << bit == 0 {
                expect(
                    !device.negotiate(VERSION_1 | 1 << bit),
                    "a device took a feature that it does not offer",
                );
            }
        }
        expect(
            !device.negotiate(offered & !VERSION_1),
            "a device took a driver of the old kind",
        );
        bench.recovers(device);
    }
    bench.each_ring(|bench, ring| {
        let offered = ring.device.offered();
        ring.device
            .begin(VERSION_1 | offered & (EVENT_IDX | INDIRECT_DESC));
        if ring.device.window == bench.vsock.window {
            Vsock(ring.device).offer_buffers();
        }
        for (flags, event) in [(1, 0x7fff), (0, 0xffff), (0xffff, 3)] {
            ring.device.set_ring_flags(ring.queue, flags);
            ring.device.set_used_event(ring.queue, event);
            bench.answers(ring.device);
        }
        // Tables within tables, in a chain that goes on behind them, without having asked for any.
        bench.begin_one(ring.device);
        let table = ring.device.data() + PLACE;
        put_descriptor(table, (table, 64), INDIRECT | WRITE, 0);
        for flags in [INDIRECT, INDIRECT | WRITE, INDIRECT | NEXT] {
            ring.device
                .descriptor(ring.queue, LAST, (table, 16), flags, LAST);
            ring.device.offer(ring.queue, LAST);
            ring.kick();
            settle(bench, ring);
        }
    });
}

/// Devices are reset while they work: afterwards they write to no memory any more.
pub fn queues_reset_under_load(bench: &Bench) {
    bench.each_ring(|bench, ring| {
        let device = ring.device;
        let data = device.data() + PLACE;
        for round in 0..30_u64 {
            bench.begin_one(device);
            header(device, 0, round);
            for index in 0..QUEUE_SIZE / 4 {
                let head = index * 3;
                let buffer = (data + u64::from(index) * 512, LARGE);
                if device.window == bench.vsock.window && !ring.is_receive {
                    device.descriptor(ring.queue, head, (device.data(), 64), NEXT, head + 1);
                    device.descriptor(ring.queue, head + 1, buffer, 0, 0);
                } else if ring.direction(bench) == WRITE {
                    device.descriptor(ring.queue, head, buffer, WRITE, 0);
                } else {
                    device.descriptor(ring.queue, head, (device.data(), 16), NEXT, head + 1);
                    device.descriptor(ring.queue, head + 1, buffer, NEXT | WRITE, head + 2);
                    device.descriptor(ring.queue, head + 2, (data + 0x2_0000, 1), WRITE, 0);
                }
                device.offer(ring.queue, head);
            }
            ring.kick();
            for _ in 0..round * 500 {
                pause();
            }
            device.reset();
            fill(data, 0xc3, 0x1_0000);
            fill(device.rings(ring.queue)[2], 0xc3, 0x200);
            // Notifications of a driver that does not know yet.
            ring.device.kick(ring.queue);
            for _ in 0..5000 {
                pause();
            }
            let is_whole = |from: u64, bytes: u64| {
                (0..bytes / 64).all(|at| peek::<u8>(from + at * 64) == 0xc3)
            };
            expect(
                is_whole(data, 0x1_0000) && is_whole(device.rings(ring.queue)[2], 0x200),
                "a device wrote to memory after it was reset",
            );
        }
    });
}

/// How often a request is malformed: for a disk and the entropy device each, and in the vsock device's transmit ring. The test
/// counts what the monitor says of it.
const MALFORMED: u32 = 10_000;

/// Requests without what a request has.
pub fn malformed_requests_flood(bench: &Bench) {
    for ring in [bench.rings()[0], bench.rings()[2], bench.rings()[4]] {
        let device = ring.device;
        bench.begin_one(device);
        for index in 0..QUEUE_SIZE {
            device.descriptor(ring.queue, index, (device.data(), 4), 0, 0);
        }
        let mut left = MALFORMED;
        while left > 0 {
            let batch = left.min(u32::from(QUEUE_SIZE));
            for head in 0..batch {
                device.offer(ring.queue, head as u16);
            }
            device.kick(ring.queue);
            expect(device.drained(ring.queue), "a flood ended a device");
            left -= batch;
        }
        bench.others_answer(device);
        bench.answers(device);
    }
}

/// Interrupts that are never acknowledged, as many as there are requests; and acknowledgements of none.
pub fn interrupts_never_acknowledged(bench: &Bench) {
    for _ in 0..1000 {
        bench.answers(bench.disk);
        bench.answers(bench.entropy);
    }
    for value in [0, 1, 2, 3, 0xffff_fffc, u32::MAX] {
        for device in bench.devices() {
            for _ in 0..500 {
                device.set(crate::driver::register::INTERRUPT_ACK, value);
            }
        }
    }
}

/// Waits until the device is through with the ring. One that wants to be reset is, and is set up again.
fn settle(bench: &Bench, ring: Ring) {
    // Over its own ring a device may have written anything: then it is neither.
    let start = cycles();
    while !ring.device.needs_reset()
        && ring.device.used(ring.queue) != ring.device.available(ring.queue)
    {
        if cycles().wrapping_sub(start) > LONG {
            break;
        }
        pause();
    }
    if ring.device.needs_reset() {
        bench.begin_one(ring.device);
    }
}
