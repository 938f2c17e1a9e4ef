//! Messages on a byte stream: a big-endian `u32` length, then that many bytes of protobuf.

use protobuf::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::limits::MAX_FRAME_BYTES;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream ended before a frame began.
    #[error("the peer closed the connection")]
    Closed,
    /// The peer announced a frame longer than [`MAX_FRAME_BYTES`], or one was to be sent.
    #[error("a frame of {len} bytes is over the limit of {MAX_FRAME_BYTES}")]
    TooLong {
        /// Length that was announced.
        len: usize,
    },
    /// The frame does not hold such a message.
    #[error("a frame could not be decoded")]
    Decode(#[source] protobuf::Error),
    /// The stream failed, or ended within a frame.
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
}

/// Reads one message. Not cancel-safe: a dropped future loses the bytes it had read.
///
/// # Errors
/// [`FrameError::Closed`] at a clean end of the stream; the others as they say. After any error the stream is
/// of no further use.
pub async fn read_frame<M: Message>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<M, FrameError> {
    let mut header = [0u8; 4];
    let first = stream.read(&mut header).await?;
    if first == 0 {
        return Err(FrameError::Closed);
    }
    stream.read_exact(&mut header[first..]).await?;
    let len = usize::try_from(u32::from_be_bytes(header)).unwrap_or(usize::MAX);
    if len > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong { len });
    }
    let mut body = vec![0u8; len];
    stream.read_exact(&mut body).await?;
    M::parse_from_bytes(&body).map_err(FrameError::Decode)
}

/// Writes one message.
///
/// # Errors
/// [`FrameError::TooLong`] before anything is written, or what the stream says.
pub async fn write_frame<M: Message>(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &M,
) -> Result<(), FrameError> {
    let mut frame = vec![0u8; 4];
    message
        .write_to_vec(&mut frame)
        .map_err(FrameError::Decode)?;
    let len = frame.len() - 4;
    if len > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong { len });
    }
    let len = u32::try_from(len).map_err(|_| FrameError::TooLong { len })?;
    frame[..4].copy_from_slice(&len.to_be_bytes());
    stream.write_all(&frame).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::{AgentEvent, ProcessExited};
    use proptest::prelude::*;

    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(future)
    }

    fn exited(id: &str) -> AgentEvent {
        let mut event = AgentEvent::new();
        event.set_process_exited(ProcessExited {
            container_id: id.to_owned(),
            exit_status: 42,
            ..Default::default()
        });
        event
    }

    #[tokio::test]
    async fn frame_written_is_read_back() {
        let mut wire = Vec::new();
        write_frame(&mut wire, &exited("a")).await.unwrap();
        write_frame(&mut wire, &exited("b")).await.unwrap();
        let mut wire = wire.as_slice();
        assert_eq!(
            read_frame::<AgentEvent>(&mut wire).await.unwrap(),
            exited("a")
        );
        assert_eq!(
            read_frame::<AgentEvent>(&mut wire).await.unwrap(),
            exited("b")
        );
        assert!(matches!(
            read_frame::<AgentEvent>(&mut wire).await,
            Err(FrameError::Closed)
        ));
    }

    #[tokio::test]
    async fn frame_over_limit_is_refused_without_reading_it() {
        let mut wire: &[u8] = &[0xff, 0xff, 0xff, 0xff, 1, 2, 3];
        assert!(matches!(
            read_frame::<AgentEvent>(&mut wire).await,
            Err(FrameError::TooLong { .. })
        ));
        assert_eq!(wire, &[1, 2, 3]);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            block_on(async {
                let mut wire = bytes.as_slice();
                while read_frame::<AgentEvent>(&mut wire).await.is_ok() {}
            });
        }
    }
}
