//! Connections into the guest.

use std::io;
use std::time::Duration;

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The socket could not be reached.
    #[error("cannot connect to guest port {port}")]
    Connect {
        /// Which.
        port: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody listens on that port of the guest, or the device answered nonsense.
    #[error("guest port {port} does not answer")]
    NoListener {
        /// Which.
        port: u32,
    },
    /// The exchange took too long.
    #[error("guest port {port} did not answer within {} s", after.as_secs())]
    TimedOut {
        /// Which.
        port: u32,
        /// The limit.
        after: Duration,
    },
    /// The stream's header could not be exchanged.
    #[error("the stream's header could not be exchanged with the agent")]
    Frame(#[from] sandbox_protocol::frame::FrameError),
    /// The agent said no.
    #[error("the agent refused the stream: {message}")]
    Refused {
        /// Its words, cut and made printable.
        message: String,
    },
}
