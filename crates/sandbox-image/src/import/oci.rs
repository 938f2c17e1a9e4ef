//! OCI layouts (OCI image spec, "Image Layout"): from `index.json` to one verified manifest and configuration.

use std::collections::{BTreeMap, HashMap};

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};
use serde::de::DeserializeOwned;

use super::error::{ImportError, Part};
use super::files::Files;
use super::platform::{self, Platform};
use super::{Blobs, Choice, Found, LayerBlob};
use crate::digest::Digest;
use crate::reference::Reference;

pub(super) const INDEXES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
pub(crate) const MANIFESTS: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
const CONFIGS: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];
/// What the media types of layers begin with; a suffix says how they are compressed, which is told by their bytes.
const LAYERS: [&str; 4] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];
/// The tag, or by some tools' habit the whole name (OCI image spec, "Pre-Defined Annotation Keys").
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The whole name, by containerd and docker.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// On manifests that describe another one (buildkit's attestations).
const ATTESTATION: &str = "vnd.docker.reference.type";
/// How deep indexes may be nested; two are usual.
const MAX_NESTING: usize = 4;
/// How many manifests and indexes are read for one image. An index may name another one any number of times, and so on: without
/// this a few small files would be work for years.
pub(super) const MAX_READ: usize = 256;

/// The way from an index to a manifest, so far.
#[derive(Default)]
struct Search {
    /// The platforms of what was passed over.
    offered: Vec<String>,
    /// Manifests and indexes that were read.
    read: usize,
}

/// A verified manifest.
struct Manifest {
    digest: Digest,
    bytes: Vec<u8>,
}

/// Finds the image, or all of them, for the platform. `stem` is what a layout that only has tags is called.
pub(super) fn find(
    files: &Files,
    index: &[u8],
    choice: &Choice<'_>,
    stem: &str,
) -> Result<Vec<Found>, ImportError> {
    let name = choice.name;
    let index: ImageIndex = parse(Part::Index, "index.json", index)?;
    let all: Vec<&Descriptor> = index
        .manifests()
        .iter()
        .filter(|descriptor| !is_attestation(descriptor))
        .collect();
    let named: Vec<&Descriptor> = all
        .iter()
        .copied()
        .filter(|descriptor| name.is_some_and(|name| answers_to(descriptor, name, stem)))
        .collect();
    let candidates = if named.is_empty() { all } else { named };
    let mut found: BTreeMap<Digest, (Manifest, Vec<String>)> = BTreeMap::new();
    let mut offered = Vec::new();
    for descriptor in candidates {
        let mut search = Search::default();
        let manifest = resolve(files, descriptor, choice.platform, 0, &mut search)?;
        offered.append(&mut search.offered);
        if let Some(manifest) = manifest {
            let entry = found
                .entry(manifest.digest)
                .or_insert((manifest, Vec::new()));
            entry.1.extend(names_of(descriptor, stem));
        }
    }
    if found.len() > 1 && !choice.all {
        let names = found
            .values()
            .map(|(manifest, names)| {
                names
                    .first()
                    .cloned()
                    .unwrap_or(manifest.digest.to_string())
            })
            .collect();
        return Err(ImportError::SeveralImages { names });
    }
    if found.is_empty() {
        return Err(choice.platform.none(offered));
    }
    found
        .into_values()
        .map(|(manifest, names)| describe(files, manifest, names, choice.platform))
        .collect()
}

/// Finds the image for the platform that `descriptor` leads to.
pub(super) fn find_at(
    source: &dyn Blobs,
    descriptor: &Descriptor,
    platform: &Platform,
) -> Result<Found, ImportError> {
    let mut search = Search::default();
    match resolve(source, descriptor, platform, 0, &mut search)? {
        Some(manifest) => describe(source, manifest, Vec::new(), platform),
        None => Err(platform.none(search.offered)),
    }
}

fn describe(
    source: &dyn Blobs,
    manifest: Manifest,
    names: Vec<String>,
    platform: &Platform,
) -> Result<Found, ImportError> {
    let parsed: ImageManifest = parse(
        Part::Manifest,
        &manifest.digest.to_string(),
        &manifest.bytes,
    )?;
    let config_digest = digest_of(Part::Config, parsed.config())?;
    let media_type = parsed.config().media_type().to_string();
    if !CONFIGS.contains(&media_type.as_str()) {
        return Err(ImportError::MediaType {
            part: Part::Config,
            name: config_digest.to_string(),
            media_type,
        });
    }
    let config = read_verified(source, Part::Config, parsed.config())?;
    let configuration: ImageConfiguration =
        parse(Part::Config, &config_digest.to_string(), &config)?;
    platform.check(&configuration)?;
    let mut layers = Vec::with_capacity(parsed.layers().len());
    for layer in parsed.layers() {
        let digest = digest_of(Part::Layer, layer)?;
        let media_type = layer.media_type().to_string();
        if !LAYERS.iter().any(|known| media_type.starts_with(known)) {
            return Err(ImportError::MediaType {
                part: Part::Layer,
                name: digest.to_string(),
                media_type,
            });
        }
        layers.push(LayerBlob {
            file: blob_name(digest),
            declared: Some((digest, layer.size())),
        });
    }
    Ok(Found {
        manifest: Some(manifest.bytes),
        config,
        diff_ids: super::diff_ids(&configuration)?,
        layers,
        names,
    })
}

/// The manifest for this platform that a descriptor leads to; `None`, and what there is in `search`, if it leads to none.
fn resolve(
    source: &dyn Blobs,
    descriptor: &Descriptor,
    platform: &Platform,
    depth: usize,
    search: &mut Search,
) -> Result<Option<Manifest>, ImportError> {
    if depth > MAX_NESTING {
        return Err(ImportError::Nesting { limit: MAX_NESTING });
    }
    if let Some(described) = descriptor.platform()
        && !platform.fits(described)
    {
        search
            .offered
            .push(platform::shown(described.os(), described.architecture()));
        return Ok(None);
    }
    search.read += 1;
    if search.read > MAX_READ {
        return Err(ImportError::TooManyManifests { limit: MAX_READ });
    }
    let media_type = descriptor.media_type().to_string();
    if MANIFESTS.contains(&media_type.as_str()) {
        let bytes = read_verified(source, Part::Manifest, descriptor)?;
        let digest = Digest::of(&bytes);
        return Ok(Some(Manifest { digest, bytes }));
    }
    if !INDEXES.contains(&media_type.as_str()) {
        return Err(ImportError::MediaType {
            part: Part::Manifest,
            name: descriptor.digest().to_string(),
            media_type,
        });
    }
    let bytes = read_verified(source, Part::Index, descriptor)?;
    let index: ImageIndex = parse(Part::Index, descriptor.digest().as_ref(), &bytes)?;
    let mut children: Vec<&Descriptor> = index
        .manifests()
        .iter()
        .filter(|child| !is_attestation(child))
        .collect();
    // A manifest that names the platform, in its plainest variant, before one that may be for another.
    children.sort_by_key(|child| match child.platform() {
        Some(platform) => platform.variant().clone(),
        None => Some("~".to_owned()),
    });
    for child in children {
        if let Some(manifest) = resolve(source, child, platform, depth + 1, search)? {
            return Ok(Some(manifest));
        }
    }
    Ok(None)
}

fn is_attestation(descriptor: &Descriptor) -> bool {
    annotation(descriptor, ATTESTATION).is_some()
}

fn annotation<'a>(descriptor: &'a Descriptor, key: &str) -> Option<&'a str> {
    let annotations: &HashMap<String, String> = descriptor.annotations().as_ref()?;
    annotations.get(key).map(String::as_str)
}

/// The name that a layout gives an image. What is only a tag, in a file whose name is none for an image, gives none.
fn names_of(descriptor: &Descriptor, stem: &str) -> Option<String> {
    if let Some(name) = annotation(descriptor, CONTAINERD_NAME) {
        return Some(name.to_owned());
    }
    let name = annotation(descriptor, REF_NAME)?;
    if name.contains([':', '/']) {
        Some(name.to_owned())
    } else {
        Some(format!("{stem}:{name}")).filter(|name| name.parse::<Reference>().is_ok())
    }
}

fn answers_to(descriptor: &Descriptor, name: &Reference, stem: &str) -> bool {
    let same = |other: String| {
        other
            .parse::<Reference>()
            .is_ok_and(|other| other.canonical() == name.canonical())
    };
    let tag = name.tag().is_some() && annotation(descriptor, REF_NAME) == name.tag();
    tag || names_of(descriptor, stem).is_some_and(same)
}

fn digest_of(part: Part, descriptor: &Descriptor) -> Result<Digest, ImportError> {
    let text: &str = descriptor.digest().as_ref();
    text.parse()
        .map_err(|source| ImportError::Digest { part, source })
}

pub(super) fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A small blob, checked against its digest and size.
fn read_verified(
    source: &dyn Blobs,
    part: Part,
    descriptor: &Descriptor,
) -> Result<Vec<u8>, ImportError> {
    let expected = digest_of(part, descriptor)?;
    let name = expected.to_string();
    let bytes = source
        .small(part, expected)?
        .ok_or(ImportError::Missing { part, name })?;
    let found = Digest::of(&bytes);
    if found != expected {
        return Err(ImportError::DigestMismatch {
            part,
            expected,
            found,
        });
    }
    let size = bytes.len() as u64;
    if size != descriptor.size() {
        return Err(ImportError::SizeMismatch {
            part,
            digest: expected,
            expected: descriptor.size(),
            found: size,
        });
    }
    Ok(bytes)
}

pub(super) fn parse<T: DeserializeOwned>(
    part: Part,
    name: &str,
    bytes: &[u8],
) -> Result<T, ImportError> {
    serde_json::from_slice(bytes).map_err(|source| ImportError::Malformed {
        part,
        name: name.to_owned(),
        source,
    })
}
