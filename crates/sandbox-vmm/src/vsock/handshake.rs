//! The line `CONNECT <guest port>\n` with which a host client says where it wants to go.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;

use rustix::net::RecvFlags;

/// The longest line, newline included.
pub const MAX_LINE_BYTES: usize = 32;

/// Why a client is dropped.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// It left.
    #[error("the client left before it said where to connect")]
    Gone,
    /// It said something else.
    #[error("the client did not send `CONNECT <port>`")]
    Garbage,
    /// Its socket failed.
    #[error("cannot read from the client")]
    Read(#[source] io::Error),
}

/// Reads the line without a byte of what follows it. `None`: not all of it is there yet.
///
/// # Errors
/// [`HandshakeError`].
pub fn read_port(client: &UnixStream) -> Result<Option<u32>, HandshakeError> {
    let mut line = [0; MAX_LINE_BYTES];
    let peeked = loop {
        match rustix::net::recv(client, &mut line, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((_, 0)) => return Err(HandshakeError::Gone),
            Ok((_, count)) => break count,
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(error) => return Err(HandshakeError::Read(error.into())),
        }
    };
    let seen = line.get(..peeked).unwrap_or_default();
    let Some(end) = seen.iter().position(|byte| *byte == b'\n') else {
        // `CONNECT ` is checked early so that garbage does not wait for its time limit.
        let prefix = seen.get(..seen.len().min(PREFIX.len())).unwrap_or_default();
        return if seen.len() < MAX_LINE_BYTES && PREFIX.starts_with(prefix) {
            Ok(None)
        } else {
            Err(HandshakeError::Garbage)
        };
    };
    let port = parse(seen.get(..end).unwrap_or_default()).ok_or(HandshakeError::Garbage)?;
    let taken = line.get_mut(..=end).ok_or(HandshakeError::Garbage)?;
    // The bytes are there: this neither waits nor comes short.
    (&*client).read_exact(taken).map_err(HandshakeError::Read)?;
    Ok(Some(port))
}

/// The answer to a client whose connection the guest accepted.
pub(crate) fn accepted(host_port: u32) -> String {
    format!("OK {host_port}\n")
}

const PREFIX: &[u8] = b"CONNECT ";

fn parse(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(PREFIX)?;
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn after(sent: &[u8]) -> (Result<Option<u32>, HandshakeError>, UnixStream, UnixStream) {
        let (mut client, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        client.write_all(sent).unwrap();
        (read_port(&ours), client, ours)
    }

    #[test]
    fn handshake_with_data_behind_it_leaves_the_data() {
        let (port, _client, mut ours) = after(b"CONNECT 1024\nhello");
        assert_eq!(port.unwrap(), Some(1024));
        let mut rest = [0; 5];
        ours.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"hello");
    }

    #[test]
    fn handshake_in_pieces_waits_for_the_rest() {
        let (port, mut client, ours) = after(b"CONN");
        assert_eq!(port.unwrap(), None);
        client.write_all(b"ECT 7\n").unwrap();
        assert_eq!(read_port(&ours).unwrap(), Some(7));
    }

    #[test]
    fn handshake_garbage_is_refused_at_once() {
        for garbage in [
            &b"GET / HTTP"[..],
            b"CONNECT \n",
            b"CONNECT -1\n",
            b"CONNECT +1\n",
            b"CONNECT 4294967296\n",
            b"CONNECT 1 2\n",
            b"CONNECT 0000000000000000000000000000000000001\n",
            b"\n",
        ] {
            assert!(
                matches!(after(garbage).0, Err(HandshakeError::Garbage)),
                "{garbage:?}"
            );
        }
    }

    #[test]
    fn handshake_largest_port_is_accepted() {
        assert_eq!(after(b"CONNECT 4294967295\n").0.unwrap(), Some(u32::MAX));
    }

    #[test]
    fn handshake_client_gone_is_noticed() {
        let (client, ours) = UnixStream::pair().unwrap();
        drop(client);
        assert!(matches!(read_port(&ours), Err(HandshakeError::Gone)));
    }
}
