//! Typed calls to the agent in the guest, over ttrpc.
//!
//! The agent is not trusted: every call has a time limit, nothing but replies of at most
//! [`sandbox_protocol::limits::MAX_REPLY_BYTES`] is read (`replies`), and text that the guest wrote is cut and made printable
//! before it can reach a log or a person.

mod pulse;
mod replies;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sandbox_protocol::agent::{
    AddProcessRequest, BringUpProcessorsRequest, ConfigureGuestRequest, ConfigureNetworkRequest,
    ContainerRequest, CreateContainerRequest, Empty, ProcessRequest, ResizeTerminalRequest,
    SetClockRequest, SignalProcessRequest, UpdateContainerRequest,
};
use sandbox_protocol::agent_ttrpc;
use sandbox_protocol::limits::{CALL_TIMEOUT, CREATE_TIMEOUT, LOOK_TIMEOUT};
use sandbox_protocol::start_failure::StartFailure;
use sandbox_types::{ContainerId, ExecId, IdError, VcpuCount};
use tokio::net::UnixStream;
pub use ttrpc::Code;
use ttrpc::context::Context;

use self::pulse::Pulse;
use self::replies::Replies;
use crate::console::printable;
use crate::timeline::unix_time_ns;

/// How far behind the guest's clock may be, once it is set: as much as the call that sets it takes.
const CLOCK_PRECISION: Duration = Duration::from_millis(100);
/// So often it is set at most, where everything is slow.
const CLOCK_ATTEMPTS: u32 = 3;
/// The most of a guest's error message that is kept, in bytes.
const MAX_MESSAGE_BYTES: usize = 4096;
/// The most that is kept of a process's command line, in bytes.
const MAX_COMMAND_BYTES: usize = 4096;
/// The most that is kept of a word of the guest's, in bytes.
const MAX_WORD_BYTES: usize = 64;
/// The most processes of one container that are believed.
const MAX_PROCESSES: usize = 65_536;

/// Why a call brought no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AgentError {
    /// The agent said no.
    #[error("{call}: {message}")]
    Refused {
        /// Which call.
        call: &'static str,
        /// Its ttrpc status.
        code: Code,
        /// Its words, cut and made printable.
        message: String,
        /// Set when it is the program that cannot be run.
        failure: Option<StartFailure>,
    },
    /// No answer in time.
    #[error("{call}: the agent did not answer within {} s", after.as_secs())]
    TimedOut {
        /// Which call.
        call: &'static str,
        /// The limit.
        after: Duration,
    },
    /// It has not answered what it was asked before, and is not waited for again.
    #[error(
        "{call}: the agent has not answered what it was asked before; it is asked for this again once it has answered anything"
    )]
    Mute {
        /// Which call.
        call: &'static str,
    },
    /// The connection to the agent failed.
    #[error("{call}: the connection to the agent failed: {detail}")]
    Connection {
        /// Which call.
        call: &'static str,
        /// What ttrpc says.
        detail: String,
    },
    /// The answer makes no sense.
    #[error("{call}: the agent's answer is not valid: {what}")]
    Malformed {
        /// Which call.
        call: &'static str,
        /// What is wrong with it.
        what: String,
    },
}

/// An ended process that the agent has forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeletedProcess {
    /// The exit code, or 128 plus the signal's number.
    pub exit_status: u32,
    /// As the guest numbers it.
    pub pid: u32,
}

/// A process of a container, as the guest describes it: text is cut and printable, numbers are not to be relied on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListedProcess {
    /// As the guest numbers it.
    pub pid: u32,
    /// Which added process it belongs to; `None` for the container's own.
    pub exec: Option<ExecId>,
    /// As the guest numbers it; 0 for none in the guest.
    pub parent_pid: u32,
    /// As the guest numbers it.
    pub uid: u32,
    /// One letter, as proc_pid_stat(5) has it.
    pub state: String,
    /// Nanoseconds since the Unix epoch, by the guest's clock.
    pub started_unix_ns: u64,
    /// Processor time used, in nanoseconds.
    pub cpu_time_ns: u64,
    /// Resident set, in bytes.
    pub resident_bytes: u64,
    /// As "pts/0"; empty for none.
    pub terminal: String,
    /// The command line, or the name of a process that has none.
    pub command: String,
}

impl ListedProcess {
    fn from_guest(
        process: sandbox_protocol::agent::list_processes_reply::Process,
    ) -> Result<Self, IdError> {
        let text = |text: &str, limit| printable(text.as_bytes(), limit);
        Ok(Self {
            pid: process.pid,
            exec: match process.exec_id.as_str() {
                "" => None,
                id => Some(ExecId::new(id)?),
            },
            parent_pid: process.parent_pid,
            uid: process.uid,
            state: text(&process.state, MAX_WORD_BYTES),
            started_unix_ns: process.started_unix_ns,
            cpu_time_ns: process.cpu_time_ns,
            resident_bytes: process.resident_bytes,
            terminal: text(&process.terminal, MAX_WORD_BYTES),
            command: text(&process.command, MAX_COMMAND_BYTES),
        })
    }
}

/// The agent in one guest.
#[derive(Clone)]
pub struct AgentClient {
    client: agent_ttrpc::AgentClient,
    pulse: Arc<Pulse>,
}

impl std::fmt::Debug for AgentClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AgentClient")
    }
}

impl AgentClient {
    /// A client over a connection to the agent's port.
    pub(crate) fn new(stream: UnixStream) -> Self {
        let pulse = Arc::new(Pulse::new());
        let replies = Replies::of(stream, Arc::clone(&pulse));
        let socket = ttrpc::r#async::transport::Socket::new(replies);
        Self {
            client: agent_ttrpc::AgentClient::new(ttrpc::r#async::Client::new(socket)),
            pulse,
        }
    }

    /// Returns when the agent can be asked nothing any more: its connection ended, or carried what is no reply,
    /// or it has left too many calls unanswered (`pulse`).
    pub(crate) async fn until_gone(&self) {
        self.pulse.until_gone().await;
    }

    /// Sets the guest's clock and host name.
    ///
    /// # Errors
    /// [`AgentError`].
    pub(crate) async fn configure_guest(
        &self,
        unix_time_ns: u64,
        hostname: &str,
    ) -> Result<(), AgentError> {
        let request = ConfigureGuestRequest {
            unix_time_ns,
            hostname: hostname.to_owned(),
            ..Default::default()
        };
        let begun = Instant::now();
        let call = self.client.configure_guest(context(CALL_TIMEOUT), &request);
        self.bounded("configure the guest", CALL_TIMEOUT, call)
            .await?;
        if begun.elapsed() > CLOCK_PRECISION {
            self.set_clock().await?;
        }
        Ok(())
    }

    /// Gives the guest's network devices their names, addresses, routes and neighbours.
    ///
    /// # Errors
    /// [`AgentError`].
    pub(crate) async fn configure_network(
        &self,
        request: &ConfigureNetworkRequest,
    ) -> Result<(), AgentError> {
        let call = self
            .client
            .configure_network(context(CALL_TIMEOUT), request);
        self.bounded("configure the guest's network", CALL_TIMEOUT, call)
            .await?;
        Ok(())
    }

    /// Makes a container whose process waits to be started. Returns its pid in the guest.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn create_container(
        &self,
        request: &CreateContainerRequest,
    ) -> Result<u32, AgentError> {
        let call = self
            .client
            .create_container(context(CREATE_TIMEOUT), request);
        Ok(self
            .bounded("create the container", CREATE_TIMEOUT, call)
            .await?
            .pid)
    }

    /// Adds a process to a running container; it waits to be started.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn add_process(&self, request: &AddProcessRequest) -> Result<(), AgentError> {
        let call = self.client.add_process(context(CREATE_TIMEOUT), request);
        self.bounded("add a process", CREATE_TIMEOUT, call).await?;
        Ok(())
    }

    /// Starts a created container or an added process. Returns its pid in the guest.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn start_process(
        &self,
        container: &ContainerId,
        exec: Option<&ExecId>,
    ) -> Result<u32, AgentError> {
        let request = process_request(container, exec);
        let call = self.client.start_process(context(CREATE_TIMEOUT), &request);
        Ok(self
            .bounded("start the process", CREATE_TIMEOUT, call)
            .await?
            .pid)
    }

    /// Sends a signal to a process, or to every process of the container.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn signal_process(
        &self,
        container: &ContainerId,
        exec: Option<&ExecId>,
        signal: u32,
        all: bool,
    ) -> Result<(), AgentError> {
        let request = SignalProcessRequest {
            container_id: container.to_string(),
            exec_id: exec.map(ExecId::to_string).unwrap_or_default(),
            signal,
            all,
            ..Default::default()
        };
        let call = self.client.signal_process(context(CALL_TIMEOUT), &request);
        self.bounded("signal the process", CALL_TIMEOUT, call)
            .await?;
        Ok(())
    }

    /// Sets the size of a process's terminal.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn resize_terminal(
        &self,
        container: &ContainerId,
        exec: Option<&ExecId>,
        columns: u32,
        rows: u32,
    ) -> Result<(), AgentError> {
        let request = ResizeTerminalRequest {
            container_id: container.to_string(),
            exec_id: exec.map(ExecId::to_string).unwrap_or_default(),
            columns,
            rows,
            ..Default::default()
        };
        let call = self.client.resize_terminal(context(CALL_TIMEOUT), &request);
        self.bounded("resize the terminal", CALL_TIMEOUT, call)
            .await?;
        Ok(())
    }

    /// Ends a process's standard input after what its stream still carries.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn close_stdin(
        &self,
        container: &ContainerId,
        exec: Option<&ExecId>,
    ) -> Result<(), AgentError> {
        let request = process_request(container, exec);
        let call = self.client.close_stdin(context(CALL_TIMEOUT), &request);
        self.bounded("close standard input", CALL_TIMEOUT, call)
            .await?;
        Ok(())
    }

    /// Removes an ended process; for a container, everything of it.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn delete_process(
        &self,
        container: &ContainerId,
        exec: Option<&ExecId>,
    ) -> Result<DeletedProcess, AgentError> {
        let request = process_request(container, exec);
        let call = self.client.delete_process(context(CALL_TIMEOUT), &request);
        let reply = self
            .bounded("delete the process", CALL_TIMEOUT, call)
            .await?;
        Ok(DeletedProcess {
            exit_status: reply.exit_status,
            pid: reply.pid,
        })
    }

    /// The processes of a container. [`Self::container_stats`] says how long it takes.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn list_processes(
        &self,
        container: &ContainerId,
    ) -> Result<Vec<ListedProcess>, AgentError> {
        const CALL: &str = "list the processes";
        self.must_have_answered(CALL)?;
        let request = container_request(container);
        let call = self.client.list_processes(context(LOOK_TIMEOUT), &request);
        let reply = self.bounded(CALL, LOOK_TIMEOUT, call).await?;
        if reply.processes.len() > MAX_PROCESSES {
            return Err(AgentError::Malformed {
                call: CALL,
                what: format!("{} processes", reply.processes.len()),
            });
        }
        reply
            .processes
            .into_iter()
            .map(|process| {
                ListedProcess::from_guest(process).map_err(|error| AgentError::Malformed {
                    call: CALL,
                    what: error.to_string(),
                })
            })
            .collect()
    }

    /// What a container uses and may use, by name (see `ContainerStatsReply`). It takes no longer than [`LOOK_TIMEOUT`], and no time where the
    /// agent has left a call unanswered since it last answered one: who asks for many containers is not to wait for each of them.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn container_stats(
        &self,
        container: &ContainerId,
    ) -> Result<HashMap<String, u64>, AgentError> {
        const CALL: &str = "read the statistics";
        self.must_have_answered(CALL)?;
        let request = container_request(container);
        let call = self.client.container_stats(context(LOOK_TIMEOUT), &request);
        let reply = self.bounded(CALL, LOOK_TIMEOUT, call).await?;
        Ok(reply.values)
    }

    /// Changes the limits of a container; what is not in `resources_json` (`linux.resources` of the OCI runtime spec)
    /// stays as it is.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn update_container(
        &self,
        container: &ContainerId,
        resources_json: Vec<u8>,
    ) -> Result<(), AgentError> {
        let request = UpdateContainerRequest {
            container_id: container.to_string(),
            resources_json,
            ..Default::default()
        };
        let call = self
            .client
            .update_container(context(CALL_TIMEOUT), &request);
        self.bounded("change the limits", CALL_TIMEOUT, call)
            .await?;
        Ok(())
    }

    /// Has the guest use at least so many of its processors.
    ///
    /// # Errors
    /// [`AgentError`].
    pub(crate) async fn bring_up_processors(&self, count: VcpuCount) -> Result<(), AgentError> {
        let request = BringUpProcessorsRequest {
            count: count.get().into(),
            ..Default::default()
        };
        let call = self
            .client
            .bring_up_processors(context(CALL_TIMEOUT), &request);
        self.bounded("bring processors up", CALL_TIMEOUT, call)
            .await?;
        Ok(())
    }

    /// What memory the guest's kernel uses, in bytes, as it says: nothing is sure about it.
    ///
    /// # Errors
    /// [`AgentError`].
    pub(crate) async fn guest_memory(&self) -> Result<u64, AgentError> {
        let call = self.client.guest_memory(context(CALL_TIMEOUT), &EMPTY);
        let reply = bounded("read the guest's memory", CALL_TIMEOUT, call).await?;
        Ok(reply.memory_bytes)
    }

    /// Sets the guest's clock to the host's, again where a call took so long that the clock may be behind by it.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn set_clock(&self) -> Result<(), AgentError> {
        for _ in 0..CLOCK_ATTEMPTS {
            let begun = Instant::now();
            let request = SetClockRequest {
                unix_time_ns: unix_time_ns(),
                ..Default::default()
            };
            let call = self.client.set_clock(context(CALL_TIMEOUT), &request);
            self.bounded("set the clock", CALL_TIMEOUT, call).await?;
            if begun.elapsed() <= CLOCK_PRECISION {
                break;
            }
        }
        Ok(())
    }

    /// Freezes a container.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn pause(&self, container: &ContainerId) -> Result<(), AgentError> {
        let request = container_request(container);
        let call = self.client.pause_container(context(CALL_TIMEOUT), &request);
        self.bounded("pause the container", CALL_TIMEOUT, call)
            .await?;
        Ok(())
    }

    /// Thaws a container.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn resume(&self, container: &ContainerId) -> Result<(), AgentError> {
        let request = container_request(container);
        let call = self
            .client
            .resume_container(context(CALL_TIMEOUT), &request);
        self.bounded("resume the container", CALL_TIMEOUT, call)
            .await?;
        Ok(())
    }

    fn must_have_answered(&self, call: &'static str) -> Result<(), AgentError> {
        match self.pulse.is_mute() {
            true => Err(AgentError::Mute { call }),
            false => Ok(()),
        }
    }

    /// [`bounded`], of which note is taken whether the agent answered.
    async fn bounded<T>(
        &self,
        call: &'static str,
        limit: Duration,
        answer: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, AgentError> {
        let asked = self.pulse.ask();
        let result = bounded(call, limit, answer).await;
        match &result {
            Err(AgentError::TimedOut { .. }) => drop(asked),
            Err(AgentError::Connection { .. } | AgentError::Mute { .. }) => asked.failed(),
            Ok(_) | Err(AgentError::Refused { .. } | AgentError::Malformed { .. }) => {
                asked.answered();
            }
        }
        result
    }

    /// Kills what still runs and powers the guest off; the answer comes before the power-off.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn shutdown(&self) -> Result<(), AgentError> {
        let call = self.client.shutdown(context(CALL_TIMEOUT), &EMPTY);
        self.bounded("shut the guest down", CALL_TIMEOUT, call)
            .await?;
        Ok(())
    }
}

static EMPTY: std::sync::LazyLock<Empty> = std::sync::LazyLock::new(Empty::default);

/// The agent drops a call one second after the host has stopped waiting for it.
fn context(limit: Duration) -> Context {
    let with_grace = limit.saturating_add(Duration::from_secs(1));
    Context {
        timeout_nano: i64::try_from(with_grace.as_nanos()).unwrap_or(i64::MAX),
        ..Context::default()
    }
}

fn process_request(container: &ContainerId, exec: Option<&ExecId>) -> ProcessRequest {
    ProcessRequest {
        container_id: container.to_string(),
        exec_id: exec.map(ExecId::to_string).unwrap_or_default(),
        ..Default::default()
    }
}

fn container_request(container: &ContainerId) -> ContainerRequest {
    ContainerRequest {
        container_id: container.to_string(),
        ..Default::default()
    }
}

async fn bounded<T>(
    call: &'static str,
    limit: Duration,
    answer: impl Future<Output = ttrpc::Result<T>>,
) -> Result<T, AgentError> {
    match tokio::time::timeout(limit, answer).await {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(ttrpc::Error::RpcStatus(status))) => Err(AgentError::Refused {
            call,
            code: status.code(),
            message: printable(status.message().as_bytes(), MAX_MESSAGE_BYTES),
            failure: StartFailure::from_status(&status),
        }),
        Ok(Err(other)) => Err(AgentError::Connection {
            call,
            detail: printable(other.to_string().as_bytes(), MAX_MESSAGE_BYTES),
        }),
        Err(_elapsed) => Err(AgentError::TimedOut { call, after: limit }),
    }
}

#[cfg(test)]
mod silent;
#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn refusal_is_cut_and_made_printable() {
        let mut status = ttrpc::proto::Status::new();
        status.set_code(Code::NOT_FOUND);
        status.set_message(format!("\x1b[2J{}", "x".repeat(10_000)));
        let error = bounded::<()>("do it", CALL_TIMEOUT, async {
            Err(ttrpc::Error::RpcStatus(status))
        })
        .await
        .unwrap_err();
        let AgentError::Refused { code, message, .. } = error else {
            panic!("{error:?}");
        };
        assert_eq!(code, Code::NOT_FOUND);
        assert!(message.len() <= MAX_MESSAGE_BYTES + 8, "{}", message.len());
        assert!(!message.contains('\x1b'));
    }

    #[tokio::test]
    async fn agent_whose_connection_ends_or_carries_no_reply_is_gone() {
        for last in [&b""[..], &[0xff; 10]] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let agent = AgentClient::new(ours);
            assert!(agent.until_gone().now_or_never().is_none());
            theirs.write_all(last).await.unwrap();
            // One that is silent is held until the end.
            let _held = (!last.is_empty()).then_some(theirs);
            agent.until_gone().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn call_without_answer_times_out() {
        let error = bounded::<()>("wait", CALL_TIMEOUT, std::future::pending())
            .await
            .unwrap_err();
        assert!(matches!(error, AgentError::TimedOut { call: "wait", .. }));
    }
}
