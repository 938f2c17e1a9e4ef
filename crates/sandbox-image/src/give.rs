//! From the store to a registry or a file.
//!
//! An image goes out as it came in: the manifest, the configuration and the layers' blobs are the bytes that were kept, so that
//! every digest stays what it was. Of an image that was pulled through an index only this platform's manifest goes out: the
//! other platforms' layers were never here. What cannot be given because a layer's blob was not kept says so.

mod archive;

use std::fs::File;
use std::path::PathBuf;

use oci_spec::image::ImageManifest;

use crate::digest::Digest;
use crate::image::Image;
use crate::import::MANIFESTS;
use crate::reference::Reference;
use crate::registry::{Client, Event, Progress, RegistryError, Upload};
use crate::store::{Activity, Store, StoreError};

pub use archive::ArchiveFormat;

/// Why an image was not given away.
#[derive(Debug, thiserror::Error)]
pub enum GiveError {
    /// A layer's blob is not kept, and whoever gets the image does not have it.
    #[error(
        "layer {blob} of image {image} cannot be given: what it came as was not kept; pull or import the image again with keep_layer_blobs = true"
    )]
    NotKept {
        /// The image.
        image: String,
        /// The layer's blob.
        blob: Digest,
    },
    /// An ID was given where a name is needed.
    #[error("{reference} is not a name to push to; give it one with `sandboxctl tag`")]
    NotAName {
        /// What was given.
        reference: String,
    },
    /// A digest says what an image is, not under which tag it is to be put: without one it would replace `latest`.
    #[error(
        "cannot push a digest reference ({reference}); give the image a tag with `sandboxctl tag {reference} NAME:TAG`, and push that"
    )]
    DigestReference {
        /// What was given.
        reference: String,
    },
    /// The manifest of the store cannot be read as one.
    #[error("the manifest of image {image} is malformed: {reason}; import the image again")]
    Manifest {
        /// The image.
        image: String,
        /// What is wrong.
        reason: String,
    },
    /// A kept blob is not what it was.
    #[error(
        "layer {blob} of image {image} is damaged: its digest is {found}; remove the image and pull it again"
    )]
    Damaged {
        /// The image.
        image: String,
        /// The layer's blob.
        blob: Digest,
        /// What it is.
        found: Digest,
    },
    /// The archive cannot be written.
    #[error("cannot write the archive")]
    Write(#[source] std::io::Error),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The store.
    #[error(transparent)]
    Store(Box<StoreError>),
}

impl From<StoreError> for GiveError {
    fn from(error: StoreError) -> Self {
        Self::Store(Box::new(error))
    }
}

/// An image with everything that is kept of it. While it exists nothing of it is deleted.
struct Outgoing {
    image: Image,
    media_type: String,
    manifest: Vec<u8>,
    config: (Digest, Vec<u8>),
    layers: Vec<OutgoingLayer>,
    _activity: Activity,
}

/// A layer's blob.
struct OutgoingLayer {
    blob: Digest,
    path: PathBuf,
    /// Its file, if it is kept.
    kept: Option<(File, u64)>,
}

impl OutgoingLayer {
    fn file(&self, image: &Image) -> Result<(&File, u64), GiveError> {
        self.kept
            .as_ref()
            .map(|(file, size)| (file, *size))
            .ok_or_else(|| GiveError::NotKept {
                image: image.name.to_string(),
                blob: self.blob,
            })
    }
}

impl Store {
    fn outgoing(&self, reference: &Reference) -> Result<Outgoing, GiveError> {
        // From before the look-up on, so that nothing goes meanwhile.
        let activity = self.begin_activity()?;
        let image = self.resolve(reference)?;
        let malformed = |reason: String| GiveError::Manifest {
            image: image.name.to_string(),
            reason,
        };
        let manifest = self.read_blob(image.digest)?;
        let parsed: ImageManifest =
            serde_json::from_slice(&manifest).map_err(|error| malformed(error.to_string()))?;
        let digest = |text: &str| {
            text.parse::<Digest>()
                .map_err(|error| malformed(error.to_string()))
        };
        let config = digest(parsed.config().digest().as_ref())?;
        let mut layers = Vec::new();
        for layer in parsed.layers() {
            let blob = digest(layer.digest().as_ref())?;
            layers.push(OutgoingLayer {
                blob,
                path: self.blob_path(blob),
                kept: self
                    .kept_blob(blob)?
                    .filter(|(_, size)| *size == layer.size()),
            });
        }
        let media_type = parsed
            .media_type()
            .as_ref()
            .map_or_else(|| MANIFESTS[0].to_owned(), ToString::to_string);
        Ok(Outgoing {
            config: (config, self.read_blob(config)?),
            media_type,
            manifest,
            layers,
            image,
            _activity: activity,
        })
    }

    /// Sends the image `reference` to the registry and repository, and under the tag, that the name says. Blobs that are there
    /// already are not sent. Gives the image's ID, which is also the digest of what the tag stands for now.
    ///
    /// The image is looked up by that name alone: what could also be the beginning of an ID would otherwise put another image under
    /// a tag that nobody gave it.
    ///
    /// # Errors
    /// See [`GiveError`]. What was sent until then stays in the registry, without a name.
    pub fn push(
        &self,
        reference: &Reference,
        client: &Client,
        progress: &dyn Progress,
    ) -> Result<Digest, GiveError> {
        let not_a_name = || GiveError::NotAName {
            reference: reference.to_string(),
        };
        let (registry, path) = reference.registry_and_path().ok_or_else(not_a_name)?;
        let tag = reference.tag_or_default().ok_or_else(not_a_name)?;
        // Also one with a tag, as docker has it.
        if reference.digest().is_some() {
            return Err(GiveError::DigestReference {
                reference: reference.to_string(),
            });
        }
        let out = self.outgoing(&reference.as_name_only())?;
        let upload = client.upload(reference)?;
        // Where in the same registry the blobs may be.
        let elsewhere: Vec<String> = self
            .names_of(out.image.digest)?
            .iter()
            .filter_map(Reference::registry_and_path)
            .filter(|(at, other)| *at == registry && *other != path)
            .map(|(_, other)| other.to_owned())
            .collect();
        let mut sent: Vec<Digest> = Vec::new();
        for layer in &out.layers {
            if let Some((_, size)) = layer.kept {
                progress.event(Event::Layer {
                    digest: layer.blob,
                    size,
                });
            }
        }
        for layer in &out.layers {
            if !sent.contains(&layer.blob) {
                push_layer(&upload, &out.image, layer, &elsewhere, progress)?;
                sent.push(layer.blob);
            }
        }
        let (digest, bytes) = &out.config;
        if !upload.has(*digest, progress)? {
            upload.send_bytes(*digest, bytes, progress)?;
        }
        upload.manifest(tag, &out.media_type, &out.manifest, progress)?;
        Ok(out.image.digest)
    }
}

fn push_layer(
    upload: &Upload<'_>,
    image: &Image,
    layer: &OutgoingLayer,
    elsewhere: &[String],
    progress: &dyn Progress,
) -> Result<(), GiveError> {
    let digest = layer.blob;
    if upload.has(digest, progress)? {
        progress.event(Event::Present { digest });
        return Ok(());
    }
    for repository in elsewhere {
        if upload.mount(digest, repository, progress)? {
            progress.event(Event::Present { digest });
            return Ok(());
        }
    }
    let (file, _) = layer.file(image)?;
    upload.send_file(digest, file, &layer.path, progress)?;
    progress.event(Event::Done { digest });
    Ok(())
}
