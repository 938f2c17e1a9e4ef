//! Any bytes as a program of a driver of the balloon device.

#![no_main]

#[path = "../driver.rs"]
mod driver;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let kind = driver::Kind::Balloon;
    if let Err(broken) = driver::check(kind, data) {
        panic!("{broken}");
    }
});
