//! What holds for any bytes where the agent's frames are expected. Shared by the fuzz target and the replay of its corpus.

use protobuf::Message;
use sandbox_protocol::agent::{AgentEvent, StreamOpened};
use sandbox_protocol::frame::{read_frame, write_frame};

/// Reads all frames that there are in `bytes`.
///
/// # Errors
/// If what was read is written otherwise.
pub(crate) async fn check(bytes: &[u8]) -> Result<(), String> {
    all::<AgentEvent>(bytes).await?;
    all::<StreamOpened>(bytes).await
}

async fn all<M: Message + std::fmt::Debug>(mut bytes: &[u8]) -> Result<(), String> {
    while let Ok(message) = read_frame::<M>(&mut bytes).await {
        let mut again = Vec::new();
        write_frame(&mut again, &message)
            .await
            .map_err(|error| error.to_string())?;
        match read_frame::<M>(&mut again.as_slice()).await {
            Ok(same) if same == message => {}
            other => return Err(format!("{message:?} was written, {other:?} read")),
        }
    }
    Ok(())
}
