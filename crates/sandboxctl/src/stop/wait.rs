//! `sandboxctl wait`: the exit codes of containers.

use super::hold::until_ended;
use super::{StopError, conclude};
use crate::app::App;
use crate::cli::NamesArgs;
use crate::container::{Containers, Status};
use crate::look::KILLED;
use crate::settle;
use crate::table;

/// Waits for containers to end, and prints their exit codes.
pub(crate) async fn wait(app: &App, args: &NamesArgs) -> Result<(), StopError> {
    let containers = app.containers()?;
    let mut failures = Vec::new();
    for wanted in &args.containers {
        match wait_one(app, &containers, wanted).await {
            Ok(code) => table::line(&code.to_string()),
            Err(error) => failures.push(error),
        }
    }
    conclude(failures, args.containers.len(), "waited for")
}

async fn wait_one(app: &App, containers: &Containers, wanted: &str) -> Result<i32, StopError> {
    let container = settle::find(app, containers, wanted).await?;
    let outcome = match &container.record.status {
        Status::Creating | Status::Running { .. } => until_ended(&container).await,
        _ => None,
    };
    let said = outcome.map_or(KILLED, |outcome| match outcome.error {
        Some(_) => KILLED,
        None => outcome.code.into(),
    });
    // One that removes itself is gone by now.
    let Some(container) = container.reload() else {
        return Ok(said);
    };
    let settled = settle::settle(app, containers, container).await?;
    Ok(match settled.map(|container| container.record.status) {
        Some(Status::Exited { code, .. }) => code,
        Some(Status::Failed { code, .. }) => code,
        Some(Status::Created) => 0,
        Some(Status::Creating | Status::Running { .. }) | None => said,
    })
}
