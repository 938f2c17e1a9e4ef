//! From a registry to an image in the store.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use oci_spec::image::Descriptor;

use super::error::{ImportError, Part};
use super::layers::{LayerSource, Site};
use super::platform::Platform;
use super::{Blobs, LayerBlob, Naming, oci};
use crate::digest::Digest;
use crate::image::PulledImage;
use crate::reference::Reference;
use crate::registry::{Client, Progress, RegistryError, Repository, Wanted};
use crate::store::Store;

/// How many layers are worked on at a time.
const PARALLEL: usize = 3;

/// What to pull, and how.
pub struct Pull<'a> {
    /// The client.
    pub client: &'a Client,
    /// The platform of the image.
    pub platform: Platform,
    /// Who shows how far it is. Events come from several threads.
    pub progress: &'a dyn Progress,
}

/// The small parts of an image in a registry.
struct Remote<'a> {
    store: &'a Store,
    repository: &'a Repository<'a>,
    progress: &'a dyn Progress,
    /// What has already come.
    known: RefCell<HashMap<Digest, Vec<u8>>>,
}

impl Blobs for Remote<'_> {
    fn small(&self, part: Part, digest: Digest) -> Result<Option<Vec<u8>>, ImportError> {
        if let Some(bytes) = self.known.borrow_mut().remove(&digest) {
            return Ok(Some(bytes));
        }
        // Whatever has this digest is the right thing; a damaged one is got again.
        if let Ok(bytes) = self.store.read_blob(digest) {
            return Ok(Some(bytes));
        }
        let result = match part {
            Part::Index | Part::Manifest => self
                .repository
                .manifest("", Some(digest), self.progress)
                .map(|manifest| manifest.bytes),
            Part::Config | Part::Layer => self.repository.small_blob(digest, self.progress),
        };
        match result {
            Ok(bytes) => Ok(Some(bytes)),
            Err(RegistryError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// The layers of an image in a registry.
struct RemoteLayers<'a>(&'a Repository<'a>);

impl LayerSource for RemoteLayers<'_> {
    fn in_place(&self, _: &LayerBlob) -> Result<Option<Box<dyn Read>>, ImportError> {
        Ok(None)
    }

    fn fetch(
        &self,
        layer: &LayerBlob,
        file: &mut File,
        path: &Path,
        limit: u64,
        progress: &dyn Progress,
    ) -> Result<(), ImportError> {
        let Some((digest, size)) = layer.declared else {
            return Err(ImportError::Missing {
                part: Part::Layer,
                name: layer.file.clone(),
            });
        };
        if size > limit {
            return Err(ImportError::TooLarge {
                part: Part::Layer,
                name: digest.to_string(),
                limit,
            });
        }
        Ok(self.0.blob(Wanted { digest, size }, file, path, progress)?)
    }
}

impl Store {
    /// Brings the image that `reference` stands for in its registry into the store, under that name.
    ///
    /// Layers that are there are not asked for. Several processes that want the same layer get it once: the others wait.
    ///
    /// # Errors
    /// See [`ImportError`]. Nothing half-made stays.
    pub fn pull(&self, reference: &Reference, pull: &Pull<'_>) -> Result<PulledImage, ImportError> {
        let repository = pull.client.repository(reference)?;
        self.adding(|work, activity| {
            let tag = reference.tag_or_default().unwrap_or_default();
            let top = repository.manifest(tag, reference.digest(), pull.progress)?;
            let digest = top.digest;
            let descriptor = descriptor(&top.media_type, digest, top.bytes.len())?;
            let remote = Remote {
                store: self,
                repository: &repository,
                progress: pull.progress,
                known: RefCell::new([(top.digest, top.bytes)].into()),
            };
            let found = oci::find_at(&remote, &descriptor, &pull.platform)?;
            self.check_layers(&found)?;
            let installed = self.install_layers(
                &RemoteLayers(&repository),
                &found,
                Site {
                    work,
                    activity,
                    progress: pull.progress,
                },
                PARALLEL,
            )?;
            let before = self.resolve(reference).ok().map(|image| image.digest);
            let naming = Naming {
                wanted: Some(reference),
                names: vec![reference.clone()],
                index: Some(digest),
            };
            let imported = self.publish_found(&found, &installed, naming)?;
            Ok(PulledImage {
                changed: before != Some(imported.image.digest),
                image: imported.image,
                digest,
                new_layers: imported.new_layers,
            })
        })
    }
}

/// How an index would describe what the registry gave.
pub(super) fn descriptor(
    media_type: &str,
    digest: Digest,
    bytes: usize,
) -> Result<Descriptor, ImportError> {
    let described = serde_json::json!({
        "mediaType": media_type,
        "digest": digest,
        "size": bytes,
    });
    serde_json::from_value(described).map_err(|source| ImportError::Malformed {
        part: Part::Manifest,
        name: digest.to_string(),
        source,
    })
}
