use nix::errno::Errno;
use serde_json::{Value, json};

use super::*;

/// In a thread of its own, which is given the filter and keeps it: the errno of each call, 0 if there was none.
#[expect(unsafe_code, reason = "calls are made by number")]
fn answers(profile: Value, calls: &'static [(i64, u64)]) -> Vec<i32> {
    let profile: LinuxSeccomp = serde_json::from_value(profile).unwrap();
    let seen = std::thread::spawn(move || {
        rustix::thread::set_no_new_privs(true).unwrap();
        Filter::new(&profile).unwrap().install().unwrap();
        let call = |&(number, argument): &(i64, u64)| {
            Errno::clear();
            // SAFETY: none of the calls made here reads or writes memory.
            unsafe { nix::libc::syscall(number, argument, 0, 0) };
            Errno::last_raw()
        };
        calls.iter().map(call).collect()
    });
    seen.join().unwrap()
}

/// No kernel has it.
const FAR: i64 = 4000;
/// What a thread that ends must be able to do, and a newest call (`mount_setattr`).
const CALLS: [&str; 14] = [
    "exit",
    "exit_group",
    "futex",
    "munmap",
    "mmap",
    "madvise",
    "rt_sigprocmask",
    "sigaltstack",
    "write",
    "getpid",
    "close",
    "brk",
    "mprotect",
    "mount_setattr",
];

fn allow_list() -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64"],
        "syscalls": [{"names": CALLS, "action": "SCMP_ACT_ALLOW"}],
    })
}

fn allow_list_and(rule: Value) -> Value {
    let mut profile = allow_list();
    profile["syscalls"].as_array_mut().unwrap().push(rule);
    profile
}

#[test]
fn call_that_is_newer_than_the_profile_is_not_there() {
    use nix::libc::{SYS_getpid, SYS_getppid};
    let seen = answers(allow_list(), &[(SYS_getpid, 0), (SYS_getppid, 0), (FAR, 0)]);
    assert_eq!(seen, [0, nix::libc::EPERM, nix::libc::ENOSYS]);
}

#[test]
fn default_errno_of_the_profile_holds_for_what_it_could_know() {
    let mut profile = allow_list();
    profile["defaultErrnoRet"] = json!(nix::libc::EACCES);
    let seen = answers(profile, &[(nix::libc::SYS_getppid, 0), (FAR, 0)]);
    assert_eq!(seen, [nix::libc::EACCES, nix::libc::ENOSYS]);
}

#[test]
fn deny_list_leaves_new_calls_to_the_kernel() {
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["getppid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7}],
    });
    assert!(!denies_by_errno(
        &serde_json::from_value(profile.clone()).unwrap()
    ));
    assert_eq!(answers(profile, &[(nix::libc::SYS_getppid, 0)]), [7]);
}

#[test]
fn masked_argument_is_compared_with_the_second_value() {
    // getpgid(2) takes one argument, a process: what is not there has ESRCH.
    let profile = allow_list_and(json!({
        "names": ["getpgid"], "action": "SCMP_ACT_ALLOW",
        "args": [{"index": 0, "value": 0x7000_0000, "valueTwo": 0x1000_0000, "op": "SCMP_CMP_MASKED_EQ"}],
    }));
    let seen = answers(
        profile,
        &[
            (nix::libc::SYS_getpgid, 0x1000_0001),
            (nix::libc::SYS_getpgid, 0x3000_0001),
            (nix::libc::SYS_getpgid, 1),
        ],
    );
    assert_eq!(seen, [nix::libc::ESRCH, nix::libc::EPERM, nix::libc::EPERM]);
}

#[test]
fn argument_that_is_compared_twice_matches_by_either() {
    let equal = |value: u64| json!({"index": 0, "value": value, "op": "SCMP_CMP_EQ"});
    let profile = allow_list_and(json!({
        "names": ["getpgid"], "action": "SCMP_ACT_ALLOW", "args": [equal(0x7000_0001), equal(0x7000_0002)],
    }));
    let seen = answers(
        profile,
        &[
            (nix::libc::SYS_getpgid, 0x7000_0001),
            (nix::libc::SYS_getpgid, 0x7000_0002),
            (nix::libc::SYS_getpgid, 0x7000_0003),
        ],
    );
    assert_eq!(seen, [nix::libc::ESRCH, nix::libc::ESRCH, nix::libc::EPERM]);
}

#[test]
fn errno_that_is_none_is_refused() {
    let profile = json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 70_000});
    let profile = serde_json::from_value(profile).unwrap();
    assert!(matches!(
        filter(&profile).map(drop),
        Err(ProfileError::Errno { errno: 70_000 })
    ));
}
