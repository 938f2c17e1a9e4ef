//! The sandbox service, `containerd.runtime.sandbox.v1.Sandbox`: requests in, [`Pod`] calls, replies out.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
    PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
    SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest,
    StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest,
    WaitSandboxResponse,
};
use containerd_shim_protos::sandbox_async::Sandbox;
use containerd_shim_protos::types::platform::Platform;
use ttrpc::r#async::TtrpcContext;

use crate::caller::Caller;
use crate::error::TaskError;
use crate::events::timestamp;
use crate::pod::Pod;
use crate::pod::sandbox::Wanted;
use crate::spec::pod_config::PodConfig;
use crate::stats::METRICS_TYPE;
use crate::task::{any, to_its_end};

/// The service of one pod.
pub(crate) struct SandboxService {
    /// The pod.
    pub(crate) pod: Arc<Pod>,
}

impl SandboxService {
    /// A shim has one sandbox.
    fn check(&self, id: &str) -> Result<(), TaskError> {
        match id == self.pod.name() {
            true => Ok(()),
            false => Err(TaskError::NotFound {
                what: format!("sandbox {id}"),
            }),
        }
    }
}

#[async_trait]
impl Sandbox for SandboxService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<CreateSandboxResponse> {
        self.check(&request.sandbox_id)?;
        let config = PodConfig::of_options(request.options.as_ref()).map_err(TaskError::from)?;
        self.pod.create_sandbox(Wanted {
            bundle: PathBuf::from(request.bundle_path),
            annotations: request.annotations,
            network: request.netns_path,
            config,
        })?;
        Ok(CreateSandboxResponse::default())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: StartSandboxRequest,
    ) -> ttrpc::Result<StartSandboxResponse> {
        self.check(&request.sandbox_id)?;
        let pod = Arc::clone(&self.pod);
        let (caller, waiting) = Caller::of_call();
        let started = to_its_end(async move { pod.start_sandbox(&caller).await }).await;
        drop(waiting);
        let (pid, created_at) = started?;
        Ok(StartSandboxResponse {
            pid,
            created_at: Some(timestamp(created_at)).into(),
            ..Default::default()
        })
    }

    async fn platform(
        &self,
        _: &TtrpcContext,
        request: PlatformRequest,
    ) -> ttrpc::Result<PlatformResponse> {
        self.check(&request.sandbox_id)?;
        Ok(PlatformResponse {
            platform: Some(Platform {
                os: "linux".to_owned(),
                architecture: "amd64".to_owned(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        })
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: StopSandboxRequest,
    ) -> ttrpc::Result<StopSandboxResponse> {
        self.check(&request.sandbox_id)?;
        let pod = Arc::clone(&self.pod);
        to_its_end(async move { pod.end_sandbox().await }).await?;
        Ok(StopSandboxResponse::default())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: WaitSandboxRequest,
    ) -> ttrpc::Result<WaitSandboxResponse> {
        self.check(&request.sandbox_id)?;
        let exit = self.pod.wait_sandbox().await?;
        Ok(WaitSandboxResponse {
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: SandboxStatusRequest,
    ) -> ttrpc::Result<SandboxStatusResponse> {
        self.check(&request.sandbox_id)?;
        let view = self.pod.view_sandbox()?;
        let state = match view.ready {
            true => "SANDBOX_READY",
            false => "SANDBOX_NOTREADY",
        };
        Ok(SandboxStatusResponse {
            sandbox_id: request.sandbox_id,
            pid: view.pid,
            state: state.to_owned(),
            info: match request.verbose {
                true => view.info.into_iter().collect(),
                false => Default::default(),
            },
            created_at: Some(timestamp(view.created_at)).into(),
            exited_at: view.end.map(|exit| timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    async fn ping_sandbox(
        &self,
        _: &TtrpcContext,
        request: PingRequest,
    ) -> ttrpc::Result<PingResponse> {
        self.check(&request.sandbox_id)?;
        self.pod.ping_sandbox()?;
        Ok(PingResponse::default())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: ShutdownSandboxRequest,
    ) -> ttrpc::Result<ShutdownSandboxResponse> {
        self.check(&request.sandbox_id)?;
        let pod = Arc::clone(&self.pod);
        let end = async move {
            pod.end_sandbox().await?;
            pod.end();
            Ok(())
        };
        to_its_end(end).await?;
        Ok(ShutdownSandboxResponse::default())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: SandboxMetricsRequest,
    ) -> ttrpc::Result<SandboxMetricsResponse> {
        self.check(&request.sandbox_id)?;
        let metrics = self.pod.sandbox_metrics().await?;
        let mut response = SandboxMetricsResponse::default();
        let metric = response.metrics.mut_or_insert_default();
        metric.id = request.sandbox_id;
        metric.timestamp = Some(timestamp(SystemTime::now())).into();
        metric.data = Some(any(METRICS_TYPE, &metrics)?).into();
        Ok(response)
    }
}
