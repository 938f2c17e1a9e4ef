//! What a device meets that a driver points at memory which the guest does not have at the time ([`super::later`]): `SIGSEGV`.
//!
//! The process ends with [`UNPLUGGED_EXIT_CODE`] and a line on standard error: a guest that does so has ended itself. vCPUs do not get
//! here: KVM fails with `EFAULT`; nor do system calls, which fail with it too.
#![expect(
    unsafe_code,
    reason = "a signal handler reads what the kernel says of the fault, and may only make system calls"
)]

use std::io;
use std::mem;
use std::ops::Range;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use sandbox_types::monitor::UNPLUGGED_EXIT_CODE;

/// The first address of that memory, and the first behind it.
static START: AtomicUsize = AtomicUsize::new(0);
static END: AtomicUsize = AtomicUsize::new(0);
/// Who had the signal before: the standard library, which tells of stacks that are full.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

const MESSAGE: &[u8] =
    b"the guest had a device use memory that it was not given, or that it had given back\n";

/// Installs the handler for faults in `memory`, of which a process has one.
///
/// # Errors
/// What the kernel says.
pub fn end_when_used(memory: &Range<usize>) -> io::Result<()> {
    START.store(memory.start, Ordering::Relaxed);
    END.store(memory.end, Ordering::Release);
    // SAFETY: all zeroes are a valid value of this structure.
    let mut before: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: asks, and changes nothing.
    if unsafe { libc::sigaction(libc::SIGSEGV, ptr::null(), &raw mut before) } != 0 {
        return Err(io::Error::last_os_error());
    }
    BEFORE.get_or_init(|| before);
    // SAFETY: all zeroes are a valid value of this structure.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = end;
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler only reads its argument and what is set above, and makes system calls.
    let installed = unsafe { libc::sigaction(libc::SIGSEGV, &action, ptr::null_mut()) };
    match installed {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

extern "C" fn end(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a whole siginfo_t.
    let info = unsafe { &*info };
    // SAFETY: SIGSEGV comes with the address of the fault.
    let address = unsafe { info.si_addr() }.addr();
    if address < START.load(Ordering::Relaxed) || address >= END.load(Ordering::Acquire) {
        // Another fault. It happens again when this returns, and then is whose it was before.
        let before = BEFORE.get().map_or(ptr::null(), ptr::from_ref);
        // SAFETY: null, which changes nothing, or a handler that has been installed before.
        let restored = unsafe { libc::sigaction(libc::SIGSEGV, before, ptr::null_mut()) };
        if before.is_null() || restored != 0 {
            // SAFETY: no handler.
            unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
        }
        return;
    }
    // SAFETY: the range is that of a constant. If it cannot be written, the exit code still tells.
    let _ = unsafe { libc::write(libc::STDERR_FILENO, MESSAGE.as_ptr().cast(), MESSAGE.len()) };
    // SAFETY: ends the process, without running anything of it.
    unsafe { libc::_exit(UNPLUGGED_EXIT_CODE.into()) }
}
