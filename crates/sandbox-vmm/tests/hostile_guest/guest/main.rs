//! A guest that means the monitor harm: no operating system, its own drivers of the virtio devices, and one attack, which the
//! kernel command line names (`attack=NAME`). After the attack, and between its parts, the devices that were not attacked must
//! answer, and those that were must after a reset. It says `held` on the serial port if they did, or `failed: …`, and powers off.
//!
//! What only the host can see (the monitor's life, memory and log, the disks) is looked at in `hostile_guest.rs`.

#![no_std]
#![no_main]

mod bench;
mod driver;
mod entry;
mod machine;
mod packet;
mod rings;
mod streams;
mod transport;
mod work;

use bench::Bench;

const ATTACKS: [(&str, fn(&Bench)); 22] = [
    ("none", |bench| bench.answer()),
    ("work", work::everything),
    ("broken-disk", broken_disk),
    ("memory", touch_memory),
    ("read-only", bench::writes_refused),
    ("odd-accesses", transport::odd_accesses),
    ("status-out-of-order", transport::status_out_of_order),
    ("rings-that-are-none", transport::rings_that_are_none),
    ("notifications", transport::notifications_without_end),
    ("ports", transport::ports_flood),
    ("index-jumps", rings::index_jumps),
    ("heads", rings::heads_outside_the_table),
    ("descriptor-loops", rings::descriptor_loops),
    ("buffers", rings::buffers_zero_huge_and_overlapping),
    ("features", rings::features_ignored),
    ("resets", rings::queues_reset_under_load),
    ("malformed", rings::malformed_requests_flood),
    ("interrupts", rings::interrupts_never_acknowledged),
    ("credit-lies", streams::credit_lies),
    ("connections", streams::connection_flood),
    ("deaf-host", streams::host_that_does_not_read),
    ("stray-packets", streams::stray_packets_flood),
];

/// For the test of the tests: a device that was broken and not reset does not answer, and that is noticed.
fn broken_disk(bench: &Bench) {
    let index = bench.disk.available(0);
    bench.disk.set_available(0, index.wrapping_add(0x4000));
    bench.disk.kick(0);
    machine::eventually(|| bench.disk.needs_reset());
    bench.disk.set_available(0, index);
    bench.answer();
}

/// For the test of the tests: memory of the monitor's process grows, and that is noticed.
fn touch_memory(_: &Bench) {
    for page in 0..4096_u64 {
        machine::poke(0x40_0000 + page * 4096, page);
    }
}

/// The command line, of which `hvm_start_info` has the address.
fn is_asked_for(name: &str, command_line: u64) -> bool {
    let wanted = b"attack=";
    let at = |place: u64| machine::peek::<u8>(command_line + place);
    let matches = |from: u64, text: &[u8]| {
        (0..)
            .zip(text)
            .all(|(place, byte)| at(from + place) == *byte)
    };
    let mut start = 0;
    while at(start) != 0 {
        let after = start + wanted.len() as u64;
        if matches(start, wanted) && matches(after, name.as_bytes()) {
            return matches!(at(after + name.len() as u64), b' ' | 0);
        }
        start += 1;
    }
    false
}

extern "C" fn main(start_info: u64) -> ! {
    let command_line = machine::peek(start_info + 24);
    for (name, attack) in ATTACKS {
        if is_asked_for(name, command_line) {
            let bench = Bench::find();
            bench.begin();
            machine::say("attack\n");
            attack(&bench);
            machine::say("held\n");
            machine::end();
        }
    }
    machine::fail("no such attack")
}
