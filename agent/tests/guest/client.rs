//! Calls and streams of one container.

use anyhow::{Context as _, Result, ensure};
use sandbox_protocol::agent::agent_event::Event;
use sandbox_protocol::agent::{
    AddProcessRequest, AgentProgram, CreateContainerRequest, DeleteProcessReply, ProcessRequest,
    SignalProcessRequest, Stdio, StreamKind, StreamOpen, StreamOpened,
};
use sandbox_protocol::agent_ttrpc::AgentClient;
use sandbox_protocol::{AGENT_PORT, STREAM_PORT, frame};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::Context;

use crate::machine::{Machine, next_event};

/// All three streams, no terminal.
pub(crate) const PIPES: fn() -> Stdio = || Stdio {
    stdin: true,
    stdout: true,
    stderr: true,
    ..Stdio::default()
};

/// A terminal.
pub(crate) const TERMINAL: fn() -> Stdio = || Stdio {
    stdin: true,
    stdout: true,
    terminal: true,
    ..Stdio::default()
};

/// The host's side of a machine.
pub(crate) struct Host<'a> {
    pub(crate) machine: &'a Machine,
    pub(crate) calls: AgentClient,
    pub(crate) events: UnixStream,
}

pub(crate) fn limit() -> Context {
    ttrpc::context::with_timeout(120_000_000_000)
}

fn asynchronous(stream: std::os::unix::net::UnixStream) -> Result<UnixStream> {
    stream.set_nonblocking(true)?;
    Ok(UnixStream::from_std(stream)?)
}

impl<'a> Host<'a> {
    pub(crate) fn new(machine: &'a Machine) -> Result<Self> {
        let calls = asynchronous(machine.connect(AGENT_PORT)?)?;
        let events = machine.events.as_ref().context("no events")?.try_clone()?;
        Ok(Self {
            machine,
            calls: AgentClient::new(ttrpc::r#async::Client::new(Socket::new(calls))),
            events: asynchronous(events)?,
        })
    }

    /// A request for a container, to be changed before it is sent.
    pub(crate) fn request(&self, id: &str, spec: &Value, stdio: Stdio) -> CreateContainerRequest {
        let (mounts, root_path) = self.machine.root(id);
        CreateContainerRequest {
            container_id: id.to_owned(),
            spec_json: spec.to_string().into_bytes(),
            mounts,
            root_path,
            stdio: Some(stdio).into(),
            ..Default::default()
        }
    }

    pub(crate) async fn create(&self, id: &str, spec: &Value, stdio: Stdio) -> ttrpc::Result<u32> {
        let request = self.request(id, spec, stdio);
        Ok(self.calls.create_container(limit(), &request).await?.pid)
    }

    /// A request for an added process.
    pub(crate) fn added(
        &self,
        id: &str,
        exec: &str,
        process: &Value,
        stdio: Stdio,
        program: AgentProgram,
    ) -> AddProcessRequest {
        AddProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            process_json: process.to_string().into_bytes(),
            stdio: Some(stdio).into(),
            program: program.into(),
            ..Default::default()
        }
    }

    pub(crate) async fn add(
        &self,
        id: &str,
        exec: &str,
        process: &Value,
        stdio: Stdio,
    ) -> ttrpc::Result<()> {
        let request = self.added(id, exec, process, stdio, AgentProgram::AGENT_PROGRAM_NONE);
        self.calls.add_process(limit(), &request).await.map(drop)
    }

    fn process(id: &str, exec: &str) -> ProcessRequest {
        ProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            ..Default::default()
        }
    }

    pub(crate) async fn start(&self, id: &str, exec: &str) -> ttrpc::Result<u32> {
        let request = Self::process(id, exec);
        Ok(self.calls.start_process(limit(), &request).await?.pid)
    }

    pub(crate) async fn close_stdin(&self, id: &str, exec: &str) -> ttrpc::Result<()> {
        let request = Self::process(id, exec);
        self.calls.close_stdin(limit(), &request).await.map(drop)
    }

    pub(crate) async fn delete(&self, id: &str, exec: &str) -> ttrpc::Result<DeleteProcessReply> {
        let request = Self::process(id, exec);
        self.calls.delete_process(limit(), &request).await
    }

    pub(crate) async fn signal(
        &self,
        id: &str,
        exec: &str,
        signal: u32,
        all: bool,
    ) -> ttrpc::Result<()> {
        let request = SignalProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            signal,
            all,
            ..Default::default()
        };
        self.calls.signal_process(limit(), &request).await.map(drop)
    }

    pub(crate) async fn stream(
        &self,
        id: &str,
        exec: &str,
        kind: StreamKind,
    ) -> Result<UnixStream> {
        let mut stream = asynchronous(self.machine.connect(STREAM_PORT)?)?;
        let open = StreamOpen {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            kind: kind.into(),
            ..Default::default()
        };
        frame::write_frame(&mut stream, &open).await?;
        let opened: StreamOpened = frame::read_frame(&mut stream).await?;
        ensure!(opened.error.is_empty(), "{}", opened.error);
        Ok(stream)
    }

    /// Everything that comes on an output, to its end.
    pub(crate) async fn output(&self, id: &str, exec: &str, kind: StreamKind) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut stream = self.stream(id, exec, kind).await?;
        stream.read_to_end(&mut bytes).await?;
        Ok(bytes)
    }

    /// Waits for the exit of that process; the result is its status and whether memory ran out before.
    pub(crate) async fn exit(&mut self, id: &str, exec: &str) -> Result<(u32, bool)> {
        let (status, told) = self.exit_with_memory(id, exec).await?;
        Ok((status, told > 0))
    }

    /// Waits for the exit of that process; the result is its status and how often memory ran out before.
    pub(crate) async fn exit_with_memory(&mut self, id: &str, exec: &str) -> Result<(u32, usize)> {
        let mut told = 0;
        loop {
            match next_event(&mut self.events).await?.event {
                Some(Event::ProcessExited(exited))
                    if exited.container_id == id && exited.exec_id == exec =>
                {
                    return Ok((exited.exit_status, told));
                }
                Some(Event::OutOfMemory(event)) if event.container_id == id => told += 1,
                _ => {}
            }
        }
    }

    /// Runs a container to its end: exit status, stdout, stderr.
    pub(crate) async fn run(&mut self, id: &str, spec: &Value) -> Result<(u32, String, String)> {
        self.create(id, spec, PIPES()).await?;
        let stdout = self.stream(id, "", StreamKind::STREAM_KIND_STDOUT).await?;
        let stderr = self.stream(id, "", StreamKind::STREAM_KIND_STDERR).await?;
        self.start(id, "").await?;
        let (stdout, stderr) = tokio::try_join!(text(stdout), text(stderr))?;
        let (status, _) = self.exit(id, "").await?;
        let reply = self.delete(id, "").await?;
        ensure!(
            reply.exit_status == status,
            "delete says {}",
            reply.exit_status
        );
        Ok((status, stdout, stderr))
    }
}

/// Everything on a stream, as text.
pub(crate) async fn text(mut stream: UnixStream) -> Result<String> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
