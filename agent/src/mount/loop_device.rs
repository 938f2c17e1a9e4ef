//! Block devices of files, which go by themselves when the last user of them is gone (`LO_FLAGS_AUTOCLEAR`, loop(4)).
#![expect(
    unsafe_code,
    reason = "the ioctls of loop devices have no safe wrapper"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};

use nix::libc;

/// How often another may take the device that was found free.
const ATTEMPTS: usize = 16;

/// The devices' logical block: the smallest, since a file system's blocks are no smaller.
const BLOCK_BYTES: u32 = 512;

/// A file cannot be a block device.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {device}")]
pub(crate) struct LoopError {
    /// What was tried.
    action: &'static str,
    /// With what.
    device: String,
    #[source]
    source: io::Error,
}

fn failed(action: &'static str, device: &str) -> impl FnOnce(io::Error) -> LoopError {
    let device = device.to_owned();
    move |source| LoopError {
        action,
        device,
        source,
    }
}

/// What the device may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Reading.
    ReadOnly,
    /// Reading and writing.
    Writable,
}

// Kernel `include/uapi/linux/loop.h`.
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// `struct loop_config`, with `struct loop_info64` in it.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopConfig>() == 304);

/// A block device of the file that `source` names: its node, and what keeps it until something is made of it. It goes with both.
///
/// # Errors
/// [`LoopError`] with the call that the kernel refused.
pub(super) fn attach(
    file: &File,
    source: &str,
    access: Access,
) -> Result<(String, File), LoopError> {
    const CONTROL: &str = "/dev/loop-control";
    let control = File::options().read(true).write(true).open(CONTROL);
    let control = control.map_err(failed("open", CONTROL))?;
    let fd = u32::try_from(file.as_raw_fd()).unwrap_or(u32::MAX);
    let mut attempt = 0;
    loop {
        let number = ioctl_number(control.as_raw_fd())
            .map_err(failed("find a free loop device for", source))?;
        let path = format!("/dev/loop{number}");
        let device = File::options()
            .read(true)
            .write(access == Access::Writable)
            .open(&path)
            .map_err(failed("open", &path))?;
        match configure(&device, fd, access) {
            Ok(()) => return Ok((path, device)),
            // Somebody else was faster.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && attempt < ATTEMPTS => {
                attempt += 1
            }
            Err(error) => return Err(failed("make a block device of", source)(error)),
        }
    }
}

fn ioctl_number(control: RawFd) -> io::Result<libc::c_int> {
    // SAFETY: the call takes no argument and touches no memory of ours.
    match unsafe { libc::ioctl(control, LOOP_CTL_GET_FREE) } {
        -1 => Err(io::Error::last_os_error()),
        number => Ok(number),
    }
}

fn configure(device: &File, fd: u32, access: Access) -> io::Result<()> {
    let read_only = match access {
        Access::ReadOnly => LO_FLAGS_READ_ONLY,
        Access::Writable => 0,
    };
    let config = LoopConfig {
        fd,
        block_size: BLOCK_BYTES,
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        sizelimit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: read_only | LO_FLAGS_AUTOCLEAR,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
        reserved: [0; 8],
    };
    // SAFETY: the call reads a `struct loop_config`, whose layout and size this has.
    match unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
