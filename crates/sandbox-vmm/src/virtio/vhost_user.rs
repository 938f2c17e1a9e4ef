//! The vhost-user front end: a device whose queues another process serves.
//!
//! The back end maps guest memory from the memory file it is handed, sleeps on the queues' kicks itself, and interrupts the driver
//! itself: what it calls is KVM's own event ([`super::interrupt`] says why nothing has to be set before). So neither a request nor an
//! answer costs a detour through the monitor, which only watches for the back end's end. A back end can interrupt its guest as often as
//! it likes, and nobody else.
//!
//! ```text
//!              activate                     reset
//! Idle ──────────────────────> Active ─────────────────> Idle
//!   │ the back end refused        │ the back end is gone: NEEDS_RESET
//!   └────────> Lost <─────────────┘ (the session does not come back)
//! ```
//!
//! Requests block: the `vhost` crate has no time limit. A back end that hangs stops the vCPU that activates
//! the device, and so hurts only its own guest. The back end is trusted with guest memory, and with nothing
//! else.

mod error;
mod peer;
mod session;

use std::os::unix::net::UnixStream;

use peer::Peer;
use sandbox_types::WithCauses;
use session::Session;

use super::{ActivateError, Activation, Worker};

pub use error::FrontEndError;

/// A session with a back end, and the thread that watches it.
#[derive(Debug)]
pub struct FrontEnd {
    ring_features: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The back end has no queues.
    Idle(Session),
    /// The back end serves these queues.
    Active {
        session: Session,
        queues: Vec<usize>,
        worker: Worker<Peer>,
    },
    /// The session broke; the device never comes up again.
    Lost,
}

impl FrontEnd {
    /// Begins a session over `socket` with a back end that must have at least `queues` queues.
    ///
    /// # Errors
    /// [`FrontEndError`].
    pub fn open(socket: UnixStream, queues: usize) -> Result<Self, FrontEndError> {
        let session = Session::open(socket, queues)?;
        Ok(Self {
            ring_features: session.ring_features(),
            state: State::Idle(session),
        })
    }

    /// The back end's features that concern the rings, not the device.
    #[must_use]
    pub(crate) fn ring_features(&self) -> u64 {
        self.ring_features
    }

    /// Hands the queues to the back end.
    ///
    /// # Errors
    /// [`ActivateError`]; the session is over then.
    pub fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let State::Idle(mut session) = std::mem::replace(&mut self.state, State::Lost) else {
            return Err(ActivateError::Lost);
        };
        let peer = Peer(session.peer()?);
        session.share(activation.features, &activation.memory)?;
        let mut queues = Vec::new();
        for (index, queue) in activation.queues.iter().enumerate() {
            if let Some(queue) = queue {
                let call = activation.interrupt.irq();
                session.start_queue(index, queue, call, &activation.memory)?;
                queues.push(index);
            }
        }
        let worker = Worker::start(&activation.thread, peer, activation.interrupt)?;
        self.state = State::Active {
            session,
            queues,
            worker,
        };
        Ok(())
    }

    /// Takes the queues back. After this the back end touches neither rings nor buffers.
    pub fn reset(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Lost) {
            State::Active {
                mut session,
                queues,
                worker,
            } => {
                // The thread first: an answer on the socket must not look like the back end's end.
                let stopped = worker.stop().is_some();
                let taken_back = queues
                    .into_iter()
                    .try_for_each(|index| session.stop_queue(index));
                if let Err(error) = &taken_back {
                    eprintln!("sandbox-vmm: {}", WithCauses(error));
                }
                if stopped && taken_back.is_ok() {
                    State::Idle(session)
                } else {
                    State::Lost
                }
            }
            other => other,
        };
    }
}

#[cfg(test)]
mod tests;
