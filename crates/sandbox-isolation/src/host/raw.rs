//! System calls that nix has no safe form of.

#![expect(
    unsafe_code,
    reason = "system calls that nix does not wrap, each with arguments that outlive it"
)]

use std::ffi::CString;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::libc::{self, c_long};

/// A file by its handle (name_to_handle_at(2)): the handle's type and bytes.
pub(crate) fn handle_of(path: &Path) -> nix::Result<(i32, Vec<u8>)> {
    const HANDLE_BYTES: usize = 128;
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    // `struct file_handle`: handle_bytes, handle_type, then the bytes.
    let mut words = [0u32; 2 + HANDLE_BYTES / 4];
    words[0] = 128;
    let mut mount = 0i32;
    // SAFETY: the path ends with a zero; the structure has the room that its first word says; both live through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            path.as_ptr(),
            words.as_mut_ptr(),
            &raw mut mount,
            0,
        )
    };
    Errno::result(result)?;
    let length = usize::try_from(words[0])
        .unwrap_or(HANDLE_BYTES)
        .min(HANDLE_BYTES);
    let kind = i32::from_ne_bytes(words[1].to_ne_bytes());
    let bytes: Vec<u8> = words[2..]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .take(length)
        .collect();
    Ok((kind, bytes))
}

/// Has a packet socket take only frames of Ethernet, as the loopback interface's are, of this type, which have this address so many
/// bytes behind their header (socket(7), `SO_ATTACH_FILTER`).
pub(crate) fn keep_from_source(
    socket: &OwnedFd,
    ether_type: u32,
    source_at: u32,
    source: Ipv4Addr,
) -> nix::Result<()> {
    // Behind the addresses of the frame.
    const ETHER_TYPE_AT: u32 = 12;
    const HEADER: u32 = 14;
    let step = |code: u32, jf: u8, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap_or(u16::MAX),
        jt: 0,
        jf,
        k,
    };
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let mut program = [
        step(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, ETHER_TYPE_AT),
        step(equal, 3, ether_type),
        step(
            libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
            0,
            HEADER + source_at,
        ),
        step(equal, 1, source.to_bits()),
        step(libc::BPF_RET | libc::BPF_K, 0, u32::MAX),
        step(libc::BPF_RET | libc::BPF_K, 0, 0),
    ];
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).unwrap_or(0),
        filter: program.as_mut_ptr(),
    };
    let length = u32::try_from(size_of::<libc::sock_fprog>()).unwrap_or(0);
    // SAFETY: the option takes a `sock_fprog`, which says where the program is and how long; both live through the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            length,
        )
    };
    Errno::result(set).map(drop)
}

/// A key in our user's keyring (keyrings(7)), which goes when it is dropped.
pub(crate) struct Key(c_long);

const USER_RING: c_long = -4;

impl Key {
    /// Adds it, for every process of our user to read.
    pub(crate) fn add(name: &str, content: &str) -> nix::Result<Self> {
        let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
        // SAFETY: both strings end with a zero, the content has its length, and all live through the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_add_key,
                c"user".as_ptr(),
                name.as_ptr(),
                content.as_ptr(),
                content.len(),
                USER_RING,
            )
        };
        let key = Errno::result(result).map(Self)?;
        const KEYCTL_SETPERM: c_long = 5;
        // Everything to the possessor and to the user.
        const PERMISSIONS: c_long = 0x3f3f_0000;
        // SAFETY: numbers only.
        let set = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_SETPERM, key.0, PERMISSIONS) };
        Errno::result(set).map(|_| key)
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        const KEYCTL_UNLINK: c_long = 9;
        // SAFETY: numbers only.
        unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_UNLINK, self.0, USER_RING) };
    }
}

/// Removes the key of this name from our user's keyring, if it is there: a container may have put it there.
pub(crate) fn forget_key(name: &str) {
    const KEYCTL_SEARCH: c_long = 10;
    let Ok(name) = CString::new(name) else {
        return;
    };
    // SAFETY: both strings end with a zero and live through the call.
    let key = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_SEARCH,
            USER_RING,
            c"user".as_ptr(),
            name.as_ptr(),
            0,
        )
    };
    if key > 0 {
        drop(Key(key));
    }
}

/// Removes the System V queue and memory with this key, if they are there: a container may have left them.
pub(crate) fn forget_ipc(key: u32) {
    let Ok(key) = i32::try_from(key) else {
        return;
    };
    // SAFETY: numbers only.
    let queue = unsafe { libc::msgget(key, 0) };
    if queue >= 0 {
        // SAFETY: IPC_RMID takes no structure.
        unsafe { libc::msgctl(queue, libc::IPC_RMID, std::ptr::null_mut()) };
    }
    // SAFETY: numbers only.
    let memory = unsafe { libc::shmget(key, 0, 0) };
    if memory >= 0 {
        // SAFETY: IPC_RMID takes no structure.
        unsafe { libc::shmctl(memory, libc::IPC_RMID, std::ptr::null_mut()) };
    }
}

/// Removes the POSIX queue of this name, if it is there.
pub(crate) fn forget_posix_queue(name: &str) {
    if let Ok(name) = CString::new(name) {
        // SAFETY: the name ends with a zero.
        unsafe { libc::mq_unlink(name.as_ptr()) };
    }
}

/// The clock's estimated error in microseconds (adjtimex(2), `esterror`), which is set first if a value is given. Nothing but who asks
/// for it goes by it.
pub(crate) fn clock_error(set: Option<i64>) -> nix::Result<i64> {
    // SAFETY: a structure of numbers, for which all zeros is a value: nothing to be changed.
    let mut clock: libc::timex = unsafe { std::mem::zeroed() };
    if let Some(value) = set {
        clock.modes = libc::ADJ_ESTERROR;
        clock.esterror = value;
    }
    // SAFETY: the kernel reads and writes one structure that lives through the call.
    Errno::result(unsafe { libc::adjtimex(&raw mut clock) })?;
    Ok(clock.esterror)
}
