//! The task service, `containerd.task.v2.Task`: requests in, [`Pod`] calls, replies out.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest,
    ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest,
    StatsResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::shim_async::Task;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use sandbox_protocol::PROCESS_DETAILS_TYPE;
use sandbox_protocol::details::ProcessDetails;
use sandbox_runtime::agent::{Code, ListedProcess};
use sandbox_types::ContainerId;
use ttrpc::r#async::TtrpcContext;

use crate::caller::Caller;
use crate::error::TaskError;
use crate::events::timestamp;
use crate::memory;
use crate::pod::process::Listed;
use crate::pod::{Pod, ProcessKey};
use crate::stats::METRICS_TYPE;

/// How long a shim waits for Shutdown when its pod has become empty. containerd says it at once, if it has not been killed by then.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(10);

/// The service of one pod.
pub(crate) struct TaskService {
    /// The pod.
    pub(crate) pod: Arc<Pod>,
}

impl TaskService {
    /// Does what a call asks for to its end ([`to_its_end`]). If its caller is gone then and nothing is in the pod, the shim
    /// ends too: nobody knows of it any more (containerd 1.6, started again, does not end a shim without a container). So it does if the
    /// caller goes before it says Shutdown.
    async fn finish<T: Send + 'static, F>(
        &self,
        work: impl FnOnce(Arc<Pod>, Caller) -> F,
    ) -> Result<T, TaskError>
    where
        F: Future<Output = Result<T, TaskError>> + Send + 'static,
    {
        let pod = Arc::clone(&self.pod);
        let (caller, waiting) = Caller::of_call();
        let work = work(Arc::clone(&pod), caller.clone());
        let work = async move {
            let done = work.await;
            if pod.is_empty() {
                match caller.is_gone() {
                    true => pod.end(),
                    false => drop(tokio::spawn(end_if_forgotten(pod))),
                }
            }
            done
        };
        let done = to_its_end(work).await;
        drop(waiting);
        done
    }
}

/// Ends a shim of which nobody wants anything more, and which nobody has told so.
async fn end_if_forgotten(pod: Arc<Pod>) {
    tokio::time::sleep(SHUTDOWN_PATIENCE).await;
    pod.end_if_empty();
}

fn empty() -> Empty {
    Empty::default()
}

/// A message in a `google.protobuf.Any`.
pub(crate) fn any(type_url: &str, message: &impl Message) -> ttrpc::Result<Any> {
    let encode = |error: protobuf::Error| {
        let message = format!("cannot encode {type_url}: {error}");
        ttrpc::Error::RpcStatus(ttrpc::get_status(Code::INTERNAL, message))
    };
    Ok(Any {
        type_url: type_url.to_owned(),
        value: message.write_to_bytes().map_err(encode)?,
        ..Default::default()
    })
}

fn process_info(process: ListedProcess) -> ttrpc::Result<ProcessInfo> {
    let details = ProcessDetails {
        exec_id: process
            .exec
            .map(|exec| exec.to_string())
            .unwrap_or_default(),
        parent_pid: process.parent_pid,
        uid: process.uid,
        state: process.state,
        started_unix_ns: process.started_unix_ns,
        cpu_time_ns: process.cpu_time_ns,
        resident_bytes: process.resident_bytes,
        terminal: process.terminal,
        command: process.command,
        ..Default::default()
    };
    Ok(ProcessInfo {
        pid: process.pid,
        info: Some(any(PROCESS_DETAILS_TYPE, &details)?).into(),
        ..Default::default()
    })
}

/// Does what a call asks for to its end. The server drops the work of a call whose caller is gone (containerd that was
/// killed), and a container half made, started or deleted would stay so.
pub(crate) async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, TaskError>> + Send + 'static,
) -> Result<T, TaskError> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The server is ending, and this with it.
            Err(_) => std::future::pending().await,
        },
    }
}

fn unsupported<T>(what: &'static str) -> ttrpc::Result<T> {
    Err(TaskError::Unsupported { what }.into())
}

#[async_trait]
impl Task for TaskService {
    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let key = ProcessKey::new(&request.id, &request.exec_id)?;
        let view = self.pod.view(&key)?;
        let exit = view.lifecycle.exit();
        Ok(StateResponse {
            id: request.id,
            exec_id: request.exec_id,
            bundle: view.bundle.display().to_string(),
            pid: self.pod.pid(),
            status: view.lifecycle.status().into(),
            stdin: view.stdio.stdin,
            stdout: view.stdio.stdout,
            stderr: view.stdio.stderr,
            terminal: view.stdio.terminal,
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exit.map(|exit| timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    async fn create(
        &self,
        context: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        if !request.checkpoint.is_empty() {
            return unsupported("restoring a checkpoint");
        }
        let pid = self
            .finish(|pod, caller| async move { pod.create(request, &caller).await })
            .await
            .map_err(|error| error.answer_to(&context.metadata))?;
        Ok(CreateTaskResponse {
            pid,
            ..Default::default()
        })
    }

    async fn start(
        &self,
        context: &TtrpcContext,
        request: StartRequest,
    ) -> ttrpc::Result<StartResponse> {
        let key = ProcessKey::new(&request.id, &request.exec_id)?;
        let pod = Arc::clone(&self.pod);
        let pid = to_its_end(async move { pod.start(&key).await })
            .await
            .map_err(|error| error.answer_to(&context.metadata))?;
        memory::settle();
        Ok(StartResponse {
            pid,
            ..Default::default()
        })
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: DeleteRequest,
    ) -> ttrpc::Result<DeleteResponse> {
        let key = ProcessKey::new(&request.id, &request.exec_id)?;
        let pid = self.pod.pid();
        let exit = self
            .finish(|pod, _| async move { pod.delete(&key).await })
            .await?;
        Ok(DeleteResponse {
            pid,
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let container = ContainerId::new(request.id.as_str()).map_err(TaskError::from)?;
        let processes = match self.pod.list(&container).await? {
            Listed::Guest(processes) => processes
                .into_iter()
                .map(process_info)
                .collect::<Result<_, _>>()?,
            Listed::Machine(pid) => vec![ProcessInfo {
                pid,
                ..Default::default()
            }],
        };
        Ok(PidsResponse {
            processes,
            ..Default::default()
        })
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let key = ProcessKey::new(&request.id, "")?;
        let pod = Arc::clone(&self.pod);
        to_its_end(async move { pod.pause(&key).await }).await?;
        Ok(empty())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let key = ProcessKey::new(&request.id, "")?;
        let pod = Arc::clone(&self.pod);
        to_its_end(async move { pod.resume(&key).await }).await?;
        Ok(empty())
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        unsupported("checkpointing a container")
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let key = ProcessKey::new(&request.id, &request.exec_id)?;
        let pod = Arc::clone(&self.pod);
        // A caller that waits no longer still wants the end of what does not answer.
        to_its_end(async move { pod.kill(&key, request.signal, request.all).await }).await?;
        Ok(empty())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let pod = Arc::clone(&self.pod);
        to_its_end(async move { pod.exec(&request).await }).await?;
        Ok(empty())
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: ResizePtyRequest,
    ) -> ttrpc::Result<Empty> {
        let key = ProcessKey::new(&request.id, &request.exec_id)?;
        self.pod.resize(&key, request.width, request.height).await?;
        Ok(empty())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        if request.stdin {
            self.pod
                .close_stdin(&ProcessKey::new(&request.id, &request.exec_id)?)
                .await?;
        }
        Ok(empty())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let container = ContainerId::new(request.id.as_str()).map_err(TaskError::from)?;
        // `linux.resources` in JSON, whatever its type is called.
        let resources = request.resources.into_option().unwrap_or_default();
        let pod = Arc::clone(&self.pod);
        to_its_end(async move { pod.update(&container, resources.value).await }).await?;
        Ok(empty())
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let key = ProcessKey::new(&request.id, &request.exec_id)?;
        let exit = self.pod.wait(&key).await?;
        Ok(WaitResponse {
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let container = ContainerId::new(request.id.as_str()).map_err(TaskError::from)?;
        let metrics = self.pod.stats(&container).await?;
        Ok(StatsResponse {
            stats: Some(any(METRICS_TYPE, &metrics)?).into(),
            ..Default::default()
        })
    }

    async fn connect(&self, _: &TtrpcContext, _: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: self.pod.pid(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, request: ShutdownRequest) -> ttrpc::Result<Empty> {
        match request.now {
            true => self.pod.end(),
            false => self.pod.end_when_empty(),
        }
        Ok(empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Publisher;
    use futures::FutureExt as _;
    use tokio::sync::oneshot;

    fn service() -> TaskService {
        let pod = Pod::to_test(Publisher::from_environment("ns"));
        TaskService { pod: Arc::new(pod) }
    }

    #[tokio::test(start_paused = true)]
    async fn shim_whose_pod_is_empty_ends_though_nobody_says_shutdown() {
        let service = service();
        service.finish(|_, _| async { Ok(()) }).await.unwrap();
        assert!(service.pod.until_ended().now_or_never().is_none());
        tokio::time::sleep(2 * SHUTDOWN_PATIENCE).await;
        assert!(service.pod.until_ended().now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn shim_whose_pod_is_filled_meanwhile_goes_on() {
        let service = service();
        service.finish(|_, _| async { Ok(()) }).await.unwrap();
        service
            .pod
            .create_sandbox(crate::pod::sandbox::Wanted::default())
            .unwrap();
        tokio::time::sleep(2 * SHUTDOWN_PATIENCE).await;
        assert!(service.pod.until_ended().now_or_never().is_none());
    }

    #[tokio::test]
    async fn work_goes_on_when_its_caller_is_gone() {
        let (begin, begun) = oneshot::channel::<()>();
        let (end, ended) = oneshot::channel();
        let work = async move {
            let _ = begun.await;
            let _ = end.send(());
            Ok(())
        };
        assert!(to_its_end(work).now_or_never().is_none());
        begin.send(()).unwrap();
        ended.await.unwrap();
    }
}
