//! What a container's attendant and its clients say to each other.
//!
//! A control connection carries one JSON object a line, both ways. The first line of a client is
//! [`Request::Attach`]; with it come the ends of the pipes that carry the streams (`SCM_RIGHTS`, in the order input,
//! output, error). Bytes never ride on the control connection, so neither holds up the other, and a stream ends
//! when its pipe does.

use std::io::{self, BufRead as _, BufReader, Cursor, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use sandbox_types::timeline::Mark;
use serde::{Deserialize, Serialize};

/// The longest line that is read.
const MAX_LINE_BYTES: u64 = 64 * 1024;
/// The longest first line, and what is read at once with the descriptors.
const FIRST_BYTES: usize = 4096;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    /// The first: which pipes come along.
    Attach {
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    /// All input is in the pipe. Said before the pipe is closed; a pipe that is closed without it means only that
    /// the client went away. It ends the container's input where that is for one client ([`crate::launch::Launch`]).
    InputEnded,
    /// Send the container this signal.
    Signal(u32),
    /// The terminal has this many columns and rows.
    Resize(u16, u16),
    /// The client attends this process, which it adds with `exec`. If the connection ends without [`Request::Released`], it has left the process
    /// to the attendant, be it by the detach keys or because it was killed.
    Attends(String),
    /// That process has ended and was removed.
    Released,
}

/// What a client is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Report {
    /// The container exists; its process is about to be started.
    Created,
    /// Its process runs.
    Started,
    /// It has ended, and what had to be cleared away is.
    Ended(Outcome),
}

/// How a container ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// What `run` exits with.
    pub(crate) code: u8,
    /// Why, where it was not its process that ended by itself.
    pub(crate) error: Option<String>,
    /// When each phase was reached.
    pub(crate) marks: Vec<Mark>,
}

/// The attendant's ends of a client's streams.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// Tells the attendant that listens at `path` who attends a process that is added with `exec`, for as long as the connection stands.
pub(crate) fn attend_exec(path: &Path, exec: &str) -> io::Result<UnixStream> {
    let connection = UnixStream::connect(path)?;
    send_attach(&connection, &Streams::default())?;
    send(&connection, &Request::Attends(exec.to_owned()))?;
    Ok(connection)
}

/// Says one thing.
pub(crate) fn send(mut connection: &UnixStream, message: &impl Serialize) -> io::Result<()> {
    connection.write_all(&line(message)?)
}

fn line(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// Says the first thing, with the descriptors.
pub(crate) fn send_attach(connection: &UnixStream, streams: &Streams) -> io::Result<()> {
    let line = line(&Request::Attach {
        stdin: streams.stdin.is_some(),
        stdout: streams.stdout.is_some(),
        stderr: streams.stderr.is_some(),
    })?;
    let all = [&streams.stdin, &streams.stdout, &streams.stderr];
    let descriptors: Vec<_> = all.into_iter().flatten().map(|fd| fd.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    let sent = sendmsg(
        connection,
        &[IoSlice::new(&line)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    if sent == line.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

/// What has been said on a connection.
pub(crate) struct Lines<R> {
    reader: BufReader<R>,
}

impl Lines<UnixStream> {
    /// Of a client.
    pub(crate) fn new(connection: UnixStream) -> Self {
        Self {
            reader: BufReader::new(connection),
        }
    }
}

impl<R: io::Read> Lines<R> {
    /// The next; none at the end, however it came, and after anything that is not understood.
    pub(crate) fn next<M: for<'a> Deserialize<'a>>(&mut self) -> Option<M> {
        let mut line = Vec::new();
        let read = (&mut self.reader)
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut line);
        match read {
            Ok(count) if count > 0 => serde_json::from_slice(&line).ok(),
            _ => None,
        }
    }
}

/// What comes behind the first thing: what was read along with it, then the connection.
pub(crate) type Following = Lines<io::Chain<Cursor<Vec<u8>>, UnixStream>>;

/// Hears the first thing, with the descriptors, and gives what comes behind it.
pub(crate) fn receive_attach(connection: UnixStream) -> io::Result<(Streams, Following)> {
    let mut bytes = vec![0_u8; FIRST_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        &connection,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    bytes.truncate(received.bytes);
    let mut descriptors: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    let mut lines = Lines {
        reader: BufReader::new(Cursor::new(bytes).chain(connection)),
    };
    let Some(Request::Attach {
        stdin,
        stdout,
        stderr,
    }) = lines.next()
    else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let mut descriptors = descriptors.into_iter();
    let mut take = |wanted: bool| -> io::Result<Option<OwnedFd>> {
        if !wanted {
            return Ok(None);
        }
        let descriptor = descriptors.next();
        descriptor
            .map(Some)
            .ok_or(io::ErrorKind::InvalidData.into())
    };
    let streams = Streams {
        stdin: take(stdin)?,
        stdout: take(stdout)?,
        stderr: take(stderr)?,
    };
    Ok((streams, lines))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn descriptors_come_with_the_first_line_and_the_rest_behind_it() {
        let (client, attendant) = UnixStream::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let streams = Streams {
            stderr: Some(writer.into()),
            ..Streams::default()
        };
        send_attach(&client, &streams).unwrap();
        send(&client, &Request::Signal(15)).unwrap();
        drop((client, streams));
        let (got, mut lines) = receive_attach(attendant).unwrap();
        assert!(got.stdin.is_none() && got.stdout.is_none());
        File::from(got.stderr.unwrap()).write_all(b"x").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
        assert_eq!(lines.next(), Some(Request::Signal(15)));
        assert_eq!(lines.next::<Request>(), None);
    }

    #[test]
    fn first_line_that_is_something_else_is_refused() {
        let (client, attendant) = UnixStream::pair().unwrap();
        send(&client, &Request::InputEnded).unwrap();
        assert!(receive_attach(attendant).is_err());
    }
}
