//! Any bytes as a container's specification, as the process of an exec, and as new limits.

#![no_main]

use containerd_shim_sandbox_v2::untrusted;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    untrusted::limits(data);
    let taken = untrusted::process(data).and_then(|()| untrusted::specification(data));
    if let Err(broken) = taken {
        panic!("{broken}");
    }
});
