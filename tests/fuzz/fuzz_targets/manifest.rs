//! Any documents as an image's index, manifest and configuration.

#![no_main]

#[path = "../manifest.rs"]
mod manifest;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Err(broken) = manifest::check(data) {
        panic!("{broken}");
    }
});
