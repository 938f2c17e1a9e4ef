//! What happens when a thread makes a call that it may not make.
#![expect(
    unsafe_code,
    reason = "a signal handler reads what the kernel says of the call, and may only make system calls"
)]

use std::cell::Cell;
use std::io;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use sandbox_types::monitor::VIOLATION_EXIT_CODE;

use super::SeccompError;

/// Offset of `si_syscall` in `siginfo_t`: behind `si_signo`, `si_errno`, `si_code`, padding and `si_call_addr`
/// (Linux: `include/uapi/asm-generic/siginfo.h`, 64 bit).
const SYSCALL_OFFSET: usize = 24;
/// Room for the message.
const MESSAGE_BYTES: usize = 160;

thread_local! {
    /// What kind of thread this is. Read by the signal handler, so that it must need neither initialization nor allocation.
    static THREAD: Cell<&'static str> = const { Cell::new("a thread without a name") };
}

pub(super) fn name_thread(name: &'static str) {
    THREAD.set(name);
}

/// Makes violations end the process with a line that names them. To be called once, before the first filter is in force;
/// without it the kernel kills the process and says nothing.
///
/// # Errors
/// [`SeccompError::Handler`].
pub fn report_violations() -> Result<(), SeccompError> {
    let action = SigAction::new(
        SigHandler::SigAction(end),
        SaFlags::SA_SIGINFO | SaFlags::SA_NODEFER,
        SigSet::empty(),
    );
    // SAFETY: the handler only reads its argument and a constant-initialized thread-local without a destructor,
    // writes to a buffer of its own, and makes two system calls.
    let installed = unsafe { sigaction(Signal::SIGSYS, &action) };
    installed.map(drop).map_err(|errno| SeccompError::Handler {
        source: io::Error::from(errno),
    })
}

extern "C" fn end(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let place = info.cast::<u8>().wrapping_add(SYSCALL_OFFSET).cast::<i32>();
    // SAFETY: the kernel passes a whole siginfo_t of 128 bytes, in which this is an aligned int.
    let number = unsafe { place.read() };
    let mut message = Message::new();
    message.push(b"the ");
    message.push(THREAD.get().as_bytes());
    message.push(b" thread made system call ");
    message.number(number);
    message.push(b", which it may not make\n");
    let text = message.text();
    // SAFETY: the range is a part of the buffer. If it cannot be written, the exit code still tells.
    let _ = unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
    // SAFETY: ends the process, without running anything of it.
    unsafe { libc::_exit(VIOLATION_EXIT_CODE.into()) }
}

/// Text without allocation.
struct Message {
    bytes: [u8; MESSAGE_BYTES],
    length: usize,
}

impl Message {
    const fn new() -> Self {
        Self {
            bytes: [0; MESSAGE_BYTES],
            length: 0,
        }
    }

    fn push(&mut self, text: &[u8]) {
        for byte in text {
            if let Some(to) = self.bytes.get_mut(self.length) {
                *to = *byte;
                self.length += 1;
            }
        }
    }

    fn number(&mut self, number: i32) {
        if number < 0 {
            self.push(b"-");
        }
        let mut digits = [0_u8; 10];
        let mut rest = number.unsigned_abs();
        let mut count = 0;
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
            rest /= 10;
            count += 1;
            if rest == 0 {
                break;
            }
        }
        self.push(digits.get(digits.len() - count..).unwrap_or_default());
    }

    fn text(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_they_are() {
        for number in [0, 7, 41, -1, i32::MAX, i32::MIN] {
            let mut message = Message::new();
            message.number(number);
            assert_eq!(message.text(), number.to_string().as_bytes());
        }
    }

    #[test]
    fn message_that_is_too_long_is_cut() {
        let mut message = Message::new();
        message.push(&[b'x'; MESSAGE_BYTES + 1]);
        assert_eq!(message.text().len(), MESSAGE_BYTES);
    }
}
