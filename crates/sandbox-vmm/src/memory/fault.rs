//! What a device meets that reaches for guest memory which is not there: a signal. The process ends with an exit code of its own and a line on
//! standard error. vCPUs do not get here: KVM fails with `EFAULT`.
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

use super::{lost, unplugged};

/// A kind of fault, of which a process has one range of addresses.
pub(super) struct Fault {
    signal: libc::c_int,
    exit_code: u8,
    message: &'static [u8],
    /// The first address, and the first behind the last.
    start: AtomicUsize,
    end: AtomicUsize,
    /// Who had the signal before: the standard library, which tells of stacks that are full.
    before: OnceLock<libc::sigaction>,
}

impl Fault {
    /// That of `signal`, without addresses yet.
    pub(super) const fn new(signal: libc::c_int, exit_code: u8, message: &'static [u8]) -> Self {
        Self {
            signal,
            exit_code,
            message,
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            before: OnceLock::new(),
        }
    }

    /// Installs the handler for faults in `range`.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn end_process(&self, range: &Range<usize>) -> io::Result<()> {
        self.start.store(range.start, Ordering::Relaxed);
        self.end.store(range.end, Ordering::Release);
        // SAFETY: all zeroes are a valid value of this structure.
        let mut before: libc::sigaction = unsafe { mem::zeroed() };
        // SAFETY: asks, and changes nothing.
        if unsafe { libc::sigaction(self.signal, ptr::null(), &raw mut before) } != 0 {
            return Err(io::Error::last_os_error());
        }
        self.before.get_or_init(|| before);
        // SAFETY: all zeroes are a valid value of this structure.
        let mut action: libc::sigaction = unsafe { mem::zeroed() };
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = meet;
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the handler only reads its arguments and what is set above, and makes system calls.
        let installed = unsafe { libc::sigaction(self.signal, &raw const action, ptr::null_mut()) };
        match installed {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn at(&self, address: usize) {
        if address < self.start.load(Ordering::Relaxed)
            || address >= self.end.load(Ordering::Acquire)
        {
            // Another fault. It happens again when this returns, and then is whose it was before.
            let before = self.before.get().map_or(ptr::null(), ptr::from_ref);
            // SAFETY: null, which changes nothing, or a handler that has been installed before.
            let restored = unsafe { libc::sigaction(self.signal, before, ptr::null_mut()) };
            if before.is_null() || restored != 0 {
                // SAFETY: no handler.
                unsafe { libc::signal(self.signal, libc::SIG_DFL) };
            }
            return;
        }
        let said = self.message;
        // SAFETY: the range is that of a constant. If it cannot be written, the exit code still tells.
        let _ = unsafe { libc::write(libc::STDERR_FILENO, said.as_ptr().cast(), said.len()) };
        // SAFETY: ends the process, without running anything of it.
        unsafe { libc::_exit(self.exit_code.into()) }
    }
}

extern "C" fn meet(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a whole siginfo_t.
    let info = unsafe { &*info };
    // SAFETY: both signals come with the address of the fault.
    let address = unsafe { info.si_addr() }.addr();
    for fault in [&lost::FAULT, &unplugged::FAULT] {
        if fault.signal == signal {
            fault.at(address);
        }
    }
}
