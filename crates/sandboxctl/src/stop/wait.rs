//! `sandboxctl wait`: the exit codes of containers.
//!
//! The attendant tells the code to whoever is attached to it in the end. Who came too late for that finds it in the container's state,
//! or, once the container is gone, in the journal.

use super::hold::until_ended;
use super::{StopError, conclude};
use crate::app::App;
use crate::attach::protocol::Outcome;
use crate::cli::NamesArgs;
use crate::container::{Container, ContainerError, Containers, Status, now};
use crate::run::RunError;
use crate::settle::{self, SettleError};
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
    let container = match settle::find(app, containers, wanted).await {
        // It may have removed itself before we came.
        Err(SettleError::Container(error @ ContainerError::NotFound { .. })) => {
            return app.journal().exit_code(wanted, 0).ok_or(error.into());
        }
        found => found?,
    };
    // An end before that is not the one that is waited for.
    let since = match container.record.status {
        Status::Running { started } => started,
        _ => now(),
    };
    let outcome = match container.record.status.is_live() {
        true => until_ended(&container).await,
        false => None,
    };
    exit_code(app, containers, container, outcome, since).await
}

/// What a container has ended with that was waited for, by what its attendant said, if it did, and else by what was written down
/// since then.
async fn exit_code(
    app: &App,
    containers: &Containers,
    container: Container,
    outcome: Option<Outcome>,
    since: u64,
) -> Result<i32, StopError> {
    let failure = match outcome {
        Some(Outcome {
            code, error: None, ..
        }) => return Ok(code.into()),
        Some(Outcome {
            code,
            error: Some(said),
            ..
        }) => Some(RunError::Attendant { said, code }),
        None => None,
    };
    let (id, name) = (container.record.id.clone(), container.record.name.clone());
    if let Some(container) = container.reload()
        && let Some(container) = settle::settle(app, containers, container).await?
    {
        match container.record.status {
            Status::Exited { code, .. } | Status::Failed { code, .. } => return Ok(code),
            Status::Created => return Ok(0),
            // Somebody has started it again.
            Status::Creating | Status::Running { .. } => {}
        }
    }
    if let Some(code) = app.journal().exit_code(id.as_str(), since) {
        return Ok(code);
    }
    Err(match failure {
        Some(error) => Box::new(error).into(),
        None => StopError::NoExitCode {
            name: name.to_string(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::Attended;
    use crate::settle::AnonymousVolumes;

    fn app() -> (tempfile::TempDir, App, Containers) {
        let root = tempfile::tempdir().unwrap();
        let app = App::new(root.path(), None).unwrap();
        let containers = app.containers().unwrap();
        (root, app, containers)
    }

    fn running(containers: &Containers) -> Attended {
        let mut attended = crate::container::tests::made(containers);
        let status = Status::Running { started: 1 };
        attended.update(|record| record.status = status).unwrap();
        attended
    }

    #[tokio::test]
    async fn who_was_not_told_finds_what_is_written() {
        let (_root, app, containers) = app();
        let mut attended = running(&containers);
        let name = attended.container.record.name.to_string();
        let waiting = tokio::spawn(async move { wait_one(&app, &containers, &name).await });
        tokio::task::yield_now().await;
        let ended = Status::Exited {
            code: 0,
            finished: 2,
        };
        attended.update(|record| record.status = ended).unwrap();
        drop(attended);
        assert_eq!(waiting.await.unwrap().unwrap(), 0);
    }

    #[tokio::test]
    async fn code_of_a_container_that_is_gone_is_in_the_journal_or_unknown() {
        let (_root, app, containers) = app();
        let attended = running(&containers);
        let container = attended.container.clone();
        settle::remove(&app, &containers, &attended, AnonymousVolumes::Removed).unwrap();
        let ask = || exit_code(&app, &containers, container.clone(), None, 1);
        let error = ask().await.unwrap_err();
        assert!(matches!(error, StopError::NoExitCode { .. }), "{error}");
        let code = [("exitCode", "0".to_owned())];
        app.journal().note(&container.record, "die", &code);
        assert_eq!(ask().await.unwrap(), 0);
        // Also for who comes only now, and knows its identifier.
        let id = container.record.id.as_str();
        assert_eq!(wait_one(&app, &containers, id).await.unwrap(), 0);
        assert!(wait_one(&app, &containers, "other").await.is_err());
    }
}
