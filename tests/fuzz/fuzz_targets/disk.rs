//! Any bytes as a program of a driver of disks.

#![no_main]

#[path = "../driver.rs"]
mod driver;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let kind = match data.first().is_some_and(|byte| byte & 1 == 1) {
        true => driver::Kind::ReadOnlyDisk,
        false => driver::Kind::Disk,
    };
    if let Err(broken) = driver::check(kind, data) {
        panic!("{broken}");
    }
});
