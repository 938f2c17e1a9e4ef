//! The back end's end.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use super::FrontEndError;
use crate::virtio::WorkerTask;

/// The session's socket. Nothing arrives on it unasked, so readable means that the back end is gone.
#[derive(Debug)]
pub(super) struct Peer(pub(super) UnixStream);

impl WorkerTask for Peer {
    type Error = FrontEndError;

    fn watched(&self) -> Vec<(BorrowedFd<'_>, u64)> {
        vec![(self.0.as_fd(), 0)]
    }

    fn ready(&mut self, _number: u64) -> Result<(), FrontEndError> {
        Err(FrontEndError::Gone)
    }
}
