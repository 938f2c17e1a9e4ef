//! The agent's event connection: its announcement, then what happens in the guest.
//!
//! The agent is not believed: frames are bounded, identifiers checked, and any breach ends the sandbox.

use sandbox_protocol::agent::{AgentEvent, Ready, agent_event};
use sandbox_protocol::frame::{FrameError, read_frame};
use sandbox_types::{ContainerId, ExecId, IdError};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use crate::event::SandboxEvent;

/// How the event connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EventsEnd {
    /// It was closed.
    Gone,
    /// It carried what the protocol does not allow.
    Misbehaved(String),
}

impl From<FrameError> for EventsEnd {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Closed | FrameError::Io(_) => Self::Gone,
            FrameError::TooLong { .. } => Self::Misbehaved(error.to_string()),
            FrameError::Decode(source) => Self::Misbehaved(format!("{source}")),
        }
    }
}

/// Waits for the agent's connection and its announcement.
pub(super) async fn accept_ready(listener: UnixListener) -> Result<(UnixStream, Ready), EventsEnd> {
    let (mut stream, _) = listener.accept().await.map_err(|_| EventsEnd::Gone)?;
    let event: AgentEvent = read_frame(&mut stream).await?;
    match event.event {
        Some(agent_event::Event::Ready(ready)) => Ok((stream, ready)),
        _ => Err(EventsEnd::Misbehaved(
            "its first event is not its announcement".to_owned(),
        )),
    }
}

/// Forwards events until the connection ends. A receiver that is gone makes no difference to that.
pub(crate) async fn forward(mut stream: UnixStream, to: mpsc::Sender<SandboxEvent>) -> EventsEnd {
    loop {
        let event = match read_frame::<AgentEvent>(&mut stream).await {
            Ok(event) => event,
            Err(error) => return error.into(),
        };
        match translate(event) {
            Ok(Some(event)) => {
                let _ = to.send(event).await;
            }
            // A newer agent's event.
            Ok(None) => {}
            Err(end) => return end,
        }
    }
}

fn translate(event: AgentEvent) -> Result<Option<SandboxEvent>, EventsEnd> {
    let bad_id = |error: IdError| EventsEnd::Misbehaved(error.to_string());
    Ok(match event.event {
        None => None,
        Some(agent_event::Event::Ready(_)) => {
            return Err(EventsEnd::Misbehaved(
                "it announced itself twice".to_owned(),
            ));
        }
        Some(agent_event::Event::ProcessExited(exited)) => Some(SandboxEvent::ProcessExited {
            container: ContainerId::new(exited.container_id).map_err(bad_id)?,
            exec: match exited.exec_id.as_str() {
                "" => None,
                id => Some(ExecId::new(id).map_err(bad_id)?),
            },
            pid: exited.pid,
            exit_status: exited.exit_status,
        }),
        Some(agent_event::Event::OutOfMemory(out)) => Some(SandboxEvent::OutOfMemory {
            container: ContainerId::new(out.container_id).map_err(bad_id)?,
        }),
        // The enumeration is open: generated code may grow variants.
        #[allow(
            unreachable_patterns,
            reason = "the generated enumeration is non-exhaustive"
        )]
        Some(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sandbox_protocol::agent::{OutOfMemory, ProcessExited};
    use sandbox_protocol::frame::write_frame;
    use tokio::io::AsyncWriteExt;

    fn exited(container: &str, exec: &str) -> AgentEvent {
        let mut event = AgentEvent::new();
        event.set_process_exited(ProcessExited {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            pid: 7,
            exit_status: 42,
            ..Default::default()
        });
        event
    }

    async fn forwarded(wire: &[u8]) -> (Vec<SandboxEvent>, EventsEnd) {
        let (mut guest, ours) = UnixStream::pair().unwrap();
        let (to, mut events) = mpsc::channel(64);
        let task = tokio::spawn(forward(ours, to));
        guest.write_all(wire).await.unwrap();
        drop(guest);
        let end = task.await.unwrap();
        let mut all = Vec::new();
        while let Some(event) = events.recv().await {
            all.push(event);
        }
        (all, end)
    }

    #[tokio::test]
    async fn events_are_translated_and_the_end_is_told() {
        let mut wire = Vec::new();
        write_frame(&mut wire, &exited("c1", "")).await.unwrap();
        write_frame(&mut wire, &exited("c1", "e1")).await.unwrap();
        let mut oom = AgentEvent::new();
        oom.set_out_of_memory(OutOfMemory {
            container_id: "c1".to_owned(),
            ..Default::default()
        });
        write_frame(&mut wire, &oom).await.unwrap();
        let (events, end) = forwarded(&wire).await;
        let container = ContainerId::new("c1").unwrap();
        let process = |exec| SandboxEvent::ProcessExited {
            container: container.clone(),
            exec,
            pid: 7,
            exit_status: 42,
        };
        assert_eq!(
            events,
            [
                process(None),
                process(Some(ExecId::new("e1").unwrap())),
                SandboxEvent::OutOfMemory {
                    container: container.clone()
                }
            ]
        );
        assert_eq!(end, EventsEnd::Gone);
    }

    #[tokio::test]
    async fn event_with_an_identifier_that_is_a_path_is_misbehaviour() {
        let mut wire = Vec::new();
        write_frame(&mut wire, &exited("../c1", "")).await.unwrap();
        let (events, end) = forwarded(&wire).await;
        assert!(events.is_empty());
        assert!(matches!(end, EventsEnd::Misbehaved(_)));
    }

    #[tokio::test]
    async fn frame_over_the_limit_is_misbehaviour() {
        let (_, end) = forwarded(&[0xff; 8]).await;
        assert!(matches!(end, EventsEnd::Misbehaved(_)));
    }

    #[tokio::test]
    async fn first_event_that_is_no_announcement_is_misbehaviour() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("e");
        let listener = UnixListener::bind(&path).unwrap();
        let mut guest = UnixStream::connect(&path).await.unwrap();
        write_frame(&mut guest, &exited("c1", "")).await.unwrap();
        assert!(matches!(
            accept_ready(listener).await,
            Err(EventsEnd::Misbehaved(_))
        ));
    }

    proptest! {
        #[test]
        fn events_of_arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(async { forwarded(&bytes).await });
        }
    }
}
