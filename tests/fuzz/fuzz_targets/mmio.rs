//! Any accesses to the registers of the memory-mapped transport.

#![no_main]

#[path = "../mmio.rs"]
mod mmio;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Err(broken) = mmio::check(data) {
        panic!("{broken}");
    }
});
