//! What is known about images.

use std::time::{SystemTime, UNIX_EPOCH};

use sandbox_image::{Image, Listing, Reference};
use serde_json::{Value, json};

use super::ImageError;
use crate::app::{App, AppError};
use crate::cli::{HistoryArgs, ImageLsArgs};
use crate::container::now;
use crate::format::{self, Column};
use crate::names;
use crate::report;
use crate::table;
use crate::time;

/// docker's fields, and `Name`, `Imported` and `Layers`, which it does not have.
const COLUMNS: [Column; 10] = [
    Column::usual("Name", "NAME"),
    Column::usual("ID", "IMAGE ID"),
    Column::usual("Imported", "IMPORTED"),
    Column::usual("Layers", "LAYERS"),
    Column::usual("Size", "SIZE"),
    Column::on_demand("Repository", "REPOSITORY"),
    Column::on_demand("Tag", "TAG"),
    Column::on_demand("Digest", "DIGEST"),
    Column::on_demand("CreatedAt", "CREATED AT"),
    Column::on_demand("CreatedSince", "CREATED"),
];

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn short_id(image: &Image) -> String {
    let digest = image.digest.to_string();
    names::short(digest.strip_prefix("sha256:").unwrap_or(&digest)).to_owned()
}

pub(super) fn ls(app: &App, args: &ImageLsArgs) -> Result<(), ImageError> {
    let Listing { images, damaged } = app.store()?.list().map_err(AppError::from)?;
    for image in &damaged {
        report::warn(image);
    }
    let id = |image: &Image| {
        if args.no_trunc {
            image.digest.to_string()
        } else {
            short_id(image)
        }
    };
    if args.quiet {
        for image in &images {
            table::line(&id(image));
        }
        return Ok(());
    }
    let items: Vec<Value> = images
        .iter()
        .map(|image| item(image, &id(image), now()))
        .collect();
    Ok(format::print(&args.format, &COLUMNS, &items)?)
}

fn item(image: &Image, id: &str, now: u64) -> Value {
    const NONE: &str = "<none>";
    let ago = |at: u64| format!("{} ago", table::age(now.saturating_sub(at)));
    let created = image
        .created
        .as_deref()
        .and_then(|created| humantime::parse_rfc3339(created).ok())
        .map(seconds);
    // One without a name is listed by its ID alone.
    let name = Some(&image.name).filter(|name| name.canonical().is_some());
    let or_none = |text: Option<String>| text.unwrap_or_else(|| NONE.to_owned());
    json!({
        "Name": or_none(name.map(ToString::to_string)),
        "Repository": or_none(name.and_then(Reference::short_repository)),
        "Tag": image.name.tag().unwrap_or(NONE),
        "Digest": or_none(name.and_then(Reference::digest).map(|digest| digest.to_string())),
        "ID": id,
        "CreatedAt": created.map_or_else(|| "N/A".to_owned(), time::spoken),
        "CreatedSince": created.map_or_else(|| "N/A".to_owned(), ago),
        "Imported": ago(seconds(image.imported)),
        "Layers": image.layers.len(),
        "Size": table::bytes(image.size),
    })
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
