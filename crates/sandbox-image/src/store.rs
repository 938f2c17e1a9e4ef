//! The store on disk.
//!
//! ```text
//! <root>/                      mode 0700
//!   images.json                names: reference -> manifest, configuration, layers; an image without a name is under its ID
//!   blobs/sha256/<hex>         manifests, configurations and layers, as they came
//!   layers/<diff_id hex>.erofs one EROFS image per layer, shared by every image and container
//!   verity/<diff_id hex>       the root of the hash tree at the end of that image, by which a guest can check what it reads
//!   leases/<container id>      what a container uses, for as long as the container exists
//!   locks/<diff_id hex>        flock: the layer is being made
//!   tmp/                       everything unfinished
//!   store.lock                 flock: shared while anything is being added, exclusive to clear away
//!   images.lock                flock: guards images.json and leases/
//! ```
//!
//! **Whole or absent.** A file appears under its final name only by a rename within the file system, after
//! its contents are on disk. A layer file that exists is therefore whole. What a killed process leaves is in
//! `tmp/`, and is removed by the next [`Store::open`] that finds nothing else at work.
//!
//! **Order.** Blobs and layers are written first, the name last; they are deleted in the opposite order.
//!
//! **Locks.** Taken in the order `store.lock`, `locks/<layer>`, `images.lock`. Whatever writes a file holds `store.lock` shared; clearing away
//! only *tries* to have it exclusively: if an import is under way, whoever comes next clears away. Two imports
//! of one layer meet at its file in `locks/`; the second finds the work done.
//!
//! **Kept blobs.** What a layer came as is kept beside its EROFS image, as containerd does: only so `pull; tag; push` and `save`
//! can give the same digests again, since no compressor can be relied on to give the same bytes twice. It costs the size of
//! the compressed layer, for most images about half as much again as the EROFS images take. Containers do without:
//! [`Store::with_blobs`] does not keep them, [`Store::prune_blobs`] deletes them, and what then cannot be pushed says so.
//!
//! **Leases.** A container's lease is a file, not a lock of some process, because a stopped container still
//! needs its layers. It is taken under the same lock under which layers are deleted, and taking it
//! fails if a layer is already gone.

mod collect;
mod error;
mod files;
mod index;
mod names;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use oci_spec::image::ImageConfiguration;
use sandbox_types::ContainerId;

use crate::digest::Digest;
use crate::image::{DamagedImage, Image, Layer, Listing, Removed};
use crate::layer::{HashTree, Limits};
use crate::reference::Reference;

pub use error::StoreError;
pub(crate) use files::Activity;
use index::{Lease, Record};

/// The largest manifest or configuration (distribution limits manifests to 4 MiB).
pub(crate) const MAX_METADATA_BYTES: u64 = 4 << 20;

/// The images of one machine. Cheap to open; any number of processes may have it open.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    pub(crate) limits: Limits,
    pub(crate) keep_blobs: bool,
}

impl Store {
    /// Opens the store in the folder `root`, making it if it is not there, and removes what earlier,
    /// killed processes left unfinished.
    ///
    /// # Errors
    /// If the folders cannot be made or a lock cannot be taken.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let store = Self {
            root: root.to_owned(),
            limits: Limits::default(),
            keep_blobs: true,
        };
        store.create_folders()?;
        store.clear_unfinished()?;
        Ok(store)
    }

    /// The same store with other limits on what a layer may hold.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The same store, which keeps the blobs of new layers as they came, or does not.
    ///
    /// They are what an image can be pushed and saved from with the digests that it has. See the module's documentation.
    #[must_use]
    pub fn with_blobs(mut self, keep: bool) -> Self {
        self.keep_blobs = keep;
        self
    }

    /// The folder the store is in.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Finds an image by name, by name and digest, by ID or by the beginning of its ID, and checks that all
    /// of it is there.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Ambiguous`], or what is wrong with the store.
    pub fn resolve(&self, reference: &Reference) -> Result<Image, StoreError> {
        let _lock = self.lock_images_shared()?;
        let index = self.read_index()?;
        let (name, record) = index.find_one(reference)?;
        self.assemble(name, record)
    }

    /// Every name in the store, in alphabetical order; a damaged image hides none of the others.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn list(&self) -> Result<Listing, StoreError> {
        let _lock = self.lock_images_shared()?;
        let index = self.read_index()?;
        let mut listing = Listing::default();
        for (name, record) in index.iter() {
            match self.assemble(name, record) {
                Ok(image) => listing.images.push(image),
                Err(source) => listing.damaged.push(DamagedImage {
                    name: shown(name),
                    source,
                }),
            }
        }
        Ok(listing)
    }

    /// Takes the name `reference` away, and deletes every layer and blob that no other name and no container uses.
    ///
    /// An ID stands for its one name. The last name of an image is not removed while a container uses it.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Ambiguous`], [`StoreError::SeveralNames`],
    /// [`StoreError::InUse`], or what is wrong with the store.
    pub fn remove(&self, reference: &Reference) -> Result<Removed, StoreError> {
        self.remove_names(reference, None)
    }

    /// As [`Store::remove`], but an ID stands for all names of its image, and only containers of which `is_live` says so
    /// keep the last one. The layers that others use stay until those give them up.
    ///
    /// # Errors
    /// As [`Store::remove`], without [`StoreError::SeveralNames`].
    pub fn remove_forced(
        &self,
        reference: &Reference,
        is_live: &dyn Fn(&str) -> bool,
    ) -> Result<Removed, StoreError> {
        self.remove_names(reference, Some(is_live))
    }

    fn remove_names(
        &self,
        reference: &Reference,
        forced: Option<&dyn Fn(&str) -> bool>,
    ) -> Result<Removed, StoreError> {
        let names: Vec<String> = {
            let _activity = self.begin_activity()?;
            let _lock = self.lock_images()?;
            let mut index = self.read_index()?;
            let found = match forced {
                Some(_) => index.find_all(reference)?,
                None => vec![index.find_only(reference)?],
            };
            let Some(manifest) = found.first().map(|(_, record)| record.manifest) else {
                return Ok(Removed::default());
            };
            let names: Vec<String> = found.iter().map(|(name, _)| (*name).to_owned()).collect();
            let mut holders = self.holders(manifest)?;
            if let Some(is_live) = forced {
                holders.retain(|holder| is_live(holder));
            }
            let last = index.names_of(manifest).count() == names.len();
            if let Some(name) = names.first().filter(|_| last && !holders.is_empty()) {
                return Err(StoreError::InUse {
                    name: shown(name),
                    holders,
                });
            }
            names.iter().for_each(|name| index.remove(name));
            self.write_index(&index)?;
            names
        };
        let mut removed = self.collect()?;
        removed.untagged = names.iter().filter_map(|name| name.parse().ok()).collect();
        Ok(removed)
    }

    /// Keeps `image`'s layers for the container `owner` until [`Store::release`], also across a crash.
    ///
    /// # Errors
    /// [`StoreError::LayerMissing`] if the image was removed since it was resolved.
    pub fn lease(&self, owner: &ContainerId, image: &Image) -> Result<(), StoreError> {
        let _activity = self.begin_activity()?;
        let _lock = self.lock_images()?;
        for layer in &image.layers {
            self.check_layer(&image.name.to_string(), layer.diff_id)?;
        }
        let lease = Lease {
            manifest: image.digest,
            layers: image.layers.iter().map(|layer| layer.diff_id).collect(),
        };
        self.write_lease(owner, &lease)
    }

    /// Gives up what [`Store::lease`] kept for `owner`. Nothing happens if there is no such lease.
    ///
    /// # Errors
    /// If the lease cannot be deleted.
    pub fn release(&self, owner: &ContainerId) -> Result<(), StoreError> {
        let _lock = self.lock_images()?;
        self.delete_lease(owner)
    }

    /// Gives up what [`Store::lease`] kept for owners that `is_gone` says will not come back, and names them.
    ///
    /// # Errors
    /// If the leases cannot be listed, or one cannot be deleted.
    pub fn release_orphans(
        &self,
        is_gone: impl Fn(&ContainerId) -> bool,
    ) -> Result<Vec<ContainerId>, StoreError> {
        let mut owners = self.lease_owners()?;
        owners.retain(is_gone);
        for owner in &owners {
            self.release(owner)?;
        }
        Ok(owners)
    }

    /// The hash tree at the end of a layer's file, for who wants every byte of it checked when it is read.
    ///
    /// # Errors
    /// [`StoreError::NoHashTree`] for a layer from before there were any, or what is wrong with the store.
    pub fn hash_tree(&self, image: &Image, diff_id: Digest) -> Result<HashTree, StoreError> {
        self.read_hash_tree(diff_id)?
            .ok_or_else(|| StoreError::NoHashTree {
                image: image.name.to_string(),
                diff_id,
            })
    }

    /// The file a layer has, or will have.
    pub(crate) fn layer_path(&self, diff_id: Digest) -> PathBuf {
        self.layers_folder()
            .join(format!("{}.erofs", diff_id.hex()))
    }

    /// The containers whose lease names the image `manifest`.
    fn holders(&self, manifest: Digest) -> Result<Vec<String>, StoreError> {
        let leases = self.read_leases()?;
        Ok(leases
            .into_iter()
            .filter(|(_, lease)| lease.manifest == manifest)
            .map(|(owner, _)| owner)
            .collect())
    }

    fn check_layer(&self, image: &str, diff_id: Digest) -> Result<u64, StoreError> {
        let path = self.layer_path(diff_id);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(StoreError::LayerMissing {
                    image: image.to_owned(),
                    diff_id,
                });
            }
            Err(source) => return Err(StoreError::io("open", &path, source)),
        };
        let tree = self.read_hash_tree(diff_id)?;
        let size = files::layer_size(&file, tree.as_ref());
        size.map_err(|source| StoreError::LayerDamaged {
            image: image.to_owned(),
            diff_id,
            path,
            source: Box::new(source),
        })
    }

    /// Reads, verifies and puts together what a name stands for.
    fn assemble(&self, name: &str, record: &Record) -> Result<Image, StoreError> {
        let config = self.read_blob(record.config)?;
        let config: ImageConfiguration =
            serde_json::from_slice(&config).map_err(|source| StoreError::BadMetadata {
                digest: record.config,
                source,
            })?;
        let mut layers = Vec::with_capacity(record.layers.len());
        let mut seen = BTreeSet::new();
        let mut total = 0_u64;
        for &diff_id in &record.layers {
            let size = self.check_layer(&shown(name), diff_id)?;
            if seen.insert(diff_id) {
                total = total.saturating_add(size);
            }
            layers.push(Layer {
                diff_id,
                erofs_path: self.layer_path(diff_id),
                size,
            });
        }
        let name = name.parse().map_err(|source| StoreError::BadName {
            name: name.to_owned(),
            source,
        })?;
        Ok(Image {
            name,
            digest: record.manifest,
            created: config.created().clone(),
            config,
            layers,
            imported: SystemTime::UNIX_EPOCH + Duration::from_secs(record.imported),
            size: total,
        })
    }

    /// Gives an image whose blobs and layers are all in the store its names; without any it is found by its ID.
    pub(crate) fn publish(&self, names: &[String], record: &Record) -> Result<Image, StoreError> {
        let _lock = self.lock_images()?;
        let mut index = self.read_index()?;
        let image = self.assemble(&index.add(names, record), record)?;
        self.write_index(&index)?;
        Ok(image)
    }
}

/// A canonical name as people write it.
fn shown(name: &str) -> String {
    name.parse::<Reference>()
        .map_or_else(|_| name.to_owned(), |reference| reference.to_string())
}

pub(crate) use index::Record as ImageRecord;
pub(crate) use index::now as seconds_now;

#[cfg(test)]
mod tests;
