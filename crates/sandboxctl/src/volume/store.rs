//! The folders.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::container::{ContainerError, Containers, did_you_mean, now};
use crate::names;
use crate::settings::Settings;
use crate::state_file::{self, StateFileError};
use crate::values::mounts::{MountError, VolumeName};

/// What is known about a volume.
const RECORD: &str = "volume.json";
/// What containers see of it (docker's name for it).
const DATA: &str = "_data";

/// Why something could not be done with a volume.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error(transparent)]
    Name(#[from] MountError),
    /// It is not there.
    #[error(
        "there is no volume {name:?}{}; see `sandboxctl volume ls`",
        did_you_mean(near)
    )]
    NotFound { name: String, near: Vec<String> },
    /// A container has it.
    #[error(
        "volume {name} is in use by {}; remove what uses it first with `sandboxctl rm`",
        containers.join(", ")
    )]
    InUse {
        name: String,
        containers: Vec<String>,
    },
    #[error(transparent)]
    File(#[from] StateFileError),
    #[error("cannot {action} {}", path.display())]
    Files {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VolumeError {
    let path = path.to_owned();
    move |source| VolumeError::Files {
        action,
        path,
        source,
    }
}

/// What was written down of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// Seconds since the epoch.
    created: u64,
    labels: BTreeMap<String, String>,
    /// Nobody gave it a name.
    anonymous: bool,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Volume {
    pub(crate) name: VolumeName,
    /// Where its content is.
    pub(crate) data: PathBuf,
    /// Seconds since the epoch.
    pub(crate) created: u64,
    pub(crate) labels: BTreeMap<String, String>,
    /// Nobody gave it a name.
    pub(crate) anonymous: bool,
}

/// Every volume below one root.
#[derive(Debug, Clone)]
pub(crate) struct Volumes {
    root: PathBuf,
}

impl Volumes {
    /// The volumes below `root`, which is there.
    pub(crate) fn below(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    fn folder(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// Where the content of the volume of this name is, or will be.
    pub(crate) fn data(&self, name: &VolumeName) -> PathBuf {
        self.folder().join(name.as_str()).join(DATA)
    }

    /// Makes the volume, unless it is there; whether it was made. Without a name it gets a random one.
    pub(crate) fn create(
        &self,
        name: Option<&VolumeName>,
        labels: BTreeMap<String, String>,
    ) -> Result<VolumeName, VolumeError> {
        let random;
        let (name, anonymous) = match name {
            Some(name) => (name, false),
            None => {
                let id = names::random_id().map_err(failed("read", Path::new("/dev/urandom")))?;
                random = VolumeName::new(&id)?;
                (&random, true)
            }
        };
        self.make(name, labels, anonymous)
    }

    /// Makes the volume of a container that nobody named, under the random name that it was given.
    pub(crate) fn create_anonymous(&self, name: &VolumeName) -> Result<(), VolumeError> {
        self.make(name, BTreeMap::new(), true).map(drop)
    }

    fn make(
        &self,
        name: &VolumeName,
        labels: BTreeMap<String, String>,
        anonymous: bool,
    ) -> Result<VolumeName, VolumeError> {
        let _lock = self.locked()?;
        let folder = self.folder().join(name.as_str());
        if folder.is_dir() {
            return Ok(name.clone());
        }
        // Whole or not at all.
        let unfinished = self.folder().join(format!(".new-{name}"));
        let data = unfinished.join(DATA);
        fs::create_dir_all(&data).map_err(failed("create", &data))?;
        let record = Record {
            created: now(),
            labels,
            anonymous,
        };
        state_file::write(&unfinished.join(RECORD), serde_json::to_vec(&record))?;
        fs::rename(&unfinished, &folder).map_err(failed("create", &folder))?;
        Ok(name.clone())
    }

    /// Every volume, by name.
    pub(crate) fn list(&self) -> Result<Vec<Volume>, VolumeError> {
        let mut found = Vec::new();
        for name in self.names()? {
            // It may have been removed meanwhile.
            found.extend(self.load(name)?);
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    fn names(&self) -> Result<Vec<VolumeName>, VolumeError> {
        let folder = self.folder();
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("list", &folder)(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed("list", &folder))?.file_name();
            // What begins with a point is half made or half removed.
            names.extend(name.to_str().and_then(|name| VolumeName::new(name).ok()));
        }
        Ok(names)
    }

    fn load(&self, name: VolumeName) -> Result<Option<Volume>, VolumeError> {
        let path = self.folder().join(name.as_str()).join(RECORD);
        let remedy = "remove the volume with `sandboxctl volume rm`";
        let record: Option<Record> = state_file::read_if_there(&path, remedy)?;
        Ok(record.map(|record| Volume {
            data: self.data(&name),
            name,
            created: record.created,
            labels: record.labels,
            anonymous: record.anonymous,
        }))
    }

    /// The volume of that name.
    pub(crate) fn find(&self, name: &VolumeName) -> Result<Volume, VolumeError> {
        self.load(name.clone())?.ok_or_else(|| self.not_found(name))
    }

    fn not_found(&self, name: &VolumeName) -> VolumeError {
        // Without neighbours there is no hint.
        let known = self.names().unwrap_or_default();
        let near = names::near(name.as_str(), known.iter().map(VolumeName::as_str));
        VolumeError::NotFound {
            name: name.to_string(),
            near: near.into_iter().map(str::to_owned).collect(),
        }
    }

    /// Removes a volume that no container has.
    pub(crate) fn remove(
        &self,
        name: &VolumeName,
        containers: &Containers,
    ) -> Result<(), VolumeError> {
        let _lock = self.locked()?;
        let folder = self.folder().join(name.as_str());
        if !folder.is_dir() {
            return Err(self.not_found(name));
        }
        let users = users(containers, name)?;
        if !users.is_empty() {
            return Err(VolumeError::InUse {
                name: name.to_string(),
                containers: users,
            });
        }
        let gone = self.folder().join(format!(".old-{name}"));
        fs::rename(&folder, &gone).map_err(failed("remove", &folder))?;
        fs::remove_dir_all(&gone).map_err(failed("remove", &gone))
    }

    /// Holds off everybody else, and removes what killed processes left.
    fn locked(&self) -> Result<File, VolumeError> {
        let path = self.root.join("volumes.lock");
        let lock = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(failed("open", &path))?;
        lock.lock().map_err(failed("lock", &path))?;
        let folder = self.folder();
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with('.') {
                let path = entry.path();
                fs::remove_dir_all(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(lock)
    }
}

/// The names of the containers that have the volume.
pub(crate) fn users(
    containers: &Containers,
    name: &VolumeName,
) -> Result<Vec<String>, VolumeError> {
    let has = |folder: &Path| {
        // One that is just being made has no settings yet, and makes its volumes after them.
        Settings::load(folder).is_ok_and(|settings| {
            settings
                .mounts
                .iter()
                .any(|mount| mount.name.as_deref() == Some(name.as_str()))
        })
    };
    Ok(containers
        .holders()?
        .into_iter()
        .filter(|container| has(&container.folder))
        .map(|container| container.record.name.to_string())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> VolumeName {
        VolumeName::new(text).unwrap()
    }

    #[test]
    fn volume_is_made_once_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let volumes = Volumes::below(root.path());
        let containers = Containers::open(root.path()).unwrap();
        assert_eq!(volumes.list().unwrap(), []);
        let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        volumes.create(Some(&name("data")), labels.clone()).unwrap();
        let file = volumes.data(&name("data")).join("file");
        fs::write(&file, "content").unwrap();
        volumes
            .create(Some(&name("data")), BTreeMap::new())
            .unwrap();
        assert!(file.exists());
        let all = volumes.list().unwrap();
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].labels, labels);
        assert!(!all[0].anonymous);
        volumes.remove(&name("data"), &containers).unwrap();
        assert!(matches!(
            volumes.remove(&name("data"), &containers),
            Err(VolumeError::NotFound { .. })
        ));
        assert!(!file.exists());
    }

    #[test]
    fn volume_without_a_name_gets_one() {
        let root = tempfile::tempdir().unwrap();
        let volumes = Volumes::below(root.path());
        let made = volumes.create(None, BTreeMap::new()).unwrap();
        assert!(volumes.find(&made).unwrap().anonymous);
    }

    #[test]
    fn misspelt_volume_is_not_found_with_a_hint() {
        let root = tempfile::tempdir().unwrap();
        let volumes = Volumes::below(root.path());
        volumes
            .create(Some(&name("database")), BTreeMap::new())
            .unwrap();
        let error = volumes.find(&name("databse")).unwrap_err().to_string();
        assert!(error.contains("did you mean \"database\""), "{error}");
    }

    #[test]
    fn what_a_killed_process_left_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let volumes = Volumes::below(root.path());
        let left = root.path().join("volumes/.new-data/_data");
        fs::create_dir_all(&left).unwrap();
        assert_eq!(volumes.list().unwrap(), []);
        volumes
            .create(Some(&name("data")), BTreeMap::new())
            .unwrap();
        assert!(!left.exists());
    }
}
