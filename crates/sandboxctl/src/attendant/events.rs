//! containerd's service for events (`containerd.services.events.ttrpc.v1`), as the attendant serves it to its shim.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::Empty;
use containerd_shim_protos::events::task::{TaskExecStarted, TaskExit};
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Events, create_events};
use containerd_shim_protos::topics;
use protobuf::Message as _;
use tokio::sync::mpsc;
use ttrpc::r#async::{Server, TtrpcContext};

/// What a shim tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ShimEvent {
    /// The guest's kernel killed a process for want of memory.
    OutOfMemory,
    Paused,
    Resumed,
    ExecStarted {
        exec: String,
    },
    /// A process that was added has ended.
    ExecEnded {
        exec: String,
        code: u32,
    },
}

struct Service {
    sender: mpsc::UnboundedSender<ShimEvent>,
}

#[async_trait]
impl Events for Service {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        if let Some(event) = event(&request) {
            // Whoever listened may be about to end.
            let _ = self.sender.send(event);
        }
        Ok(Empty::default())
    }
}

/// What is of interest here; the container's own beginning and end are seen from the calls.
fn event(request: &ForwardRequest) -> Option<ShimEvent> {
    let bytes = &request.envelope.event.value;
    match request.envelope.topic.as_str() {
        topics::TASK_OOM_EVENT_TOPIC => Some(ShimEvent::OutOfMemory),
        topics::TASK_PAUSED_EVENT_TOPIC => Some(ShimEvent::Paused),
        topics::TASK_RESUMED_EVENT_TOPIC => Some(ShimEvent::Resumed),
        topics::TASK_EXEC_STARTED_EVENT_TOPIC => {
            let exec = TaskExecStarted::parse_from_bytes(bytes).ok()?.exec_id;
            Some(ShimEvent::ExecStarted { exec })
        }
        topics::TASK_EXIT_EVENT_TOPIC => {
            let exit = TaskExit::parse_from_bytes(bytes).ok()?;
            (exit.id != exit.container_id).then_some(ShimEvent::ExecEnded {
                exec: exit.id,
                code: exit.exit_status,
            })
        }
        _ => None,
    }
}

/// Serves at `path`; the service ends when the first is dropped.
pub(super) async fn serve(
    path: &Path,
) -> Result<(Server, mpsc::UnboundedReceiver<ShimEvent>), ttrpc::Error> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let mut server = Server::new()
        .bind(&format!("unix://{}", path.display()))?
        .register_service(create_events(Arc::new(Service { sender })));
    server.start().await?;
    Ok((server, receiver))
}
