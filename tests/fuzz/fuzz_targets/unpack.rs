//! Any bytes as a layer's blob.

#![no_main]

#[path = "../contained.rs"]
mod contained;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Err(broken) = contained::check(data) {
        panic!("{broken}");
    }
});
