//! The guest's console: a bounded tail of what it printed, made printable.
//!
//! It is a ring in a file of the sandbox's folder ([`console_ring`]), which stays readable however the monitor and the
//! shim went. Under KVM the monitor writes it; under QEMU a task of the shim copies the serial port's pipe into it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Mode, OFlags};
use sandbox_types::monitor::console_ring;
use tokio::io::{AsyncRead, AsyncReadExt};

/// The ring's name in the sandbox's folder.
const CONSOLE_FILE: &str = "console";
/// How many lines of the console an error shows.
pub(crate) const TAIL_LINES: usize = 20;
/// The most lines that are shown, when a panic lies further up.
const MAX_TAIL_LINES: usize = 60;
/// How Linux announces a panic (kernel/panic.c).
const PANIC_MARK: &str = "Kernel panic";
/// The longest line that is shown, in bytes.
const MAX_LINE_BYTES: usize = 512;

/// `bytes` as text that is safe to show: at most `limit` bytes of it, control characters and what is not UTF-8
/// replaced.
pub(crate) fn printable(bytes: &[u8], limit: usize) -> String {
    let kept = bytes.get(..limit).unwrap_or(bytes);
    let mut text: String = String::from_utf8_lossy(kept)
        .chars()
        .map(|c| {
            if c.is_control() && c != '\t' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect();
    while text.len() > limit {
        text.pop();
    }
    if kept.len() < bytes.len() {
        text.push('…');
    }
    text
}

/// The last `count` lines of `bytes` that are not empty.
fn last_lines(bytes: &[u8], count: usize) -> Vec<String> {
    let mut lines: Vec<String> = bytes
        .rsplit(|&b| b == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .filter(|line| !line.is_empty())
        .take(count)
        .map(|line| printable(line, MAX_LINE_BYTES))
        .collect();
    lines.reverse();
    lines
}

/// What a person needs of a console: its last lines, and from where the kernel announced a panic, which its call trace
/// may have pushed up; at most [`MAX_TAIL_LINES`].
fn telling_lines(bytes: &[u8]) -> Vec<String> {
    let lines = last_lines(bytes, MAX_TAIL_LINES);
    let last = lines.len().saturating_sub(TAIL_LINES);
    let panic = lines
        .iter()
        .position(|line| line.contains(PANIC_MARK))
        .unwrap_or(last);
    lines.into_iter().skip(panic.min(last)).collect()
}

/// The last bytes of a stream.
#[derive(Debug)]
pub(crate) struct Tail {
    bytes: Mutex<VecDeque<u8>>,
    capacity: usize,
}

impl Tail {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            bytes: Mutex::new(VecDeque::new()),
            capacity,
        }
    }

    pub(crate) fn push(&self, new: &[u8]) {
        let keep_from = new.len().saturating_sub(self.capacity);
        let new = new.get(keep_from..).unwrap_or_default();
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = bytes.len();
        let excess = (kept + new.len()).saturating_sub(self.capacity);
        bytes.drain(..excess.min(kept));
        bytes.extend(new);
    }

    fn contents(&self) -> Vec<u8> {
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        bytes.iter().copied().collect()
    }

    pub(crate) fn lines(&self, count: usize) -> Vec<String> {
        last_lines(&self.contents(), count)
    }
}

/// Reads a stream to its end, keeping the tail.
pub(crate) async fn copy_into_tail(mut from: impl AsyncRead + Unpin, tail: Arc<Tail>) {
    let mut buffer = [0u8; 4096];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        tail.push(buffer.get(..n).unwrap_or_default());
    }
}

/// Reads a stream to its end, keeping the tail in a console.
pub(crate) async fn copy_into_console(mut from: impl AsyncRead + Unpin, console: Console) {
    let mut buffer = [0u8; 4096];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        // A console that cannot be written costs diagnostics, not the sandbox.
        let _ = console.push(buffer.get(..n).unwrap_or_default());
    }
}

/// The guest's console, in a ring that is a file.
#[derive(Debug, Clone)]
pub(crate) struct Console(Arc<OwnedFd>);

impl Console {
    /// A new ring in the sandbox's folder.
    pub(crate) fn create(dir: &Path) -> std::io::Result<Self> {
        let fd = rustix::fs::open(
            dir.join(CONSOLE_FILE),
            OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC,
            Mode::RUSR | Mode::WUSR,
        )?;
        rustix::fs::ftruncate(&fd, console_ring::FILE_BYTES as u64)?;
        Ok(Self(Arc::new(fd)))
    }

    /// The ring that a sandbox left in its folder.
    pub(crate) fn open(dir: &Path) -> std::io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::open(dir.join(CONSOLE_FILE), flags, Mode::empty())?;
        Ok(Self(Arc::new(fd)))
    }

    /// Appends to the ring. For one writer.
    pub(crate) fn push(&self, bytes: &[u8]) -> std::io::Result<()> {
        let mut header = [0u8; 8];
        rustix::io::pread(&self.0, &mut header, 0)?;
        let mut written = u64::from_le_bytes(header);
        let size = console_ring::DATA_BYTES as u64;
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = usize::try_from(size - written % size).unwrap_or(rest.len());
            let (part, after) = rest.split_at(rest.len().min(room));
            let at = console_ring::HEADER_BYTES as u64 + written % size;
            rustix::io::pwrite(&self.0, part, at)?;
            written = written.wrapping_add(part.len() as u64);
            rest = after;
        }
        rustix::io::pwrite(&self.0, &written.to_le_bytes(), 0)?;
        Ok(())
    }

    fn contents(&self) -> Vec<u8> {
        read_ring(self.0.as_fd()).unwrap_or_default()
    }

    /// The last lines that are not empty.
    pub(crate) fn tail(&self) -> Vec<String> {
        telling_lines(&self.contents())
    }

    /// Whether the kernel announced a panic.
    pub(crate) fn shows_panic(&self) -> bool {
        self.shows(b"Kernel panic")
    }

    /// Whether it panicked because its first process, the agent, ended.
    pub(crate) fn shows_end_of_init(&self) -> bool {
        self.shows(b"Kernel panic - not syncing: Attempted to kill init!")
    }

    fn shows(&self, mark: &[u8]) -> bool {
        self.contents()
            .windows(mark.len())
            .any(|window| window == mark)
    }
}

impl AsFd for Console {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The bytes of a ring, oldest first. The monitor that writes it is not believed: any count is taken modulo the
/// ring's size.
fn read_ring(fd: impl AsFd) -> std::io::Result<Vec<u8>> {
    let fd = fd.as_fd();
    let mut header = [0u8; 8];
    if rustix::io::pread(fd, &mut header, 0)? < header.len() {
        return Ok(Vec::new());
    }
    let written = u64::from_le_bytes(header);
    let mut data = vec![0u8; console_ring::DATA_BYTES];
    let mut filled = 0;
    while let Some(rest) = data.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let n = rustix::io::pread(fd, rest, (console_ring::HEADER_BYTES + filled) as u64)?;
        if n == 0 {
            break;
        }
        filled += n;
    }
    let size = console_ring::DATA_BYTES as u64;
    match usize::try_from(if written < size {
        written
    } else {
        written % size
    }) {
        Ok(len) if written < size => data.truncate(len),
        Ok(oldest) => data.rotate_left(oldest),
        Err(_) => data.clear(),
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_reaches_up_to_the_panic() {
        let mut console = String::from("quiet\n");
        console.push_str("Kernel panic - not syncing: why\n");
        for line in 0..30 {
            console.push_str(&format!("trace {line}\n"));
        }
        let lines = telling_lines(console.as_bytes());
        assert_eq!(lines.len(), 31);
        assert_eq!(lines[0], "Kernel panic - not syncing: why");
        let calm = telling_lines(console.replace("Kernel panic", "all is well").as_bytes());
        assert_eq!(calm.len(), TAIL_LINES);
    }
    use proptest::prelude::*;

    fn ring_with(text: &[u8]) -> Console {
        let folder = tempfile::tempdir().unwrap();
        let console = Console::create(folder.path()).unwrap();
        for part in text.chunks(1000) {
            console.push(part).unwrap();
        }
        console
    }

    #[test]
    fn ring_outlives_its_writer() {
        let folder = tempfile::tempdir().unwrap();
        Console::create(folder.path())
            .unwrap()
            .push(b"last words\n")
            .unwrap();
        assert_eq!(Console::open(folder.path()).unwrap().tail(), ["last words"]);
    }

    #[test]
    fn ring_partly_written_shows_what_was_written() {
        let console = ring_with(b"one\r\n\r\ntwo\r\nKernel panic - not syncing\r\n");
        assert_eq!(console.tail(), ["one", "two", "Kernel panic - not syncing"]);
        assert!(console.shows_panic());
        assert!(!ring_with(b"").shows_panic());
        assert!(ring_with(b"").tail().is_empty());
    }

    #[test]
    fn ring_that_wrapped_shows_oldest_first() {
        let mut text = vec![b'.'; console_ring::DATA_BYTES - 2];
        text.extend(b"\nabc\ndef\n");
        assert_eq!(ring_with(&text).tail().last().unwrap(), "def");
        assert_eq!(ring_with(&text).tail().iter().rev().nth(1).unwrap(), "abc");
    }

    #[test]
    fn ring_with_any_count_is_read() {
        let console = ring_with(b"x");
        rustix::io::pwrite(&console, &u64::MAX.to_le_bytes(), 0).unwrap();
        console.tail();
    }

    proptest! {
        #[test]
        fn tail_keeps_exactly_the_last_bytes(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20)) {
            let tail = Tail::new(32);
            let mut all: Vec<u8> = Vec::new();
            for chunk in &chunks {
                tail.push(chunk);
                all.extend(chunk);
            }
            let expected = &all[all.len().saturating_sub(32)..];
            prop_assert_eq!(tail.contents(), expected.to_vec());
        }

        #[test]
        fn printable_never_has_control_characters_or_exceeds_its_limit(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let text = printable(&bytes, 40);
            prop_assert!(text.len() <= 40 + '…'.len_utf8());
            prop_assert!(text.chars().all(|c| !c.is_control() || c == '\t'));
        }
    }
}
