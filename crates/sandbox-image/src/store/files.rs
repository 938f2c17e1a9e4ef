//! The store's files: folders, locks, atomic writes.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sandbox_types::ContainerId;
use serde::de::DeserializeOwned;

use super::error::StoreError;
use super::index::{INDEX_VERSION, Index, Lease};
use super::{MAX_METADATA_BYTES, Store};
use crate::digest::Digest;
use crate::layer::HashTree;
use crate::layer::erofs::{self, ErofsError};

/// Something is being added to the store: nothing is cleared away until this is dropped.
#[derive(Debug)]
pub(crate) struct Activity {
    lock: File,
}

impl Drop for Activity {
    fn drop(&mut self) {
        // A child that is just being started has the descriptor too, until it executes its program: closing is not enough.
        let _ = self.lock.unlock();
    }
}

impl Store {
    pub(super) fn create_folders(&self) -> Result<(), StoreError> {
        let folders = ["blobs/sha256", "layers", "leases", "locks", "tmp", "verity"];
        let root = self.root().to_owned();
        for folder in std::iter::once(root).chain(folders.map(|folder| self.root().join(folder))) {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&folder)
                .map_err(|source| {
                    StoreError::io("create the image store's folder", &folder, source)
                })?;
        }
        Ok(())
    }

    pub(super) fn layers_folder(&self) -> PathBuf {
        self.root().join("layers")
    }

    /// Where unfinished things are made: the same file system as where they go.
    pub(crate) fn unfinished_folder(&self) -> PathBuf {
        self.root().join("tmp")
    }

    /// The file a blob has, or would have.
    pub(crate) fn blob_path(&self, digest: Digest) -> PathBuf {
        self.root().join("blobs/sha256").join(digest.hex())
    }

    pub(super) fn blobs_folder(&self) -> PathBuf {
        self.root().join("blobs/sha256")
    }

    fn leases_folder(&self) -> PathBuf {
        self.root().join("leases")
    }

    fn index_path(&self) -> PathBuf {
        self.root().join("images.json")
    }

    /// Announces that something is going to be added. Waits while something is being cleared away.
    pub(crate) fn begin_activity(&self) -> Result<Activity, StoreError> {
        let path = self.root().join("store.lock");
        let file = open_lock(&path)?;
        file.lock_shared()
            .map_err(|source| StoreError::io("lock", &path, source))?;
        Ok(Activity { lock: file })
    }

    /// The right to clear away, if nothing is being added right now.
    pub(super) fn try_quiet(&self) -> Result<Option<File>, StoreError> {
        let path = self.root().join("store.lock");
        let file = open_lock(&path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(StoreError::io("lock", &path, source)),
        }
    }

    pub(super) fn lock_images(&self) -> Result<File, StoreError> {
        let path = self.root().join("images.lock");
        let file = open_lock(&path)?;
        file.lock()
            .map_err(|source| StoreError::io("lock", &path, source))?;
        Ok(file)
    }

    pub(super) fn lock_images_shared(&self) -> Result<File, StoreError> {
        let path = self.root().join("images.lock");
        let file = open_lock(&path)?;
        file.lock_shared()
            .map_err(|source| StoreError::io("lock", &path, source))?;
        Ok(file)
    }

    /// Waits for the right to make the layer `diff_id`. The caller holds an [`Activity`], so that the lock file stays.
    pub(crate) fn lock_layer(
        &self,
        diff_id: Digest,
        _activity: &Activity,
    ) -> Result<File, StoreError> {
        let path = self.root().join("locks").join(diff_id.hex());
        let file = open_lock(&path)?;
        file.lock()
            .map_err(|source| StoreError::io("lock", &path, source))?;
        Ok(file)
    }

    /// Removes what was left unfinished, unless something is at work.
    pub(super) fn clear_unfinished(&self) -> Result<(), StoreError> {
        let Some(_quiet) = self.try_quiet()? else {
            return Ok(());
        };
        for folder in ["tmp", "locks"] {
            for path in entries(&self.root().join(folder))? {
                remove_tree(&path)?;
            }
        }
        Ok(())
    }

    pub(super) fn read_index(&self) -> Result<Index, StoreError> {
        let path = self.index_path();
        let Some(index) = read_json::<Index>(&path)? else {
            return Ok(Index::default());
        };
        if index.version != INDEX_VERSION {
            return Err(StoreError::Version {
                path,
                found: index.version,
                known: INDEX_VERSION,
            });
        }
        Ok(index)
    }

    pub(super) fn write_index(&self, index: &Index) -> Result<(), StoreError> {
        let path = self.index_path();
        let bytes = serde_json::to_vec_pretty(index).map_err(|source| StoreError::BadRecord {
            path: path.clone(),
            source,
        })?;
        self.write_atomically(&path, &bytes)
    }

    pub(super) fn write_lease(&self, owner: &ContainerId, lease: &Lease) -> Result<(), StoreError> {
        let path = self.leases_folder().join(owner.to_string());
        let bytes = serde_json::to_vec(lease).map_err(|source| StoreError::BadRecord {
            path: path.clone(),
            source,
        })?;
        self.write_atomically(&path, &bytes)
    }

    pub(super) fn delete_lease(&self, owner: &ContainerId) -> Result<(), StoreError> {
        remove_file(&self.leases_folder().join(owner.to_string()))
    }

    /// Every container that holds a lease.
    pub(super) fn lease_owners(&self) -> Result<Vec<ContainerId>, StoreError> {
        let leases = entries(&self.leases_folder())?;
        Ok(leases
            .iter()
            .filter_map(|path| path.file_name()?.to_str()?.parse().ok())
            .collect())
    }

    /// Every lease, with the container that holds it.
    pub(super) fn read_leases(&self) -> Result<Vec<(String, Lease)>, StoreError> {
        let mut leases = Vec::new();
        for path in entries(&self.leases_folder())? {
            let owner = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if let Some(lease) = read_json(&path)? {
                leases.push((owner, lease));
            }
        }
        leases.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(leases)
    }

    pub(crate) fn write_blob(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        self.write_atomically(&self.blob_path(digest), bytes)?;
        Ok(digest)
    }

    /// A layer's blob and its size, if it is kept.
    pub(crate) fn kept_blob(&self, digest: Digest) -> Result<Option<(File, u64)>, StoreError> {
        let path = self.blob_path(digest);
        let failed = |source| StoreError::io("open", &path, source);
        match File::open(&path) {
            Ok(file) => {
                let size = file.metadata().map_err(failed)?.len();
                Ok(Some((file, size)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(failed(source)),
        }
    }

    pub(super) fn verity_folder(&self) -> PathBuf {
        self.root().join("verity")
    }

    pub(super) fn read_hash_tree(&self, diff_id: Digest) -> Result<Option<HashTree>, StoreError> {
        read_json(&self.verity_folder().join(diff_id.hex()))
    }

    /// Whether a layer is there as a whole, with its hash tree.
    pub(crate) fn has_layer(&self, diff_id: Digest) -> bool {
        let Ok(Some(tree)) = self.read_hash_tree(diff_id) else {
            return false;
        };
        File::open(self.layer_path(diff_id))
            .is_ok_and(|file| layer_size(&file, Some(&tree)).is_ok())
    }

    /// Writes down the root of a layer's hash tree, before the layer gets its name.
    pub(crate) fn write_hash_tree(
        &self,
        diff_id: Digest,
        tree: &HashTree,
    ) -> Result<(), StoreError> {
        let path = self.verity_folder().join(diff_id.hex());
        let bytes = serde_json::to_vec(tree).map_err(|source| StoreError::BadRecord {
            path: path.clone(),
            source,
        })?;
        self.write_atomically(&path, &bytes)
    }

    /// A manifest or configuration of the store, checked against its digest.
    pub(crate) fn read_blob(&self, digest: Digest) -> Result<Vec<u8>, StoreError> {
        let path = self.blob_path(digest);
        let bytes = read_bounded(&path)?;
        let found = Digest::of(&bytes);
        if found != digest {
            return Err(StoreError::BlobDamaged { path, found });
        }
        Ok(bytes)
    }

    fn write_atomically(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let folder = self.unfinished_folder();
        let mut file = tempfile::NamedTempFile::new_in(&folder)
            .map_err(|source| StoreError::io("create a file in", &folder, source))?;
        file.write_all(bytes)
            .map_err(|source| StoreError::io("write", file.path(), source))?;
        self.put_in_place(file.into_temp_path(), path)
    }

    /// Gives a finished file its final name: contents to disk, rename, folder to disk.
    pub(crate) fn put_in_place(
        &self,
        finished: tempfile::TempPath,
        path: &Path,
    ) -> Result<(), StoreError> {
        File::open(&finished)
            .and_then(|file| file.sync_all())
            .map_err(|source| StoreError::io("write to disk", &finished, source))?;
        finished
            .persist(path)
            .map_err(|error| StoreError::io("move a finished file to", path, error.error))?;
        let folder = path.parent().unwrap_or(self.root());
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|source| StoreError::io("write to disk", folder, source))
    }
}

/// The size of a layer's file, if it is whole: the image, and behind it the hash tree that is known of it.
pub(super) fn layer_size(file: &File, tree: Option<&HashTree>) -> Result<u64, ErofsError> {
    let found = erofs::checked_size(file)?;
    match tree.map(HashTree::file_bytes) {
        Some(expected) if expected != found => Err(ErofsError::Length { expected, found }),
        _ => Ok(found),
    }
}

fn open_lock(path: &Path) -> Result<File, StoreError> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| StoreError::io("open the lock file", path, source))
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, StoreError> {
    let read = |path: &Path| {
        let mut bytes = Vec::new();
        File::open(path)?
            .take(MAX_METADATA_BYTES)
            .read_to_end(&mut bytes)?;
        io::Result::Ok(bytes)
    };
    read(path).map_err(|source| StoreError::io("read", path, source))
}

/// The value in a JSON file of the store; `None` if there is no such file.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StoreError::io("read", path, source)),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|source| StoreError::BadRecord {
            path: path.to_owned(),
            source,
        })
}

/// The paths of what is in a folder.
pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    fs::read_dir(folder)
        .and_then(|entries| {
            entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect()
        })
        .map_err(|source| StoreError::io("list", folder, source))
}

/// Deletes a file; that it is not there is fine.
pub(super) fn remove_file(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(|source| StoreError::io("delete", path, source)),
    }
}

fn remove_tree(path: &Path) -> Result<(), StoreError> {
    let is_folder = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    if is_folder {
        fs::remove_dir_all(path).map_err(|source| StoreError::io("delete", path, source))
    } else {
        remove_file(path)
    }
}
