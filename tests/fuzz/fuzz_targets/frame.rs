//! Any bytes where the agent's frames are expected.

#![no_main]

#[path = "../frame.rs"]
mod frame;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    if let Err(broken) = runtime.expect("no runtime").block_on(frame::check(data)) {
        panic!("{broken}");
    }
});
