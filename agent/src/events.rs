//! What the agent says on its own: one task writes, so events leave in the order in which they happened.

use protobuf::Message as _;
use rustix::time::{ClockId, clock_gettime};
use sandbox_protocol::PROTOCOL_VERSION;
use sandbox_protocol::agent::{AgentEvent, OutOfMemory, ProcessExited, Ready};
use sandbox_protocol::frame::write_frame;
use sandbox_types::WithCauses;
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;

use crate::guest;
use crate::stdio::Connection;

/// Events that wait to be sent. There are as many as processes, so what the host asks for bounds them.
#[derive(Debug)]
pub(crate) struct Queue(mpsc::UnboundedReceiver<AgentEvent>);

/// Where events go to be sent.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    queue: mpsc::UnboundedSender<AgentEvent>,
}

impl Events {
    /// A queue that nothing is sent from until [`Self::announce`].
    pub(crate) fn new() -> (Self, Queue) {
        let (queue, receiver) = mpsc::unbounded_channel();
        (Self { queue }, Queue(receiver))
    }

    pub(crate) fn exited(&self, exited: ProcessExited) {
        let mut event = AgentEvent::new();
        event.set_process_exited(exited);
        self.send(event);
    }

    pub(crate) fn out_of_memory(&self, container_id: &str) {
        let mut event = AgentEvent::new();
        event.set_out_of_memory(OutOfMemory {
            container_id: container_id.to_owned(),
            ..OutOfMemory::default()
        });
        self.send(event);
    }

    fn send(&self, event: AgentEvent) {
        if self.queue.send(event).is_err() {
            crate::log!("an event is lost: the host has closed the event connection");
        }
    }
}

async fn write(
    connection: impl Connection,
    ready: AgentEvent,
    mut queue: mpsc::UnboundedReceiver<AgentEvent>,
) {
    let (mut reader, mut writer) = tokio::io::split(connection);
    let send = async {
        let mut next = Some(ready);
        while let Some(event) = next {
            if let Err(error) = write_frame(&mut writer, &event).await {
                crate::log!(
                    "cannot send an event of {} bytes: {}",
                    event.compute_size(),
                    WithCauses(&error)
                );
                return;
            }
            next = queue.recv().await;
        }
    };
    // The host says nothing here; a byte or the end of the stream means that it is gone.
    let mut byte = [0u8; 1];
    tokio::select! {
        () = send => {}
        _ = reader.read(&mut byte) => crate::log!("the host has closed the event connection"),
    }
}

impl Queue {
    /// Announces the agent on `connection`, then sends what comes.
    pub(crate) fn announce(self, connection: impl Connection + 'static, agent_started_ns: u64) {
        let mut event = AgentEvent::new();
        event.set_ready(Ready {
            protocol_version: PROTOCOL_VERSION,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel_release: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            agent_started_ns,
            ready_ns: boot_time_ns(),
            memory_bytes: guest::memory_bytes(),
            ..Ready::default()
        });
        tokio::spawn(write(connection, event, self.0));
    }
}

/// Nanoseconds since the guest's kernel started.
pub(crate) fn boot_time_ns() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    u64::try_from(time.tv_sec)
        .unwrap_or(0)
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}
