//! `sandboxctl ps`.

use serde_json::{Value, json};

use crate::app::{App, AppError};
use crate::cli::PsArgs;
use crate::container::{Container, now};
use crate::filter::{self, Others};
use crate::format::{self, Column, LABEL};
use crate::look::{Seen, look};
use crate::names;
use crate::network::Attached;
use crate::report;
use crate::settings::Settings;
use crate::settle::{self, SettleError};
use crate::table;
use crate::template::TemplateError;
use crate::time;

/// Why containers cannot be listed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PsError {
    #[error(transparent)]
    App(#[from] AppError),
    #[error(transparent)]
    Settle(#[from] SettleError),
    #[error("cannot print the list as --format says")]
    Format(#[from] TemplateError),
}

/// docker's fields.
const COLUMNS: [Column; 14] = [
    Column::usual("ID", "CONTAINER ID"),
    Column::usual("Image", "IMAGE"),
    Column::usual("Command", "COMMAND"),
    Column::usual("RunningFor", "CREATED"),
    Column::usual("Status", "STATUS"),
    Column::usual("Ports", "PORTS"),
    Column::usual("Names", "NAMES"),
    Column::on_demand("CreatedAt", "CREATED AT"),
    Column::on_demand("Labels", "LABELS"),
    Column::on_demand("LocalVolumes", "LOCAL VOLUMES"),
    Column::on_demand("Mounts", "MOUNTS"),
    Column::on_demand("Networks", "NETWORKS"),
    Column::on_demand("Size", "SIZE"),
    Column::on_demand("State", "STATE"),
];

/// Lists containers.
pub(crate) async fn ps(app: &App, args: &PsArgs) -> Result<(), PsError> {
    let containers = app.containers()?;
    let all = settle::all(app, &containers).await?;
    if args.all {
        let damaged = containers.damaged().map_err(AppError::from)?;
        damaged.iter().for_each(|one| report::warn(&one.error));
    }
    // Whoever asks for the last ones, or for a state, wants to see those that have ended.
    let last = args
        .last
        .or(args.latest.then_some(1))
        .filter(|last| *last > 0);
    let ended = args.all
        || last.is_some()
        || args
            .filter
            .iter()
            .any(|one| matches!(one, filter::Filter::Status(_) | filter::Filter::Exited(_)));
    let mut shown: Vec<(&Container, Seen)> = Vec::new();
    for container in &all {
        let (seen, _) = look(container).await;
        if (ended || seen.is_live())
            && filter::passes(&args.filter, container, &seen, &Others(&all))
        {
            shown.push((container, seen));
        }
        if last.is_some_and(|last| shown.len() >= last) {
            break;
        }
    }
    if args.quiet {
        for (container, _) in &shown {
            table::line(id(container, args.no_trunc));
        }
        return Ok(());
    }
    let items: Vec<Value> = shown
        .iter()
        .map(|(container, seen)| item(container, seen, args.no_trunc))
        .collect();
    Ok(format::print(&args.format, &COLUMNS, &items)?)
}

fn id(container: &Container, whole: bool) -> &str {
    let id = container.record.id.as_str();
    if whole { id } else { names::short(id) }
}

fn item(container: &Container, seen: &Seen, whole: bool) -> Value {
    let record = &container.record;
    let command = record.command.join(" ");
    let labels: Vec<String> = record
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    // A container that is just being made has none yet.
    let settings = Settings::load(&container.folder).ok();
    let network = settings.as_ref().map_or("none", |settings| {
        settings.host_config.network_mode.as_str()
    });
    let ports: Vec<String> = Attached::load(&container.folder)
        .ok()
        .flatten()
        .map(|attached| attached.ports().iter().map(ToString::to_string).collect())
        .unwrap_or_default();
    let mounts = settings.iter().flat_map(|settings| settings.mounts.clone());
    let volumes = mounts.clone().filter(|mount| mount.name.is_some()).count();
    let mounts: Vec<String> = mounts
        .filter(|mount| mount.kind != "tmpfs")
        .map(|mount| mount.name.unwrap_or(mount.source))
        .collect();
    json!({
        "ID": id(container, whole),
        "Image": record.image,
        "Command": format!("\"{}\"", if whole { command } else { table::shorten(&command, 20) }),
        "CreatedAt": time::spoken(record.created),
        "RunningFor": format!("{} ago", table::age(now().saturating_sub(record.created))),
        "Status": status(seen, now()),
        "State": seen.word(),
        "Names": record.name,
        "Labels": labels.join(","),
        "LocalVolumes": volumes.to_string(),
        "Mounts": mounts.join(","),
        "Networks": network,
        "Ports": ports.join(", "),
        "Size": "",
        LABEL: record.labels,
    })
}

fn status(seen: &Seen, now: u64) -> String {
    let ago = |finished: &Option<u64>| {
        finished.map_or_else(String::new, |at| {
            format!(" {} ago", table::age(now.saturating_sub(at)))
        })
    };
    match seen {
        Seen::Creating => "Starting".to_owned(),
        Seen::Created => "Created".to_owned(),
        Seen::Running { started } | Seen::Unanswering { started } => {
            format!("Up {}", table::age(now.saturating_sub(*started)))
        }
        Seen::Paused => "Paused".to_owned(),
        Seen::Exited { code, finished } => format!("Exited ({code}){}", ago(finished)),
        Seen::Failed {
            reason,
            code,
            finished,
        } => format!("Exited ({code}){}: {reason}", ago(finished)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_tells_code_and_age() {
        let seen = |code, finished| Seen::Exited { code, finished };
        assert_eq!(
            status(&seen(137, Some(10)), 70),
            "Exited (137) 60 seconds ago"
        );
        assert_eq!(status(&seen(1, None), 70), "Exited (1)");
        assert_eq!(status(&Seen::Running { started: 0 }, 7200), "Up 2 hours");
        let failed = Seen::Failed {
            reason: "its shim died".to_owned(),
            code: 137,
            finished: None,
        };
        assert_eq!(status(&failed, 0), "Exited (137): its shim died");
    }
}
