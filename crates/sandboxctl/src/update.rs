//! `sandboxctl update`: other limits for containers, running or not.

use std::fs;
use std::path::PathBuf;

use sandbox_protocol::bundle::SPEC_FILE;
use sandbox_runtime::config::{Config, ConfigError};
use sandbox_runtime::files::write_atomically;
use sandbox_types::MachineSizeError;
use serde_json::{Map, Value, json};

use crate::app::{App, AppError};
use crate::cli::UpdateArgs;
use crate::container::{Container, ContainerError, Containers};
use crate::launch::CONFIG_FILE;
use crate::look::{Seen, UnansweringError, look};
use crate::report;
use crate::settings::{self, HostConfig, Settings, SettingsError, nano_cpus};
use crate::settle::{self, SettleError};
use crate::shim::RpcError;
use crate::spec::{self, Limits, SpecError};
use crate::table;
use crate::values::{self, CPU_PERIOD_US};

/// Why limits stay as they are.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpdateError {
    #[error(transparent)]
    App(#[from] AppError),
    #[error(transparent)]
    Settle(#[from] SettleError),
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// They contradict each other, or what is not changed.
    #[error(transparent)]
    Limits(#[from] SpecError),
    /// No machine has that size.
    #[error("--memory asks for a virtual machine that cannot be made")]
    MachineSize(#[from] MachineSizeError),
    #[error(transparent)]
    Unanswering(#[from] UnansweringError),
    /// Nothing is asked for.
    #[error("nothing is to be changed; give a limit, such as --memory 256m")]
    Nothing,
    /// More memory than memory and swap.
    #[error(
        "--memory is above the container's limit of memory and swap together, {limit} bytes; give --memory-swap as well"
    )]
    MemoryAboveSwap { limit: i64 },
    #[error("cannot change the limits of container {name}")]
    Shim { name: String, source: RpcError },
    #[error("cannot change {}", path.display())]
    Files {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{} is damaged; remove the container with `sandboxctl rm -f`", path.display())]
    Damaged {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error(transparent)]
    Several(#[from] report::Several),
}

/// Changes the limits of containers.
pub(crate) async fn update(app: &App, args: &UpdateArgs) -> Result<(), UpdateError> {
    if resources(args).is_empty() && args.restart.is_none() {
        return Err(UpdateError::Nothing);
    }
    let containers = app.containers()?;
    let mut failures = Vec::new();
    for wanted in &args.containers {
        match one(app, &containers, wanted, args).await {
            Ok(()) => table::line(wanted),
            Err(error) => failures.push(error),
        }
    }
    report::conclude(
        failures,
        args.containers.len(),
        "containers were not changed",
    )
}

async fn one(
    app: &App,
    containers: &Containers,
    wanted: &str,
    args: &UpdateArgs,
) -> Result<(), UpdateError> {
    let container = settle::find(app, containers, wanted).await?;
    changed(&container, args)?;
    let resources = Value::Object(resources(args));
    let (seen, shim) = look(&container).await;
    if matches!(seen, Seen::Unanswering { .. }) {
        let name = container.record.name.to_string();
        return Err(UnansweringError { name }.into());
    }
    if let (Seen::Running { .. } | Seen::Paused, Some(shim)) = (&seen, shim) {
        shim.tasks
            .update(
                container.record.id.as_str(),
                resources.to_string().into_bytes(),
            )
            .await
            .map_err(|source| UpdateError::Shim {
                name: container.record.name.to_string(),
                source,
            })?;
    }
    // As they are now: another may have changed them meanwhile.
    containers.while_none_comes_or_goes(|_| {
        let settings = changed(&container, args)?;
        rewrite(&container, &resources)?;
        Ok(settings.save(&container.folder)?)
    })?
}

/// The container's settings with what is to change, if it can be started with them.
fn changed(container: &Container, args: &UpdateArgs) -> Result<Settings, UpdateError> {
    let mut settings = Settings::load(&container.folder)?;
    let limit = settings.host_config.memory_swap;
    if let (Some(memory), None) = (args.memory, args.memory_swap)
        && limit > 0
        && memory > limit.unsigned_abs()
    {
        return Err(UpdateError::MemoryAboveSwap { limit });
    }
    note(&mut settings.host_config, args);
    let host = &settings.host_config;
    let set = |bytes: u64| (bytes > 0).then_some(bytes);
    let list = values::cpu_list(&host.cpuset_cpus).ok();
    let limits = Limits {
        memory: set(host.memory),
        memory_swap: Some(host.memory_swap),
        memory_reservation: set(host.memory_reservation),
        cpus: (host.nano_cpus > 0).then(|| settings::quota(host.nano_cpus)),
        cpuset_cpus: list.as_ref(),
    };
    limits.check()?;
    if let Some(bytes) = limits.memory {
        let config = Config::from_file(&container.folder.join(CONFIG_FILE))?;
        spec::machine_memory(bytes, config.memory_overhead_mib)?;
    }
    Ok(settings)
}

/// `linux.resources` of the OCI runtime spec with what is to change, and nothing else.
fn resources(args: &UpdateArgs) -> Map<String, Value> {
    let mut memory = Map::new();
    let mut cpu = Map::new();
    let mut all = Map::new();
    if let Some(limit) = args.memory {
        memory.insert("limit".to_owned(), limit.into());
    }
    if let Some(swap) = args.memory_swap {
        memory.insert("swap".to_owned(), swap.into());
    }
    if let Some(kept) = args.memory_reservation {
        memory.insert("reservation".to_owned(), kept.into());
    }
    if let Some(quota) = args.cpus {
        cpu.insert("quota".to_owned(), quota.into());
        cpu.insert("period".to_owned(), CPU_PERIOD_US.into());
    }
    if let Some(shares) = args.cpu_shares {
        cpu.insert("shares".to_owned(), shares.into());
    }
    if let Some(list) = &args.cpuset_cpus {
        cpu.insert("cpus".to_owned(), list.as_str().into());
    }
    if let Some(limit) = args.pids_limit {
        // docker takes 0 and -1 for no limit.
        let limit = if limit > 0 { limit } else { -1 };
        all.insert("pids".to_owned(), json!({ "limit": limit }));
    }
    if !memory.is_empty() {
        all.insert("memory".to_owned(), memory.into());
    }
    if !cpu.is_empty() {
        all.insert("cpu".to_owned(), cpu.into());
    }
    all
}

fn note(host: &mut HostConfig, args: &UpdateArgs) {
    if let Some(limit) = args.memory {
        host.memory = limit;
    }
    if let Some(swap) = args.memory_swap {
        host.memory_swap = swap;
    }
    if let Some(kept) = args.memory_reservation {
        host.memory_reservation = kept;
    }
    if let Some(quota) = args.cpus {
        host.nano_cpus = nano_cpus(quota);
    }
    if let Some(shares) = args.cpu_shares {
        host.cpu_shares = shares;
    }
    if let Some(list) = &args.cpuset_cpus {
        list.as_str().clone_into(&mut host.cpuset_cpus);
    }
    if let Some(limit) = args.pids_limit {
        host.pids_limit = Some(limit).filter(|limit| *limit > 0);
    }
}

/// Puts the limits into the container's OCI configuration, after which it is started the next time.
fn rewrite(container: &Container, resources: &Value) -> Result<(), UpdateError> {
    let path = container.folder.join(SPEC_FILE);
    let files = |source| UpdateError::Files {
        path: path.clone(),
        source,
    };
    let damaged = |source| UpdateError::Damaged {
        path: path.clone(),
        source,
    };
    let mut spec: Value =
        serde_json::from_slice(&fs::read(&path).map_err(files)?).map_err(damaged)?;
    merge(&mut spec["linux"]["resources"], resources);
    let text = serde_json::to_vec(&spec).map_err(damaged)?;
    write_atomically(&path, &text).map_err(files)
}

/// Objects member by member; anything else takes the place of what was there.
fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values;

    fn args() -> UpdateArgs {
        UpdateArgs {
            memory: None,
            memory_swap: None,
            memory_reservation: None,
            cpus: None,
            cpu_shares: None,
            cpuset_cpus: None,
            pids_limit: None,
            restart: None,
            containers: Vec::new(),
        }
    }

    #[test]
    fn only_what_is_asked_for_changes() {
        let args = UpdateArgs {
            memory: Some(64 << 20),
            cpus: Some(150_000),
            cpuset_cpus: Some(values::cpu_list("0").unwrap()),
            pids_limit: Some(-1),
            ..args()
        };
        assert_eq!(
            Value::Object(resources(&args)),
            json!({
                "memory": {"limit": 64 << 20},
                "cpu": {"quota": 150_000, "period": 100_000, "cpus": "0"},
                "pids": {"limit": -1},
            })
        );
    }

    #[test]
    fn limits_are_merged_into_those_that_are_there() {
        let mut spec = json!({"memory": {"limit": 1, "swap": 2}, "devices": [1]});
        merge(
            &mut spec,
            &json!({"memory": {"limit": 3}, "pids": {"limit": 4}}),
        );
        assert_eq!(
            spec,
            json!({"memory": {"limit": 3, "swap": 2}, "devices": [1], "pids": {"limit": 4}})
        );
    }
}
