//! The connection to the agent, held to what a reply may be before ttrpc reads it.
//!
//! ttrpc takes messages of up to 4 MiB, of which a decoded one can be a hundred times as large, and reads longer ones to their
//! end. A message of a stream ("data") is taken for the reply to any call, but leaves the call on ttrpc's list for good. None of our
//! calls is a stream. So only responses pass, of at most [`MAX_REPLY_BYTES`]; anything else breaks the connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use sandbox_protocol::limits::MAX_REPLY_BYTES;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use ttrpc::proto::{MESSAGE_HEADER_LENGTH, MESSAGE_TYPE_RESPONSE, MessageHeader};

use super::pulse::Pulse;

/// A connection whose reading side carries responses and nothing else.
pub(super) struct Replies<S> {
    stream: S,
    part: Part,
    /// Told when a reply comes, and when nothing more does.
    pulse: Arc<Pulse>,
}

type Header = [u8; MESSAGE_HEADER_LENGTH];

/// What comes next.
enum Part {
    /// A header, of which so many bytes are there.
    Header { bytes: Header, there: usize },
    /// A header that was found good, of which so many bytes were handed on.
    Good {
        bytes: Header,
        given: usize,
        payload: usize,
    },
    /// So much of a payload.
    Payload { left: usize },
}

impl Part {
    const NEXT: Self = Self::Header {
        bytes: [0; MESSAGE_HEADER_LENGTH],
        there: 0,
    };

    fn payload(left: usize) -> Self {
        match left {
            0 => Self::NEXT,
            left => Self::Payload { left },
        }
    }
}

/// The bytes behind a header, if it is that of a reply.
fn payload_bytes(bytes: &Header) -> io::Result<usize> {
    let header = MessageHeader::from(bytes);
    let invalid = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    if header.type_ != MESSAGE_TYPE_RESPONSE {
        let what = format!("the agent sent a message of type {}", header.type_);
        return Err(invalid(what));
    }
    usize::try_from(header.length)
        .ok()
        .filter(|length| *length <= MAX_REPLY_BYTES)
        .ok_or_else(|| {
            let length = header.length;
            invalid(format!(
                "the agent sent a reply of {length} bytes, which is over the limit of {MAX_REPLY_BYTES}"
            ))
        })
}

impl<S> Replies<S> {
    pub(super) fn of(stream: S, pulse: Arc<Pulse>) -> Self {
        Self {
            stream,
            part: Part::NEXT,
            pulse,
        }
    }
}

impl<S: AsyncRead + Unpin> Replies<S> {
    fn poll_part(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self;
        loop {
            match &mut this.part {
                Part::Header { bytes, there } => {
                    let mut rest = ReadBuf::new(bytes.get_mut(*there..).unwrap_or_default());
                    ready!(Pin::new(&mut this.stream).poll_read(cx, &mut rest))?;
                    let came = rest.filled().len();
                    if came == 0 {
                        return Poll::Ready(match *there {
                            0 => Ok(()),
                            _ => Err(io::ErrorKind::UnexpectedEof.into()),
                        });
                    }
                    *there += came;
                    if *there == MESSAGE_HEADER_LENGTH {
                        this.part = Part::Good {
                            bytes: *bytes,
                            given: 0,
                            payload: payload_bytes(bytes)?,
                        };
                        this.pulse.heard();
                    }
                }
                Part::Good {
                    bytes,
                    given,
                    payload,
                } => {
                    let rest = bytes.get(*given..).unwrap_or_default();
                    let now = rest.get(..buf.remaining()).unwrap_or(rest);
                    buf.put_slice(now);
                    *given += now.len();
                    if *given == MESSAGE_HEADER_LENGTH {
                        this.part = Part::payload(*payload);
                    }
                    return Poll::Ready(Ok(()));
                }
                Part::Payload { left } => {
                    let most = buf.remaining().min(*left);
                    let mut limited = ReadBuf::new(buf.initialize_unfilled_to(most));
                    ready!(Pin::new(&mut this.stream).poll_read(cx, &mut limited))?;
                    let came = limited.filled().len();
                    buf.advance(came);
                    this.part = Part::payload(*left - came);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Replies<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let (before, has_room) = (buf.filled().len(), buf.remaining() > 0);
        let read = ready!(this.poll_part(cx, buf));
        if read.is_err() || (has_room && buf.filled().len() == before) {
            this.pulse.stop();
        }
        Poll::Ready(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replies<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncReadExt as _;

    use super::*;

    fn message(kind: u8, length: u32, payload: &[u8]) -> Vec<u8> {
        let header: Vec<u8> = MessageHeader {
            length,
            stream_id: 1,
            type_: kind,
            flags: 0,
        }
        .into();
        [&header, payload].concat()
    }

    /// What is read of these bytes, `step` at a time, and how that ended.
    fn read(wire: &[u8], step: usize) -> (Vec<u8>, io::Result<()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut replies = Replies::of(wire, Arc::new(Pulse::new()));
            let (mut all, mut buffer) = (Vec::new(), vec![0; step]);
            loop {
                match replies.read(&mut buffer).await {
                    Ok(0) => return (all, Ok(())),
                    Ok(count) => all.extend_from_slice(&buffer[..count]),
                    Err(error) => return (all, Err(error)),
                }
            }
        })
    }

    #[test]
    fn replies_pass_in_pieces_of_any_size() {
        let wire = [
            message(MESSAGE_TYPE_RESPONSE, 5, b"hello"),
            message(MESSAGE_TYPE_RESPONSE, 0, b""),
            message(MESSAGE_TYPE_RESPONSE, 1, b"x"),
        ]
        .concat();
        for step in 1..40 {
            let (passed, end) = read(&wire, step);
            assert_eq!(passed, wire);
            end.unwrap();
        }
    }

    #[test]
    fn what_is_no_reply_is_refused_before_any_of_it_is_passed() {
        let limit = u32::try_from(MAX_REPLY_BYTES).unwrap();
        for bad in [
            message(1, 1, b"x"),
            message(3, 1, b"x"),
            message(0xff, 0, b""),
            message(MESSAGE_TYPE_RESPONSE, limit + 1, b"x"),
            message(MESSAGE_TYPE_RESPONSE, u32::MAX, b"x"),
        ] {
            let good = message(MESSAGE_TYPE_RESPONSE, 5, b"hello");
            let (passed, end) = read(&[good.clone(), bad].concat(), 16);
            assert_eq!(passed, good);
            assert_eq!(end.unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn header_that_is_cut_off_is_an_error() {
        let (passed, end) = read(&[0; 9], 16);
        assert_eq!(passed, b"");
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    proptest! {
        #[test]
        fn nothing_is_passed_but_replies(
            parts in prop::collection::vec((1..5_u8, 0..20_u32, 0..20_usize), 0..8),
            step in 1..30_usize,
        ) {
            let wire: Vec<u8> = parts
                .iter()
                .flat_map(|(kind, length, count)| message(*kind, *length, &vec![2; *count]))
                .collect();
            let (passed, _) = read(&wire, step);
            prop_assert!(wire.starts_with(&passed));
            // Read again as what it must be.
            let mut rest = passed.as_slice();
            while let Some((header, after)) = rest.split_first_chunk() {
                let count = payload_bytes(header).unwrap();
                rest = after.get(count..).unwrap_or_default();
            }
        }
    }
}
