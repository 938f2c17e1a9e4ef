//! Bytes on their way from one descriptor to another.
//!
//! From one pipe to another the kernel hands pages on by itself (splice(2)), and nobody copies a byte. Everything else is read and
//! written: between a pipe and a file that lets itself be waited for, as a terminal, splice waits with the pipe locked, and whoever
//! is at the pipe's other end then hangs where no signal ends it.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileTypeExt as _;

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};

use super::{is_again, wait_for};

/// How much is moved at once: the size of a pipe.
const CHUNK_BYTES: usize = 64 * 1024;

/// One stream's. It has a buffer once it needs one.
#[derive(Debug)]
pub(crate) struct Transfer {
    /// Whether the kernel does it, once that was looked at.
    splices: Option<bool>,
    buffer: Vec<u8>,
}

impl Transfer {
    pub(super) fn new() -> Self {
        Self {
            splices: None,
            buffer: Vec::new(),
        }
    }

    /// Moves some of what is in `from` to `to`, and waits until that takes it. How many bytes, 0 at the end of `from`;
    /// none where `from` had nothing after all, or was not looked at because `to` was full until now.
    pub(crate) fn pass(&mut self, from: &File, to: &File) -> io::Result<Option<usize>> {
        let both_pipes = || is_pipe(from) && is_pipe(to);
        if *self.splices.get_or_insert_with(both_pipes) {
            match splice(from, None, to, None, CHUNK_BYTES, SpliceFlags::empty()) {
                Ok(count) => return Ok(Some(count)),
                Err(Errno::INTR) => return Ok(None),
                // Which of the two is not ready, it does not say.
                Err(Errno::AGAIN) => {
                    wait_for(to, PollFlags::OUT)?;
                    return Ok(None);
                }
                Err(Errno::INVAL | Errno::NOSYS) => self.splices = Some(false),
                Err(error) => return Err(error.into()),
            }
        }
        let Some(bytes) = self.read(from)? else {
            return Ok(None);
        };
        write_all(to, bytes)?;
        Ok(Some(bytes.len()))
    }

    /// Reads some of what is in `from`; nothing at its end, none if it had nothing after all.
    pub(crate) fn read(&mut self, mut from: &File) -> io::Result<Option<&[u8]>> {
        self.buffer.resize(CHUNK_BYTES, 0);
        match from.read(&mut self.buffer) {
            Ok(count) => Ok(Some(self.buffer.get(..count).unwrap_or_default())),
            Err(error) if is_again(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn is_pipe(file: &File) -> bool {
    file.metadata()
        .is_ok_and(|about| about.file_type().is_fifo())
}

/// Writes everything, also to a descriptor that somebody made non-blocking.
fn write_all(mut to: &File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait_for(to, PollFlags::OUT)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::thread;

    use super::*;

    fn pipe() -> (File, File) {
        let (reader, writer) = io::pipe().unwrap();
        (
            File::from(OwnedFd::from(reader)),
            File::from(OwnedFd::from(writer)),
        )
    }

    fn bytes() -> Vec<u8> {
        (0..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect()
    }

    /// Passes on to the end what another thread writes; whether the kernel did it alone.
    fn passed(to: &File) -> bool {
        let (from, mut writer) = pipe();
        let writing = thread::spawn(move || writer.write_all(&bytes()).unwrap());
        let mut transfer = Transfer::new();
        while transfer.pass(&from, to).unwrap() != Some(0) {}
        writing.join().unwrap();
        transfer.splices == Some(true)
    }

    #[test]
    fn file_gets_copies() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        assert!(!passed(&File::create(&path).unwrap()));
        assert!(std::fs::read(&path).unwrap() == bytes());
        let behind = File::options().append(true).open(&path).unwrap();
        assert!(!passed(&behind));
        assert!(std::fs::read(&path).unwrap() == [bytes(), bytes()].concat());
    }

    #[test]
    fn pipe_is_read_by_others_while_a_terminal_or_socket_is_waited_for() {
        let (mut reader, to) = pipe();
        let (from, mut writer) = std::os::unix::net::UnixStream::pair().unwrap();
        let from = File::from(OwnedFd::from(from));
        let passing = thread::spawn(move || {
            let mut transfer = Transfer::new();
            while transfer.pass(&from, &to).unwrap() != Some(0) {}
        });
        rustix::fs::fcntl_setfl(&reader, rustix::fs::OFlags::NONBLOCK).unwrap();
        // With the pipe locked, this would not return before something comes.
        for _ in 0..1000 {
            let nothing = reader.read(&mut [0]).unwrap_err();
            assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
            thread::yield_now();
        }
        writer.write_all(b"x").unwrap();
        drop(writer);
        passing.join().unwrap();
        assert_eq!(reader.read(&mut [0; 2]).unwrap(), 1);
    }

    #[test]
    fn pipe_that_does_not_block_is_waited_for_until_it_takes_more() {
        let (mut reader, to) = pipe();
        let flags = rustix::fs::fcntl_getfl(&to).unwrap();
        rustix::fs::fcntl_setfl(&to, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
        let reading = thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).unwrap();
            all
        });
        assert!(passed(&to));
        drop(to);
        assert!(reading.join().unwrap() == bytes());
    }

    #[test]
    fn pipe_whose_reader_is_gone_is_broken() {
        let (reader, to) = pipe();
        drop(reader);
        let (from, mut writer) = pipe();
        writer.write_all(b"x").unwrap();
        let error = Transfer::new().pass(&from, &to).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
