//! System calls that nix has no safe form of.

#![expect(
    unsafe_code,
    reason = "system calls that nix does not wrap, each with arguments that outlive it"
)]

use std::ffi::CString;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc::{self, c_long};
use nix::unistd::ForkResult;

/// fork(2).
pub(crate) fn fork() -> nix::Result<ForkResult> {
    // SAFETY: the probe has one thread, so the child may do what the parent may.
    unsafe { nix::unistd::fork() }
}

/// A system call whose arguments are numbers, none of them an address.
///
/// Not for calls that take pointers: a number that is taken for one makes the kernel answer EFAULT or write there.
pub(super) fn by_numbers(call: c_long, arguments: [c_long; 5]) -> nix::Result<c_long> {
    let [a, b, c, d, e] = arguments;
    // SAFETY: callers in this program pass numbers, null pointers among them, to calls that take those.
    Errno::result(unsafe { libc::syscall(call, a, b, c, d, e) })
}

/// The descriptor that a system call gave.
fn owned(number: c_long) -> nix::Result<OwnedFd> {
    let number = RawFd::try_from(number).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made it for the caller, who owns it alone.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn c_text(text: &str) -> nix::Result<CString> {
    CString::new(text).map_err(|_| Errno::EINVAL)
}

/// finit_module(2) of an open file, without parameters.
pub(super) fn load_module(file: &std::fs::File) -> nix::Result<()> {
    let parameters = c_text("")?;
    // SAFETY: the descriptor is open, and the string ends with a zero and lives through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_finit_module,
            file.as_raw_fd(),
            parameters.as_ptr(),
            0,
        )
    };
    Errno::result(result).map(drop)
}

/// bpf(2): makes an array map of one word.
pub(super) fn bpf_map() -> nix::Result<OwnedFd> {
    const BPF_MAP_CREATE: c_long = 0;
    const BPF_MAP_TYPE_ARRAY: u32 = 2;
    // `union bpf_attr` for BPF_MAP_CREATE: map_type, key_size, value_size, max_entries; the rest zero.
    let mut attributes = [0u32; 32];
    attributes[..4].copy_from_slice(&[BPF_MAP_TYPE_ARRAY, 4, 4, 1]);
    // SAFETY: the kernel reads `size` bytes of an array that lives through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_CREATE,
            attributes.as_mut_ptr(),
            size_of_val(&attributes),
        )
    };
    Errno::result(result).and_then(owned)
}

/// perf_event_open(2) for everything that processor 0 runs: a software event, the processor's clock.
pub(super) fn perf_everything() -> nix::Result<OwnedFd> {
    // `struct perf_event_attr`, its first published size of 64 bytes: type (software), size, config (cpu clock).
    let mut attributes = [0u32; 16];
    attributes[..2].copy_from_slice(&[1, 64]);
    // SAFETY: the kernel reads 64 bytes of an array that lives through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            attributes.as_mut_ptr(),
            -1,
            0,
            -1,
            0,
        )
    };
    Errno::result(result).and_then(owned)
}

/// adjtimex(2): the clock's frequency set to what it is.
pub(super) fn same_clock_frequency() -> nix::Result<()> {
    // SAFETY: a structure of numbers, for which all zeros is a value: nothing to be changed.
    let mut clock: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel reads and writes one structure that lives through the call.
    Errno::result(unsafe { libc::adjtimex(&raw mut clock) })?;
    clock.modes = libc::ADJ_FREQUENCY;
    // SAFETY: as above.
    Errno::result(unsafe { libc::adjtimex(&raw mut clock) }).map(drop)
}

/// syslog(2), SYSLOG_ACTION_READ_ALL: the end of the kernel's log.
pub(super) fn kernel_log() -> nix::Result<Vec<u8>> {
    const READ_ALL: i32 = 3;
    let mut bytes = vec![0u8; 256 << 10];
    let length = i32::try_from(bytes.len()).unwrap_or(i32::MAX);
    // SAFETY: the kernel writes at most `length` bytes to the vector, which lives through the call.
    let result = unsafe { libc::klogctl(READ_ALL, bytes.as_mut_ptr().cast(), length) };
    let length = usize::try_from(Errno::result(result)?).unwrap_or(0);
    bytes.truncate(length);
    Ok(bytes)
}

/// iopl(2), level 3, and back.
pub(super) fn port_access() -> nix::Result<()> {
    // SAFETY: it changes what this process may do with ports, and no port is touched.
    Errno::result(unsafe { libc::iopl(3) })?;
    // SAFETY: as above.
    Errno::result(unsafe { libc::iopl(0) }).map(drop)
}

/// open_by_handle_at(2) of a handle of this type, on the file system of `mount`.
pub(super) fn open_by_handle(mount: &OwnedFd, kind: i32, handle: &[u8]) -> nix::Result<OwnedFd> {
    // `struct file_handle`: handle_bytes, handle_type, then the bytes.
    let length = u32::try_from(handle.len()).map_err(|_| Errno::EINVAL)?;
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(handle);
    // Words, so that it is aligned.
    let mut words: Vec<u32> = bytes
        .chunks(4)
        .map(|chunk| {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            u32::from_ne_bytes(word)
        })
        .collect();
    // SAFETY: the kernel reads the structure that the words are, which lives through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            words.as_mut_ptr(),
            libc::O_RDONLY | libc::O_CLOEXEC,
        )
    };
    Errno::result(result).and_then(owned)
}

/// io_setup(2), never undone but by the process's end.
pub(super) fn asynchronous_context(events: u32) -> nix::Result<()> {
    let mut context: u64 = 0;
    // SAFETY: the kernel writes one word, which lives through the call.
    let result = unsafe { libc::syscall(libc::SYS_io_setup, events, &raw mut context) };
    Errno::result(result).map(drop)
}

/// add_key(2), type "user"; its number.
pub(super) fn add_key(name: &str, content: &str, ring: c_long) -> nix::Result<c_long> {
    let (kind, name) = (c_text("user")?, c_text(name)?);
    // SAFETY: both strings end with a zero, the content has its length, and all live through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_add_key,
            kind.as_ptr(),
            name.as_ptr(),
            content.as_ptr(),
            content.len(),
            ring,
        )
    };
    Errno::result(result)
}

/// keyctl(2), KEYCTL_SETPERM: everything to the key's possessor and its user.
pub(super) fn open_key(key: c_long) -> nix::Result<()> {
    const KEYCTL_SETPERM: c_long = 5;
    by_numbers(libc::SYS_keyctl, [KEYCTL_SETPERM, key, 0x3f3f_0000, 0, 0]).map(drop)
}

/// keyctl(2), KEYCTL_LINK.
pub(super) fn link_key(key: c_long, ring: c_long) -> nix::Result<()> {
    const KEYCTL_LINK: c_long = 8;
    by_numbers(libc::SYS_keyctl, [KEYCTL_LINK, key, ring, 0, 0]).map(drop)
}

/// keyctl(2), KEYCTL_SEARCH for a key of type "user".
pub(super) fn search_key(ring: c_long, name: &str) -> nix::Result<c_long> {
    const KEYCTL_SEARCH: c_long = 10;
    let (kind, name) = (c_text("user")?, c_text(name)?);
    // SAFETY: both strings end with a zero and live through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_SEARCH,
            ring,
            kind.as_ptr(),
            name.as_ptr(),
            0,
        )
    };
    Errno::result(result)
}

/// keyctl(2), KEYCTL_READ.
pub(super) fn read_key(key: c_long) -> nix::Result<Vec<u8>> {
    const KEYCTL_READ: c_long = 11;
    let mut content = vec![0u8; 256];
    // SAFETY: the kernel writes at most the vector's length to it, and it lives through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_READ,
            key,
            content.as_mut_ptr(),
            content.len(),
        )
    };
    let length = usize::try_from(Errno::result(result)?).unwrap_or(0);
    content.truncate(length);
    Ok(content)
}

/// A System V message of type 1, as msgsnd(2) and msgrcv(2) have it.
#[repr(C)]
struct Message {
    kind: c_long,
    text: [u8; 64],
}

/// Makes a queue with this key and puts a message into it; its number.
pub(super) fn send_message(key: i32, text: &str) -> nix::Result<i32> {
    // SAFETY: numbers only.
    let queue = Errno::result(unsafe { libc::msgget(key, libc::IPC_CREAT | 0o666) })?;
    let mut message = Message {
        kind: 1,
        text: [0; 64],
    };
    let length = text.len().min(64);
    message.text[..length].copy_from_slice(&text.as_bytes()[..length]);
    // SAFETY: the kernel reads a message of `length` bytes from a structure that has 64.
    let sent =
        unsafe { libc::msgsnd(queue, (&raw const message).cast(), length, libc::IPC_NOWAIT) };
    Errno::result(sent).map(|_| queue)
}

/// Takes a message out of the queue with this key, which must be there.
pub(super) fn receive_message(key: i32) -> nix::Result<String> {
    // SAFETY: numbers only.
    let queue = Errno::result(unsafe { libc::msgget(key, 0) })?;
    let mut message = Message {
        kind: 0,
        text: [0; 64],
    };
    // SAFETY: the kernel writes at most 64 bytes to a structure that has them.
    let length = unsafe { libc::msgrcv(queue, (&raw mut message).cast(), 64, 0, libc::IPC_NOWAIT) };
    let length = usize::try_from(Errno::result(length)?).unwrap_or(0);
    Ok(String::from_utf8_lossy(message.text.get(..length).unwrap_or_default()).into_owned())
}

/// Attaches the System V shared memory with this key, made if `create`, and gives its first 64 bytes to `with`.
pub(super) fn shared_memory<T>(
    key: i32,
    create: bool,
    with: impl FnOnce(&mut [u8; 64]) -> T,
) -> nix::Result<T> {
    let flags = if create { libc::IPC_CREAT | 0o666 } else { 0 };
    // SAFETY: numbers only.
    let number = Errno::result(unsafe { libc::shmget(key, 64, flags) })?;
    // SAFETY: the kernel chooses the address.
    let address = unsafe { libc::shmat(number, std::ptr::null(), 0) };
    if address as isize == -1 {
        return Err(Errno::last());
    }
    // SAFETY: the segment has 64 bytes at least, stays mapped until the process ends, and bytes have no bad value.
    let bytes = unsafe { &mut *address.cast::<[u8; 64]>() };
    Ok(with(bytes))
}

/// Opens the POSIX message queue of this name: to make it with a message, or to take one from it.
pub(super) fn posix_queue(name: &str, send: Option<&str>) -> nix::Result<String> {
    let name = c_text(name)?;
    let flags = libc::O_RDWR | libc::O_NONBLOCK | if send.is_some() { libc::O_CREAT } else { 0 };
    // SAFETY: a structure of numbers.
    let mut sizes: libc::mq_attr = unsafe { std::mem::zeroed() };
    sizes.mq_maxmsg = 1;
    sizes.mq_msgsize = 64;
    // SAFETY: the name ends with a zero, the sizes are a structure of the right type; both live through the call.
    let queue = unsafe { libc::mq_open(name.as_ptr(), flags, 0o666_u32, &raw mut sizes) };
    Errno::result(queue)?;
    if let Some(text) = send {
        // SAFETY: the kernel reads the text's length from it.
        let sent = unsafe { libc::mq_send(queue, text.as_ptr().cast(), text.len().min(64), 0) };
        return Errno::result(sent).map(|_| text.to_owned());
    }
    let mut bytes = [0u8; 64];
    // SAFETY: the kernel writes at most 64 bytes to an array that has them.
    let length = unsafe {
        libc::mq_receive(
            queue,
            bytes.as_mut_ptr().cast(),
            bytes.len(),
            std::ptr::null_mut(),
        )
    };
    let length = usize::try_from(Errno::result(length)?).unwrap_or(0);
    Ok(String::from_utf8_lossy(bytes.get(..length).unwrap_or_default()).into_owned())
}

/// ptrace(2), PTRACE_SEIZE: a process's tracer, without stopping it.
pub(super) fn seize(pid: i32) -> nix::Result<()> {
    // SAFETY: numbers and null pointers only.
    let result = unsafe {
        libc::ptrace(
            libc::PTRACE_SEIZE,
            pid,
            std::ptr::null_mut::<libc::c_void>(),
            std::ptr::null_mut::<libc::c_void>(),
        )
    };
    Errno::result(result).map(drop)
}

/// mincore(2): how many pages of the file are in memory, and how many it has.
pub(super) fn pages_in_memory(file: &std::fs::File, bytes: usize) -> nix::Result<(usize, usize)> {
    // SAFETY: a new mapping at an address of the kernel's choice, which is never read.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    let mut pages = vec![0u8; bytes.div_ceil(4096)];
    // SAFETY: the mapping has `bytes` bytes, and the vector one byte for each page of it.
    Errno::result(unsafe { libc::mincore(address, bytes, pages.as_mut_ptr()) })?;
    let there = pages.iter().filter(|page| **page & 1 == 1).count();
    Ok((there, pages.len()))
}

/// userfaultfd(2), also for faults within the kernel.
pub(super) fn user_faults() -> nix::Result<OwnedFd> {
    by_numbers(libc::SYS_userfaultfd, [libc::O_CLOEXEC.into(), 0, 0, 0, 0]).and_then(owned)
}

/// fsopen(2).
pub(super) fn mount_context(kind: &str) -> nix::Result<OwnedFd> {
    const FSOPEN_CLOEXEC: c_long = 1;
    let kind = c_text(kind)?;
    // SAFETY: the name ends with a zero and lives through the call.
    let result = unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) };
    Errno::result(result).and_then(owned)
}

/// adjtimex(2): the clock's estimated error (`esterror`), which is set first if a value is given.
pub(super) fn clock_error(set: Option<i64>) -> nix::Result<i64> {
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

/// Sends a frame through the interface of this name by a packet socket (packet(7)).
pub(super) fn send_frame(socket: &OwnedFd, interface: &str, frame: &[u8]) -> nix::Result<()> {
    let name = c_text(interface)?;
    // SAFETY: the name ends with a zero and lives through the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(Errno::last());
    }
    // SAFETY: a structure of numbers.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = u16::try_from(libc::AF_PACKET).map_err(|_| Errno::EINVAL)?;
    to.sll_ifindex = i32::try_from(index).map_err(|_| Errno::EINVAL)?;
    to.sll_halen = 6;
    to.sll_addr[..6].fill(0xff);
    let length = u32::try_from(size_of_val(&to)).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel reads the frame and an address of this length, which live through the call.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            length,
        )
    };
    Errno::result(sent).map(drop)
}
