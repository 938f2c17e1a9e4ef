//! `sandboxctl version` and `sandboxctl info`.

use std::fs;

use sandbox_runtime::config::ConfigError;
use sandbox_runtime::host;
use serde_json::{Value, json};

use crate::app::{App, AppError};
use crate::cli::FormatArgs;
use crate::format;
use crate::look::{Seen, look};
use crate::table;
use crate::template::{self, TemplateError};

/// Why nothing can be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InfoError {
    #[error(transparent)]
    App(#[from] AppError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot print it as --format says")]
    Format(#[from] TemplateError),
}

/// What this program is.
pub(crate) fn version(args: &FormatArgs) -> Result<(), InfoError> {
    let client = json!({
        "Version": env!("CARGO_PKG_VERSION"),
        "Os": std::env::consts::OS,
        "Arch": architecture(),
        "TaskAPI": "containerd.task.v2",
        "OCIRuntimeSpec": crate::spec::OCI_VERSION,
    });
    match &args.format {
        None => people("Client", &client),
        format => format::print_one(format.as_ref(), &json!({ "Client": client }))?,
    }
    Ok(())
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        other => other,
    }
}

/// What this installation is, and what it has.
pub(crate) async fn info(app: &App, args: &FormatArgs) -> Result<(), InfoError> {
    let config = app.configuration()?;
    let (mut running, mut paused, mut stopped) = (0, 0, 0);
    let containers = app.containers()?.list().map_err(AppError::from)?;
    for container in &containers {
        match look(container).await.0 {
            Seen::Running { .. } | Seen::Unanswering { .. } => running += 1,
            Seen::Paused => paused += 1,
            _ => stopped += 1,
        }
    }
    let listing = app.store()?.list().map_err(AppError::from)?;
    let images = listing.images.len() + listing.damaged.len();
    let (driver, problem) = match host::choose_driver(&config) {
        Ok((driver, notice)) => (driver.to_string(), notice.unwrap_or_default()),
        Err(error) => (String::new(), error.to_string()),
    };
    let read = |path: &str| {
        fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let name_of_system = read("/etc/os-release")
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map(|name| name.trim_matches('"').to_owned())
        .unwrap_or_default();
    let memory = read("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .unwrap_or(0)
        .saturating_mul(1024);
    let value = json!({
        "Containers": containers.len(),
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": stopped,
        "Images": images,
        "ServerVersion": env!("CARGO_PKG_VERSION"),
        "RootDir": app.root().display().to_string(),
        "RunDir": config.run_dir.display().to_string(),
        "Hypervisor": driver,
        "HypervisorNote": problem,
        "GuestKernel": config.kernel_path()?.display().to_string(),
        "GuestMemory": u64::from(config.memory_mib) << 20,
        "GuestVcpus": config.vcpus,
        "SecurityOptions": ["name=seccomp,profile=builtin", "name=virtual-machine"],
        "KernelVersion": read("/proc/sys/kernel/osrelease"),
        "OperatingSystem": name_of_system,
        "OSType": std::env::consts::OS,
        "Architecture": std::env::consts::ARCH,
        "NCPU": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "MemTotal": memory,
    });
    match &args.format {
        None => people("Installation", &value),
        format => format::print_one(format.as_ref(), &value)?,
    }
    Ok(())
}

/// A heading, and a line for each member.
fn people(heading: &str, value: &Value) {
    table::line(&format!("{heading}:"));
    for (name, value) in value.as_object().into_iter().flatten() {
        let shown = table::one_line(&template::show(value));
        table::line(format!(" {name}: {shown}").trim_end());
    }
}
