//! A tap of this test's own, which goes with its descriptor.
#![expect(unsafe_code, reason = "the ioctl that makes a tap takes an address")]

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;

use anyhow::{Context, Result, ensure};

/// Opens one, with a name of the kernel's choice.
pub(crate) fn open() -> Result<File> {
    let path = "/dev/net/tun";
    let tap = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("cannot open {path}"))?;
    // SAFETY: all zeroes is a value of it: no name.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = i16::try_from(flags)?;
    // SAFETY: the request lives until the call has returned, which reads and writes nothing else.
    let made = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    ensure!(
        made == 0,
        "cannot make a tap: {}",
        std::io::Error::last_os_error()
    );
    Ok(tap)
}
