//! `sandboxctl port`.

use crate::app::{App, AppError};
use crate::cli::PortArgs;
use crate::network::{Attached, NetworkError};
use crate::table;
use crate::values::ports::Published;

/// Why nothing can be listed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PortError {
    #[error(transparent)]
    App(#[from] AppError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// It is not there.
    #[error("port {port} of container {name} is not published; see `sandboxctl port {name}`")]
    NotPublished { port: String, name: String },
}

/// Where a published port can be reached.
fn place(port: &Published) -> String {
    let text = port.to_string();
    text.split_once("->")
        .map_or(String::new(), |(place, _)| place.to_owned())
}

/// Lists what is published while the container runs.
pub(crate) fn port(app: &App, args: &PortArgs) -> Result<(), PortError> {
    let containers = app.containers()?;
    let container = containers.find(&args.container).map_err(AppError::from)?;
    let attached = Attached::load(&container.folder)?;
    let ports = attached.as_ref().map_or(&[][..], Attached::ports);
    let Some(wanted) = &args.port else {
        for port in ports {
            table::line(&format!(
                "{}/{} -> {}",
                port.container,
                port.protocol,
                place(port)
            ));
        }
        return Ok(());
    };
    let (number, protocol) = wanted.split_once('/').unwrap_or((wanted, "tcp"));
    let found: Vec<&Published> = ports
        .iter()
        .filter(|port| port.container.to_string() == number && port.protocol == protocol)
        .collect();
    if found.is_empty() {
        return Err(PortError::NotPublished {
            port: wanted.clone(),
            name: container.record.name.to_string(),
        });
    }
    for port in found {
        table::line(&place(port));
    }
    Ok(())
}
