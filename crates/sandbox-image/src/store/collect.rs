//! Deleting what nothing uses.

use std::collections::BTreeSet;
use std::fs;

use super::Store;
use super::error::StoreError;
use super::files::{entries, remove_file};
use crate::digest::Digest;
use crate::image::Removed;

impl Store {
    /// Deletes every layer and blob that no name and no container's lease refers to.
    ///
    /// Nothing is deleted while an import is under way; what is superfluous then goes at the next occasion.
    ///
    /// # Errors
    /// If the index or a lease cannot be read (then nothing is deleted), or a file cannot be deleted.
    pub fn collect(&self) -> Result<Removed, StoreError> {
        let mut removed = Removed::default();
        let Some(_quiet) = self.try_quiet()? else {
            tracing::debug!("an import is under way: nothing is deleted now");
            return Ok(removed);
        };
        let _lock = self.lock_images()?;
        let index = self.read_index()?;
        let leases = self.read_leases()?;
        let mut layers = BTreeSet::new();
        let mut blobs = BTreeSet::new();
        for (_, record) in index.iter() {
            layers.extend(record.layers.iter().copied());
            blobs.extend([record.manifest, record.config]);
            blobs.extend(record.blobs.iter().copied());
        }
        for (_, lease) in &leases {
            layers.extend(lease.layers.iter().copied());
        }
        for path in entries(&self.layers_folder())? {
            let Some(diff_id) = named(&path, ".erofs") else {
                continue;
            };
            if !layers.contains(&diff_id) {
                let size = fs::metadata(&path).map_or(0, |metadata| metadata.len());
                remove_file(&path)?;
                removed.deleted_layers.push(diff_id);
                removed.freed_bytes = removed.freed_bytes.saturating_add(size);
            }
        }
        // After the layers, so that none is without.
        for path in entries(&self.verity_folder())? {
            if named(&path, "").is_some_and(|diff_id| !layers.contains(&diff_id)) {
                remove_file(&path)?;
            }
        }
        for path in entries(&self.blobs_folder())? {
            if named(&path, "").is_some_and(|digest| !blobs.contains(&digest)) {
                let size = fs::metadata(&path).map_or(0, |metadata| metadata.len());
                remove_file(&path)?;
                removed.freed_bytes = removed.freed_bytes.saturating_add(size);
            }
        }
        removed.deleted_layers.sort();
        Ok(removed)
    }
}

/// The digest in a file's name.
fn named(path: &std::path::Path, suffix: &str) -> Option<Digest> {
    let name = path.file_name()?.to_str()?;
    format!("sha256:{}", name.strip_suffix(suffix)?)
        .parse()
        .ok()
}
