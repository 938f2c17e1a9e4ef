//! Memory: how fast it is read and copied, and what a page costs that nobody has touched.

use std::hint::black_box;
use std::time::Instant;

use nix::errno::Errno;
use nix::libc;
use serde_json::{Value, json};

use super::{each, mib_per_s, next};

/// More than caches hold, and less than the smallest guest has.
const BLOCK: usize = 24 << 20;

/// Reads a block from its beginning to its end, and copies it.
pub(super) fn bandwidth() -> Value {
    let mut from = vec![1u64; BLOCK / 8];
    let mut to = vec![2u64; BLOCK / 8];
    let rate = |work: &mut dyn FnMut()| {
        // Once without the clock: pages appear.
        work();
        let start = Instant::now();
        let mut bytes = 0;
        while start.elapsed() < super::SPAN {
            work();
            bytes += BLOCK;
        }
        mib_per_s(bytes, start.elapsed())
    };
    let read = rate(&mut || {
        black_box(from.iter().fold(0u64, |sum, one| sum.wrapping_add(*one)));
    });
    let copied = rate(&mut || {
        to.copy_from_slice(black_box(&from));
        std::mem::swap(&mut from, &mut to);
    });
    json!({ "read_mib_per_s": read, "copy_mib_per_s": copied })
}

/// Reads where the last read says, all over a block; nanoseconds for one.
pub(super) fn random() -> f64 {
    const JUMPS: u32 = 10_000;
    let length = BLOCK / 4;
    let mut places: Vec<u32> = (0..u32::try_from(length).unwrap_or(u32::MAX)).collect();
    // One cycle through all of them (Sattolo's algorithm).
    let mut state = 0x2545_f491_4f6c_dd1d;
    for last in (1..length).rev() {
        state = next(state);
        let other = usize::try_from(state % last as u64).unwrap_or(0);
        places.swap(last, other);
    }
    let mut at = 0u32;
    each(JUMPS, || {
        for _ in 0..JUMPS {
            at = usize::try_from(at)
                .ok()
                .and_then(|at| places.get(at).copied())
                .unwrap_or(0);
        }
        at = black_box(at);
    })
}

/// Touches new pages, and gives them back; nanoseconds for one.
#[expect(unsafe_code, reason = "memory is mapped and touched page by page")]
pub(super) fn fault() -> Result<f64, String> {
    const PAGES: u32 = 1_024;
    const PAGE: usize = 4_096;
    let length = PAGES as usize * PAGE;
    let mut failed = false;
    let cost = each(PAGES, || {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            failed = true;
            return;
        }
        // SAFETY: it is our mapping; small pages are what is counted.
        unsafe { libc::madvise(address, length, libc::MADV_NOHUGEPAGE) };
        for page in 0..PAGES as usize {
            // SAFETY: within the mapping, which is as long as all pages.
            let byte = unsafe { address.cast::<u8>().add(page * PAGE) };
            // SAFETY: a byte of the mapping, which nothing else refers to.
            unsafe { byte.write_volatile(1) };
        }
        // SAFETY: the whole mapping, which is not used any more.
        unsafe { libc::munmap(address, length) };
    });
    if failed {
        return Err(format!("cannot map memory: {}", Errno::last()));
    }
    Ok(cost)
}
