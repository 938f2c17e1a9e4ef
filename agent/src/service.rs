//! The ttrpc service. Each call's work is a task of its own: a connection that breaks off must not leave a
//! container half made.

use std::sync::Arc;

use async_trait::async_trait;
use protobuf::Message;
use sandbox_protocol::agent::{
    AddProcessRequest, BringUpProcessorsRequest, ConfigureGuestRequest, ConfigureNetworkRequest,
    ContainerRequest, ContainerStatsReply, CreateContainerRequest, DeleteProcessReply, Empty,
    GuestMemoryReply, ListProcessesReply, ProcessReply, ProcessRequest, ResizeTerminalRequest,
    SetClockRequest, SignalProcessRequest, UpdateContainerRequest,
};
use sandbox_protocol::agent_ttrpc::Agent;
use sandbox_protocol::limits::MAX_REPLY_BYTES;
use sandbox_types::{ContainerId, ExecId, IdError, WithCauses};
use tokio::sync::{Notify, mpsc};
use ttrpc::r#async::TtrpcContext;
use ttrpc::proto::Code;

use crate::clock::{self, ClockError};
use crate::containers::{ContainerError, Containers, wanted};
use crate::guest::{self, GuestError};
use crate::network::{self, NetworkError};
use crate::processors;

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct AgentService {
    pub(crate) containers: Arc<Containers>,
    /// Told when a container is being started.
    pub(crate) starts: Arc<Notify>,
    /// Told when the host wants the machine off.
    pub(crate) shutdown: mpsc::Sender<()>,
}

type Reply<T> = ttrpc::Result<T>;

/// What ttrpc puts around a reply, generously.
const REPLY_OVERHEAD_BYTES: usize = 1024;

fn container_id(id: &str) -> Result<ContainerId, ContainerError> {
    Ok(ContainerId::new(id)?)
}

fn ids(id: &str, exec: &str) -> Result<(ContainerId, Option<ExecId>), ContainerError> {
    Ok((ContainerId::new(id)?, exec_id(exec)?))
}

/// Empty means a container's first process.
pub(crate) fn exec_id(exec: &str) -> Result<Option<ExecId>, IdError> {
    match exec {
        "" => Ok(None),
        exec => Ok(Some(ExecId::new(exec)?)),
    }
}

/// A reply that the host takes: one that is longer than it allows would end the connection.
fn bounded<T: Message>(reply: T) -> Reply<T> {
    let (bytes, limit) = (reply.compute_size(), MAX_REPLY_BYTES - REPLY_OVERHEAD_BYTES);
    if usize::try_from(bytes).is_ok_and(|bytes| bytes <= limit) {
        return Ok(reply);
    }
    let message = format!("the reply would have {bytes} bytes, of which at most {limit} are taken");
    let status = ttrpc::get_status(Code::RESOURCE_EXHAUSTED, message);
    Err(ttrpc::Error::RpcStatus(status))
}

async fn answer<T: Send + 'static>(
    work: impl Future<Output = Result<T, ContainerError>> + Send + 'static,
) -> Reply<T> {
    match tokio::spawn(work).await {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(error)) => Err(ttrpc::Error::RpcStatus(error.to_status())),
        Err(error) => Err(ttrpc::Error::RpcStatus(ttrpc::get_status(
            Code::INTERNAL,
            error,
        ))),
    }
}

fn process_reply(pid: i32) -> ProcessReply {
    ProcessReply {
        pid: u32::try_from(pid).unwrap_or(0),
        ..ProcessReply::default()
    }
}

#[async_trait]
impl Agent for AgentService {
    async fn configure_guest(
        &self,
        _: &TtrpcContext,
        request: ConfigureGuestRequest,
    ) -> Reply<Empty> {
        guest::configure(request.unix_time_ns, &request.hostname).map_err(|error| {
            let code = match &error {
                GuestError::Clock(ClockError::Time { .. }) => Code::INVALID_ARGUMENT,
                GuestError::Clock(ClockError::Refused { .. }) | GuestError::Hostname(_) => {
                    Code::INTERNAL
                }
            };
            ttrpc::Error::RpcStatus(ttrpc::get_status(code, WithCauses(&error).to_string()))
        })?;
        Ok(Empty::new())
    }

    async fn configure_network(
        &self,
        _: &TtrpcContext,
        request: ConfigureNetworkRequest,
    ) -> Reply<Empty> {
        network::configure(&request).map_err(|error| {
            let code = match &error {
                NetworkError::Invalid { .. } => Code::INVALID_ARGUMENT,
                NetworkError::NoDevice { .. } => Code::NOT_FOUND,
                NetworkError::Kernel { .. } | NetworkError::Remove { .. } => Code::INTERNAL,
            };
            ttrpc::Error::RpcStatus(ttrpc::get_status(code, WithCauses(&error).to_string()))
        })?;
        Ok(Empty::new())
    }

    async fn set_clock(&self, _: &TtrpcContext, request: SetClockRequest) -> Reply<Empty> {
        clock::correct(request.unix_time_ns).map_err(|error| {
            let code = match &error {
                ClockError::Time { .. } => Code::INVALID_ARGUMENT,
                ClockError::Refused { .. } => Code::INTERNAL,
            };
            ttrpc::Error::RpcStatus(ttrpc::get_status(code, WithCauses(&error).to_string()))
        })?;
        Ok(Empty::new())
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: UpdateContainerRequest,
    ) -> Reply<Empty> {
        let containers = self.containers.clone();
        answer(async move {
            let id = container_id(&request.container_id)?;
            containers.update(&id, &request.resources_json)?;
            Ok(Empty::new())
        })
        .await
    }

    async fn bring_up_processors(
        &self,
        _: &TtrpcContext,
        request: BringUpProcessorsRequest,
    ) -> Reply<Empty> {
        processors::bring_up(request.count).map_err(|error| {
            let message = WithCauses(&error).to_string();
            ttrpc::Error::RpcStatus(ttrpc::get_status(Code::INTERNAL, message))
        })?;
        Ok(Empty::new())
    }

    async fn guest_memory(&self, _: &TtrpcContext, _: Empty) -> Reply<GuestMemoryReply> {
        Ok(GuestMemoryReply {
            memory_bytes: guest::memory_bytes(),
            ..GuestMemoryReply::default()
        })
    }

    async fn container_stats(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> Reply<ContainerStatsReply> {
        let containers = self.containers.clone();
        answer(async move {
            let id = container_id(&request.container_id)?;
            Ok(ContainerStatsReply {
                values: containers.stats(&id)?,
                ..ContainerStatsReply::default()
            })
        })
        .await
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> Reply<ProcessReply> {
        let containers = self.containers.clone();
        answer(async move {
            let id = container_id(&request.container_id)?;
            containers.create(id, request).await.map(process_reply)
        })
        .await
    }

    async fn add_process(&self, _: &TtrpcContext, request: AddProcessRequest) -> Reply<Empty> {
        let containers = self.containers.clone();
        answer(async move {
            let id = container_id(&request.container_id)?;
            let exec = ExecId::new(request.exec_id)?;
            let wanted = wanted(request.stdio.as_ref());
            containers
                .add_process(&id, exec, &request.process_json, wanted, request.program)
                .await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn start_process(
        &self,
        _: &TtrpcContext,
        request: ProcessRequest,
    ) -> Reply<ProcessReply> {
        let containers = self.containers.clone();
        if request.exec_id.is_empty() {
            self.starts.notify_one();
        }
        answer(async move {
            let (id, exec) = ids(&request.container_id, &request.exec_id)?;
            containers
                .start(&id, exec.as_ref())
                .await
                .map(process_reply)
        })
        .await
    }

    async fn signal_process(
        &self,
        _: &TtrpcContext,
        request: SignalProcessRequest,
    ) -> Reply<Empty> {
        let containers = self.containers.clone();
        answer(async move {
            let (id, exec) = ids(&request.container_id, &request.exec_id)?;
            containers.signal(&id, exec.as_ref(), request.signal, request.all)?;
            Ok(Empty::new())
        })
        .await
    }

    async fn resize_terminal(
        &self,
        _: &TtrpcContext,
        request: ResizeTerminalRequest,
    ) -> Reply<Empty> {
        let containers = self.containers.clone();
        answer(async move {
            let (id, exec) = ids(&request.container_id, &request.exec_id)?;
            containers.resize(&id, exec.as_ref(), request.columns, request.rows)?;
            Ok(Empty::new())
        })
        .await
    }

    async fn close_stdin(&self, _: &TtrpcContext, request: ProcessRequest) -> Reply<Empty> {
        let containers = self.containers.clone();
        answer(async move {
            let (id, exec) = ids(&request.container_id, &request.exec_id)?;
            containers.close_stdin(&id, exec.as_ref())?;
            Ok(Empty::new())
        })
        .await
    }

    async fn delete_process(
        &self,
        _: &TtrpcContext,
        request: ProcessRequest,
    ) -> Reply<DeleteProcessReply> {
        let containers = self.containers.clone();
        answer(async move {
            let (id, exec) = ids(&request.container_id, &request.exec_id)?;
            let (pid, exit_status) = containers.delete(&id, exec.as_ref()).await?;
            Ok(DeleteProcessReply {
                exit_status,
                pid,
                ..DeleteProcessReply::default()
            })
        })
        .await
    }

    async fn list_processes(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> Reply<ListProcessesReply> {
        let containers = self.containers.clone();
        let reply = answer(async move {
            let id = container_id(&request.container_id)?;
            let processes = containers.list(&id)?;
            Ok(ListProcessesReply {
                processes,
                ..ListProcessesReply::default()
            })
        });
        bounded(reply.await?)
    }

    async fn pause_container(&self, _: &TtrpcContext, request: ContainerRequest) -> Reply<Empty> {
        self.freeze(request, true).await
    }

    async fn resume_container(&self, _: &TtrpcContext, request: ContainerRequest) -> Reply<Empty> {
        self.freeze(request, false).await
    }

    async fn shutdown(&self, _: &TtrpcContext, _: Empty) -> Reply<Empty> {
        let containers = self.containers.clone();
        let reply = answer(async move {
            containers.end_all().await;
            Ok(Empty::new())
        })
        .await;
        // The reply is sent before the machine goes off: see `power`.
        let _ = self.shutdown.try_send(());
        reply
    }
}

impl AgentService {
    async fn freeze(&self, request: ContainerRequest, frozen: bool) -> Reply<Empty> {
        let containers = self.containers.clone();
        answer(async move {
            let id = container_id(&request.container_id)?;
            containers.freeze(&id, frozen).await?;
            Ok(Empty::new())
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use sandbox_protocol::agent::list_processes_reply::Process;

    use super::*;

    #[test]
    fn reply_that_the_host_would_not_take_is_an_error_and_not_the_end_of_the_connection() {
        let process = Process {
            command: "x".repeat(100),
            ..Process::default()
        };
        let of = |count| ListProcessesReply {
            processes: vec![process.clone(); count],
            ..ListProcessesReply::default()
        };
        assert!(bounded(of(1000)).is_ok());
        assert!(matches!(
            bounded(of(20_000)),
            Err(ttrpc::Error::RpcStatus(status)) if status.code() == Code::RESOURCE_EXHAUSTED
        ));
    }
}
