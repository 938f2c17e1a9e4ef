//! Typed calls to a shim's task service (containerd `runtime/task/v2`).

mod observe;

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use containerd_shim_protos::ttrpc::asynchronous::transport::Socket;
use containerd_shim_protos::ttrpc::context::{self, Context};
use containerd_shim_protos::ttrpc::{Code, Error};
use sandbox_protocol::start_failure::{self, StartFailure};
use serde::{Deserialize, Serialize};

use crate::stdio::Fifos;
pub(crate) use observe::{ProcessInfo, ProgramStreams};

/// How long a call may take that does no work worth mentioning.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to remove a container: its streams get time to drain.
const DELETE_TIMEOUT: Duration = Duration::from_secs(90);

/// What became of a call that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RpcFailure {
    /// The container's program cannot be run.
    Program(StartFailure),
    /// There is no such process, any more.
    NotFound,
    /// Any other answer.
    Refused,
    /// No answer: the connection broke or time ran out.
    Unanswered,
}

/// A call that failed.
#[derive(Debug, thiserror::Error)]
#[error("the shim could not {call}{}", after_colon(message))]
pub(crate) struct RpcError {
    /// What was asked for, as a verb.
    pub(crate) call: &'static str,
    /// How it failed.
    pub(crate) failure: RpcFailure,
    /// What the shim said.
    pub(crate) message: String,
}

fn after_colon(said: &str) -> String {
    match said.trim() {
        "" => String::new(),
        said => format!(": {said}"),
    }
}

fn failed(call: &'static str) -> impl FnOnce(Error) -> RpcError {
    move |error| match error {
        Error::RpcStatus(status) => RpcError {
            call,
            failure: match (StartFailure::from_status(&status), status.code()) {
                (Some(failure), _) => RpcFailure::Program(failure),
                (None, Code::NOT_FOUND) => RpcFailure::NotFound,
                (None, _) => RpcFailure::Refused,
            },
            message: status.message,
        },
        other => RpcError {
            call,
            failure: RpcFailure::Unanswered,
            message: other.to_string(),
        },
    }
}

/// What a shim says of its container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TaskState {
    /// Made, not started.
    Created,
    Running,
    Paused,
    /// Ended, with this status.
    Stopped(u32),
    Unknown,
}

/// A task service with one container, that of [`Tasks::create`].
#[derive(Clone)]
pub(crate) struct Tasks {
    client: TaskClient,
    /// The connection once more, to hang up while others still have the client.
    socket: Arc<UnixStream>,
}

fn brief() -> Context {
    context::with_duration(CALL_TIMEOUT)
}

/// For calls whose time the shim bounds itself.
fn patient() -> Context {
    context::with_timeout(0)
}

/// The same, for calls that start a program: why it cannot be run is told apart.
fn starting() -> Context {
    let mut context = patient();
    start_failure::ask(&mut context.metadata);
    context
}

/// One mount of a root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RootMount {
    pub(crate) kind: String,
    pub(crate) source: String,
    pub(crate) options: Vec<String>,
}

impl Tasks {
    pub(super) async fn connect(address: &str) -> Result<Self, Error> {
        let broken = |error: io::Error| Error::Socket(error.to_string());
        let path = address.strip_prefix("unix://").unwrap_or(address);
        let socket = UnixStream::connect(path).map_err(broken)?;
        let transport = socket
            .try_clone()
            .and_then(Socket::try_from)
            .map_err(broken)?;
        Ok(Self {
            client: TaskClient::new(Client::new(transport)),
            socket: Arc::new(socket),
        })
    }

    pub(super) async fn shim_pid(&self) -> Result<u32, RpcError> {
        let answer = self
            .client
            .connect(brief(), &api::ConnectRequest::new())
            .await
            .map_err(failed("say which process it is"))?;
        Ok(answer.shim_pid)
    }

    /// Makes the sandbox and the container in it.
    pub(crate) async fn create(
        &self,
        id: &str,
        bundle: &Path,
        rootfs: &[RootMount],
        fifos: Option<&Fifos>,
    ) -> Result<(), RpcError> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let optional =
            |path: &Option<std::path::PathBuf>| path.as_deref().map(text).unwrap_or_default();
        let mut request = api::CreateTaskRequest::new();
        id.clone_into(&mut request.id);
        request.bundle = text(bundle);
        if let Some(fifos) = fifos {
            request.terminal = fifos.stderr.is_none();
            request.stdin = optional(&fifos.stdin);
            request.stdout = text(&fifos.stdout);
            request.stderr = optional(&fifos.stderr);
        }
        request.rootfs = rootfs
            .iter()
            .map(|mount| api::Mount {
                type_: mount.kind.clone(),
                source: mount.source.clone(),
                options: mount.options.clone(),
                ..api::Mount::default()
            })
            .collect();
        self.client
            .create(starting(), &request)
            .await
            .map(drop)
            .map_err(failed("create the container"))
    }

    /// Adds a process, described as the OCI runtime specification has it.
    pub(crate) async fn exec(
        &self,
        id: &str,
        exec: &str,
        process: &oci_spec::runtime::Process,
        fifos: Option<&Fifos>,
    ) -> Result<(), RpcError> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut request = api::ExecProcessRequest::new();
        id.clone_into(&mut request.id);
        exec.clone_into(&mut request.exec_id);
        request.terminal = process.terminal().unwrap_or(false);
        if let Some(fifos) = fifos {
            request.stdin = fifos.stdin.as_deref().map(text).unwrap_or_default();
            request.stdout = text(&fifos.stdout);
            request.stderr = fifos.stderr.as_deref().map(text).unwrap_or_default();
        }
        let spec = protobuf::well_known_types::any::Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned(),
            // A structure of strings and numbers can be written.
            value: serde_json::to_vec(process).unwrap_or_default(),
            ..Default::default()
        };
        request.spec = Some(spec).into();
        self.client
            .exec(patient(), &request)
            .await
            .map(drop)
            .map_err(failed("add a process to the container"))
    }

    /// Freezes the container.
    pub(crate) async fn pause(&self, id: &str) -> Result<(), RpcError> {
        let request = api::PauseRequest {
            id: id.to_owned(),
            ..api::PauseRequest::default()
        };
        self.client
            .pause(brief(), &request)
            .await
            .map(drop)
            .map_err(failed("pause the container"))
    }

    /// Lets it go on.
    pub(crate) async fn resume(&self, id: &str) -> Result<(), RpcError> {
        let request = api::ResumeRequest {
            id: id.to_owned(),
            ..api::ResumeRequest::default()
        };
        self.client
            .resume(brief(), &request)
            .await
            .map(drop)
            .map_err(failed("resume the container"))
    }

    /// Starts the container's process, or one that was added to it.
    pub(crate) async fn start(&self, id: &str, exec: &str) -> Result<(), RpcError> {
        let request = api::StartRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            ..api::StartRequest::default()
        };
        self.client
            .start(starting(), &request)
            .await
            .map(drop)
            .map_err(failed("start the container's process"))
    }

    /// Waits until the container's process, or one that was added, has ended; gives its exit code.
    pub(crate) async fn wait(&self, id: &str, exec: &str) -> Result<u32, RpcError> {
        let request = api::WaitRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            ..api::WaitRequest::default()
        };
        self.client
            .wait(patient(), &request)
            .await
            .map(|answer| answer.exit_status)
            .map_err(failed("wait for the container"))
    }

    /// Sends a signal to the container's first process, or to all of them.
    pub(crate) async fn kill(&self, id: &str, signal: u32, all: bool) -> Result<(), RpcError> {
        let request = api::KillRequest {
            id: id.to_owned(),
            signal,
            all,
            ..api::KillRequest::default()
        };
        self.client
            .kill(brief(), &request)
            .await
            .map(drop)
            .map_err(failed("send a signal to the container"))
    }

    /// Sends a signal to a process that was added.
    pub(crate) async fn kill_exec(
        &self,
        id: &str,
        exec: &str,
        signal: u32,
    ) -> Result<(), RpcError> {
        let request = api::KillRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            signal,
            ..api::KillRequest::default()
        };
        self.client
            .kill(brief(), &request)
            .await
            .map(drop)
            .map_err(failed("send a signal to the process"))
    }

    /// The container's state.
    pub(crate) async fn state(&self, id: &str) -> Result<TaskState, RpcError> {
        let request = api::StateRequest {
            id: id.to_owned(),
            ..api::StateRequest::default()
        };
        let answer = self
            .client
            .state(brief(), &request)
            .await
            .map_err(failed("tell the container's state"))?;
        Ok(match answer.status.enum_value() {
            Ok(api::Status::CREATED) => TaskState::Created,
            Ok(api::Status::RUNNING) => TaskState::Running,
            Ok(api::Status::PAUSED | api::Status::PAUSING) => TaskState::Paused,
            Ok(api::Status::STOPPED) => TaskState::Stopped(answer.exit_status),
            Ok(api::Status::UNKNOWN) | Err(_) => TaskState::Unknown,
        })
    }

    /// The terminal has another size.
    pub(crate) async fn resize(
        &self,
        id: &str,
        exec: &str,
        columns: u16,
        rows: u16,
    ) -> Result<(), RpcError> {
        let request = api::ResizePtyRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            width: columns.into(),
            height: rows.into(),
            ..api::ResizePtyRequest::default()
        };
        self.client
            .resize_pty(brief(), &request)
            .await
            .map(drop)
            .map_err(failed("resize the container's terminal"))
    }

    /// The container's input ends after what is in its fifo.
    pub(crate) async fn close_stdin(&self, id: &str, exec: &str) -> Result<(), RpcError> {
        let request = api::CloseIORequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            stdin: true,
            ..api::CloseIORequest::default()
        };
        // The container may take its time to read what comes before.
        self.client
            .close_io(patient(), &request)
            .await
            .map(drop)
            .map_err(failed("close the container's input"))
    }

    /// Removes the ended container, or an ended process that was added to it.
    pub(crate) async fn delete(&self, id: &str, exec: &str) -> Result<(), RpcError> {
        let request = api::DeleteRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            ..api::DeleteRequest::default()
        };
        self.client
            .delete(context::with_duration(DELETE_TIMEOUT), &request)
            .await
            .map(drop)
            .map_err(failed("remove the container"))
    }

    /// The shim ends. There is no call after this one: the shim waits a while for its callers to hang up, and so it is done here.
    pub(super) async fn shutdown(&self) -> Result<(), RpcError> {
        let request = api::ShutdownRequest {
            now: true,
            ..api::ShutdownRequest::default()
        };
        let answer = self.client.shutdown(brief(), &request).await;
        // What fails here was broken before.
        let _ = self.socket.shutdown(Shutdown::Both);
        answer.map(drop).map_err(failed("shut down"))
    }
}
