//! `sandboxctl image`.

use serde::Serialize;
use std::time::{SystemTime, UNIX_EPOCH};

use sandbox_image::{Image, ImportError};

use crate::app::{App, AppError};
use crate::cli::{Format, ImageLsArgs, ImageRmArgs, ImageVerb, ImportArgs};
use crate::container::now;
use crate::names;
use crate::report;
use crate::table;

/// Why something could not be done with an image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error(transparent)]
    App(#[from] AppError),
    #[error("cannot import {path}")]
    Import {
        path: String,
        source: Box<ImportError>,
    },
    /// Several went wrong; each was reported.
    #[error("{failed} of {all} images were not removed")]
    Several { failed: usize, all: usize },
}

/// Does what the verb says.
pub(crate) fn image(app: &App, verb: &ImageVerb) -> Result<(), ImageError> {
    match verb {
        ImageVerb::Import(args) => import(app, args),
        ImageVerb::Ls(args) => ls(app, args),
        ImageVerb::Rm(args) => rm(app, args),
    }
}

fn import(app: &App, args: &ImportArgs) -> Result<(), ImageError> {
    let store = app.store()?;
    let imported = store
        .import(&args.path, args.name.as_ref())
        .map_err(|source| ImageError::Import {
            path: args.path.display().to_string(),
            source: Box::new(source),
        })?;
    if args.quiet {
        table::line(&imported.image.digest.to_string());
        return Ok(());
    }
    for name in &imported.names {
        table::line(&format!(
            "Imported {name} ({} layers, {} of them new, {})",
            imported.image.layers.len(),
            imported.new_layers,
            table::bytes(imported.image.size),
        ));
    }
    Ok(())
}

/// A line of the list, for programs.
#[derive(Debug, Serialize)]
struct Line {
    name: String,
    id: String,
    created: Option<String>,
    imported: u64,
    size: u64,
    layers: usize,
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn short_id(image: &Image) -> String {
    let digest = image.digest.to_string();
    names::short(digest.strip_prefix("sha256:").unwrap_or(&digest)).to_owned()
}

fn ls(app: &App, args: &ImageLsArgs) -> Result<(), ImageError> {
    let images = app.store()?.list().map_err(AppError::from)?;
    if args.quiet {
        for image in &images {
            table::line(&short_id(image));
        }
        return Ok(());
    }
    match args.format {
        Format::Json => {
            let lines: Vec<Line> = images
                .iter()
                .map(|image| Line {
                    name: image.name.to_string(),
                    id: image.digest.to_string(),
                    created: image.created.clone(),
                    imported: seconds(image.imported),
                    size: image.size,
                    layers: image.layers.len(),
                })
                .collect();
            table::json(&lines);
        }
        Format::Table => {
            let mut rows = table::new(&["NAME", "IMAGE ID", "IMPORTED", "LAYERS", "SIZE"]);
            let now = now();
            for image in &images {
                rows.add_row([
                    image.name.to_string(),
                    short_id(image),
                    format!(
                        "{} ago",
                        table::age(now.saturating_sub(seconds(image.imported)))
                    ),
                    image.layers.len().to_string(),
                    table::bytes(image.size),
                ]);
            }
            table::print(&rows);
        }
    }
    Ok(())
}

fn rm(app: &App, args: &ImageRmArgs) -> Result<(), ImageError> {
    let store = app.store()?;
    let mut failures = Vec::new();
    for wanted in &args.images {
        match store.remove(wanted) {
            Ok(removed) => {
                for name in &removed.untagged {
                    table::line(&format!("Untagged {name}"));
                }
                for layer in &removed.deleted_layers {
                    table::line(&format!("Deleted layer {layer}"));
                }
            }
            Err(error) => failures.push(AppError::from(error)),
        }
    }
    match (failures.pop(), failures.is_empty()) {
        (None, _) => Ok(()),
        (Some(only), true) => Err(only.into()),
        (Some(last), false) => {
            failures.push(last);
            for error in &failures {
                report::error(error);
            }
            Err(ImageError::Several {
                failed: failures.len(),
                all: args.images.len(),
            })
        }
    }
}
