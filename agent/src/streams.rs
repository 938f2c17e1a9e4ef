//! The stream port: each connection names a stream of a process and becomes it.

use std::sync::Arc;
use std::time::Duration;

use sandbox_protocol::agent::{StreamKind, StreamOpen, StreamOpened};
use sandbox_protocol::frame::{FrameError, read_frame, write_frame};
use sandbox_types::ContainerId;

use crate::containers::{ContainerError, Containers};
use crate::service::exec_id;
use crate::stdio::Connection;

/// How long a connection may take to say which stream it is.
const OPEN_LIMIT: Duration = Duration::from_secs(10);

/// Why a stream is not opened.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error("the process has no {kind:?}")]
    NotWanted { kind: StreamKind },
    #[error(transparent)]
    Closed(#[from] crate::stdio::StdinClosed),
    #[error("the stream's kind {number} is not known")]
    Kind { number: i32 },
}

/// Serves one connection to its end.
pub(crate) async fn serve(mut connection: impl Connection, containers: Arc<Containers>) {
    let open = match tokio::time::timeout(OPEN_LIMIT, read_frame(&mut connection)).await {
        Ok(Ok(open)) => open,
        Ok(Err(error)) => {
            crate::log!("a stream connection was not opened: {error}");
            return;
        }
        Err(_) => {
            crate::log!("a stream connection was not opened within {OPEN_LIMIT:?}");
            return;
        }
    };
    if let Err(error) = run(connection, &open, &containers).await {
        crate::log!("a stream connection failed: {error}");
    }
}

async fn run(
    mut connection: impl Connection,
    open: &StreamOpen,
    containers: &Containers,
) -> Result<(), FrameError> {
    match find(open, containers) {
        Ok(Stream::Input(input)) => match input.attach() {
            Ok(hold) => {
                write_frame(&mut connection, &StreamOpened::new()).await?;
                input.copy_from(connection, hold).await;
                Ok(())
            }
            Err(error) => refuse(connection, &error.into()).await,
        },
        Ok(Stream::Output(output)) => {
            let superseded = output.attach();
            write_frame(&mut connection, &StreamOpened::new()).await?;
            output.copy_to(connection, superseded).await;
            Ok(())
        }
        Err(error) => refuse(connection, &error).await,
    }
}

async fn refuse(mut connection: impl Connection, error: &StreamError) -> Result<(), FrameError> {
    let opened = StreamOpened {
        error: crate::error_chain(error),
        ..StreamOpened::default()
    };
    write_frame(&mut connection, &opened).await
}

enum Stream {
    Input(Arc<crate::stdio::Input>),
    Output(Arc<crate::stdio::Output>),
}

fn find(open: &StreamOpen, containers: &Containers) -> Result<Stream, StreamError> {
    let id = ContainerId::new(open.container_id.as_str()).map_err(ContainerError::from)?;
    let exec = exec_id(&open.exec_id).map_err(ContainerError::from)?;
    let process = containers.process(&id, exec.as_ref())?;
    let streams = &process.streams;
    let number = open.kind.value();
    let kind = open.kind.enum_value();
    let stream = match kind {
        Ok(StreamKind::STREAM_KIND_STDIN) => streams.stdin.clone().map(Stream::Input),
        Ok(StreamKind::STREAM_KIND_STDOUT) => streams.stdout.clone().map(Stream::Output),
        Ok(StreamKind::STREAM_KIND_STDERR) => streams.stderr.clone().map(Stream::Output),
        Ok(StreamKind::STREAM_KIND_UNSPECIFIED) | Err(_) => {
            return Err(StreamError::Kind { number });
        }
    };
    stream.ok_or_else(|| StreamError::NotWanted {
        kind: kind.unwrap_or_default(),
    })
}
