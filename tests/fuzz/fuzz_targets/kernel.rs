//! Any bytes as the kernel of a guest.

#![no_main]

#[path = "../kernel.rs"]
mod kernel;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Err(broken) = kernel::check(data) {
        panic!("{broken}");
    }
});
