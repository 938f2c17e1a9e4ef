//! What holds for any bytes of a client of the vsock socket, in any pieces: the line `CONNECT <port>\n` is understood, nothing else
//! is, and nothing behind it is taken. Shared by the fuzz target and the replay of its corpus.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use sandbox_vmm::vsock::{HandshakeError, MAX_LINE_BYTES, read_port};

/// What a line is, once it is one.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    /// Not yet.
    Waits,
    Garbage,
    /// The port, and the length of the line.
    Port(u32, usize),
}

fn line(said: &[u8]) -> Line {
    let seen = &said[..said.len().min(MAX_LINE_BYTES)];
    let wanted = b"CONNECT ";
    let Some(end) = seen.iter().position(|byte| *byte == b'\n') else {
        let begins = seen.iter().zip(wanted).all(|(is, wanted)| is == wanted);
        return match begins && seen.len() < MAX_LINE_BYTES {
            true => Line::Waits,
            false => Line::Garbage,
        };
    };
    let number = seen[..end].strip_prefix(wanted).unwrap_or_default();
    let mut port = 0_u64;
    for digit in number {
        port = port
            .saturating_mul(10)
            .saturating_add(digit.wrapping_sub(b'0').into());
    }
    match u32::try_from(port) {
        Ok(port) if !number.is_empty() && number.iter().all(u8::is_ascii_digit) => {
            Line::Port(port, end + 1)
        }
        _ => Line::Garbage,
    }
}

/// The first byte says in which pieces the others are sent.
///
/// # Errors
/// If they are understood otherwise than they should.
pub(crate) fn check(data: &[u8]) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let (cut, said) = data.split_first().unwrap_or((&0, &[]));
    let (mut client, mut ours) = UnixStream::pair().map_err(text)?;
    ours.set_nonblocking(true).map_err(text)?;
    let mut sent = 0;
    for (number, piece) in said.chunks(1 + usize::from(cut % 40)).enumerate() {
        client.write_all(piece).map_err(text)?;
        sent += piece.len();
        let expected = line(&said[..sent]);
        let came = match read_port(&ours) {
            Ok(None) => Line::Waits,
            Ok(Some(port)) => {
                drop(client);
                let mut rest = Vec::new();
                ours.read_to_end(&mut rest).map_err(text)?;
                if !said[..sent].ends_with(&rest) {
                    return Err(format!("behind the line is {rest:?}"));
                }
                return match Line::Port(port, sent - rest.len()) == expected {
                    true => Ok(()),
                    false => Err(format!("port {port}, and not {expected:?}")),
                };
            }
            Err(HandshakeError::Garbage) => Line::Garbage,
            Err(error) => return Err(error.to_string()),
        };
        if came != expected {
            return Err(format!("{came:?} after piece {number}, not {expected:?}"));
        }
        if came == Line::Garbage {
            return Ok(());
        }
    }
    Ok(())
}
