//! One queue of a tap, as the runtime hands it over: opened, and attached to its interface with a header before each
//! frame (Linux: Documentation/networking/tuntap.rst, `include/uapi/linux/if_tun.h`).
#![expect(
    unsafe_code,
    reason = "a tap is set up by ioctl(2); readv and writev move frames between it and guest memory, which has no Rust references"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::ioctl::{IntegerSetter, Opcode, Setter, ioctl, opcode};

use super::error::NetError;
use super::request::HEADER_BYTES;
use crate::virtio::vectors::Vectors;

/// `TUN_F_CSUM`: frames without a checksum may be read.
pub(crate) const OFFLOAD_CSUM: u32 = 1;
/// `TUN_F_TSO4`: and segments of TCP over IPv4 larger than the MTU.
pub(crate) const OFFLOAD_TSO4: u32 = 2;
/// `TUN_F_TSO6`: and over IPv6.
pub(crate) const OFFLOAD_TSO6: u32 = 4;

const SET_OFFLOAD: Opcode = opcode::write::<u32>(b'T', 208);
const SET_HEADER_BYTES: Opcode = opcode::write::<i32>(b'T', 216);
const SET_LITTLE_ENDIAN: Opcode = opcode::write::<i32>(b'T', 220);
/// `TUNSETQUEUE`.
const SET_QUEUE: Opcode = opcode::write::<i32>(b'T', 217);
/// `IFF_ATTACH_QUEUE` and `IFF_DETACH_QUEUE`.
const ATTACH: u16 = 0x0200;
const DETACH: u16 = 0x0400;

/// `struct ifreq` (netdevice(7)), as far as `TUNSETQUEUE` goes.
#[repr(C)]
#[derive(Clone, Copy)]
struct QueueRequest {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// A queue of a tap.
#[derive(Debug)]
pub struct Tap {
    file: File,
    attached: AtomicBool,
    /// Whether it is a tap: then there is something to be set.
    is_tap: bool,
}

impl Tap {
    /// Takes over a queue of a tap with `IFF_VNET_HDR`.
    ///
    /// # Errors
    /// [`NetError::Tap`] when it is none.
    pub fn new(file: File) -> Result<Self, NetError> {
        let tap = Self {
            file,
            attached: AtomicBool::new(true),
            is_tap: true,
        };
        let failed = |action| {
            move |errno: rustix::io::Errno| NetError::Tap {
                action,
                source: errno.into(),
            }
        };
        let header = i32::try_from(HEADER_BYTES).unwrap_or(0);
        // SAFETY: TUNSETVNETHDRSZ reads an int, which is what is passed.
        let set_header = unsafe { Setter::<SET_HEADER_BYTES, i32>::new(header) };
        // SAFETY: the setter's type belongs to its opcode.
        unsafe { ioctl(&tap.file, set_header) }.map_err(failed("set the header's length of"))?;
        // SAFETY: TUNSETVNETLE reads an int, which is what is passed.
        let set_order = unsafe { Setter::<SET_LITTLE_ENDIAN, i32>::new(1) };
        // SAFETY: the setter's type belongs to its opcode.
        unsafe { ioctl(&tap.file, set_order) }.map_err(failed("set the byte order of"))?;
        rustix::io::ioctl_fionbio(&tap.file, true).map_err(failed("make reads not block on"))?;
        Ok(tap)
    }

    /// In place of a tap, for tests: any descriptor that does not block and keeps messages apart. What is set for it has no
    /// effect.
    #[doc(hidden)]
    #[must_use]
    pub fn of_messages(file: File) -> Self {
        Self {
            file,
            attached: AtomicBool::new(true),
            is_tap: false,
        }
    }

    /// Whether the kernel passes it frames. A new one is attached.
    #[must_use]
    pub(crate) fn is_attached(&self) -> bool {
        self.attached.load(Ordering::Acquire)
    }

    /// Attaches the queue to its interface, or detaches it, which forgets the frames that it holds.
    ///
    /// # Errors
    /// What the kernel says: the interface is gone, or has one queue.
    pub(crate) fn attach(&self, attached: bool) -> io::Result<()> {
        if self.is_attached() == attached {
            return Ok(());
        }
        if self.is_tap {
            let request = QueueRequest {
                name: [0; 16],
                flags: if attached { ATTACH } else { DETACH },
                rest: [0; 22],
            };
            // SAFETY: TUNSETQUEUE reads an ifreq, as large and laid out as `QueueRequest`.
            let setter = unsafe { Setter::<SET_QUEUE, QueueRequest>::new(request) };
            // SAFETY: the setter's type belongs to its opcode.
            unsafe { ioctl(&self.file, setter) }?;
        }
        self.attached.store(attached, Ordering::Release);
        Ok(())
    }

    /// Says what frames that are read may need: a set of `OFFLOAD_…`.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn set_offload(&self, offload: u32) -> io::Result<()> {
        if !self.is_tap {
            return Ok(());
        }
        let value = usize::try_from(offload).unwrap_or(0);
        // SAFETY: TUNSETOFFLOAD takes a number as its argument.
        let setter = unsafe { IntegerSetter::<SET_OFFLOAD>::new_usize(value) };
        // SAFETY: the setter's type belongs to its opcode, which touches no memory.
        unsafe { ioctl(&self.file, setter) }?;
        Ok(())
    }

    /// Reads one header and frame, and says how long they are together; what does not fit is lost.
    ///
    /// # Errors
    /// `WouldBlock` when none is there; `EFAULT` when it could not be written, and is lost; others when the interface is gone.
    pub(crate) fn read(&self, frame: &Vectors<'_>) -> io::Result<usize> {
        self.pass(libc::readv, frame)
    }

    /// Writes one header and frame.
    ///
    /// # Errors
    /// What the kernel says: it checks the header.
    pub(crate) fn write(&self, frame: &Vectors<'_>) -> io::Result<()> {
        self.pass(libc::writev, frame).map(drop)
    }

    fn pass(&self, call: Vectored, frame: &Vectors<'_>) -> io::Result<usize> {
        let pieces = frame.as_slice();
        let count = i32::try_from(pieces.len()).unwrap_or(i32::MAX);
        // SAFETY: `Vectors` are whole ranges of guest memory, which they keep and nothing has a reference to, and memory
        // that they have borrowed.
        let passed = unsafe { call(self.file.as_raw_fd(), pieces.as_ptr(), count) };
        usize::try_from(passed).map_err(|_| io::Error::last_os_error())
    }
}

type Vectored = unsafe extern "C" fn(i32, *const libc::iovec, i32) -> isize;

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
