//! What goes before a profile's program, so that system calls newer than the profile are not there, as on a kernel that does
//! not have them (runc's rule): a number larger than any that the profile names gets `ENOSYS`.
//!
//! Only x86-64's own calls are looked at. The guest's kernel has neither the calls of i386 nor those of x32, which are
//! told by bit 30 of the number; the profile's program decides on them.

use std::io;

use nix::libc::{self, c_ulong};

/// One instruction (kernel `Documentation/networking/filter.rst`), as the kernel takes it.
pub(super) type Instruction = libc::sock_filter;

/// `AUDIT_ARCH_X86_64` (kernel `include/uapi/linux/audit.h`).
const X86_64: u32 = 0xc000_003e;
/// Tells the calls of x32 (kernel `arch/x86/include/uapi/asm/unistd.h`).
const X32_BIT: u32 = 1 << 30;
/// Where the number and the architecture are (`struct seccomp_data`).
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// Classes, sizes and modes of instructions that are used.
const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const IF_SET: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
const IF_GREATER: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> Instruction {
    Instruction {
        code: u16::try_from(code).unwrap_or(u16::MAX),
        jt,
        jf,
        k,
    }
}

/// The program; what follows it begins right behind its end.
pub(super) fn program(newest: u32) -> Vec<Instruction> {
    let not_there = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
    vec![
        instruction(LOAD, 0, 0, ARCHITECTURE),
        instruction(IF_EQUAL, 0, 4, X86_64),
        instruction(LOAD, 0, 0, NUMBER),
        instruction(IF_SET, 2, 0, X32_BIT),
        instruction(IF_GREATER, 0, 1, newest),
        instruction(RETURN, 0, 0, not_there),
    ]
}

/// Instructions as they are in memory.
pub(super) fn parse(bytes: &[u8]) -> Vec<Instruction> {
    let (whole, _) = bytes.as_chunks::<8>();
    whole
        .iter()
        .map(|&[c0, c1, jt, jf, k0, k1, k2, k3]| Instruction {
            code: u16::from_ne_bytes([c0, c1]),
            jt,
            jf,
            k: u32::from_ne_bytes([k0, k1, k2, k3]),
        })
        .collect()
}

/// Installs a program as this thread's newest filter.
#[expect(unsafe_code, reason = "seccomp(2) has no wrapper that takes a program")]
pub(super) fn install(program: &[Instruction], flags: c_ulong) -> io::Result<()> {
    let too_long = |_| io::Error::from_raw_os_error(libc::E2BIG);
    let described = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(too_long)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: `described` names `len` instructions, which the kernel only reads, and only during the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const described,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the stub comes to: an answer, or `None` where it is left to what follows.
    fn run(newest: u32, architecture: u32, number: u32) -> Option<u32> {
        let program = program(newest);
        let (mut at, mut value) = (0, 0);
        while let Some(now) = program.get(at) {
            let skipped = |taken| usize::from(if taken { now.jt } else { now.jf });
            at += 1;
            match u32::from(now.code) {
                LOAD if now.k == NUMBER => value = number,
                LOAD => value = architecture,
                IF_EQUAL => at += skipped(value == now.k),
                IF_SET => at += skipped(value & now.k != 0),
                IF_GREATER => at += skipped(value > now.k),
                RETURN => return Some(now.k),
                other => panic!("instruction {other}"),
            }
        }
        assert_eq!(at, program.len());
        None
    }

    #[test]
    fn number_beyond_the_newest_is_not_there() {
        let enosys = Some(0x0005_0000 | 38);
        for (architecture, number, expected) in [
            (X86_64, 0, None),
            (X86_64, 450, None),
            (X86_64, 451, enosys),
            (X86_64, X32_BIT - 1, enosys),
            (X86_64, u32::MAX >> 2, enosys),
            // x32's, and i386's.
            (X86_64, X32_BIT | 600, None),
            (0x4000_0003, 600, None),
        ] {
            assert_eq!(run(450, architecture, number), expected, "{number}");
        }
    }

    #[test]
    fn instruction_is_read_as_it_lies_in_memory() {
        let read = parse(&[0x06, 0, 1, 2, 0x26, 0, 5, 0, 9]);
        assert_eq!(read.len(), 1);
        let one = read[0];
        assert_eq!((one.code, one.jt, one.jf, one.k), (6, 1, 2, 0x0005_0026));
    }
}
