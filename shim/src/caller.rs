//! Whoever made a call, as work sees them that goes on without them.

use std::sync::{Arc, Weak};

/// What a call has while it waits for its answer. The server drops it with the call when the caller's connection ends before.
pub(crate) struct Waiting {
    _present: Arc<()>,
}

/// Whoever made a call.
#[derive(Clone)]
pub(crate) struct Caller(Weak<()>);

impl Caller {
    /// The caller of a call that begins.
    pub(crate) fn of_call() -> (Self, Waiting) {
        let present = Arc::new(());
        let caller = Self(Arc::downgrade(&present));
        (caller, Waiting { _present: present })
    }

    /// Whether no answer can reach them any more: containerd was killed, or started again.
    pub(crate) fn is_gone(&self) -> bool {
        self.0.strong_count() == 0
    }
}
