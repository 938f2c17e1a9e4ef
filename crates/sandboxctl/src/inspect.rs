//! `sandboxctl inspect`: everything about containers and images, in docker's shape, and in `Sandbox` what docker does
//! not have.

use serde_json::{Map, Value, json};

use crate::app::{App, AppError};
use crate::cli::{InspectArgs, ObjectKind};
use crate::container::{Container, ContainerError, did_you_mean};
use crate::format::{self, Format};
use crate::look::{Seen, look};
use crate::names;
use crate::network::{self, Attached, NetworkError};
use crate::report;
use crate::settings::{Settings, SettingsError};
use crate::settle::{self, SettleError};
use crate::table;
use crate::template::TemplateError;
use crate::time;

/// Why something cannot be shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InspectError {
    #[error(transparent)]
    App(#[from] AppError),
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error(transparent)]
    Settle(#[from] SettleError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// Neither a container nor an image.
    #[error(
        "there is no container and no image {name:?}{}; see `sandboxctl ps -a` and `sandboxctl image ls`",
        did_you_mean(near)
    )]
    Nothing { name: String, near: Vec<String> },
    #[error("cannot show {name} as --format says")]
    Format { name: String, source: TemplateError },
    #[error(transparent)]
    Several(#[from] report::Several),
}

/// Shows what was asked for, as far as it is there.
pub(crate) async fn inspect(app: &App, args: &InspectArgs) -> Result<(), InspectError> {
    let mut found = Vec::new();
    let mut failures = Vec::new();
    for name in &args.names {
        match one(app, args.kind, name).await {
            Ok(value) => found.push((name, value)),
            Err(error) => failures.push(error),
        }
    }
    match &args.format {
        None | Some(Format::Table) => {
            table::json(&found.iter().map(|(_, value)| value).collect::<Vec<_>>());
        }
        // docker's `--format json` gives the list on one line.
        Some(Format::Json) => {
            let all: Vec<&Value> = found.iter().map(|(_, value)| value).collect();
            table::line(&json!(all).to_string());
        }
        format => {
            for (name, value) in &found {
                format::print_one(format.as_ref(), value).map_err(|source| {
                    InspectError::Format {
                        name: (*name).clone(),
                        source,
                    }
                })?;
            }
        }
    }
    report::conclude(failures, args.names.len(), "were not found")
}

async fn one(app: &App, kind: Option<ObjectKind>, name: &str) -> Result<Value, InspectError> {
    if kind != Some(ObjectKind::Image) {
        let containers = app.containers()?;
        match containers.find(name) {
            Ok(container) => {
                let settled = settle::settle(app, &containers, container).await?;
                let container = settled.ok_or_else(|| ContainerError::NotFound {
                    name: name.to_owned(),
                    near: Vec::new(),
                })?;
                return of_container(&container).await;
            }
            Err(error @ ContainerError::NotFound { .. }) if kind == Some(ObjectKind::Container) => {
                return Err(error.into());
            }
            Err(ContainerError::NotFound { near, .. }) => {
                return of_image(app, name).map_err(|error| match error {
                    InspectError::App(AppError::NoImage { near: images, .. }) => {
                        InspectError::Nothing {
                            name: name.to_owned(),
                            near: near.into_iter().chain(images).take(3).collect(),
                        }
                    }
                    other => other,
                });
            }
            Err(error) => return Err(error.into()),
        }
    }
    of_image(app, name)
}

async fn of_container(container: &Container) -> Result<Value, InspectError> {
    let (seen, _) = look(container).await;
    let settings = Settings::load(&container.folder)?;
    let record = &container.record;
    let path = |name: &str| container.folder.join(name).display().to_string();
    let mut sandbox = serde_json::to_value(&settings.sandbox).unwrap_or_default();
    if let (Value::Object(map), Some(shim)) = (&mut sandbox, &record.shim) {
        map.insert("ShimPid".to_owned(), shim.process.pid.into());
        map.insert("ShimAddress".to_owned(), shim.address.clone().into());
    }
    Ok(json!({
        "Id": record.id,
        "Created": time::rfc3339(Some(record.created)),
        "Path": record.command.first().map_or("", String::as_str),
        "Args": record.command.get(1..).unwrap_or_default(),
        "State": state(container, &seen),
        "Image": record.image_digest,
        "ResolvConfPath": path("resolv.conf"),
        "HostnamePath": path("hostname"),
        "HostsPath": path("hosts"),
        "LogPath": path("container.log"),
        "Name": format!("/{}", record.name),
        "RestartCount": 0,
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": null,
        "HostConfig": settings.host_config,
        "Mounts": settings.mounts,
        "Config": settings.config,
        "NetworkSettings": network::attach::settings(
            Attached::load(&container.folder)?.as_ref(),
            &settings.host_config.network_mode,
        ),
        "Sandbox": sandbox,
    }))
}

fn state(container: &Container, seen: &Seen) -> Value {
    let record = &container.record;
    let (started, finished) = match seen {
        Seen::Running { started } | Seen::Unanswering { started } => (Some(*started), None),
        Seen::Exited { finished, .. } | Seen::Failed { finished, .. } => (None, *finished),
        Seen::Creating | Seen::Created | Seen::Paused => (None, None),
    };
    let live = seen.is_live() && *seen != Seen::Creating;
    json!({
        "Status": match seen { Seen::Paused => "paused", seen => seen.word() },
        "Running": live,
        "Paused": matches!(seen, Seen::Paused),
        "Restarting": false,
        "OOMKilled": record.oom_killed,
        "Dead": false,
        // A process of this host's: the guest's are not among them.
        "Pid": record.shim.as_ref().filter(|_| live).map_or(0, |shim| shim.process.pid),
        "ExitCode": match seen {
            Seen::Exited { code, .. } | Seen::Failed { code, .. } => *code,
            _ => 0,
        },
        "Error": match seen {
            Seen::Failed { reason, .. } => reason.as_str(),
            _ => "",
        },
        "StartedAt": time::rfc3339(started.or(record.started)),
        "FinishedAt": time::rfc3339(finished),
    })
}

fn of_image(app: &App, name: &str) -> Result<Value, InspectError> {
    let nothing = || InspectError::Nothing {
        name: name.to_owned(),
        near: Vec::new(),
    };
    let store = app.store()?;
    let image = app.image(&store, &name.parse().map_err(|_| nothing())?)?;
    let config = serde_json::to_value(&image.config).unwrap_or_default();
    let tags: Vec<String> = store
        .names_of(image.digest)
        .map_err(AppError::from)?
        .iter()
        .filter(|name| name.digest().is_none())
        .map(ToString::to_string)
        .collect();
    let digests = store.pulled_digests(image.digest).map_err(AppError::from)?;
    let layers: Vec<String> = image
        .layers
        .iter()
        .map(|layer| layer.diff_id.to_string())
        .collect();
    let member = |name: &str| config.get(name).cloned().unwrap_or(Value::Null);
    let container_config = match member("config") {
        Value::Null => Value::Object(Map::new()),
        other => other,
    };
    Ok(json!({
        "Id": image.digest.to_string(),
        "RepoTags": tags,
        "RepoDigests": digests,
        "Created": image.created,
        "Author": member("author"),
        "Architecture": member("architecture"),
        "Os": member("os"),
        "Config": container_config,
        "Size": image.size,
        "RootFS": {"Type": "layers", "Layers": layers},
        "ShortId": names::short(image.digest.to_string().trim_start_matches("sha256:")),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::{Record, Status};

    fn container() -> Container {
        Container {
            folder: "/c".into(),
            record: Record {
                id: "a".repeat(64).parse().unwrap(),
                name: "web".parse().unwrap(),
                image: "demo".to_owned(),
                image_digest: "sha256:0".to_owned(),
                command: vec!["sh".to_owned()],
                created: 0,
                status: Status::Creating,
                shim: None,
                labels: std::collections::BTreeMap::new(),
                attendant: None,
                started: None,
                oom_killed: false,
                auto_remove: false,
                keep: true,
                restarting: false,
            },
        }
    }

    #[test]
    fn state_is_in_dockers_words() {
        let running = state(&container(), &Seen::Running { started: 86_400 });
        assert_eq!(running["Status"], "running");
        assert_eq!(running["Running"], true);
        assert_eq!(running["StartedAt"], "1970-01-02T00:00:00Z");
        assert_eq!(running["FinishedAt"], time::NEVER);
        let failed = state(
            &container(),
            &Seen::Failed {
                reason: "its shim died".to_owned(),
                code: 137,
                finished: Some(0),
            },
        );
        assert_eq!(failed["Status"], "exited");
        assert_eq!(failed["ExitCode"], 137);
        assert_eq!(failed["Error"], "its shim died");
    }
}
