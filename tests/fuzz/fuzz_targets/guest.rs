//! Any bytes as what the agent says to the host: its replies, its events, and how its streams begin.

#![no_main]

use sandbox_runtime::untrusted;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    // Where nothing is answered, time goes on to the call's limit.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build();
    let checked = runtime.expect("no runtime").block_on(async {
        untrusted::replies(data).await?;
        untrusted::streams(data).await
    });
    if let Err(broken) = checked {
        panic!("{broken}");
    }
});
