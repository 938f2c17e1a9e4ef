//! One operation through io_uring(7), by hand: a submission queue of one entry, IORING_OP_SOCKET, its completion.

#![expect(
    unsafe_code,
    reason = "a ring is memory that is shared with the kernel"
)]

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::libc;

/// `IORING_OP_SOCKET` (Linux 5.19, `include/uapi/linux/io_uring.h`).
const OP_SOCKET: u8 = 45;
const ENTER_GETEVENTS: u32 = 1;
const OFF_SQ_RING: i64 = 0;
const OFF_CQ_RING: i64 = 0x800_0000;
const OFF_SQES: i64 = 0x1000_0000;
/// More than rings of one entry need.
const RING_BYTES: usize = 4096;

/// `struct io_uring_params`, as words: sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle, features, wq_fd,
/// resv[3]; then ten words of sq_off and ten of cq_off.
const PARAMS_WORDS: usize = 30;
const SQ_OFF: usize = 10;
const CQ_OFF: usize = 20;

struct Ring(*mut u8);

impl Ring {
    fn map(fd: &OwnedFd, offset: i64) -> Result<Self, Errno> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                RING_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                fd.as_raw_fd(),
                offset,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        Ok(Self(address.cast()))
    }

    /// The word at this offset, which the kernel named.
    fn word(&self, offset: u32) -> &AtomicU32 {
        assert!(offset as usize + 4 <= RING_BYTES && offset.is_multiple_of(4));
        // SAFETY: in bounds, by the line above.
        let address = unsafe { self.0.add(offset as usize) };
        // SAFETY: aligned, mapped until the program ends, and shared as an atomic.
        unsafe { AtomicU32::from_ptr(address.cast()) }
    }
}

/// Makes and closes a stream socket of this family. On failure, says at which step.
///
/// # Errors
/// "setup", "map" or "enter" with the system call's error, or "socket" with the operation's.
pub(crate) fn socket(family: i32) -> Result<(), (&'static str, Errno)> {
    let mut params = [0u32; PARAMS_WORDS];
    // SAFETY: the kernel reads and writes one `io_uring_params`, which has that many words.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
    let fd = Errno::result(fd).map_err(|errno| ("setup", errno))?;
    let fd = i32::try_from(fd).map_err(|_| ("setup", Errno::EBADF))?;
    // SAFETY: just opened, and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let map = |offset| Ring::map(&fd, offset).map_err(|errno| ("map", errno));
    let (sq, cq, entries) = (map(OFF_SQ_RING)?, map(OFF_CQ_RING)?, map(OFF_SQES)?);

    // struct io_uring_sqe: opcode, flags, ioprio | fd | off (8) | addr (8) | len | rw_flags | user_data (8) …
    // For a socket: fd is the family, off the type, len the protocol.
    entries
        .word(0)
        .store(u32::from(OP_SOCKET), Ordering::Relaxed);
    entries
        .word(4)
        .store(family.cast_unsigned(), Ordering::Relaxed);
    entries
        .word(8)
        .store(libc::SOCK_STREAM.cast_unsigned(), Ordering::Relaxed);
    // sq_off: head, tail, ring_mask, ring_entries, flags, dropped, array.
    sq.word(params[SQ_OFF + 6]).store(0, Ordering::Relaxed);
    sq.word(params[SQ_OFF + 1]).store(1, Ordering::Release);
    // SAFETY: submits the one entry and waits for its completion; no signal mask is given.
    let entered = unsafe {
        libc::syscall(
            libc::SYS_io_uring_enter,
            fd.as_raw_fd(),
            1,
            1,
            ENTER_GETEVENTS,
            std::ptr::null::<libc::sigset_t>(),
            0,
        )
    };
    Errno::result(entered).map_err(|errno| ("enter", errno))?;
    // cq_off: head, tail, ring_mask, ring_entries, overflow, cqes. struct io_uring_cqe: user_data (8) | res | flags.
    let result = cq
        .word(params[CQ_OFF + 5] + 8)
        .load(Ordering::Acquire)
        .cast_signed();
    if result < 0 {
        return Err(("socket", Errno::from_raw(-result)));
    }
    // SAFETY: the operation opened it for us.
    drop(unsafe { OwnedFd::from_raw_fd(result) });
    Ok(())
}
