//! Memory, ports and time of the machine, and the way to say what was seen.

use core::arch::asm;

/// Where the machine ends, by which values (`sandbox_types::monitor`).
pub const EXIT_PORT: u16 = 0x501;
pub const POWER_OFF: u8 = 0x10;
pub const SERIAL_PORT: u16 = 0x3f8;
/// What the test gives this guest.
pub const MEMORY_END: u64 = 64 << 20;
/// Cycles after which something that has to happen did not: many seconds on any machine.
const PATIENCE: u64 = 60_000_000_000;

pub fn peek<T: Copy>(address: u64) -> T {
    // SAFETY: all of the first 4 GiB is mapped, and what is read is of plain numbers.
    unsafe { (address as *const T).read_volatile() }
}

pub fn poke<T: Copy>(address: u64, value: T) {
    // SAFETY: as above; nothing of the program's own lies where the drivers write.
    unsafe { (address as *mut T).write_volatile(value) }
}

pub fn fill(address: u64, byte: u8, bytes: u64) {
    for at in 0..bytes / 8 {
        poke(address + at * 8, u64::from_ne_bytes([byte; 8]));
    }
}

pub fn out8(port: u16, value: u8) {
    // SAFETY: ports are devices.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) }
}

pub fn out16(port: u16, value: u16) {
    // SAFETY: ports are devices.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack)) }
}

pub fn out32(port: u16, value: u32) {
    // SAFETY: ports are devices.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) }
}

pub fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: ports are devices.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)) }
    value
}

/// Writes before this are seen by the device before those after it.
pub fn fence() {
    // SAFETY: no more than a barrier.
    unsafe { asm!("mfence", options(nostack)) }
}

pub fn cycles() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a counter.
    unsafe { asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack)) }
    u64::from(high) << 32 | u64::from(low)
}

pub fn pause() {
    core::hint::spin_loop();
}

/// Waits until it holds; whether it came to.
pub fn eventually(mut holds: impl FnMut() -> bool) -> bool {
    let start = cycles();
    while !holds() {
        if cycles().wrapping_sub(start) > PATIENCE {
            return false;
        }
        pause();
    }
    true
}

pub fn say(text: &str) {
    for byte in text.as_bytes() {
        out8(SERIAL_PORT, *byte);
    }
}

pub fn end() -> ! {
    out8(EXIT_PORT, POWER_OFF);
    loop {
        pause();
    }
}

pub fn fail(what: &str) -> ! {
    say("\nfailed: ");
    say(what);
    say("\n");
    end()
}

pub fn expect(holds: bool, what: &str) {
    if !holds {
        fail(what);
    }
}
