//! What a device meets that reads from a file of a [`Window`](super::window::Window) where that is missing: `SIGBUS`.
//!
//! The process ends with [`FILE_LOST_EXIT_CODE`] and a line on standard error; the guest could not go on without its file. vCPUs do not
//! get here: KVM fails with `EFAULT`.
#![expect(
    unsafe_code,
    reason = "a signal handler reads what the kernel says of the fault, and may only make system calls"
)]

use std::io;
use std::mem;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use sandbox_types::monitor::FILE_LOST_EXIT_CODE;

/// The first address of the window, and the first behind it.
static START: AtomicUsize = AtomicUsize::new(0);
static END: AtomicUsize = AtomicUsize::new(0);

const MESSAGE: &[u8] =
    b"a device read from a file of the guest's persistent memory that is no longer there as it was\n";

/// Installs the handler for faults in `window`, of which a process has one.
///
/// # Errors
/// What the kernel says.
pub fn end_when_read(window: &Range<usize>) -> io::Result<()> {
    START.store(window.start, Ordering::Relaxed);
    END.store(window.end, Ordering::Release);
    // SAFETY: all zeroes are a valid value of this structure.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = end;
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler only reads its argument and two atomics, and makes system calls.
    let installed = unsafe { libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) };
    match installed {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

extern "C" fn end(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a whole siginfo_t.
    let info = unsafe { &*info };
    // SAFETY: SIGBUS comes with the address of the fault.
    let address = unsafe { info.si_addr() }.addr();
    if address < START.load(Ordering::Relaxed) || address >= END.load(Ordering::Acquire) {
        // Another fault. It happens again when this returns, and then ends the process.
        // SAFETY: no handler.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
        return;
    }
    // SAFETY: the range is that of a constant. If it cannot be written, the exit code still tells.
    let _ = unsafe { libc::write(libc::STDERR_FILENO, MESSAGE.as_ptr().cast(), MESSAGE.len()) };
    // SAFETY: ends the process, without running anything of it.
    unsafe { libc::_exit(FILE_LOST_EXIT_CODE.into()) }
}
