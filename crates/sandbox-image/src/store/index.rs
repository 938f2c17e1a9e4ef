//! `images.json` and the leases: what they hold, and how a reference is looked up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::shown;
use crate::digest::Digest;
use crate::reference::Reference;

/// The version of the format of `images.json`.
pub(super) const INDEX_VERSION: u32 = 1;

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The image's ID.
    pub(crate) manifest: Digest,
    pub(crate) config: Digest,
    /// Lowest first.
    pub(crate) layers: Vec<Digest>,
    /// Seconds since 1970 when the name was given.
    pub(crate) imported: u64,
    /// What the name stands for in its registry, if it was pulled: the digest of an index, or of the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) index: Option<Digest>,
    /// The blobs of its layers that are kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) blobs: Vec<Digest>,
}

/// What a container keeps from being deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lease {
    pub(super) manifest: Digest,
    pub(super) layers: Vec<Digest>,
}

/// `images.json`: canonical names and what they stand for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Index {
    pub(super) version: u32,
    images: BTreeMap<String, Record>,
}

impl Default for Index {
    fn default() -> Self {
        Self {
            version: INDEX_VERSION,
            images: BTreeMap::new(),
        }
    }
}

impl Index {
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Record)> {
        self.images
            .iter()
            .map(|(name, record)| (name.as_str(), record))
    }

    /// Gives an image its names, and says by which one it is found.
    ///
    /// One without a name has its ID in the place of one, as long as it has no other: the ID parses as a reference, to which
    /// older versions of this program have no objection either.
    pub(super) fn add(&mut self, names: &[String], record: &Record) -> String {
        let id = record.manifest.to_string();
        if let Some(first) = names.first() {
            self.images.remove(&id);
            for name in names {
                self.images.insert(name.clone(), record.clone());
            }
            return first.clone();
        }
        let known = self.names_of(record.manifest).next().map(str::to_owned);
        let Some(known) = known else {
            self.images.insert(id.clone(), record.clone());
            return id;
        };
        // What came with it is kept for the names that it has.
        for other in self.images.values_mut() {
            if other.manifest == record.manifest {
                let missing = |blob: &&Digest| !other.blobs.contains(blob);
                let new: Vec<Digest> = record.blobs.iter().filter(missing).copied().collect();
                other.blobs.extend(new);
            }
        }
        known
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.images.remove(name);
    }

    /// Keeps no layer's blob any more.
    pub(super) fn forget_blobs(&mut self) {
        for record in self.images.values_mut() {
            record.blobs.clear();
        }
    }

    /// The names of the image with the ID `manifest`.
    pub(super) fn names_of(&self, manifest: Digest) -> impl Iterator<Item = &str> {
        self.iter()
            .filter(move |(_, record)| record.manifest == manifest)
            .map(|(name, _)| name)
    }

    /// The one image that `reference` stands for, by its first name.
    pub(super) fn find_one(&self, reference: &Reference) -> Result<(&str, &Record), StoreError> {
        let found = self.find(reference);
        let ids: BTreeSet<Digest> = found.iter().map(|(_, record)| record.manifest).collect();
        match found.first() {
            None => Err(StoreError::NotFound {
                reference: reference.to_string(),
            }),
            Some(first) if ids.len() == 1 => Ok(*first),
            Some(_) => Err(StoreError::Ambiguous {
                reference: reference.to_string(),
                matches: ids.into_iter().collect(),
            }),
        }
    }

    /// The one name that `reference` stands for.
    pub(super) fn find_only(&self, reference: &Reference) -> Result<(&str, &Record), StoreError> {
        let first = self.find_one(reference)?;
        let found = self.find(reference);
        if found.len() > 1 {
            return Err(StoreError::SeveralNames {
                id: first.1.manifest,
                names: found.iter().map(|(name, _)| shown(name)).collect(),
            });
        }
        Ok(first)
    }

    /// The one image that `reference` stands for, by all names that it could stand for.
    pub(super) fn find_all(
        &self,
        reference: &Reference,
    ) -> Result<Vec<(&str, &Record)>, StoreError> {
        self.find_one(reference)?;
        Ok(self.find(reference))
    }

    /// Every name that `reference` could stand for. A name that exists is never taken for an ID.
    fn find(&self, reference: &Reference) -> Vec<(&str, &Record)> {
        if let Some(repository) = reference.repository() {
            if let Some(digest) = reference.digest() {
                return self
                    .iter()
                    .filter(|(name, record)| {
                        (record.manifest == digest || record.index == Some(digest))
                            && name.parse::<Reference>().is_ok_and(|name| {
                                name.repository().as_deref() == Some(&repository)
                                    && reference.tag().is_none_or(|tag| name.tag() == Some(tag))
                            })
                    })
                    .collect();
            }
            let canonical = reference.canonical().unwrap_or_default();
            if let Some((name, record)) = self.images.get_key_value(&canonical) {
                return vec![(name.as_str(), record)];
            }
        }
        let whole = reference.digest().map(|digest| digest.hex());
        let Some(prefix) = whole.as_deref().or(reference.id_prefix()) else {
            return Vec::new();
        };
        self.iter()
            .filter(|(_, record)| {
                record.manifest.hex().starts_with(prefix) || record.config.hex().starts_with(prefix)
            })
            .collect()
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}
