//! `sandboxctl volume …`.

use serde_json::{Value, json};

use super::store::users;
use super::{Volume, VolumeError, Volumes};
use crate::app::{App, AppError};
use crate::ask;
use crate::cli::{
    VolumeCreateArgs, VolumeInspectArgs, VolumeLsArgs, VolumePruneArgs, VolumeRmArgs, VolumeVerb,
};
use crate::container::Containers;
use crate::filter::{Counted, all_kinds_hold};
use crate::format::{self, Column, Format, LABEL};
use crate::report;
use crate::table;
use crate::template::TemplateError;
use crate::time;

/// Why a verb of volumes failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerbError {
    #[error(transparent)]
    App(#[from] AppError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error("cannot print as --format says")]
    Format(#[from] TemplateError),
    /// Asked, and the answer was not yes.
    #[error("nothing was removed; to remove without being asked, use --force")]
    NotConfirmed,
    #[error(transparent)]
    Several(#[from] report::Several),
}

/// Which volumes are listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VolumeFilter {
    /// Whether no container has it.
    Dangling(bool),
    /// Its name contains this.
    Name(String),
    /// It has this label, with this value if one is given.
    Label(String, Option<String>),
}

/// `dangling=BOOL`, `name=PART` or `label=KEY[=VALUE]`.
pub(crate) fn volume_filter(text: &str) -> Result<VolumeFilter, String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| format!("{text:?} is not KEY=VALUE"))?;
    match (key, value) {
        ("dangling", "true" | "1") => Ok(VolumeFilter::Dangling(true)),
        ("dangling", "false" | "0") => Ok(VolumeFilter::Dangling(false)),
        ("dangling", other) => Err(format!("{other:?} is neither true nor false")),
        ("name", part) => Ok(VolumeFilter::Name(part.to_owned())),
        ("label", label) => Ok(match label.split_once('=') {
            Some((key, value)) => VolumeFilter::Label(key.to_owned(), Some(value.to_owned())),
            None => VolumeFilter::Label(label.to_owned(), None),
        }),
        (other, _) => Err(format!(
            "{other:?} is not known; there are dangling, label and name"
        )),
    }
}

/// Whether a container has a volume.
type IsUsed<'a> = &'a dyn Fn(&Volume) -> Result<bool, VolumeError>;

/// Whether a volume is listed.
fn passes(
    filters: &[VolumeFilter],
    volume: &Volume,
    is_used: IsUsed<'_>,
) -> Result<bool, VolumeError> {
    let held: Vec<(&VolumeFilter, bool)> = filters
        .iter()
        .map(|filter| Ok((filter, filter.holds(volume, is_used)?)))
        .collect::<Result<_, VolumeError>>()?;
    Ok(all_kinds_hold(held, |filter| match filter {
        VolumeFilter::Label(..) => Counted::Each,
        _ => Counted::Any,
    }))
}

impl VolumeFilter {
    fn holds(&self, volume: &Volume, is_used: IsUsed<'_>) -> Result<bool, VolumeError> {
        Ok(match self {
            Self::Dangling(wanted) => is_used(volume)? != *wanted,
            Self::Name(part) => volume.name.as_str().contains(part),
            Self::Label(key, None) => volume.labels.contains_key(key),
            Self::Label(key, Some(value)) => volume.labels.get(key) == Some(value),
        })
    }
}

/// Does what the verb says.
pub(crate) fn volume(app: &App, verb: &VolumeVerb) -> Result<(), VerbError> {
    let volumes = app.volumes()?;
    let containers = app.containers()?;
    match verb {
        VolumeVerb::Create(args) => create(&volumes, args),
        VolumeVerb::Inspect(args) => inspect(&volumes, args),
        VolumeVerb::Ls(args) => ls(&volumes, &containers, args),
        VolumeVerb::Prune(args) => prune(&volumes, &containers, args),
        VolumeVerb::Rm(args) => rm(&volumes, &containers, args),
    }
}

fn create(volumes: &Volumes, args: &VolumeCreateArgs) -> Result<(), VerbError> {
    let labels = args.label.iter().cloned().collect();
    let name = volumes.create(args.name.as_ref(), labels)?;
    table::line(name.as_str());
    Ok(())
}

/// docker's fields.
const COLUMNS: [Column; 5] = [
    Column::usual("Driver", "DRIVER"),
    Column::usual("Name", "VOLUME NAME"),
    Column::on_demand("Labels", "LABELS"),
    Column::on_demand("Mountpoint", "MOUNTPOINT"),
    Column::on_demand("Scope", "SCOPE"),
];

fn ls(volumes: &Volumes, containers: &Containers, args: &VolumeLsArgs) -> Result<(), VerbError> {
    let mut shown = Vec::new();
    for volume in volumes.list()? {
        if passes(&args.filter, &volume, &|volume| {
            Ok(!users(containers, &volume.name)?.is_empty())
        })? {
            shown.push(volume);
        }
    }
    if args.quiet {
        for volume in &shown {
            table::line(volume.name.as_str());
        }
        return Ok(());
    }
    let items: Vec<Value> = shown.iter().map(item).collect();
    Ok(format::print(&args.format, &COLUMNS, &items)?)
}

fn item(volume: &Volume) -> Value {
    let labels: Vec<String> = volume
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    json!({
        "Driver": "local",
        "Name": volume.name.as_str(),
        "Labels": labels.join(","),
        LABEL: volume.labels,
        "Mountpoint": volume.data,
        "Scope": "local",
    })
}

fn inspect(volumes: &Volumes, args: &VolumeInspectArgs) -> Result<(), VerbError> {
    let mut found = Vec::new();
    let mut failures = Vec::new();
    for name in &args.names {
        match volumes.find(name) {
            Ok(volume) => found.push(json!({
                "CreatedAt": time::rfc3339(Some(volume.created)),
                "Driver": "local",
                "Labels": volume.labels,
                "Mountpoint": volume.data,
                "Name": volume.name.as_str(),
                "Options": null,
                "Scope": "local",
            })),
            Err(error) => failures.push(error),
        }
    }
    match &args.format {
        None | Some(Format::Table) => table::json(&found),
        Some(Format::Json) => table::line(&json!(found).to_string()),
        format => {
            for value in &found {
                format::print_one(format.as_ref(), value)?;
            }
        }
    }
    report::conclude(failures, args.names.len(), "volumes were not found")
}

fn rm(volumes: &Volumes, containers: &Containers, args: &VolumeRmArgs) -> Result<(), VerbError> {
    let mut failures = Vec::new();
    for name in &args.names {
        match volumes.remove(name, containers) {
            Ok(()) => table::line(name.as_str()),
            Err(VolumeError::NotFound { .. }) if args.force => {}
            Err(error) => failures.push(error),
        }
    }
    report::conclude(failures, args.names.len(), "volumes were not removed")
}

fn prune(
    volumes: &Volumes,
    containers: &Containers,
    args: &VolumePruneArgs,
) -> Result<(), VerbError> {
    let what = match args.all {
        true => "all volumes that no container has, with everything in them",
        false => "all volumes without a name that no container has, with everything in them",
    };
    if !args.force && !ask::confirmed(&format!("This removes {what}.")) {
        return Err(VerbError::NotConfirmed);
    }
    for volume in volumes.list()? {
        if !args.all && !volume.anonymous {
            continue;
        }
        match volumes.remove(&volume.name, containers) {
            Ok(()) => table::line(&format!("Removed {}", volume.name)),
            Err(VolumeError::InUse { .. } | VolumeError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_of_one_kind_are_alternatives_and_labels_add_up() {
        let volume = Volume {
            name: "cache".parse().unwrap(),
            data: "/none".into(),
            created: 0,
            labels: [("tier".to_owned(), "web".to_owned())].into(),
            anonymous: false,
        };
        let passes = |texts: &[&str]| {
            let filters: Vec<_> = texts
                .iter()
                .map(|text| volume_filter(text).unwrap())
                .collect();
            passes(&filters, &volume, &|_| Ok(true)).unwrap()
        };
        assert!(passes(&[]));
        assert!(passes(&["name=data", "name=cach"]));
        assert!(passes(&["dangling=true", "dangling=false"]));
        assert!(!passes(&["name=data", "dangling=false"]));
        assert!(passes(&["label=tier", "label=tier=web"]));
        assert!(!passes(&["label=tier", "label=none"]));
    }

    #[test]
    fn filter_is_dangling_name_or_label() {
        assert_eq!(
            volume_filter("dangling=true"),
            Ok(VolumeFilter::Dangling(true))
        );
        assert_eq!(
            volume_filter("label=a=b"),
            Ok(VolumeFilter::Label("a".to_owned(), Some("b".to_owned())))
        );
        for text in ["dangling=maybe", "size=3", "dangling"] {
            assert!(volume_filter(text).is_err(), "{text}");
        }
    }
}
