//! Any bytes in any pieces as what a client of the vsock socket says.

#![no_main]

#[path = "../handshake.rs"]
mod handshake;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Err(broken) = handshake::check(data) {
        panic!("{broken}");
    }
});
