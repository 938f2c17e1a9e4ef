//! What each kind of thread may do, tried for real: this program starts itself again, confines a thread, and makes one call.
#![expect(unsafe_code, reason = "system calls are made as they come")]

use std::env;
use std::process::{Command, ExitCode, Output};
use std::thread;

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::signal::{SigSet, Signal};
use sandbox_types::monitor::VIOLATION_EXIT_CODE;
use sandbox_vmm::seccomp::{Confinement, ThreadKind, backend_filter};

/// Names the call that the program is to make instead of testing, and on which kind of thread.
const ATTEMPT: &str = "SANDBOX_TEST_ATTEMPT";
/// What it says when the call was made.
const MADE: &str = "made";
/// The kind that is not one of [`ThreadKind`]: the whole process of the vsock back end.
const BACKEND: &str = "vsock back end";

/// A call: its name, its number, and its arguments.
type Call = (&'static str, libc::c_long, [i64; 6]);

const CODE: i64 = (libc::PROT_READ | libc::PROT_EXEC) as i64;
const DATA: i64 = (libc::PROT_READ | libc::PROT_WRITE) as i64;
const HOLE: i64 = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as i64;
const PRIVATE: i64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as i64;

/// What no thread may do.
const FORBIDDEN: &[Call] = &[
    ("execve", libc::SYS_execve, [0; 6]),
    ("execveat", libc::SYS_execveat, [0; 6]),
    ("open", libc::SYS_open, [0; 6]),
    ("openat", libc::SYS_openat, [0; 6]),
    ("memfd_create", libc::SYS_memfd_create, [0; 6]),
    (
        "socket of the internet",
        libc::SYS_socket,
        [libc::AF_INET as i64, libc::SOCK_STREAM as i64, 0, 0, 0, 0],
    ),
    (
        "socket of netlink",
        libc::SYS_socket,
        [libc::AF_NETLINK as i64, libc::SOCK_RAW as i64, 0, 0, 0, 0],
    ),
    (
        "socket of packets",
        libc::SYS_socket,
        [libc::AF_PACKET as i64, libc::SOCK_RAW as i64, 0, 0, 0, 0],
    ),
    (
        "memory that runs",
        libc::SYS_mmap,
        [0, 4096, CODE, PRIVATE, -1, 0],
    ),
    (
        "memory made to run",
        libc::SYS_mprotect,
        [0, 0, CODE, 0, 0, 0],
    ),
    (
        "memory made to run with a key",
        libc::SYS_pkey_mprotect,
        [0, 0, CODE, 0, 0, 0],
    ),
    (
        "memory that fails",
        libc::SYS_madvise,
        [0, 0, libc::MADV_HWPOISON as i64, 0, 0, 0],
    ),
    (
        "another virtual machine",
        libc::SYS_ioctl,
        [0, 0xae01, 0, 0, 0, 0],
    ),
    (
        "another memory slot",
        libc::SYS_ioctl,
        [0, 0x4020_ae46, 0, 0, 0, 0],
    ),
    (
        "another interface for a tap",
        libc::SYS_ioctl,
        [0, 0x4004_54ca, 0, 0, 0, 0],
    ),
    (
        "bytes into a terminal",
        libc::SYS_ioctl,
        [0, libc::TIOCSTI.cast_signed(), 0, 0, 0, 0],
    ),
    (
        "a name that is only right in its lower half",
        libc::SYS_ioctl | 1 << 40,
        [0; 6],
    ),
    (
        "a call of the other number space",
        libc::SYS_write | 0x4000_0000,
        [0; 6],
    ),
    ("a process", libc::SYS_fork, [0; 6]),
    (
        "a process by clone",
        libc::SYS_clone,
        [libc::SIGCHLD as i64, 0, 0, 0, 0, 0],
    ),
    (
        "a namespace by clone",
        libc::SYS_clone,
        [libc::CLONE_NEWUSER as i64, 0, 0, 0, 0, 0],
    ),
    (
        "a namespace",
        libc::SYS_unshare,
        [libc::CLONE_NEWUSER as i64, 0, 0, 0, 0, 0],
    ),
    ("another's namespace", libc::SYS_setns, [0; 6]),
    ("a mount", libc::SYS_mount, [0; 6]),
    ("another's memory", libc::SYS_ptrace, [0; 6]),
    ("another's memory, read", libc::SYS_process_vm_readv, [0; 6]),
    ("another's descriptor", libc::SYS_pidfd_getfd, [0; 6]),
    ("a signal", libc::SYS_kill, [0; 6]),
    (
        "a signal that is not abort's",
        libc::SYS_tgkill,
        [0, 0, libc::SIGKILL as i64, 0, 0, 0],
    ),
    (
        "a handler of refused calls",
        libc::SYS_rt_sigaction,
        [libc::SIGSYS as i64, 0, 0, 8, 0, 0],
    ),
    ("another user", libc::SYS_setuid, [0; 6]),
    (
        "to be dumped",
        libc::SYS_prctl,
        [libc::PR_SET_DUMPABLE as i64, 1, 0, 0, 0, 0],
    ),
    ("a filter", libc::SYS_seccomp, [0; 6]),
    ("a program in the kernel", libc::SYS_bpf, [0; 6]),
    ("rings", libc::SYS_io_uring_setup, [0; 6]),
    (
        "other rings",
        libc::SYS_io_uring_register,
        [-1, 0, 0, 0, 0, 0],
    ),
    ("faults of another", libc::SYS_userfaultfd, [0; 6]),
    ("a longer file", libc::SYS_fallocate, [-1, 0, 0, 1, 0, 0]),
    (
        "room behind a file's end",
        libc::SYS_fallocate,
        [-1, libc::FALLOC_FL_KEEP_SIZE as i64, 0, 1, 0, 0],
    ),
    ("a key", libc::SYS_keyctl, [0; 6]),
];

/// What only some may do.
const SPECIAL: &[(Call, &[ThreadKind])] = &[
    (
        ("run", libc::SYS_ioctl, [-1, 0xae80, 0, 0, 0, 0]),
        &[ThreadKind::Vcpu],
    ),
    (
        ("tap", libc::SYS_ioctl, [-1, 0x4004_54d0, 0, 0, 0, 0]),
        &[ThreadKind::Vcpu],
    ),
    (
        ("write to a disk", libc::SYS_pwritev, [-1, 0, 0, 0, 0, 0]),
        &[ThreadKind::Block],
    ),
    (
        ("read of a disk", libc::SYS_preadv2, [-1, 0, 0, 0, 0, 0]),
        &[ThreadKind::Block],
    ),
    (
        (
            "ring of a disk",
            libc::SYS_io_uring_enter,
            [-1, 0, 0, 0, 0, 0],
        ),
        &[ThreadKind::Block],
    ),
    (
        ("holes", libc::SYS_fallocate, [-1, HOLE, 0, 0, 0, 0]),
        &[ThreadKind::Block, ThreadKind::Mem],
    ),
    (
        (
            "holes in shared memory",
            libc::SYS_madvise,
            [0, 0, libc::MADV_REMOVE as i64, 0, 0, 0],
        ),
        &[ThreadKind::Balloon],
    ),
    (
        ("accept", libc::SYS_accept4, [-1, 0, 0, 0, 0, 0]),
        &[ThreadKind::Vsock],
    ),
    (
        ("connect", libc::SYS_connect, [-1, 0, 0, 0, 0, 0]),
        &[ThreadKind::Vsock],
    ),
    (
        (
            "unix socket",
            libc::SYS_socket,
            [libc::AF_UNIX as i64, -1, 0, 0, 0, 0],
        ),
        &[ThreadKind::Vsock],
    ),
    (
        ("descriptors", libc::SYS_sendmsg, [-1, 0, 0, 0, 0, 0]),
        &[ThreadKind::Vcpu],
    ),
];

/// What every thread may do.
const ALLOWED: &[Call] = &[
    ("memory", libc::SYS_mmap, [0, 4096, DATA, PRIVATE, -1, 0]),
    (
        "memory back",
        libc::SYS_madvise,
        [0, 0, libc::MADV_DONTNEED as i64, 0, 0, 0],
    ),
    ("a write", libc::SYS_write, [-1, 0, 0, 0, 0, 0]),
    ("the identifier", libc::SYS_gettid, [0; 6]),
];

fn main() -> ExitCode {
    if let Ok(attempt) = env::var(ATTEMPT) {
        return match make(&attempt) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let mut trials = Vec::new();
    let names = ThreadKind::ALL.iter().map(|kind| kind.name());
    for kind in names.chain([BACKEND]) {
        let label = kind.replace(' ', "_").to_lowercase();
        trials.push(trial(
            &format!("{label}_thread_is_refused_what_none_may_do"),
            move || FORBIDDEN.iter().try_for_each(|call| refused(kind, call)),
        ));
        trials.push(trial(
            &format!("{label}_thread_goes_on_after_what_all_may_do"),
            move || ALLOWED.iter().try_for_each(|call| allowed(kind, call)),
        ));
    }
    for kind in ThreadKind::ALL {
        let label = kind.name().to_lowercase();
        trials.push(trial(
            &format!("{label}_thread_is_refused_what_only_others_may_do"),
            move || {
                SPECIAL
                    .iter()
                    .try_for_each(|(call, kinds)| match kinds.contains(&kind) {
                        true => allowed(kind.name(), call),
                        false => refused(kind.name(), call),
                    })
            },
        ));
    }
    trials.push(trial(
        "violation_without_its_handler_is_a_kill_by_sigsys",
        blocked,
    ));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn trial(name: &str, test: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    Trial::test(name, || {
        test().map_err(|error| Failed::from(format!("{error:#}")))
    })
}

fn attempt(kind: &str, (name, number, arguments): &Call, block: bool) -> Result<Output> {
    let arguments = arguments.map(|argument| argument.to_string()).join(",");
    Command::new(env::current_exe()?)
        .env(ATTEMPT, format!("{kind}:{number}:{arguments}:{block}"))
        .output()
        .with_context(|| format!("cannot attempt {name}"))
}

fn refused(kind: &str, call: &Call) -> Result<()> {
    let output = attempt(kind, call, false)?;
    let said = String::from_utf8_lossy(&output.stderr);
    let (name, number, _) = call;
    ensure!(
        output.status.code() == Some(VIOLATION_EXIT_CODE.into()),
        "{name} on {kind}: {}, {said}, {}",
        output.status,
        String::from_utf8_lossy(&output.stdout)
    );
    // The kernel keeps 32 bits of the number.
    let number = i32::try_from(number & 0xffff_ffff)?;
    ensure!(
        said == format!("the {kind} thread made system call {number}, which it may not make\n"),
        "{name} on {kind}: {said}"
    );
    Ok(())
}

fn allowed(kind: &str, call: &Call) -> Result<()> {
    let output = attempt(kind, call, false)?;
    ensure!(
        output.status.success() && output.stdout == MADE.as_bytes(),
        "{} on {kind}: {}, {}",
        call.0,
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn blocked() -> Result<()> {
    use std::os::unix::process::ExitStatusExt as _;
    let call = ("execve", libc::SYS_execve, [0; 6]);
    let status = attempt("vCPU", &call, true)?.status;
    ensure!(status.signal() == Some(libc::SIGSYS), "{status}");
    Ok(())
}

/// Makes the call on a thread of that kind.
fn make(attempt: &str) -> Result<()> {
    let mut parts = attempt.split(':');
    let mut part = || parts.next().context("a part is missing");
    let kind = part()?.to_owned();
    let number: libc::c_long = part()?.parse()?;
    let arguments = part()?
        .split(',')
        .map(str::parse)
        .collect::<Result<Vec<i64>, _>>()?;
    let block: bool = part()?.parse()?;
    let [a, b, c, d, e, f] = arguments.as_slice() else {
        anyhow::bail!("not six arguments");
    };
    let call = move |a: i64, b: i64, c: i64, d: i64, e: i64, f: i64| {
        // SAFETY: none of the calls with valid arguments touches memory that anything lives in.
        unsafe { libc::syscall(number, a, b, c, d, e, f) };
    };
    let (a, b, c, d, e, f) = (*a, *b, *c, *d, *e, *f);
    let confinement = Confinement::new()?;
    let thread = thread::spawn(move || -> Result<()> {
        if block {
            let mut set = SigSet::empty();
            set.add(Signal::SIGSYS);
            set.thread_block()?;
        }
        match ThreadKind::ALL.iter().find(|each| each.name() == kind) {
            Some(kind) => confinement.enter(*kind)?,
            None => backend_filter()?.install()?,
        }
        call(a, b, c, d, e, f);
        // SAFETY: the text is as long as that.
        unsafe { libc::write(libc::STDOUT_FILENO, MADE.as_ptr().cast(), MADE.len()) };
        // SAFETY: ends the process; the thread could do nothing else that is not on every list.
        unsafe { libc::_exit(0) }
    });
    thread.join().ok().context("the thread panicked")?
}
