//! System calls that no safe wrapper covers.
#![expect(
    unsafe_code,
    reason = "kill(2) with real-time signals, ioctl(2) on an interface and a disk, adjtimex(2), clocks of devices and AsyncFd have no safe wrapper"
)]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use nix::libc;
use rustix::time::Timespec;
use tokio::io::unix::AsyncFd;

/// Sends `signal`, any of 1 to 64, to process `pid`.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    if pid <= 1 {
        // 0 and below are groups; 1 is the agent.
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: kill takes two numbers and touches no memory of ours.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has the clock made up for so many microseconds, little by little (adjtimex(2)).
pub(crate) fn slew(microseconds: i64) -> io::Result<()> {
    // SAFETY: timex is plain data, for which zeros are a value.
    let mut change: libc::timex = unsafe { mem::zeroed() };
    change.modes = libc::ADJ_OFFSET_SINGLESHOT;
    change.offset = microseconds;
    // SAFETY: adjtimex reads and writes the timex that it is given.
    match unsafe { libc::adjtimex(&raw mut change) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The time of a clock that is a device (clock_getres(2), "Dynamic clocks").
pub(crate) fn clock_of(device: BorrowedFd<'_>) -> io::Result<Timespec> {
    /// The low bits of the number of such a clock (kernel `include/linux/posix-timers.h`).
    const CLOCKFD: libc::clockid_t = 3;
    let clock = (!device.as_raw_fd() << 3) | CLOCKFD;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: clock_gettime writes a timespec, which `time` is.
    match unsafe { libc::clock_gettime(clock, &raw mut time) } {
        0 => Ok(Timespec {
            tv_sec: time.tv_sec,
            tv_nsec: time.tv_nsec,
        }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `struct blkpg_partition` of `include/uapi/linux/blkpg.h`.
#[repr(C)]
struct BlkpgPartition {
    start: i64,
    length: i64,
    number: libc::c_int,
    /// Names, which the kernel does not look at.
    names: [u8; 128],
}

/// `struct blkpg_ioctl_arg`.
#[repr(C)]
struct BlkpgArgument {
    operation: libc::c_int,
    flags: libc::c_int,
    length: libc::c_int,
    data: *mut BlkpgPartition,
}

/// What is done with a partition of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PartitionChange {
    /// It is made, where nothing is; in bytes, whole sectors.
    Add {
        /// Where it begins.
        start: i64,
        /// How long it is.
        length: i64,
    },
    /// It is removed. Nobody may have it open.
    Remove,
}

/// Makes or removes partition `number` of a disk, in memory only (`BLKPG`). Its device node is there, or gone, when this returns.
pub(crate) fn change_partition(
    disk: BorrowedFd<'_>,
    number: i32,
    change: PartitionChange,
) -> io::Result<()> {
    const BLKPG: libc::Ioctl = 0x1269;
    const BLKPG_ADD_PARTITION: libc::c_int = 1;
    const BLKPG_DEL_PARTITION: libc::c_int = 2;
    let (operation, start, length) = match change {
        PartitionChange::Add { start, length } => (BLKPG_ADD_PARTITION, start, length),
        PartitionChange::Remove => (BLKPG_DEL_PARTITION, 0, 0),
    };
    let mut partition = BlkpgPartition {
        start,
        length,
        number,
        names: [0; 128],
    };
    let mut argument = BlkpgArgument {
        operation,
        flags: 0,
        length: libc::c_int::try_from(mem::size_of::<BlkpgPartition>()).unwrap_or(0),
        data: &raw mut partition,
    };
    // SAFETY: BLKPG reads the argument and the partition that it points to; both live until it returns.
    match unsafe { libc::ioctl(disk.as_raw_fd(), BLKPG, &raw mut argument) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Brings the interface `lo` up; the kernel gives it its addresses.
pub(crate) fn bring_up_loopback() -> io::Result<()> {
    // SAFETY: socket takes three numbers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: ifreq is plain data, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo\0") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).map_err(io::Error::other)?;
    // SAFETY: SIOCSIFFLAGS reads an ifreq (netdevice(7)), which `request` is, and keeps nothing of it.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has the event loop watch `fd`.
pub(crate) fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is the same open descriptor until it is dropped, and AsyncFd hands out no way to replace
    // or close it earlier.
    Ok(unsafe { AsyncFd::register(fd) }?)
}
