//! Open descriptors.
#![expect(unsafe_code, reason = "close_range(2) has no wrapper")]

use std::io;
use std::os::fd::RawFd;

use crate::JailError;

/// Closes every descriptor but the standard three and these. Whoever owns another must not use it any more.
///
/// # Errors
/// [`JailError::Descriptors`].
pub fn close_all_but(keep: &[RawFd]) -> Result<(), JailError> {
    for (first, last) in gaps(keep) {
        // SAFETY: no memory is handed over. That nobody uses what is closed is the caller's promise: the process has just
        // begun, and owns only what it was handed and asks to keep.
        let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        if result != 0 {
            return Err(JailError::Descriptors {
                source: io::Error::last_os_error(),
            });
        }
    }
    Ok(())
}

/// The ranges, ends included, that are to be closed.
fn gaps(keep: &[RawFd]) -> Vec<(u32, u32)> {
    let mut kept: Vec<u32> = keep
        .iter()
        .filter_map(|&fd| u32::try_from(fd).ok())
        .collect();
    kept.sort_unstable();
    let mut gaps = Vec::new();
    let mut next = 3;
    for fd in kept {
        if fd > next {
            gaps.push((next, fd - 1));
        }
        next = next.max(fd.saturating_add(1));
    }
    gaps.push((next, u32::MAX));
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_around_what_is_kept() {
        assert_eq!(gaps(&[]), [(3, u32::MAX)]);
        assert_eq!(gaps(&[3, 4]), [(5, u32::MAX)]);
        assert_eq!(
            gaps(&[12, 0, 4, 4, -1, 10]),
            [(3, 3), (5, 9), (11, 11), (13, u32::MAX)]
        );
    }
}
