//! The memory of a running machine, as the monitor is asked to change it ([`MonitorRequest::SetMemory`]).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sandbox_types::MemMib;
use sandbox_types::monitor::MonitorRequest;
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{Mutex, watch};

use crate::agent::AgentError;

/// How long a guest may take to use the memory that it has been given: it makes a `struct page` for each page of it.
const SET_TIMEOUT: Duration = Duration::from_secs(60);

/// Why the guest did not get its memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The monitor is not there to be asked.
    #[error("the monitor cannot be asked")]
    Ask(#[source] io::Error),
    /// The monitor ended.
    #[error("the monitor has ended")]
    Gone,
    /// The guest did not take it.
    #[error("the guest's kernel did not take it within {} s", SET_TIMEOUT.as_secs())]
    Timeout,
    /// The guest took it, and does not say what it has of it.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The guest took it, and its kernel has no use for all of it.
    #[error(
        "the guest's kernel cannot use {missing_mib} MiB of it yet, as it finds no free memory for its tables of them (16 MiB for each GiB); \
         have the sandbox's processes free some and try again, or start the sandbox with a larger limit"
    )]
    Unused {
        /// How much.
        missing_mib: u64,
    },
}

/// The way to the monitor.
#[derive(Debug, Clone)]
pub(crate) struct MemoryControl {
    socket: Arc<Mutex<OwnedWriteHalf>>,
    sent: SentRequests,
    /// What the guest's driver has last been done with in all.
    set: watch::Receiver<Option<MemMib>>,
}

/// How many requests the monitor has been sent since its guest runs, for whoever hears what becomes of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct SentRequests(Arc<AtomicUsize>);

impl SentRequests {
    /// One is about to be sent.
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }
}

impl MemoryControl {
    /// Sends requests on `socket` and counts them in `sent`; `set` is what is answered.
    pub(crate) fn new(
        socket: OwnedWriteHalf,
        sent: SentRequests,
        set: watch::Receiver<Option<MemMib>>,
    ) -> Self {
        Self {
            socket: Arc::new(Mutex::new(socket)),
            sent,
            set,
        }
    }

    /// Gives the guest `memory` in all, and waits until its driver is done with it. Only ever more.
    pub(crate) async fn set(&self, memory: MemMib) -> Result<(), MemoryError> {
        let request = MonitorRequest::SetMemory { memory };
        let mut line =
            serde_json::to_vec(&request).map_err(|error| MemoryError::Ask(error.into()))?;
        line.push(b'\n');
        // Before it can be answered.
        self.sent.add();
        let written = self.socket.lock().await.write_all(&line).await;
        written.map_err(MemoryError::Ask)?;
        let mut set = self.set.clone();
        let is_set = set.wait_for(|set| set.is_some_and(|set| set >= memory));
        match tokio::time::timeout(SET_TIMEOUT, is_set).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(MemoryError::Gone),
            Err(_) => Err(MemoryError::Timeout),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio::net::UnixStream;

    use super::*;

    fn mib(size: u64) -> MemMib {
        MemMib::new(size).unwrap()
    }

    #[tokio::test]
    async fn memory_is_asked_for_and_waited_for() {
        let (mut monitor, ours) = UnixStream::pair().unwrap();
        let (_, writer) = ours.into_split();
        let (said, set) = watch::channel(None);
        let control = MemoryControl::new(writer, SentRequests::default(), set);
        let asked = tokio::spawn({
            let control = control.clone();
            async move { control.set(mib(256)).await }
        });
        let mut line = vec![0; 64];
        let count = monitor.read(&mut line).await.unwrap();
        let request: MonitorRequest = serde_json::from_slice(&line[..count]).unwrap();
        assert_eq!(request, MonitorRequest::SetMemory { memory: mib(256) });
        // Less is not it: that was for another request.
        said.send_replace(Some(mib(192)));
        said.send_replace(Some(mib(256)));
        asked.await.unwrap().unwrap();
        drop(said);
        assert!(matches!(
            control.set(mib(300)).await,
            Err(MemoryError::Gone)
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn guest_that_does_not_take_it_is_given_up() {
        let (_monitor, ours) = UnixStream::pair().unwrap();
        let (_, writer) = ours.into_split();
        let (_said, set) = watch::channel(None);
        let control = MemoryControl::new(writer, SentRequests::default(), set);
        assert!(matches!(
            control.set(mib(256)).await,
            Err(MemoryError::Timeout)
        ));
    }
}
