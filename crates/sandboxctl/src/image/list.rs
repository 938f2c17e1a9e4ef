//! What is known about images.

use std::time::{SystemTime, UNIX_EPOCH};

use sandbox_image::Image;
use serde::Serialize;

use super::ImageError;
use crate::app::{App, AppError};
use crate::cli::{Format, HistoryArgs, ImageLsArgs};
use crate::container::now;
use crate::names;
use crate::table;

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

pub(super) fn ls(app: &App, args: &ImageLsArgs) -> Result<(), ImageError> {
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

pub(super) fn history(app: &App, args: &HistoryArgs) -> Result<(), ImageError> {
    const MOST: usize = 60;
    let store = app.store()?;
    let image = app.image(&store, &args.image)?;
    let mut layers = image.layers.iter();
    let mut lines = Vec::new();
    for step in image.config.history().iter().flatten() {
        // A step without a layer only changed the configuration.
        let size = match step.empty_layer() {
            Some(true) => None,
            _ => layers.next().map(|layer| layer.size),
        };
        let text = step.created_by().as_deref().unwrap_or("-");
        lines.push([
            step.created().clone().unwrap_or_else(|| "-".to_owned()),
            size.map_or_else(|| "0 B".to_owned(), table::bytes),
            table::shorten(text, if args.no_trunc { usize::MAX } else { MOST }),
            step.comment().clone().unwrap_or_default(),
        ]);
    }
    for layer in layers {
        let unknown = "-".to_owned();
        lines.push([
            unknown.clone(),
            table::bytes(layer.size),
            unknown,
            String::new(),
        ]);
    }
    let mut rows = table::new(&["CREATED", "SIZE", "CREATED BY", "COMMENT"]);
    for line in lines.into_iter().rev() {
        rows.add_row(line.map(|text| table::shorten(&text, usize::MAX)));
    }
    table::print(&rows);
    Ok(())
}
