//! Images: `sandboxctl image …`, its shortcuts, and the image that `run` needs.

mod archive;
mod list;
mod login;
mod progress;
mod pull;

use std::io;

use sandbox_image::{CredentialsError, GiveError, ImportError, RegistryError, StoreError};
use sandbox_runtime::config::ConfigError;

use crate::app::{App, AppError};
use crate::ask;
use crate::cli::{ImagePruneArgs, ImageRmArgs, ImageShortcut, ImageVerb, TagArgs};
use crate::inspect::{self, InspectError};
use crate::report;
use crate::settle;
use crate::table;
use crate::template::TemplateError;

pub(crate) use pull::for_run;

/// Why something could not be done with an image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error(transparent)]
    App(#[from] AppError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot import {path}")]
    Import {
        path: String,
        source: Box<ImportError>,
    },
    #[error("cannot pull {image}")]
    Pull {
        image: String,
        source: Box<ImportError>,
    },
    /// An image that was to be run is not there, and cannot be had.
    #[error(
        "there is no image {image} here{near} (`sandboxctl image import` brings one in from a file), and it cannot be pulled"
    )]
    NotHereNorThere {
        image: String,
        near: String,
        source: Box<ImportError>,
    },
    #[error("cannot push {image}")]
    Push {
        image: String,
        source: Box<GiveError>,
    },
    #[error("cannot save {}", images.join(", "))]
    Save {
        images: Vec<String>,
        source: Box<GiveError>,
    },
    /// An archive would be written to a terminal.
    #[error("an archive is not for a terminal; name a file with -o, or redirect the output")]
    Terminal,
    /// An image is for another platform.
    #[error("image {image} is for {found}, not for {wanted}; pull it with --platform {wanted}")]
    Platform {
        image: String,
        found: String,
        wanted: String,
    },
    /// Another platform than this machine's is wanted.
    #[error("--platform {wanted}: images for it do not run on this machine, which is {host}")]
    ForeignPlatform { wanted: String, host: String },
    /// A file cannot be read or written.
    #[error("cannot {action} {path}")]
    File {
        action: &'static str,
        path: String,
        source: io::Error,
    },
    /// A registry denies a login.
    #[error("cannot log in")]
    Login(#[source] Box<RegistryError>),
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error(transparent)]
    Inspect(#[from] InspectError),
    #[error("cannot print the list as --format says")]
    Format(#[from] TemplateError),
    /// No password, and nobody to ask.
    #[error(
        "standard input is not a terminal, so nobody can be asked; use --username and --password-stdin"
    )]
    NobodyToAsk,
    /// A registry's name is none.
    #[error(
        "{registry:?} is not the name of a registry; it is HOST or HOST:PORT, as in image names"
    )]
    RegistryName { registry: String },
    /// Asked, and the answer was not yes.
    #[error("nothing was deleted; to delete without being asked, use --force")]
    NotConfirmed,
    #[error(transparent)]
    Several(#[from] report::Several),
}

/// Does what the verb says.
pub(crate) async fn image(app: &App, verb: &ImageVerb) -> Result<(), ImageError> {
    match verb {
        ImageVerb::History(args) => list::history(app, args),
        ImageVerb::Import(args) => archive::import(app, args),
        ImageVerb::Inspect(args) => Ok(inspect::inspect(app, &args.to_inspect()).await?),
        ImageVerb::Load(args) => archive::load(app, args),
        ImageVerb::Ls(args) => list::ls(app, args),
        ImageVerb::Prune(args) => prune(app, args),
        ImageVerb::Pull(args) => pull::pull(app, args),
        ImageVerb::Push(args) => pull::push(app, args),
        ImageVerb::Rm(args) => rm(app, args),
        ImageVerb::Save(args) => archive::save(app, args),
        ImageVerb::Tag(args) => tag(app, args),
    }
}

/// Does what the verb says.
pub(crate) fn shortcut(app: &App, verb: &ImageShortcut) -> Result<(), ImageError> {
    match verb {
        ImageShortcut::History(args) => list::history(app, args),
        ImageShortcut::Images(args) => list::ls(app, args),
        ImageShortcut::Load(args) => archive::load(app, args),
        ImageShortcut::Login(args) => login::login(app, args),
        ImageShortcut::Logout(args) => login::logout(args),
        ImageShortcut::Pull(args) => pull::pull(app, args),
        ImageShortcut::Push(args) => pull::push(app, args),
        ImageShortcut::Rmi(args) => rm(app, args),
        ImageShortcut::Save(args) => archive::save(app, args),
        ImageShortcut::Tag(args) => tag(app, args),
    }
}

fn tag(app: &App, args: &TagArgs) -> Result<(), ImageError> {
    let store = app.store()?;
    store.tag(&args.image, &args.name).map_err(AppError::from)?;
    Ok(())
}

fn rm(app: &App, args: &ImageRmArgs) -> Result<(), ImageError> {
    let store = app.store()?;
    settle::release_orphans(app, &store)?;
    let mut failures = Vec::new();
    for wanted in &args.images {
        let removed = if args.force {
            let live = live_containers(app)?;
            store.remove_forced(wanted, &|owner| live.iter().any(|id| id == owner))
        } else {
            store.remove(wanted)
        };
        match removed {
            Ok(removed) => print_removed(&removed),
            // As docker has it: it is as it should be, which is said.
            Err(error @ StoreError::NotFound { .. }) if args.force => report::error(&error),
            Err(error) => failures.push(AppError::from(error)),
        }
    }
    report::conclude(failures, args.images.len(), "images were not removed")
}

/// The containers that run, or are about to.
fn live_containers(app: &App) -> Result<Vec<String>, ImageError> {
    let all = app.containers().and_then(|all| Ok(all.list()?))?;
    Ok(all
        .iter()
        .filter(|one| one.record.status.is_live())
        .map(|one| one.record.id.to_string())
        .collect())
}

fn print_removed(removed: &sandbox_image::Removed) {
    for name in &removed.untagged {
        match name.canonical() {
            Some(_) => table::line(&format!("Untagged {name}")),
            None => table::line(&format!("Deleted image {name}")),
        }
    }
    for layer in &removed.deleted_layers {
        table::line(&format!("Deleted layer {layer}"));
    }
}

fn prune(app: &App, args: &ImagePruneArgs) -> Result<(), ImageError> {
    let store = app.store()?;
    let what = match (args.blobs, args.all) {
        (true, _) => "what all layers came as; images can then not be pushed or saved",
        (false, true) => "all images that no container uses",
        (false, false) => "all images without a tag that no container uses",
    };
    if !args.force && !ask::confirmed(&format!("This removes {what}.")) {
        return Err(ImageError::NotConfirmed);
    }
    settle::release_orphans(app, &store)?;
    let removed = if args.blobs {
        store.prune_blobs()
    } else {
        store.prune(args.all)
    }
    .map_err(AppError::from)?;
    print_removed(&removed);
    table::line(&format!("Freed {}", table::bytes(removed.freed_bytes)));
    Ok(())
}
