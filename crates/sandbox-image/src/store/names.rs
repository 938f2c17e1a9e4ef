//! Names: giving further ones, and clearing away images that nobody uses.

use super::error::StoreError;
use super::{Store, shown};
use crate::digest::Digest;
use crate::image::{Image, Removed};
use crate::reference::Reference;

impl Store {
    /// Gives the image `reference` the further name `name`, which another image may lose by that.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Ambiguous`], [`StoreError::NotAName`], or what is wrong with the store.
    pub fn tag(&self, reference: &Reference, name: &Reference) -> Result<Image, StoreError> {
        let key = name
            .canonical()
            .filter(|_| name.digest().is_none())
            .ok_or_else(|| StoreError::NotAName {
                name: name.to_string(),
            })?;
        let _activity = self.begin_activity()?;
        let record = {
            let _lock = self.lock_images_shared()?;
            let index = self.read_index()?;
            let (_, record) = index.find_one(reference)?;
            // What it stands for elsewhere is not known of the new name.
            super::Record {
                index: None,
                ..record.clone()
            }
        };
        self.publish(&[key], &record)
    }

    /// Every name of the image with this ID.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn names_of(&self, id: Digest) -> Result<Vec<Reference>, StoreError> {
        let _lock = self.lock_images_shared()?;
        let index = self.read_index()?;
        index
            .names_of(id)
            .map(|name| {
                name.parse().map_err(|source| StoreError::BadName {
                    name: name.to_owned(),
                    source,
                })
            })
            .collect()
    }

    /// The names by digest under which the image with this ID was pulled.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn pulled_digests(&self, id: Digest) -> Result<Vec<String>, StoreError> {
        let _lock = self.lock_images_shared()?;
        let index = self.read_index()?;
        let mut found: Vec<String> = index
            .iter()
            .filter(|(_, record)| record.manifest == id)
            .filter_map(|(name, record)| {
                let repository = name.parse::<Reference>().ok()?.repository()?;
                Some(format!("{repository}@{}", record.index?))
            })
            .collect();
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// Takes away the names of images that no container uses, running or not: those without a tag, which are only a digest or an ID,
    /// or, with `all`, every one. Then deletes what no name and no container needs.
    ///
    /// # Errors
    /// If the store cannot be read or written.
    pub fn prune(&self, all: bool) -> Result<Removed, StoreError> {
        let untagged = {
            let _activity = self.begin_activity()?;
            let _lock = self.lock_images()?;
            let mut index = self.read_index()?;
            let leases = self.read_leases()?;
            let superfluous: Vec<String> = index
                .iter()
                .filter(|(_, record)| {
                    !leases
                        .iter()
                        .any(|(_, lease)| lease.manifest == record.manifest)
                })
                .filter(|(name, _)| all || !has_tag(name))
                .map(|(name, _)| name.to_owned())
                .collect();
            for name in &superfluous {
                index.remove(name);
            }
            if !superfluous.is_empty() {
                self.write_index(&index)?;
            }
            superfluous
        };
        let mut removed = self.collect()?;
        removed.untagged = untagged
            .iter()
            .filter_map(|name| shown(name).parse().ok())
            .collect();
        Ok(removed)
    }

    /// Deletes what layers came as; their EROFS images stay, so everything runs as before. See the module's documentation.
    ///
    /// # Errors
    /// If the store cannot be read or written.
    pub fn prune_blobs(&self) -> Result<Removed, StoreError> {
        {
            let _activity = self.begin_activity()?;
            let _lock = self.lock_images()?;
            let mut index = self.read_index()?;
            index.forget_blobs();
            self.write_index(&index)?;
        }
        self.collect()
    }
}

fn has_tag(name: &str) -> bool {
    name.parse::<Reference>()
        .is_ok_and(|name| name.tag().is_some())
}
