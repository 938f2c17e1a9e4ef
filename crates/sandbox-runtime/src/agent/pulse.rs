//! Whether the agent is still at the other end of the connection for calls.

use tokio::sync::watch;

/// What its connection and the calls over it tell of an agent.
#[derive(Debug)]
pub(super) struct Pulse {
    gone: watch::Sender<bool>,
}

impl Pulse {
    pub(super) fn new() -> Self {
        Self {
            gone: watch::Sender::new(false),
        }
    }

    /// The connection carries nothing more.
    pub(super) fn stop(&self) {
        self.gone.send_replace(true);
    }

    /// Returns when the agent can be asked nothing any more.
    pub(super) async fn until_gone(&self) {
        let mut gone = self.gone.subscribe();
        // The sender is ours.
        let _ = gone.wait_for(|gone| *gone).await;
    }
}
