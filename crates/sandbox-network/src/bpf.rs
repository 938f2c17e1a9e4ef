//! bpf(2), as far as a `BPF_PROG_TYPE_SK_LOOKUP` program needs it (Linux: Documentation/bpf/prog_sk_lookup.rst and
//! map_sockmap.rst). What is made goes when its descriptor is closed.
#![expect(unsafe_code, reason = "bpf(2) is given pointers")]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use nix::libc;

/// `enum bpf_cmd`.
const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;

/// `BPF_MAP_TYPE_SOCKMAP`.
const MAP_TYPE_SOCKMAP: u32 = 15;
/// `BPF_PROG_TYPE_SK_LOOKUP`.
const PROG_TYPE_SK_LOOKUP: u32 = 30;
/// `BPF_SK_LOOKUP`, as a kind of attachment.
const ATTACH_SK_LOOKUP: u32 = 36;

/// The parts of `union bpf_attr` that are used; what a command is not given is 0 for it.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

#[repr(C)]
struct MapUpdate {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct ProgramLoad {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instruction {
    code: u8,
    /// The destination's number, and the source's shifted by four bits.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// A register: r0 is the result, r1 to r5 are arguments, r6 to r9 outlive a call, r10 is the frame.
pub(crate) type Register = u8;

/// The instructions that are used, by the names of Documentation/bpf/standardization/instruction-set.rst.
impl Instruction {
    const fn new(code: u8, to: Register, from: Register, offset: i16, immediate: i32) -> Self {
        Self {
            code,
            registers: to | (from << 4),
            offset,
            immediate,
        }
    }

    /// `to = from`
    pub(crate) const fn copy(to: Register, from: Register) -> Self {
        Self::new(0xbf, to, from, 0, 0)
    }

    /// `to = value`
    pub(crate) const fn set(to: Register, value: i32) -> Self {
        Self::new(0xb7, to, 0, 0, value)
    }

    /// `to += value`
    pub(crate) const fn add(to: Register, value: i32) -> Self {
        Self::new(0x07, to, 0, 0, value)
    }

    /// `to = *(u32 *)(from + offset)`
    pub(crate) const fn load(to: Register, from: Register, offset: i16) -> Self {
        Self::new(0x61, to, from, offset, 0)
    }

    /// `*(u32 *)(to + offset) = from`
    pub(crate) const fn store(to: Register, offset: i16, from: Register) -> Self {
        Self::new(0x63, to, from, offset, 0)
    }

    /// Skips `count` instructions.
    pub(crate) const fn skip(count: i16) -> Self {
        Self::new(0x05, 0, 0, count, 0)
    }

    /// Skips `count` instructions if the register is `value`.
    pub(crate) const fn skip_if(register: Register, value: i32, count: i16) -> Self {
        Self::new(0x15, register, 0, count, value)
    }

    /// Skips `count` instructions unless the register is `value`.
    pub(crate) const fn skip_unless(register: Register, value: i32, count: i16) -> Self {
        Self::new(0x55, register, 0, count, value)
    }

    /// `to = map`, in two instructions (`BPF_PSEUDO_MAP_FD`).
    pub(crate) const fn set_map(to: Register, map: RawFd) -> [Self; 2] {
        [Self::new(0x18, to, 1, 0, map), Self::new(0, 0, 0, 0, 0)]
    }

    /// `r0 = helper(r1, …)`, by its number in `enum bpf_func_id`.
    pub(crate) const fn call(helper: i32) -> Self {
        Self::new(0x85, 0, 0, 0, helper)
    }

    /// Gives a skip of `count` instructions, which stands for one that is not known yet, its distance.
    pub(crate) fn lead(&mut self, count: i16, distance: usize) {
        if self.offset == count {
            // A skip begins after itself.
            self.offset = i16::try_from(distance - 1).unwrap_or(i16::MAX);
        }
    }

    /// Returns r0.
    pub(crate) const fn exit() -> Self {
        Self::new(0x95, 0, 0, 0, 0)
    }
}

/// Makes a call whose answer is 0 or a descriptor.
fn call<T>(command: libc::c_long, attribute: &T) -> io::Result<RawFd> {
    // SAFETY: the kernel reads as many bytes as the third argument says, all of them `attribute`'s, which is laid out as
    // the command's part of `union bpf_attr`; the pointers in it are to what the callers below hold on to.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attribute),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(result).map_err(io::Error::other)
}

fn made<T>(command: libc::c_long, attribute: &T) -> io::Result<OwnedFd> {
    let descriptor = call(command, attribute)?;
    // SAFETY: these commands return a new descriptor, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn number(descriptor: impl AsFd) -> u32 {
    descriptor.as_fd().as_raw_fd().unsigned_abs()
}

/// A map of `size` sockets by their number.
pub(crate) fn socket_map(size: u32) -> io::Result<OwnedFd> {
    made(
        MAP_CREATE,
        &MapCreate {
            map_type: MAP_TYPE_SOCKMAP,
            key_size: 4,
            value_size: 8,
            max_entries: size,
        },
    )
}

/// Puts a listening socket into a map.
pub(crate) fn set_socket(map: impl AsFd, key: u32, socket: impl AsFd) -> io::Result<()> {
    let value = u64::from(number(socket));
    call(
        MAP_UPDATE_ELEM,
        &MapUpdate {
            map: number(map),
            padding: 0,
            key: std::ptr::from_ref(&key).addr() as u64,
            value: std::ptr::from_ref(&value).addr() as u64,
            flags: 0,
        },
    )
    .map(drop)
}

/// Loads a program that chooses the socket of an incoming connection.
pub(crate) fn load_socket_lookup(instructions: &[Instruction]) -> io::Result<OwnedFd> {
    // The helpers of the socket lookup are for any licence.
    let license = c"Apache-2.0";
    let mut name = [0; 16];
    name[..8].copy_from_slice(b"loopback");
    made(
        PROG_LOAD,
        &ProgramLoad {
            program_type: PROG_TYPE_SK_LOOKUP,
            instruction_count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
            instructions: instructions.as_ptr().addr() as u64,
            license: license.as_ptr().addr() as u64,
            log_level: 0,
            log_size: 0,
            log: 0,
            kernel_version: 0,
            flags: 0,
            name,
            interface: 0,
            expected_attach_type: ATTACH_SK_LOOKUP,
        },
    )
}

/// Attaches such a program to a network namespace, for as long as the descriptor is open.
pub(crate) fn attach_socket_lookup(
    program: impl AsFd,
    namespace: impl AsFd,
) -> io::Result<OwnedFd> {
    made(
        LINK_CREATE,
        &LinkCreate {
            program: number(program),
            target: number(namespace),
            attach_type: ATTACH_SK_LOOKUP,
            flags: 0,
        },
    )
}
