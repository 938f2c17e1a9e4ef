//! What the host reads of a guest, tried as a whole: for tests in which any bytes are the guest's (`tests/fuzz`).

use sandbox_protocol::agent::CreateContainerRequest;
use sandbox_types::ContainerId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use ttrpc::proto::{MESSAGE_HEADER_LENGTH, MESSAGE_TYPE_RESPONSE, MessageHeader};

use crate::agent::{AgentClient, AgentError};
use crate::sandbox::events;
use crate::vsock;

/// The longest text of a guest's that may come of anything, in bytes, with what is put around it.
const MAX_TEXT_BYTES: usize = 5000;
/// A call, how it is answered, and the length of what the answer is made of.
const CALL_BYTES: usize = 4;

/// Calls to an agent that says what it likes. For each there are two bytes that choose it and how it is answered, two with a
/// length, and as many bytes: they are the wire's, or a reply's, or the reply's content.
///
/// # Errors
/// If something of the guest's comes out that is too long or cannot be shown.
pub async fn replies(program: &[u8]) -> Result<(), String> {
    let (ours, theirs) = UnixStream::pair().map_err(|error| error.to_string())?;
    let agent = AgentClient::new(ours);
    let id = ContainerId::new("c1").map_err(|error| error.to_string())?;
    // Not every call is made: an agent that did not answer one is not asked for some others.
    let answering = async {
        answer(theirs, program).await;
        std::future::pending().await
    };
    let calling = async {
        let mut rest = program;
        while let Some((one, after)) = next(rest) {
            rest = after;
            call(&agent, &id, one.kind).await?;
        }
        Ok::<(), String>(())
    };
    tokio::select! {
        called = calling => called,
        never = answering => never,
    }
}

/// What a call is, how it is answered, and with what.
struct Call<'a> {
    kind: u8,
    how: u8,
    said: &'a [u8],
}

/// The first call, and what is behind it.
fn next(program: &[u8]) -> Option<(Call<'_>, &[u8])> {
    let ([kind, how, low, high], rest) = program.split_first_chunk::<CALL_BYTES>()?;
    let length = usize::from(u16::from_le_bytes([*low, *high]));
    let (said, after) = rest.split_at(length.min(rest.len()));
    let (kind, how) = (*kind, *how);
    Some((Call { kind, how, said }, after))
}

async fn answer(mut peer: UnixStream, program: &[u8]) {
    let mut rest = program;
    while let Some((Call { how, said, .. }, after)) = next(rest) {
        rest = after;
        let mut header = [0; MESSAGE_HEADER_LENGTH];
        if peer.read_exact(&mut header).await.is_err() {
            return;
        }
        let asked = MessageHeader::from(&header);
        let mut request = vec![0; usize::try_from(asked.length).unwrap_or(0)];
        if peer.read_exact(&mut request).await.is_err() {
            return;
        }
        let payload = match how % 4 {
            // `Response.payload`, field 2: the reply itself.
            0 => {
                let mut payload = vec![0x12];
                let mut length = said.len();
                while length >= 0x80 {
                    payload.push(0x80 | u8::try_from(length & 0x7f).unwrap_or(0));
                    length >>= 7;
                }
                payload.push(u8::try_from(length).unwrap_or(0));
                payload.extend_from_slice(said);
                Some(payload)
            }
            1 => Some(said.to_vec()),
            _ => None,
        };
        let wire = match payload {
            Some(payload) => {
                let header: Vec<u8> = MessageHeader {
                    length: u32::try_from(payload.len()).unwrap_or(0),
                    type_: MESSAGE_TYPE_RESPONSE,
                    ..asked
                }
                .into();
                [header, payload].concat()
            }
            None => said.to_vec(),
        };
        // In two pieces, wherever that is.
        let (first, second) = wire.split_at(wire.len() / (1 + usize::from(how >> 4)));
        for piece in [first, second] {
            if peer.write_all(piece).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
    }
}

async fn call(agent: &AgentClient, id: &ContainerId, kind: u8) -> Result<(), String> {
    let result = match kind % 6 {
        0 => {
            let listed = agent.list_processes(id).await;
            for process in listed.iter().flatten() {
                is_showable(&process.state)?;
                is_showable(&process.terminal)?;
                is_showable(&process.command)?;
            }
            listed.map(drop)
        }
        1 => agent.container_stats(id).await.map(drop),
        2 => agent.delete_process(id, None).await.map(drop),
        3 => {
            let request = CreateContainerRequest::default();
            agent.create_container(&request).await.map(drop)
        }
        4 => agent.start_process(id, None).await.map(drop),
        _ => agent.pause(id).await,
    };
    match result {
        Ok(()) | Err(AgentError::TimedOut { .. }) => Ok(()),
        Err(error) => is_showable(&error.to_string()),
    }
}

fn is_showable(text: &str) -> Result<(), String> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(format!("{} bytes of text", text.len()));
    }
    match text.chars().find(|c| c.is_control() && *c != '\t') {
        Some(control) => Err(format!("{control:?} in {text:?}")),
        None => Ok(()),
    }
}

/// The connections that the agent makes or is asked for: the bytes are its events, and then what is answered when a stream is
/// opened.
///
/// # Errors
/// As [`replies`], or if bytes of the stream are lost or added.
pub async fn streams(bytes: &[u8]) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let (guest, ours) = UnixStream::pair().map_err(text)?;
    let (to, mut told) = tokio::sync::mpsc::channel(4);
    let saying = say(guest, "", bytes);
    let counting = async {
        let mut count = 0;
        while told.recv().await.is_some() {
            count += 1;
        }
        count
    };
    let (_, end, count) = tokio::join!(saying, events::forward(ours, to), counting);
    is_showable(&format!("{end:?}"))?;
    // Each is at least a length and a field.
    if count > bytes.len() / 4 {
        return Err(format!("{count} events of {} bytes", bytes.len()));
    }
    let (guest, ours) = UnixStream::pair().map_err(text)?;
    let exchanged = async {
        match vsock::exchange(ours, 1024).await {
            Ok(mut stream) => {
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest).await.map_err(text)?;
                let line = bytes.len().saturating_sub(rest.len());
                let is_whole = bytes.starts_with(b"OK ")
                    && bytes.ends_with(&rest)
                    && bytes.get(line.saturating_sub(1)) == Some(&b'\n');
                match is_whole {
                    true => Ok(()),
                    false => Err(format!("{} bytes are left behind the line", rest.len())),
                }
            }
            Err(error) => is_showable(&error.to_string()),
        }
    };
    tokio::join!(say(guest, "CONNECT 1024\n", bytes), exchanged).1
}

/// Hears `line`, and then says `bytes`.
async fn say(mut peer: UnixStream, line: &str, bytes: &[u8]) {
    // What was not heard when it goes would take along what it said.
    let mut heard = vec![0; line.len()];
    if peer.read_exact(&mut heard).await.is_err() || heard != line.as_bytes() {
        return;
    }
    let (first, second) = bytes.split_at(bytes.len() / 2);
    for piece in [first, second] {
        if peer.write_all(piece).await.is_err() {
            return;
        }
        tokio::task::yield_now().await;
    }
    let _ = peer.shutdown().await;
}
