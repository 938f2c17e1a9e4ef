//! The caller's terminal.

use std::fs::File;
use std::io::{self, IsTerminal as _};

use rustix::termios::{self, OptionalActions, Termios};

/// The size that a terminal without one is taken to have.
const FALLBACK: (u16, u16) = (80, 24);

/// Columns and rows of the terminal, looked for on standard input, output and error.
pub(crate) fn size() -> (u16, u16) {
    let sizes = [
        termios::tcgetwinsize(io::stdin()),
        termios::tcgetwinsize(io::stdout()),
        termios::tcgetwinsize(io::stderr()),
    ];
    sizes
        .into_iter()
        .flatten()
        .map(|size| (size.ws_col, size.ws_row))
        .find(|(columns, rows)| *columns > 0 && *rows > 0)
        .unwrap_or(FALLBACK)
}

/// Whether standard input is a terminal.
pub(crate) fn on_stdin() -> bool {
    io::stdin().is_terminal()
}

/// The terminal that signals of our session come from, if it had one at first.
#[derive(Debug)]
pub(crate) struct ControllingTerminal {
    was_there: bool,
}

impl ControllingTerminal {
    /// Looks for it.
    pub(crate) fn find() -> Self {
        Self {
            was_there: Self::opens(),
        }
    }

    /// Whether there was one and is none any more. The kernel takes it away before it sends `SIGHUP`, which is how one is
    /// told from a `SIGHUP` that somebody sends.
    pub(crate) fn is_gone(&self) -> bool {
        self.was_there && !Self::opens()
    }

    fn opens() -> bool {
        File::open("/dev/tty").is_ok()
    }
}

/// Standard input's terminal in raw mode, until this is dropped, also by a panic.
#[derive(Debug)]
pub(crate) struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Makes the terminal pass every byte on as it comes: no echo, no lines, no signals from keys.
    pub(crate) fn enter() -> io::Result<Self> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}
