//! Images from registries and to them.

use sandbox_image::registry::{RegistrySettings, Settings};
use sandbox_image::{
    Client, CredentialStore, Image, Platform, Pull, PulledImage, Reference, Store, StoreError,
};
use sandbox_runtime::config::Config;

use super::ImageError;
use super::progress::Bars;
use crate::app::{App, AppError};
use crate::cli::{PullArgs, PullOptions, PullPolicy, PushArgs};
use crate::container::did_you_mean;
use crate::table;

/// A client as the configuration and docker's `config.json` have it.
pub(super) fn client(app: &App) -> Result<Client, ImageError> {
    let config: Config = app.configuration()?;
    let registries = config
        .registries
        .into_iter()
        .map(|(name, registry)| {
            let settings = RegistrySettings {
                mirrors: registry.mirrors,
                plain_http: registry.plain_http,
                ca_file: registry.ca_file,
            };
            (name, settings)
        })
        .collect();
    let settings = Settings {
        registries,
        ..Settings::default()
    };
    Ok(Client::new(settings, CredentialStore::from_environment()))
}

fn get(
    app: &App,
    store: &Store,
    image: &Reference,
    platform: Option<&Platform>,
    quiet: bool,
) -> Result<PulledImage, ImageError> {
    let client = client(app)?;
    let bars = Bars::new(quiet);
    let pulled = store.pull(
        image,
        &Pull {
            client: &client,
            platform: platform.cloned().unwrap_or_else(Platform::host),
            progress: &bars,
        },
    );
    bars.finish();
    pulled.map_err(|source| ImageError::Pull {
        image: image.to_string(),
        source: Box::new(source),
    })
}

pub(super) fn pull(app: &App, args: &PullArgs) -> Result<(), ImageError> {
    let store = app.store()?;
    let pulled = get(app, &store, &args.image, args.platform.as_ref(), args.quiet)?;
    if args.quiet {
        table::line(&pulled.image.name.to_string());
        return Ok(());
    }
    table::line(&format!("Digest: {}", pulled.digest));
    table::line(&if pulled.changed {
        format!(
            "Pulled {} ({} layers, {} of them new, {})",
            pulled.image.name,
            pulled.image.layers.len(),
            pulled.new_layers,
            table::bytes(pulled.image.size),
        )
    } else {
        format!("{} is up to date", pulled.image.name)
    });
    Ok(())
}

pub(super) fn push(app: &App, args: &PushArgs) -> Result<(), ImageError> {
    let store = app.store()?;
    // With the hint at names that are alike. What is no name to push to is refused below.
    if args.image.digest().is_none() {
        app.image(&store, &args.image.as_name_only())?;
    }
    let client = client(app)?;
    let bars = Bars::new(args.quiet);
    let pushed = store.push(&args.image, &client, &bars);
    bars.finish();
    let digest = pushed.map_err(|source| ImageError::Push {
        image: args.image.to_string(),
        source: Box::new(source),
    })?;
    if args.quiet {
        table::line(&digest.to_string());
    } else {
        table::line(&format!("Pushed {}, digest: {digest}", args.image));
    }
    Ok(())
}

/// The image that is to be run, pulled first where the options say so. What is said about it goes to standard error: standard
/// output is the container's.
pub(crate) fn for_run(
    app: &App,
    store: &Store,
    wanted: &Reference,
    options: &PullOptions,
) -> Result<Image, ImageError> {
    let platform = options.platform.as_ref();
    if let Some(wanted) = platform.filter(|wanted| !wanted.is_host()) {
        return Err(ImageError::ForeignPlatform {
            wanted: wanted.to_string(),
            host: Platform::host().to_string(),
        });
    }
    let image = match (options.pull, store.resolve(wanted)) {
        (PullPolicy::Always, _) => get(app, store, wanted, platform, false)?.image,
        (PullPolicy::Missing, Err(StoreError::NotFound { .. }))
            if wanted.registry_and_path().is_some() =>
        {
            eprintln!("sandboxctl: image {wanted} is not here; pulling it");
            match get(app, store, wanted, platform, false) {
                Ok(pulled) => pulled.image,
                Err(ImageError::Pull { image, source }) => {
                    return Err(ImageError::NotHereNorThere {
                        near: did_you_mean(&App::images_like(store, wanted)),
                        image,
                        source,
                    });
                }
                Err(error) => return Err(error),
            }
        }
        (PullPolicy::Missing | PullPolicy::Never, Err(StoreError::NotFound { .. })) => {
            app.image(store, wanted)?
        }
        (PullPolicy::Missing | PullPolicy::Never, found) => found.map_err(AppError::from)?,
    };
    if !Platform::runs(&image.config) {
        let (os, architecture) = (image.config.os(), image.config.architecture());
        return Err(ImageError::Platform {
            image: image.name.to_string(),
            found: format!("{os}/{architecture}"),
            wanted: Platform::host().to_string(),
        });
    }
    Ok(image)
}
