//! How much memory the allocator keeps that nothing is in: there is a shim for every pod, and it is idle nearly all the time.
#![expect(unsafe_code, reason = "mallopt and malloc_trim have no safe wrappers")]

use std::time::Duration;

/// How long after a start its last messages have been dealt with. Nothing depends on it.
const SETTLED: Duration = Duration::from_secs(1);
/// Blocks from this size on are mappings of their own, and gone when they are freed. What streams and messages are copied through
/// is smaller.
const OWN_MAPPING_BYTES: i32 = 128 << 10;
/// What may stay free at the heap's end.
const SPARE_BYTES: i32 = 128 << 10;

/// To be called first. One heap for all threads, of which there is one nearly always, and bounds that stay as they are: glibc
/// would raise both with the first large block that is freed (mallopt(3)).
#[cfg(target_env = "gnu")]
pub(crate) fn prepare() {
    use nix::libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, mallopt};
    for (option, value) in [
        (M_ARENA_MAX, 1),
        (M_MMAP_THRESHOLD, OWN_MAPPING_BYTES),
        (M_TRIM_THRESHOLD, SPARE_BYTES),
    ] {
        // SAFETY: called before there are threads; an option that is not known changes nothing.
        unsafe { mallopt(option, value) };
    }
}

/// Gives back, in a while, what a start needed and an idle pod does not.
pub(crate) fn settle() {
    tokio::spawn(async {
        tokio::time::sleep(SETTLED).await;
        trim();
    });
}

#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: takes pages back in which nothing is allocated.
    unsafe { nix::libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
pub(crate) fn prepare() {}

#[cfg(not(target_env = "gnu"))]
fn trim() {}
