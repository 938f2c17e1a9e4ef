//! What the process is, before it does anything.
#![expect(unsafe_code, reason = "mallopt and signal have no safe wrappers")]

use std::panic;

/// The stack of each thread but the first, in bytes. Nothing here is deep. With the standard library's two megabytes one of them would now
/// and then lie on a huge page, and take all of it.
pub(crate) const THREAD_STACK_BYTES: usize = 256 << 10;

/// To be called first. Makes the libraries that the monitor is linked with do, once threads are
/// [confined](crate::seccomp), nothing that takes more than the monitor itself needs.
pub fn prepare() {
    one_arena();
    // The default hook opens files of /proc where RUST_BACKTRACE asks for a backtrace.
    panic::set_hook(Box::new(|panic| eprintln!("sandbox-vmm: {panic}")));
}

/// Has what would make a file longer than it may become fail, as with any other error, instead of end the process. What is executed later would
/// ignore it too.
pub(crate) fn ignore_file_limit() {
    // SAFETY: no handler is installed: the signal is dropped.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// With more than one arena, glibc's allocator reads `/proc/sys/vm/overcommit_memory` and counts processors when it
/// feels like it. Nothing that is done for every request allocates, so that one is enough; it also takes less memory.
#[cfg(target_env = "gnu")]
fn one_arena() {
    // SAFETY: called before there are threads; an option that is not known changes nothing.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

#[cfg(not(target_env = "gnu"))]
fn one_arena() {}
