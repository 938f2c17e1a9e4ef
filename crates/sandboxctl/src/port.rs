//! `sandboxctl port`.

use crate::app::{App, AppError};
use crate::cli::PortArgs;

/// Why nothing can be listed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PortError {
    #[error(transparent)]
    App(#[from] AppError),
    /// It is not there.
    #[error(
        "port {port} of container {name} is not published; containers have only a loopback interface yet"
    )]
    NotPublished { port: String, name: String },
}

/// Lists what is published: nothing, because there is no network to publish it on.
pub(crate) fn port(app: &App, args: &PortArgs) -> Result<(), PortError> {
    let containers = app.containers()?;
    let container = containers.find(&args.container).map_err(AppError::from)?;
    match &args.port {
        None => Ok(()),
        Some(port) => Err(PortError::NotPublished {
            port: port.clone(),
            name: container.record.name.to_string(),
        }),
    }
}
