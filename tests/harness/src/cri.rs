//! A client of containerd's CRI plugin, as Kubernetes' kubelet is one: gRPC (HTTP/2) on containerd's Unix socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use h2::client::SendRequest;
use protobuf::{EnumOrUnknown, Message, MessageField};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use self::api::{
    ContainerConfig, ContainerMetadata, ContainerRequest, ContainerState, ContainerStatsResponse,
    ContainerStatus, ContainerStatusResponse, CreateContainerRequest, CreateContainerResponse,
    Empty, ExecSyncRequest, ExecSyncResponse, ImageSpec, ImageStatusRequest, ImageStatusResponse,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, PodSandboxRequest, PodSandboxStatus,
    PodSandboxStatusResponse, RunPodSandboxRequest, RunPodSandboxResponse, StopContainerRequest,
};
use crate::process::wait_until;

mod stream;

pub use self::stream::{End, Stream};

/// The messages.
pub mod api {
    #![allow(
        missing_docs,
        nonstandard_style,
        unused,
        unsafe_code,
        unreachable_pub,
        clippy::all,
        clippy::pedantic,
        clippy::unwrap_used,
        clippy::allow_attributes_without_reason,
        reason = "generated"
    )]
    include!(concat!(env!("OUT_DIR"), "/cri.rs"));
}

/// By which runtime class the pods are made.
pub const HANDLER: &str = "sandbox";
/// The largest answer that is read, in bytes.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// A connection to the CRI plugin.
pub struct Cri {
    runtime: Runtime,
    requests: SendRequest<bytes::Bytes>,
    limit: Duration,
}

/// A pod, and how it was asked for.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its identifier.
    pub id: String,
    /// What was asked for; its containers are asked for with it too.
    pub config: PodSandboxConfig,
    logs: PathBuf,
}

impl Pod {
    /// What a container of this name has logged, without times and tags.
    #[must_use]
    pub fn log(&self, container: &str) -> String {
        let text = std::fs::read_to_string(self.logs.join(container)).unwrap_or_default();
        text.lines()
            // "2016-10-06T00:17:09.669794202Z stdout F text"
            .filter_map(|line| line.splitn(4, ' ').nth(3))
            .flat_map(|line| [line, "\n"])
            .collect()
    }
}

impl Cri {
    /// Connects, and waits until the plugin is there.
    ///
    /// # Errors
    /// When nothing answers there.
    pub fn connect(socket: &Path, limit: Duration) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let requests = runtime.block_on(async {
            let stream = UnixStream::connect(socket)
                .await
                .with_context(|| format!("cannot connect to {}", socket.display()))?;
            let (requests, connection) = h2::client::handshake(stream).await?;
            tokio::spawn(connection);
            anyhow::Ok(requests)
        })?;
        let cri = Self {
            runtime,
            requests,
            limit,
        };
        // containerd answers before the plugin has looked at what runs.
        let mut last = String::new();
        wait_until("the CRI plugin", limit, || {
            let answer: Result<Empty> = cri.call("RuntimeService/Status", &Empty::default());
            answer.map_err(|error| last = error.to_string()).ok()
        })
        .with_context(|| last)?;
        Ok(cri)
    }

    /// Calls a method, such as `RuntimeService/Version`.
    ///
    /// # Errors
    /// With the status that came back, or when nothing came in time.
    pub fn call<Answer: Message>(&self, method: &str, request: &impl Message) -> Result<Answer> {
        let call = async {
            let mut body = vec![0];
            let message = request.write_to_bytes()?;
            body.extend(u32::try_from(message.len())?.to_be_bytes());
            body.extend(message);
            let head = http::Request::post(format!("http://cri/runtime.v1.{method}"))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(())?;
            let mut requests = self.requests.clone().ready().await?;
            let (answer, mut stream) = requests.send_request(head, false)?;
            stream.send_data(body.into(), true)?;
            let (head, mut body) = answer.await?.into_parts();
            let mut bytes = Vec::new();
            while let Some(chunk) = body.data().await {
                let chunk = chunk?;
                body.flow_control().release_capacity(chunk.len())?;
                bytes.extend_from_slice(&chunk);
                ensure!(bytes.len() <= MAX_ANSWER_BYTES, "the answer does not end");
            }
            let trailers = body.trailers().await?.unwrap_or(head.headers);
            let text = |name: &str| {
                trailers
                    .get(name)
                    .and_then(|value| value.to_str().ok())
                    .unwrap_or("none")
                    .to_owned()
            };
            ensure!(
                text("grpc-status") == "0",
                "{method}: status {}: {}",
                text("grpc-status"),
                text("grpc-message")
            );
            // A byte that says whether it is compressed, and four of the length.
            let message = bytes.get(5..).context("an answer without a message")?;
            anyhow::Ok(Answer::parse_from_bytes(message)?)
        };
        let answer = self
            .runtime
            .block_on(async { tokio::time::timeout(self.limit, call).await });
        match answer {
            Ok(answer) => answer,
            Err(_) => bail!("{method}: no answer within {:?}", self.limit),
        }
    }

    /// Waits until the plugin knows an image.
    ///
    /// # Errors
    /// When it does not come to know it.
    pub fn wait_for_image(&self, name: &str) -> Result<()> {
        let request = ImageStatusRequest {
            image: MessageField::some(image(name)),
            ..Default::default()
        };
        wait_until(&format!("the image {name}"), self.limit, || {
            let answer = self.call("ImageService/ImageStatus", &request);
            match answer {
                Ok(answer) => {
                    let answer: ImageStatusResponse = answer;
                    answer.image.is_some().then_some(Ok(()))
                }
                // No such service: it does not come any more.
                Err(error) => Some(Err(error)),
            }
        })?
    }

    /// Runs a pod in the host's network, which needs no CNI, with its logs in `logs`.
    ///
    /// # Errors
    /// With what the plugin said.
    pub fn run_pod(
        &self,
        name: &str,
        logs: &Path,
        change: impl FnOnce(&mut PodSandboxConfig),
    ) -> Result<Pod> {
        let metadata = PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "test".to_owned(),
            ..Default::default()
        };
        let context = LinuxSandboxSecurityContext {
            namespace_options: MessageField::some(namespaces(NamespaceMode::CONTAINER)),
            ..Default::default()
        };
        let linux = LinuxPodSandboxConfig {
            security_context: MessageField::some(context),
            ..Default::default()
        };
        let logs = logs.join(name);
        std::fs::create_dir_all(&logs)?;
        let mut config = PodSandboxConfig {
            metadata: MessageField::some(metadata),
            log_directory: logs.display().to_string(),
            linux: MessageField::some(linux),
            ..Default::default()
        };
        change(&mut config);
        let request = RunPodSandboxRequest {
            config: MessageField::some(config.clone()),
            runtime_handler: HANDLER.to_owned(),
            ..Default::default()
        };
        let answer: RunPodSandboxResponse = self.call("RuntimeService/RunPodSandbox", &request)?;
        Ok(Pod {
            id: answer.pod_sandbox_id,
            config,
            logs,
        })
    }

    /// Makes a container of a pod, and starts it. Its identifier.
    ///
    /// # Errors
    /// With what the plugin said.
    pub fn run_container(
        &self,
        pod: &Pod,
        name: &str,
        image_name: &str,
        command: &[&str],
        change: impl FnOnce(&mut ContainerConfig),
    ) -> Result<String> {
        let id = self.create_container(pod, name, image_name, command, change)?;
        self.start_container(&id)?;
        Ok(id)
    }

    /// Makes a container of a pod. Its identifier.
    ///
    /// # Errors
    /// With what the plugin said.
    pub fn create_container(
        &self,
        pod: &Pod,
        name: &str,
        image_name: &str,
        command: &[&str],
        change: impl FnOnce(&mut ContainerConfig),
    ) -> Result<String> {
        let metadata = ContainerMetadata {
            name: name.to_owned(),
            ..Default::default()
        };
        let mut config = ContainerConfig {
            metadata: MessageField::some(metadata),
            image: MessageField::some(image(image_name)),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            log_path: name.to_owned(),
            ..Default::default()
        };
        let of_pod = &pod.config.linux.security_context.namespace_options;
        let context = &mut config.linux.mut_or_insert_default().security_context;
        context.mut_or_insert_default().namespace_options = of_pod.clone();
        change(&mut config);
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: MessageField::some(config),
            sandbox_config: MessageField::some(pod.config.clone()),
            ..Default::default()
        };
        let answer: CreateContainerResponse =
            self.call("RuntimeService/CreateContainer", &request)?;
        Ok(answer.container_id)
    }

    /// Starts a container.
    ///
    /// # Errors
    /// With what the plugin said.
    pub fn start_container(&self, id: &str) -> Result<()> {
        self.call::<Empty>("RuntimeService/StartContainer", &container(id))?;
        Ok(())
    }

    /// Runs a command in a container to its end.
    ///
    /// # Errors
    /// With what the plugin said, or the command if it fails.
    pub fn exec(&self, id: &str, command: &[&str]) -> Result<String> {
        let answer = self.try_exec(id, command)?;
        let stdout = String::from_utf8_lossy(&answer.stdout).into_owned();
        ensure!(
            answer.exit_code == 0,
            "{command:?} ended with {}: {stdout}{}",
            answer.exit_code,
            String::from_utf8_lossy(&answer.stderr)
        );
        Ok(stdout)
    }

    /// Runs a command in a container, whatever becomes of it.
    ///
    /// # Errors
    /// With what the plugin said.
    pub fn try_exec(&self, id: &str, command: &[&str]) -> Result<ExecSyncResponse> {
        let request = ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            ..Default::default()
        };
        self.call("RuntimeService/ExecSync", &request)
    }

    /// What is known of a container.
    ///
    /// # Errors
    /// With what the plugin said.
    pub fn status(&self, id: &str) -> Result<ContainerStatus> {
        let answer: ContainerStatusResponse =
            self.call("RuntimeService/ContainerStatus", &container(id))?;
        answer.status.into_option().context("no status")
    }

    /// Waits until a container has ended.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait_for_end(&self, id: &str) -> Result<ContainerStatus> {
        let ended = EnumOrUnknown::new(ContainerState::CONTAINER_EXITED);
        wait_until(&format!("the end of {id}"), self.limit, || {
            self.status(id).ok().filter(|status| status.state == ended)
        })
    }

    /// Whether a pod is ready.
    ///
    /// # Errors
    /// With what the plugin said.
    pub fn is_ready(&self, pod: &Pod) -> Result<bool> {
        Ok(self.pod_status(pod)?.state == 0)
    }

    /// The pod's address on its network; empty when it has none.
    ///
    /// # Errors
    /// With what the plugin said.
    pub fn address(&self, pod: &Pod) -> Result<String> {
        Ok(self.pod_status(pod)?.network.ip.clone())
    }

    fn pod_status(&self, pod: &Pod) -> Result<PodSandboxStatus> {
        let mut answer: PodSandboxStatusResponse =
            self.call("RuntimeService/PodSandboxStatus", &sandbox(&pod.id))?;
        Ok(answer.status.take().unwrap_or_default())
    }

    /// What a container uses.
    ///
    /// # Errors
    /// With what the plugin said.
    pub fn stats(&self, id: &str) -> Result<ContainerStatsResponse> {
        self.call("RuntimeService/ContainerStats", &container(id))
    }

    /// Stops a container, killing it after `seconds`.
    ///
    /// # Errors
    /// With what the plugin said.
    pub fn stop_container(&self, id: &str, seconds: i64) -> Result<()> {
        let request = StopContainerRequest {
            container_id: id.to_owned(),
            timeout: seconds,
            ..Default::default()
        };
        self.call::<Empty>("RuntimeService/StopContainer", &request)?;
        Ok(())
    }

    /// Removes a container.
    ///
    /// # Errors
    /// With what the plugin said.
    pub fn remove_container(&self, id: &str) -> Result<()> {
        self.call::<Empty>("RuntimeService/RemoveContainer", &container(id))?;
        Ok(())
    }

    /// Stops a pod with everything in it.
    ///
    /// # Errors
    /// With what the plugin said.
    pub fn stop_pod(&self, pod: &Pod) -> Result<()> {
        self.call::<Empty>("RuntimeService/StopPodSandbox", &sandbox(&pod.id))?;
        Ok(())
    }

    /// Removes a pod with everything in it.
    ///
    /// # Errors
    /// With what the plugin said.
    pub fn remove_pod(&self, pod: &Pod) -> Result<()> {
        self.call::<Empty>("RuntimeService/RemovePodSandbox", &sandbox(&pod.id))?;
        Ok(())
    }
}

fn image(name: &str) -> ImageSpec {
    ImageSpec {
        image: name.to_owned(),
        ..Default::default()
    }
}

fn container(id: &str) -> ContainerRequest {
    ContainerRequest {
        container_id: id.to_owned(),
        ..Default::default()
    }
}

fn sandbox(id: &str) -> PodSandboxRequest {
    PodSandboxRequest {
        pod_sandbox_id: id.to_owned(),
        ..Default::default()
    }
}

/// The host's network, the pod's ipc namespace, and pid namespaces of this kind.
#[must_use]
pub fn namespaces(pid: NamespaceMode) -> NamespaceOption {
    NamespaceOption {
        network: EnumOrUnknown::new(NamespaceMode::NODE),
        pid: EnumOrUnknown::new(pid),
        ..Default::default()
    }
}
