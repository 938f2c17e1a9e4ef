//! A process that is added to a container and writes without end, and what becomes on this machine of what it writes.

use std::io::Read as _;
use std::process::{Child, ChildStdout};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{END, LOOK, ends_within};
use crate::case::Flood;

/// How long what is written may go on to fill this machine's memory.
const SETTLES: Duration = Duration::from_secs(30);
/// After this long without more it has stopped.
const STILL: Duration = Duration::from_secs(3);
/// The most that is kept, in bytes: more than the probe writes.
const KEPT_BYTES: u64 = 256 << 20;

/// It, for as long as it may write.
pub(crate) struct Writer {
    child: Child,
    output: Option<Output>,
    flood: Flood,
    before_mib: u64,
    stop: &'static AtomicBool,
}

/// Where what it writes goes.
enum Output {
    /// Nowhere: nobody reads it.
    Unread(ChildStdout),
    /// To whoever keeps all of it.
    Kept(JoinHandle<Vec<u8>>),
}

impl Writer {
    /// One that writes: of its output the beginning was read. `before_mib` is what was used before it was there.
    pub(super) fn new(
        child: Child,
        stdout: ChildStdout,
        flood: Flood,
        before_mib: u64,
        stop: &'static AtomicBool,
    ) -> Self {
        let output = if flood.is_kept {
            Output::Kept(thread::spawn(move || {
                let mut kept = Vec::new();
                // What came before it failed is kept all the same.
                let _ = stdout.take(KEPT_BYTES).read_to_end(&mut kept);
                kept
            }))
        } else {
            Output::Unread(stdout)
        };
        Self {
            child,
            output: Some(output),
            flood,
            before_mib,
            stop,
        }
    }

    /// How much more memory is used than before, in MiB, once it does not become more, or is enough.
    pub(crate) fn held_mib(&self) -> u64 {
        let begin = Instant::now();
        let (mut most, mut since) = (0, begin);
        while begin.elapsed() < SETTLES
            && since.elapsed() < STILL
            && most < self.flood.enough_mib
            && !self.stop.load(Ordering::Relaxed)
        {
            let now = (self.flood.weight)().saturating_sub(self.before_mib);
            if now > most {
                (most, since) = (now, Instant::now());
            }
            thread::sleep(LOOK);
        }
        most
    }

    /// Leaves it without a reader, and says whether it ends by that, or had before. Where all is kept, it ends when all is written.
    pub(crate) fn end(&mut self) -> bool {
        match self.output.take() {
            Some(Output::Unread(stdout)) => drop(stdout),
            // What was kept goes with the thread.
            Some(Output::Kept(keeper)) => drop(keeper),
            None => {}
        }
        let ended = ends_within(&mut self.child, END);
        if !ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        ended
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.end();
    }
}
