//! Any bytes as what a caller of the shim's `start` says.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Err(broken) = containerd_shim_sandbox_v2::untrusted::bootstrap(data) {
        panic!("{broken}");
    }
});
