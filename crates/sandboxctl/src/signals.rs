//! Signals to `sandboxctl` that are meant for the container.

use std::io;
use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// `SIGHUP`.
pub(crate) const HANG_UP: u32 = 1;
/// `SIGKILL`, which cannot be caught (signal(7)).
pub(crate) const KILL: u32 = 9;

/// The signals that are passed on, merged into one sequence.
#[derive(Debug)]
pub(crate) struct Signals {
    streams: Vec<(u32, Signal)>,
}

impl Signals {
    /// Catches them from now on.
    pub(crate) fn catch() -> io::Result<Self> {
        let kinds = [
            SignalKind::hangup(),
            SignalKind::interrupt(),
            SignalKind::quit(),
            SignalKind::terminate(),
            SignalKind::user_defined1(),
            SignalKind::user_defined2(),
        ];
        let streams = kinds
            .into_iter()
            .map(|kind| {
                let number = u32::try_from(kind.as_raw_value()).unwrap_or_default();
                Ok((number, signal(kind)?))
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { streams })
    }

    /// The number of the next one. Cancelling this loses none.
    pub(crate) async fn next(&mut self) -> u32 {
        std::future::poll_fn(|context| {
            for (number, stream) in &mut self.streams {
                if stream.poll_recv(context).is_ready() {
                    return Poll::Ready(*number);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// Changes of the terminal's size.
#[derive(Debug)]
pub(crate) struct Resizes(Signal);

impl Resizes {
    /// Notices them from now on.
    pub(crate) fn catch() -> io::Result<Self> {
        signal(SignalKind::window_change()).map(Self)
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        self.0.recv().await;
    }
}

/// What a process exits with that a signal ended, as shells have it.
pub(crate) fn exit_code(number: u32) -> u8 {
    u8::try_from(128 + number).unwrap_or(u8::MAX)
}

/// What a signal is called.
pub(crate) fn name(number: u32) -> String {
    i32::try_from(number)
        .ok()
        .and_then(|number| nix::sys::signal::Signal::try_from(number).ok())
        .map_or_else(|| format!("signal {number}"), |signal| signal.to_string())
}
