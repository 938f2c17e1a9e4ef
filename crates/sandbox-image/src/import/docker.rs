//! Docker archives: what `docker save` writes (moby image spec v1.2, "Combined Image JSON + Filesystem Changeset Format").
//!
//! Such an archive has no manifest and its layers have no digests of their own; they are held to the `diff_id`s of the
//! configuration, which in turn is held to the digest in its file name.

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use super::error::{ImportError, Part};
use super::files::Files;
use super::{Choice, Found, LayerBlob, oci};
use crate::digest::Digest;
use crate::reference::Reference;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ArchivedImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// Finds the image in the archive, or all of them.
pub(super) fn find(
    files: &Files,
    manifest: &[u8],
    choice: &Choice<'_>,
) -> Result<Vec<Found>, ImportError> {
    let mut images: Vec<ArchivedImage> = oci::parse(Part::Manifest, "manifest.json", manifest)?;
    if images.is_empty() {
        return Err(choice.platform.none(Vec::new()));
    }
    if choice.all {
        return images
            .into_iter()
            .map(|image| describe(files, image, choice))
            .collect();
    }
    let answers = |image: &ArchivedImage| {
        let tags = image.repo_tags.iter().flatten();
        choice.name.is_some_and(|name| {
            tags.filter_map(|tag| tag.parse::<Reference>().ok())
                .any(|tag| tag.canonical() == name.canonical())
        })
    };
    let chosen = images.iter().position(answers).unwrap_or(0);
    if images.len() > 1 && !images.get(chosen).is_some_and(answers) {
        let names = images
            .iter()
            .map(|image| {
                image
                    .repo_tags
                    .iter()
                    .flatten()
                    .next()
                    .unwrap_or(&image.config)
                    .clone()
            })
            .collect();
        return Err(ImportError::SeveralImages { names });
    }
    Ok(vec![describe(files, images.swap_remove(chosen), choice)?])
}

fn describe(
    files: &Files,
    image: ArchivedImage,
    choice: &Choice<'_>,
) -> Result<Found, ImportError> {
    let config = files
        .read(Part::Config, &image.config, &image.config)?
        .ok_or_else(|| ImportError::Missing {
            part: Part::Config,
            name: image.config.clone(),
        })?;
    let found = Digest::of(&config);
    if let Some(expected) = digest_in(&image.config)
        && expected != found
    {
        return Err(ImportError::DigestMismatch {
            part: Part::Config,
            expected,
            found,
        });
    }
    let configuration: ImageConfiguration = oci::parse(Part::Config, &image.config, &config)?;
    choice.platform.check(&configuration)?;
    Ok(Found {
        manifest: None,
        config,
        diff_ids: super::diff_ids(&configuration)?,
        layers: image
            .layers
            .unwrap_or_default()
            .into_iter()
            .map(|file| LayerBlob {
                file,
                declared: None,
            })
            .collect(),
        names: image.repo_tags.unwrap_or_default(),
    })
}

/// The digest in a configuration's file name: `<hex>.json`, or `blobs/sha256/<hex>`.
fn digest_in(name: &str) -> Option<Digest> {
    let last = name.rsplit('/').next()?;
    let hex = last.strip_suffix(".json").unwrap_or(last);
    format!("sha256:{hex}").parse().ok()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MadeManifest {
    schema_version: u32,
    media_type: &'static str,
    config: MadeDescriptor,
    layers: Vec<MadeDescriptor>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MadeDescriptor {
    media_type: &'static str,
    digest: Digest,
    size: u64,
}

/// The manifest that an archive lacks: its layers are the uncompressed tars, given as digest and size.
pub(super) fn manifest(
    config: &[u8],
    layers: &[(Digest, u64)],
) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&MadeManifest {
        schema_version: 2,
        media_type: "application/vnd.oci.image.manifest.v1+json",
        config: MadeDescriptor {
            media_type: "application/vnd.oci.image.config.v1+json",
            digest: Digest::of(config),
            size: config.len() as u64,
        },
        layers: layers
            .iter()
            .map(|&(digest, size)| MadeDescriptor {
                media_type: "application/vnd.oci.image.layer.v1.tar",
                digest,
                size,
            })
            .collect(),
    })
}
