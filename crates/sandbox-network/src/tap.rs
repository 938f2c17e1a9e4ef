//! Taps: network devices whose other end is a descriptor (Linux: Documentation/networking/tuntap.rst).
#![expect(unsafe_code, reason = "a tap is made by ioctl(2)")]

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::ioctl::{Updater, ioctl, opcode};

use crate::NetworkError;

/// What taps are called; the kernel puts a number there.
const NAME: &[u8] = b"sbtap%d";
/// What the name of each begins with.
pub(crate) const PREFIX: &str = "sbtap";

/// `TUNSETIFF`, which says that it writes and is given both ways.
const SET_INTERFACE: rustix::ioctl::Opcode = opcode::write::<i32>(b'T', 202);
/// `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`.
const FLAGS: u16 = 0x0002 | 0x1000 | 0x4000;

/// `struct ifreq` (netdevice(7)), as far as `TUNSETIFF` goes.
#[repr(C)]
#[derive(Clone, Copy)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// Makes a tap in the calling thread's network namespace; it goes when the descriptor and its copies are closed.
/// Returns its name too.
pub(crate) fn make() -> Result<(OwnedFd, String), NetworkError> {
    let failed = |action| move |source: io::Error| NetworkError::Tap { action, source };
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(failed("open /dev/net/tun"))?;
    let mut request = Request {
        name: [0; 16],
        flags: FLAGS,
        rest: [0; 22],
    };
    for (to, from) in request.name.iter_mut().zip(NAME) {
        *to = *from;
    }
    // SAFETY: TUNSETIFF reads and writes an ifreq, as large and laid out as `Request`.
    let updater = unsafe { Updater::<SET_INTERFACE, Request>::new(&mut request) };
    // SAFETY: the updater's type belongs to its opcode.
    unsafe { ioctl(&file, updater) }.map_err(|errno| failed("make a tap")(errno.into()))?;
    let name: Vec<u8> = request
        .name
        .iter()
        .copied()
        .take_while(|byte| *byte != 0)
        .collect();
    Ok((file.into(), String::from_utf8_lossy(&name).into_owned()))
}
