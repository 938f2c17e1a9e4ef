//! The lists. A call that is not here is not made.
//!
//! Written for glibc and musl; what only one of them does is marked as rare, as is what happens only when something fails.

use rustix::ioctl::{Opcode, opcode};
use sandbox_jail::allow;
use sandbox_jail::seccomp::{Argument, Rule};

/// `KVM_RUN` (Linux: `include/uapi/linux/kvm.h`).
const KVM_RUN: Opcode = opcode::none(0xae, 0x80);
/// `KVM_GET_REGS`.
const KVM_GET_REGS: Opcode = opcode::read::<kvm_bindings::kvm_regs>(0xae, 0x81);
/// `TUNSETOFFLOAD` (Linux: `include/uapi/linux/if_tun.h`).
const TUN_SET_OFFLOAD: Opcode = opcode::write::<u32>(b'T', 208);
/// `TUNSETQUEUE`.
const TUN_SET_QUEUE: Opcode = opcode::write::<i32>(b'T', 217);
/// `FIONBIO` (Linux: `include/uapi/asm-generic/ioctls.h`).
const FIONBIO: Opcode = 0x5421;

/// `F_DUPFD_CLOEXEC`, `F_GETFL` and `F_SETFL`, as the kernel's unsigned int.
const DUPLICATE: u32 = libc::F_DUPFD_CLOEXEC.unsigned_abs();

const EXEC: u64 = libc::PROT_EXEC.unsigned_abs() as u64;
const ANONYMOUS: u64 = libc::MAP_ANONYMOUS.unsigned_abs() as u64;
/// What makes a thread of this process, and not a process (`CLONE_VM | CLONE_SIGHAND | CLONE_THREAD`).
const THREAD: u64 =
    (libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD).unsigned_abs() as u64;
/// The flags that make namespaces.
const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET)
    .unsigned_abs() as u64;
/// `MADV_GUARD_INSTALL` and `MADV_GUARD_REMOVE` (Linux: `include/uapi/asm-generic/mman-common.h`, since 6.13).
const GUARD_INSTALL: i32 = 102;
const GUARD_REMOVE: i32 = 103;
/// The mode of `fallocate` that makes a hole.
const HOLE: u32 = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE).unsigned_abs();
const ABORT: u32 = libc::SIGABRT.unsigned_abs();

/// The second argument of `ioctl`, which the kernel takes as an `unsigned int`.
const fn request(opcode: Opcode) -> Argument {
    Argument::Is(1, opcode)
}

/// The third argument of `madvise`, which the kernel takes as an `int`.
const fn advice(advice: i32) -> Argument {
    Argument::Is(2, advice.unsigned_abs())
}

/// What every thread may do.
pub(crate) const EVERY_THREAD: &[Rule] = &[
    allow!(SYS_futex, "locks, channels and barriers between threads"),
    allow!(
        SYS_write,
        "events to the guest and to other threads, and messages on standard error"
    ),
    allow!(SYS_close, "descriptors of what is no longer used").rarely(),
    // Memory of its own, never code and never a file.
    allow!(SYS_brk, "the allocator's heap").rarely(),
    allow!(SYS_mmap, "the allocator's large blocks")
        .with(&[&[Argument::without(2, EXEC), Argument::having(3, ANONYMOUS)]])
        .rarely(),
    allow!(SYS_mprotect, "an allocator that reserves first, as musl's")
        .with(&[&[Argument::without(2, EXEC)]])
        .rarely(),
    allow!(SYS_mremap, "the allocator's large blocks, as they grow").rarely(),
    allow!(SYS_munmap, "the allocator's large blocks").rarely(),
    allow!(
        SYS_madvise,
        "the allocator gives pages back; a stack of a thread that ends"
    )
    .with(&[&[advice(libc::MADV_DONTNEED)], &[advice(libc::MADV_FREE)]])
    .rarely(),
    allow!(
        SYS_clock_gettime,
        "time, where the host's clock cannot be read without a call"
    )
    .rarely(),
    allow!(
        SYS_sched_yield,
        "a channel whose other side is in the middle of something"
    )
    .rarely(),
    allow!(
        SYS_restart_syscall,
        "a wait goes on after the process was stopped and continued"
    )
    .rarely(),
    allow!(SYS_rt_sigreturn, "the end of a signal handler").rarely(),
    // A panic, and how it ends.
    allow!(
        SYS_rt_sigprocmask,
        "abort, and a thread that ends, keep signals away"
    )
    .rarely(),
    allow!(
        SYS_rt_sigaction,
        "abort, and the handler of a stack that is full, take their handlers off"
    )
    .with(&[
        &[Argument::Is(0, ABORT)],
        &[Argument::Is(0, libc::SIGSEGV.unsigned_abs())],
        &[Argument::Is(0, libc::SIGBUS.unsigned_abs())],
    ])
    .rarely(),
    allow!(
        SYS_sigaltstack,
        "a thread that ends gives its signal stack back"
    )
    .rarely(),
    allow!(SYS_getpid, "abort").rarely(),
    allow!(SYS_gettid, "abort").rarely(),
    allow!(SYS_tgkill, "abort")
        .with(&[&[Argument::Is(2, ABORT)]])
        .rarely(),
    allow!(SYS_exit, "the end of a thread whose task panicked").rarely(),
    allow!(
        SYS_exit_group,
        "the end of the process, when a call was refused or a file is lost"
    )
    .rarely(),
];

/// What every device's thread may do.
pub(crate) const EVERY_DEVICE: &[Rule] = &[
    allow!(
        SYS_epoll_pwait,
        "wait for the driver, and for what the device serves"
    ),
    allow!(SYS_epoll_ctl, "a device that failed stops to watch").rarely(),
    allow!(SYS_read, "what the driver's notifications count"),
];

/// The main thread.
pub(crate) const MAIN: &[Rule] = &[
    allow!(SYS_ppoll, "wait for the guest's end, and for the runtime's"),
    allow!(SYS_read, "see that the runtime is gone").rarely(),
    allow!(SYS_recvfrom, "the same, and what it asks").rarely(),
    allow!(SYS_sendto, "tell the runtime what happens").rarely(),
];

/// A vCPU's thread. It is also the one on which the driver reaches the devices.
pub(crate) const VCPU: &[Rule] = &[
    allow!(SYS_ioctl, "run the guest").with(&[&[request(KVM_RUN)]]),
    allow!(
        SYS_ioctl,
        "say where the guest was when KVM could not go on"
    )
    .with(&[&[request(KVM_GET_REGS)]])
    .rarely(),
    allow!(
        SYS_fstat,
        "see which file the guest cannot read any further"
    )
    .rarely(),
    allow!(SYS_ioctl, "tell the tap what the driver can take").with(&[&[request(TUN_SET_OFFLOAD)]]),
    allow!(
        SYS_ioctl,
        "attach and detach queues of the tap, where there are several"
    )
    .with(&[&[request(TUN_SET_QUEUE)]])
    .rarely(),
    allow!(SYS_read, "forget notifications when a device is reset"),
    allow!(SYS_eventfd2, "the event that stops a device"),
    allow!(
        SYS_epoll_create1,
        "what a device that is activated waits for"
    ),
    allow!(SYS_epoll_ctl, "the same"),
    allow!(SYS_fcntl, "duplicate a queue's event for the device")
        .with(&[&[Argument::Is(1, DUPLICATE)]]),
    allow!(SYS_sendmsg, "the driver's queues, to a vhost-user back end"),
    allow!(SYS_recvmsg, "what it answers"),
];

/// The threads of a disk. What waits for the host's disk is io_uring's where the host has it, and elsewhere the calls of a thread.
pub const BLOCK: &[Rule] = &[
    allow!(
        SYS_preadv2,
        "requests that read what the host has in memory"
    ),
    allow!(
        SYS_io_uring_enter,
        "requests that wait: on a ring that does nothing else"
    )
    .rarely(),
    allow!(SYS_preadv, "requests that read what it has not").rarely(),
    allow!(SYS_pwritev, "requests that write"),
    allow!(SYS_fdatasync, "flushes").rarely(),
    // By the ring any mode is possible; what is made longer so is bounded by the limit of file sizes.
    allow!(SYS_fallocate, "discarded ranges become holes")
        .with(&[&[Argument::Is(1, HOLE)]])
        .rarely(),
    allow!(
        SYS_timerfd_settime,
        "a disk that is limited waits until the next request may pass"
    )
    .rarely(),
];

/// The thread of a pair of queues of a network device.
pub(crate) const NET: &[Rule] = &[
    allow!(SYS_readv, "frames for the guest"),
    allow!(SYS_writev, "frames of the guest"),
    allow!(
        SYS_ioctl,
        "attach and detach queues of the tap, as the driver uses more or fewer"
    )
    .with(&[&[request(TUN_SET_QUEUE)]])
    .rarely(),
    allow!(
        SYS_timerfd_settime,
        "a driver that changes that often waits until it may again"
    )
    .rarely(),
];

/// The thread of the entropy device.
pub(crate) const RNG: &[Rule] = &[allow!(SYS_getrandom, "bytes for the guest")];

/// The thread of the balloon device.
pub const BALLOON: &[Rule] = &[allow!(
    SYS_madvise,
    "pages that the guest does not use go back to the host"
)
.with(&[
    &[advice(libc::MADV_DONTNEED)],
    &[advice(libc::MADV_REMOVE)],
    &[advice(libc::MADV_NOHUGEPAGE)],
    &[advice(libc::MADV_COLD)],
    &[advice(libc::MADV_HUGEPAGE)],
])];

/// The thread of the memory device. What makes memory accessible and not, and discards it, is in [`EVERY_THREAD`].
pub(crate) const MEM: &[Rule] = &[allow!(
    SYS_fallocate,
    "memory that the guest gives back, where it is a file, becomes a hole"
)
.with(&[&[Argument::Is(1, HOLE)]])
.rarely()];

/// The thread of the vsock device.
pub(crate) const VSOCK: &[Rule] = &[
    allow!(SYS_accept4, "clients of the host"),
    allow!(SYS_socket, "a connection that the guest opens")
        .with(&[&[Argument::Is(0, libc::AF_UNIX.unsigned_abs())]]),
    allow!(SYS_connect, "the same"),
    allow!(SYS_recvfrom, "bytes for the guest"),
    allow!(SYS_sendto, "bytes of the guest"),
    allow!(SYS_writev, "the same, in two pieces").rarely(),
    allow!(SYS_epoll_ctl, "connections come and go"),
    allow!(SYS_read, "the first line of a client"),
    allow!(SYS_shutdown, "the guest or a client has no more to say"),
    allow!(SYS_ioctl, "sockets that do not block").with(&[&[request(FIONBIO)]]),
    allow!(SYS_timerfd_settime, "clients that say nothing for too long"),
    allow!(SYS_getrandom, "the seed of a hash table").rarely(),
];

/// The process of the vsock back end, beside what the vsock device's thread may do. QEMU hands it guest memory as descriptors.
pub const BACKEND: &[Rule] = &[
    allow!(SYS_mmap, "guest memory, and the stacks of threads")
        .with(&[&[Argument::without(2, EXEC)]]),
    allow!(SYS_munmap, "guest memory that QEMU replaces"),
    allow!(SYS_mprotect, "the guard pages of stacks").with(&[&[Argument::without(2, EXEC)]]),
    allow!(
        SYS_madvise,
        "the same, where the kernel and the C library have guards without page tables"
    )
    .with(&[&[advice(GUARD_INSTALL)], &[advice(GUARD_REMOVE)]])
    .rarely(),
    allow!(SYS_clone, "threads; never a process, and never a namespace").with(&[&[
        Argument::having(0, THREAD),
        Argument::without(0, NAMESPACES),
    ]]),
    allow!(
        SYS_rt_sigaction,
        "the C library's own two signals, before the first thread"
    )
    .with(&[&[Argument::Is(0, 32)], &[Argument::Is(0, 33)]]),
    allow!(SYS_set_robust_list, "a thread that begins"),
    allow!(SYS_rseq, "the same").rarely(),
    allow!(SYS_sched_getaffinity, "a new thread's attributes").rarely(),
    allow!(SYS_prctl, "the names of threads")
        .with(&[&[Argument::Is(0, libc::PR_SET_NAME.unsigned_abs())]]),
    allow!(SYS_poll, "connections that are looked at once").rarely(),
    allow!(SYS_epoll_wait, "wait for the driver and the host's sockets"),
    allow!(SYS_epoll_create1, "what a thread waits for"),
    allow!(SYS_eventfd2, "events between threads"),
    allow!(SYS_recvmsg, "what QEMU says"),
    allow!(SYS_sendmsg, "what QEMU is answered"),
    allow!(
        SYS_fcntl,
        "descriptors of which a thread needs one of its own"
    )
    .with(&[&[Argument::Is(1, DUPLICATE)]])
    .rarely(),
];
