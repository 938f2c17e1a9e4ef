//! The calls that look at a container or change its limits, and those that run a program of the agent's own in it.

use std::path::Path;

use containerd_shim_protos::api;
use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use sandbox_protocol::details::ProcessDetails;
use sandbox_protocol::extensions::EXEC_PROGRAM_TYPE;

use super::{RpcError, RpcFailure, Tasks, brief, failed, patient};

/// What containerd calls `linux.resources` of the OCI runtime spec.
const RESOURCES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// A process of a container.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ProcessInfo {
    /// As the guest numbers it.
    pub(crate) pid: u32,
    pub(crate) details: ProcessDetails,
}

fn malformed(
    call: &'static str,
) -> impl FnOnce(containerd_shim_protos::protobuf::Error) -> RpcError {
    move |error| RpcError {
        call,
        failure: RpcFailure::Refused,
        message: format!("its answer cannot be read: {error}"),
    }
}

/// The fifos of a program of the agent's; empty paths are not there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProgramStreams<'a> {
    pub(crate) stdin: Option<&'a Path>,
    pub(crate) stdout: Option<&'a Path>,
    pub(crate) stderr: &'a Path,
}

impl Tasks {
    /// What the container uses and may use.
    pub(crate) async fn stats(&self, id: &str) -> Result<Metrics, RpcError> {
        const CALL: &str = "tell what the container uses";
        let request = api::StatsRequest {
            id: id.to_owned(),
            ..api::StatsRequest::default()
        };
        let answer = self
            .client
            .stats(brief(), &request)
            .await
            .map_err(failed(CALL))?;
        let bytes = answer.stats.into_option().unwrap_or_default().value;
        Metrics::parse_from_bytes(&bytes).map_err(malformed(CALL))
    }

    /// The container's processes, as the guest describes them. The shim knows their machine without it, which is none of them.
    pub(crate) async fn processes(&self, id: &str) -> Result<Vec<ProcessInfo>, RpcError> {
        const CALL: &str = "list the container's processes";
        let request = api::PidsRequest {
            id: id.to_owned(),
            ..api::PidsRequest::default()
        };
        let answer = self
            .client
            .pids(brief(), &request)
            .await
            .map_err(failed(CALL))?;
        answer
            .processes
            .into_iter()
            .map(|process| {
                let Some(info) = process.info.into_option() else {
                    return Err(RpcError {
                        call: CALL,
                        failure: RpcFailure::Refused,
                        message: "the virtual machine does not say what runs in it; try again, \
                                  and if it stays so see `sandboxctl logs` and stop the container"
                            .to_owned(),
                    });
                };
                let bytes = info.value;
                Ok(ProcessInfo {
                    pid: process.pid,
                    details: ProcessDetails::parse_from_bytes(&bytes).map_err(malformed(CALL))?,
                })
            })
            .collect()
    }

    /// Changes limits; `resources` is `linux.resources` of the OCI runtime spec, in JSON.
    pub(crate) async fn update(&self, id: &str, resources: Vec<u8>) -> Result<(), RpcError> {
        let request = api::UpdateTaskRequest {
            id: id.to_owned(),
            resources: Some(Any {
                type_url: RESOURCES_TYPE.to_owned(),
                value: resources,
                ..Any::default()
            })
            .into(),
            ..api::UpdateTaskRequest::default()
        };
        self.client
            .update(brief(), &request)
            .await
            .map(drop)
            .map_err(failed("change the container's limits"))
    }

    /// Adds a process to the container that is a program of the agent's own, and starts it. `process` is its
    /// `process` object, in JSON.
    pub(crate) async fn run_program(
        &self,
        id: &str,
        exec: &str,
        program: &str,
        process: Vec<u8>,
        streams: ProgramStreams<'_>,
    ) -> Result<(), RpcError> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let request = api::ExecProcessRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            stdin: streams.stdin.map(text).unwrap_or_default(),
            stdout: streams.stdout.map(text).unwrap_or_default(),
            stderr: text(streams.stderr),
            spec: Some(Any {
                type_url: format!("{EXEC_PROGRAM_TYPE}{program}"),
                value: process,
                ..Any::default()
            })
            .into(),
            ..api::ExecProcessRequest::default()
        };
        self.client
            .exec(patient(), &request)
            .await
            .map_err(failed("add a process to the container"))?;
        self.start(id, exec).await
    }

    /// Waits for the program's end and removes it; gives its exit code.
    pub(crate) async fn conclude_program(&self, id: &str, exec: &str) -> Result<u32, RpcError> {
        let status = self.wait(id, exec).await?;
        self.delete(id, exec).await?;
        Ok(status)
    }
}
