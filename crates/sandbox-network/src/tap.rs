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
/// `IFF_MULTI_QUEUE`: a tap with it has more queues than it uses, which costs the kernel memory.
const SEVERAL: u16 = 0x0100;

/// `struct ifreq` (netdevice(7)), as far as `TUNSETIFF` goes.
#[repr(C)]
#[derive(Clone, Copy)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// Makes a tap with `count` queues in the calling thread's network namespace; it goes when they and their copies are closed.
/// Returns its name too.
pub(crate) fn make(count: usize) -> Result<(Vec<OwnedFd>, String), NetworkError> {
    let flags = if count > 1 { FLAGS | SEVERAL } else { FLAGS };
    let (first, name) = open(NAME, flags)?;
    let mut queues = vec![first];
    for _ in 1..count {
        queues.push(open(name.as_bytes(), flags)?.0);
    }
    Ok((queues, name))
}

/// Opens a queue of the tap called `name`, which is made if it is not there.
fn open(name: &[u8], flags: u16) -> Result<(OwnedFd, String), NetworkError> {
    let failed = |action| move |source: io::Error| NetworkError::Tap { action, source };
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(failed("open /dev/net/tun"))?;
    let mut request = Request {
        name: [0; 16],
        flags,
        rest: [0; 22],
    };
    for (to, from) in request.name.iter_mut().zip(name) {
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
