//! Standard streams, and the terminal if they are one.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::termios::{SpecialCharacterIndices, tcgetattr};
use nix::unistd;
use serde_json::{Value, json};

use crate::look;

nix::ioctl_read_bad!(window_size, nix::libc::TIOCGWINSZ, nix::libc::winsize);

#[expect(unsafe_code, reason = "ioctl(2) writes to what it is given")]
fn size(stream: BorrowedFd<'_>) -> nix::Result<String> {
    use std::os::fd::AsRawFd as _;
    let mut size = nix::libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCGWINSZ writes one `winsize`, which `size` is, and the descriptor is open.
    unsafe { window_size(stream.as_raw_fd(), &raw mut size) }?;
    Ok(format!("{}x{}", size.ws_col, size.ws_row))
}

fn stream(number: u8, stream: BorrowedFd<'_>) -> Value {
    let link = fs::read_link(format!("/proc/self/fd/{number}"));
    let kind = link.map_or_else(
        |error| look::io_error(&error),
        |target| look::anonymous(&target).into(),
    );
    if !unistd::isatty(stream).unwrap_or(false) {
        return json!({ "kind": kind });
    }
    let owner = nix::sys::stat::fstat(stream).map(|stat| {
        format!(
            "{}:{} {:o}",
            stat.st_uid,
            stat.st_gid,
            stat.st_mode & 0o7777
        )
    });
    json!({
        "kind": kind,
        "owner": look::or_error(owner),
        "size": look::or_error(size(stream)),
        "settings": match tcgetattr(stream) {
            Ok(termios) => json!({
                "input": format!("{:#x}", termios.input_flags.bits()),
                "output": format!("{:#x}", termios.output_flags.bits()),
                "control": format!("{:#x}", termios.control_flags.bits()),
                "local": format!("{:#x}", termios.local_flags.bits()),
                "interrupt": termios.control_chars[SpecialCharacterIndices::VINTR as usize],
                "end_of_file": termios.control_chars[SpecialCharacterIndices::VEOF as usize],
            }),
            Err(errno) => look::error(errno),
        },
        "in_foreground": look::or_error(
            unistd::tcgetpgrp(stream).map(|group| group == unistd::getpgrp()),
        ),
    })
}

/// The three streams, and whether there is a controlling terminal.
pub(crate) fn look() -> Value {
    json!({
        "stdin": stream(0, std::io::stdin().as_fd()),
        "stdout": stream(1, std::io::stdout().as_fd()),
        "stderr": stream(2, std::io::stderr().as_fd()),
        "controlling": look::io_outcome(File::open("/dev/tty")),
    })
}
