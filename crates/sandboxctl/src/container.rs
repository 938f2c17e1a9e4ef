//! The containers of one `--root`: a folder each, which is also the bundle that the shim gets.
//!
//! ```text
//! <root>/containers.lock          flock: a name is being given, a folder comes or goes
//! <root>/containers/<id>/
//!   state.json                    what is known about the container: a Record
//!   config.json                   OCI runtime configuration
//!   sandbox.toml                  the shim's configuration
//!   rw.ext4                       the writable layer
//!   launch.json                   how it is started, also again: a Launch
//!   stdin, stdout, stderr         fifos, while it runs
//!   container.log, container.log.1 …   what it wrote
//! ```
//!
//! A folder appears and disappears whole, by a rename. Who makes, starts, attends or removes a container holds a flock
//! on its folder, which the maker hands on to the attendant; a container whose state says that it is being made or
//! runs, and that nobody attends, was abandoned ([`crate::settle`]). The state is read, changed and written under
//! the lock of all containers, because also those that do not attend a container change it (`rename`).

mod damaged;

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use sandbox_types::ContainerId;
use serde::{Deserialize, Serialize};

use crate::names;
use damaged::Damaged;

/// What the state is called in a container's folder.
const FILE: &str = "state.json";

/// Why a container cannot be made, found or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContainerError {
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The name belongs to another container.
    #[error(
        "the name {name:?} is in use by container {}; choose another, or remove that one with `sandboxctl rm {name}`",
        names::short(id)
    )]
    NameTaken { name: String, id: String },
    /// No container of that name or identifier.
    #[error(
        "there is no container {name:?}{}; see `sandboxctl ps -a`",
        did_you_mean(near)
    )]
    NotFound { name: String, near: Vec<String> },
    /// Several containers' identifiers begin like that.
    #[error("{prefix:?} is the beginning of several containers' IDs; give more digits")]
    Ambiguous { prefix: String },
    /// A state file cannot be read, or not as one.
    #[error(
        "{} is damaged; remove the container with `sandboxctl rm -f {}`",
        path.display(),
        short_id_in(path)
    )]
    Damaged { path: PathBuf, source: io::Error },
    /// No free name was found.
    #[error("no free name was found for the container; give it one with --name")]
    NoFreeName,
}

/// The identifier of the container whose state this is.
fn short_id_in(state: &Path) -> String {
    let folder = state.parent().and_then(Path::file_name).unwrap_or_default();
    names::short(&folder.to_string_lossy()).to_owned()
}

pub(crate) fn did_you_mean<S: AsRef<str>>(near: &[S]) -> String {
    if near.is_empty() {
        return String::new();
    }
    let quoted: Vec<String> = near
        .iter()
        .map(|name| format!("{:?}", name.as_ref()))
        .collect();
    format!(" (did you mean {}?)", quoted.join(" or "))
}

fn failed<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> ContainerError + 'a {
    move |source| ContainerError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// What is written down about a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// 64 hexadecimal digits.
    pub(crate) id: ContainerId,
    /// The name people use.
    pub(crate) name: ContainerId,
    /// The image's name.
    pub(crate) image: String,
    /// The image's digest.
    pub(crate) image_digest: String,
    /// The process's arguments.
    pub(crate) command: Vec<String>,
    /// Seconds since the epoch.
    pub(crate) created: u64,
    /// How far it has come.
    pub(crate) status: Status,
    /// Its shim, from when it answers until it is gone.
    pub(crate) shim: Option<ShimRecord>,
    /// What `--label` noted.
    pub(crate) labels: BTreeMap<String, String>,
    /// The process that attends it, while it runs.
    #[serde(default)]
    pub(crate) attendant: Option<ProcessRecord>,
    /// When its process was started last, in seconds since the epoch.
    #[serde(default)]
    pub(crate) started: Option<u64>,
    /// The guest's kernel killed a process of it for want of memory.
    #[serde(default)]
    pub(crate) oom_killed: bool,
    /// It is removed when it has ended.
    #[serde(default)]
    pub(crate) auto_remove: bool,
    /// It stays also when it cannot be started.
    #[serde(default)]
    pub(crate) keep: bool,
    /// `restart` ends it and is about to start it again: this end is none that [`Self::auto_remove`] means.
    #[serde(default)]
    pub(crate) restarting: bool,
}

impl Record {
    /// Whether its end, now, is the end of it: nobody wants it to stay.
    pub(crate) fn goes_with_its_end(&self) -> bool {
        self.auto_remove && !self.restarting
    }
}

/// A process, so that another that got its number is not taken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessRecord {
    pub(crate) pid: u32,
    /// When it began, in clock ticks since boot.
    pub(crate) start_time: u64,
}

/// Where a container's shim is to be found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShimRecord {
    /// Its task service.
    pub(crate) address: String,
    /// Its process.
    #[serde(flatten)]
    pub(crate) process: ProcessRecord,
}

/// The life of a container, as far as it was written down.
///
/// ```text
/// Creating --> Created --start--> Creating --> Running --> Exited or Failed --start--> Creating
///     |   run                        |
///     +--------------------> Running +--> Failed, or gone
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub(crate) enum Status {
    /// It is being made, or being started.
    Creating,
    /// It was made and not started.
    Created,
    /// Its process was started.
    Running {
        /// Seconds since the epoch.
        started: u64,
    },
    /// Its process ended.
    Exited {
        /// With this code.
        code: i32,
        /// Seconds since the epoch.
        finished: u64,
    },
    /// Its sandbox ended without its process.
    Failed {
        /// One line.
        reason: String,
        /// What it is said to have ended with: 137, or why its process could not be started.
        #[serde(default = "killed")]
        code: i32,
        /// Seconds since the epoch.
        finished: u64,
    },
}

impl Status {
    /// Whether somebody makes, starts or attends the container, or should.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self, Self::Creating | Self::Running { .. })
    }
}

fn killed() -> i32 {
    crate::look::KILLED
}

/// Now, in seconds since the epoch.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// The file whose lock is that of all containers.
const LOCK: &str = "containers.lock";

/// Every container below one root.
#[derive(Debug, Clone)]
pub(crate) struct Containers {
    folder: PathBuf,
    lock: PathBuf,
}

/// What a new container is made with.
pub(crate) struct NewContainer<'a> {
    pub(crate) id: ContainerId,
    pub(crate) name: Option<&'a ContainerId>,
    pub(crate) image: String,
    pub(crate) image_digest: String,
    pub(crate) command: Vec<String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) auto_remove: bool,
    pub(crate) keep: bool,
}

impl Containers {
    /// The containers below `root`, whose folder is made if it is not there.
    pub(crate) fn open(root: &Path) -> Result<Self, ContainerError> {
        let folder = root.join("containers");
        fs::create_dir_all(&folder).map_err(failed("create", &folder))?;
        Ok(Self {
            folder,
            lock: root.join(LOCK),
        })
    }

    /// The folder that the container of this identifier has, or will have.
    pub(crate) fn folder_of(&self, id: &str) -> PathBuf {
        self.folder.join(id)
    }

    fn locked(&self) -> Result<File, ContainerError> {
        locked(&self.lock)
    }

    /// Looks which containers there are while none comes or goes: `look` is told what tells that one is not there.
    pub(crate) fn while_none_comes_or_goes<T>(
        &self,
        look: impl FnOnce(&dyn Fn(&ContainerId) -> bool) -> T,
    ) -> Result<T, ContainerError> {
        let _lock = self.locked()?;
        // A folder that cannot be looked at may well be there.
        let is_gone =
            |id: &ContainerId| matches!(self.folder_of(id.as_str()).try_exists(), Ok(false));
        Ok(look(&is_gone))
    }

    /// Makes a container's folder with its state in it.
    pub(crate) fn create(&self, new: NewContainer<'_>) -> Result<Attended, ContainerError> {
        let _lock = self.locked()?;
        self.sweep()?;
        let existing = self.records()?;
        let holder = |name: &str| existing.iter().find(|other| other.name.as_str() == name);
        let name = match new.name {
            Some(name) => {
                if let Some(other) = holder(name.as_str()) {
                    return Err(ContainerError::NameTaken {
                        name: name.to_string(),
                        id: other.id.to_string(),
                    });
                }
                name.clone()
            }
            None => free_name(|name| holder(name).is_some())?,
        };
        let record = Record {
            id: new.id,
            name,
            image: new.image,
            image_digest: new.image_digest,
            command: new.command,
            created: now(),
            status: Status::Creating,
            shim: None,
            labels: new.labels,
            attendant: None,
            started: None,
            oom_killed: false,
            auto_remove: new.auto_remove,
            keep: new.keep,
            restarting: false,
        };
        let folder = self.folder.join(record.id.as_str());
        let unfinished = self.folder.join(format!(".new-{}", record.id));
        make_private(&unfinished)?;
        let made = Container {
            folder: unfinished.clone(),
            record: record.clone(),
        };
        made.save()?;
        let lock = File::open(&unfinished).map_err(failed("open", &unfinished))?;
        lock.lock().map_err(failed("lock", &unfinished))?;
        fs::rename(&unfinished, &folder).map_err(failed("create", &folder))?;
        Ok(Attended {
            container: Container { folder, record },
            lock,
        })
    }

    /// Takes hold of a container that nobody attends, as it is then; none if somebody does.
    pub(crate) fn take(&self, container: &Container) -> Result<Option<Attended>, ContainerError> {
        let folder = &container.folder;
        let lock = match File::open(folder) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(gone(container));
            }
            Err(error) => return Err(failed("open", folder)(error)),
        };
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(failed("lock", folder)(error)),
        }
        // It may have been removed before the lock was had.
        let container = Container::load(folder).map_err(|_| gone(container))?;
        Ok(Some(Attended { container, lock }))
    }

    /// Gives a container another name.
    pub(crate) fn rename(
        &self,
        container: &Container,
        name: &ContainerId,
    ) -> Result<(), ContainerError> {
        let _lock = self.locked()?;
        for other in self.records()? {
            if other.name == *name {
                return Err(ContainerError::NameTaken {
                    name: name.to_string(),
                    id: other.id.to_string(),
                });
            }
        }
        let mut container = Container::load(&container.folder).map_err(|_| gone(container))?;
        container.record.name.clone_from(name);
        container.save()
    }

    /// Removes what killed processes left half made or half removed. The lock must be held.
    fn sweep(&self) -> Result<(), ContainerError> {
        for entry in self.entries()? {
            if entry.file_name().to_string_lossy().starts_with('.') {
                let path = entry.path();
                fs::remove_dir_all(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(())
    }

    fn entries(&self) -> Result<Vec<fs::DirEntry>, ContainerError> {
        fs::read_dir(&self.folder)
            .and_then(Iterator::collect)
            .map_err(failed("list", &self.folder))
    }

    fn records(&self) -> Result<Vec<Record>, ContainerError> {
        Ok(self.list()?.into_iter().map(|one| one.record).collect())
    }

    /// Every container, newest first. One whose state cannot be read is left out ([`Self::damaged`]).
    pub(crate) fn list(&self) -> Result<Vec<Container>, ContainerError> {
        Ok(self.scan()?.0)
    }

    /// Those whose state can be read, newest first, and those whose cannot.
    fn scan(&self) -> Result<(Vec<Container>, Vec<Damaged>), ContainerError> {
        let (mut found, mut damaged) = (Vec::new(), Vec::new());
        for entry in self.entries()? {
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            let folder = entry.path();
            match Container::load(&folder) {
                Ok(container) => found.push(container),
                Err(error) => damaged.extend(Damaged::new(&folder, error)),
            }
        }
        found.sort_by(|a, b| {
            let key =
                |one: &Container| (std::cmp::Reverse(one.record.created), one.record.id.clone());
            key(a).cmp(&key(b))
        });
        Ok((found, damaged))
    }

    /// The container of that name, identifier, or beginning of an identifier. One whose state cannot be read has no name that is
    /// known, and is an error that says how it is removed.
    pub(crate) fn find(&self, wanted: &str) -> Result<Container, ContainerError> {
        // docker's names begin with a slash inside, and `inspect` shows them so.
        let wanted = wanted.strip_prefix('/').unwrap_or(wanted);
        let (all, mut damaged) = self.scan()?;
        damaged.retain(|one| !wanted.is_empty() && one.begins_with(wanted));
        let exact = all
            .iter()
            .find(|one| one.record.name.as_str() == wanted || one.record.id.as_str() == wanted);
        if let Some(found) = exact {
            return Ok(found.clone());
        }
        let mut beginning = all
            .iter()
            .filter(|one| !wanted.is_empty() && one.record.id.as_str().starts_with(wanted));
        let other = damaged.pop();
        match (beginning.next(), beginning.next(), other) {
            (Some(found), None, None) => Ok(found.clone()),
            (None, _, Some(other)) if damaged.is_empty() => Err(other.error),
            (Some(_), _, _) | (_, _, Some(_)) => Err(ContainerError::Ambiguous {
                prefix: wanted.to_owned(),
            }),
            (None, _, None) => {
                let known = all.iter().map(|one| one.record.name.as_str());
                Err(ContainerError::NotFound {
                    name: wanted.to_owned(),
                    near: names::near(wanted, known)
                        .into_iter()
                        .map(str::to_owned)
                        .collect(),
                })
            }
        }
    }

    /// Removes a container's folder. The caller has ended whatever used it.
    pub(crate) fn remove(&self, container: &Container) -> Result<(), ContainerError> {
        let _lock = self.locked()?;
        let gone = self.folder.join(format!(".old-{}", container.record.id));
        match fs::rename(&container.folder, &gone) {
            Ok(()) => fs::remove_dir_all(&gone).map_err(failed("remove", &gone)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("remove", &container.folder)(error)),
        }
    }
}

fn locked(path: &Path) -> Result<File, ContainerError> {
    let file = File::options()
        .create(true)
        .append(true)
        .open(path)
        .map_err(failed("open", path))?;
    file.lock().map_err(failed("lock", path))?;
    Ok(file)
}

/// It was found, and then removed.
fn gone(container: &Container) -> ContainerError {
    ContainerError::NotFound {
        name: container.record.name.to_string(),
        near: Vec::new(),
    }
}

/// A random name that is not taken; once the words run out, with digits behind them.
fn free_name(taken: impl Fn(&str) -> bool) -> Result<ContainerId, ContainerError> {
    let path = Path::new("/dev/urandom");
    for round in 0..256 {
        let mut name = names::random_name().map_err(failed("read", path))?;
        if round > 16 {
            name.push_str(&round.to_string());
        }
        if !taken(&name) {
            return ContainerId::new(name).map_err(|_| ContainerError::NoFreeName);
        }
    }
    Err(ContainerError::NoFreeName)
}

fn make_private(folder: &Path) -> Result<(), ContainerError> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .mode(0o700)
        .create(folder)
        .map_err(failed("create", folder))
}

/// One container as it was read.
#[derive(Debug, Clone)]
pub(crate) struct Container {
    /// Its folder: the bundle.
    pub(crate) folder: PathBuf,
    /// Its state.
    pub(crate) record: Record,
}

impl Container {
    fn load(folder: &Path) -> Result<Self, ContainerError> {
        let path = folder.join(FILE);
        let text = fs::read(&path).map_err(failed("read", &path))?;
        let record = serde_json::from_slice(&text).map_err(|source: serde_json::Error| {
            ContainerError::Damaged {
                path,
                source: source.into(),
            }
        })?;
        Ok(Self {
            folder: folder.to_owned(),
            record,
        })
    }

    /// Writes the state, whole or not at all.
    ///
    /// Also when the machine loses its power, once the container has been made or has ended, and stays. Until then nobody waits for the
    /// disk, because whoever starts a container would: one that is being made is of no use after a crash, and that of one that runs
    /// is on the disk soon ([`Self::sync_state`]).
    pub(crate) fn save(&self) -> Result<(), ContainerError> {
        let path = self.state_path();
        let unfinished = self.folder.join(".state.json");
        let text =
            serde_json::to_vec_pretty(&self.record).map_err(|source| ContainerError::Damaged {
                path: path.clone(),
                source: source.into(),
            })?;
        let ended = !self.record.status.is_live();
        let write = || {
            let mut file = File::create(&unfinished)?;
            file.write_all(&text)?;
            match ended && !self.record.auto_remove {
                true => file.sync_all(),
                false => Ok(()),
            }
        };
        write().map_err(failed("write", &unfinished))?;
        fs::rename(&unfinished, &path).map_err(failed("write", &path))
    }

    fn state_path(&self) -> PathBuf {
        self.folder.join(FILE)
    }

    /// Waits until the state that was written last is on the disk.
    pub(crate) fn sync_state(&self) -> Result<(), ContainerError> {
        let path = self.state_path();
        File::open(&path)
            .and_then(|file| file.sync_all())
            .map_err(failed("write to disk", &path))
    }

    /// Reads the state, changes it and writes it.
    pub(crate) fn update(
        &mut self,
        change: impl FnOnce(&mut Record),
    ) -> Result<(), ContainerError> {
        let root = self.folder.ancestors().nth(2).unwrap_or(&self.folder);
        let _lock = locked(&root.join(LOCK))?;
        *self = Self::load(&self.folder)?;
        change(&mut self.record);
        self.save()
    }

    /// The state as it is now; none if the container is gone.
    pub(crate) fn reload(&self) -> Option<Self> {
        Self::load(&self.folder).ok()
    }

    /// Whether some process attends it now.
    pub(crate) fn is_attended(&self) -> bool {
        // Shared, so that two that only look do not take each other for one that attends.
        File::open(&self.folder)
            .is_ok_and(|folder| matches!(folder.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }
}

/// A container that this process makes or attends.
#[derive(Debug)]
pub(crate) struct Attended {
    pub(crate) container: Container,
    lock: File,
}

impl Attended {
    /// A container whose lock another process has handed over.
    pub(crate) fn inherited(folder: &Path, lock: File) -> Result<Self, ContainerError> {
        let container = Container::load(folder)?;
        Ok(Self { container, lock })
    }

    /// Gives the lock away.
    pub(crate) fn into_lock(self) -> File {
        self.lock
    }

    /// The folder: the bundle.
    pub(crate) fn folder(&self) -> &Path {
        &self.container.folder
    }

    /// Changes the state and writes it.
    pub(crate) fn update(
        &mut self,
        change: impl FnOnce(&mut Record),
    ) -> Result<(), ContainerError> {
        self.container.update(change)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A container that stays, and is being made.
    pub(crate) fn made(containers: &Containers) -> Attended {
        let stays = NewContainer {
            keep: true,
            ..new(None)
        };
        containers.create(stays).unwrap()
    }

    pub(super) fn new(name: Option<&ContainerId>) -> NewContainer<'_> {
        NewContainer {
            id: ContainerId::new(names::random_id().unwrap()).unwrap(),
            name,
            image: "demo".to_owned(),
            image_digest: "sha256:0".to_owned(),
            command: vec!["sh".to_owned()],
            labels: BTreeMap::new(),
            auto_remove: false,
            keep: false,
        }
    }

    #[test]
    fn name_that_is_taken_is_refused_until_removed() {
        let root = tempfile::tempdir().unwrap();
        let containers = Containers::open(root.path()).unwrap();
        let name = ContainerId::new("a").unwrap();
        let first = containers.create(new(Some(&name))).unwrap();
        let error = containers.create(new(Some(&name))).unwrap_err();
        assert!(matches!(error, ContainerError::NameTaken { .. }), "{error}");
        containers.remove(&first.container).unwrap();
        containers.create(new(Some(&name))).unwrap();
        assert_eq!(containers.list().unwrap().len(), 1);
    }

    #[test]
    fn container_is_found_by_name_id_and_beginning() {
        let root = tempfile::tempdir().unwrap();
        let containers = Containers::open(root.path()).unwrap();
        let made = containers.create(new(None)).unwrap().container.record;
        let shown = format!("/{}", made.name);
        for wanted in [
            made.name.as_str(),
            shown.as_str(),
            made.id.as_str(),
            names::short(made.id.as_str()),
        ] {
            assert_eq!(containers.find(wanted).unwrap().record, made);
        }
        let misspelt = format!("{}x", made.name);
        match containers.find(&misspelt).unwrap_err() {
            ContainerError::NotFound { near, .. } => assert_eq!(near, [made.name.as_str()]),
            other => panic!("{other}"),
        }
        assert!(containers.find("").is_err());
    }

    #[test]
    fn state_survives_its_writer() {
        let root = tempfile::tempdir().unwrap();
        let containers = Containers::open(root.path()).unwrap();
        let mut made = containers.create(new(None)).unwrap();
        made.update(|record| {
            record.status = Status::Exited {
                code: 42,
                finished: 7,
            }
        })
        .unwrap();
        let id = made.container.record.id.clone();
        assert!(containers.find(id.as_str()).unwrap().is_attended());
        drop(made);
        let found = containers.find(id.as_str()).unwrap();
        assert!(!found.is_attended());
        assert_eq!(
            found.record.status,
            Status::Exited {
                code: 42,
                finished: 7
            }
        );
    }

    #[test]
    fn half_made_folder_is_swept() {
        let root = tempfile::tempdir().unwrap();
        let containers = Containers::open(root.path()).unwrap();
        let left = root.path().join("containers/.new-x");
        fs::create_dir(&left).unwrap();
        assert!(containers.list().unwrap().is_empty());
        containers.create(new(None)).unwrap();
        assert!(!left.exists());
    }

    #[test]
    fn names_given_at_once_are_distinct() {
        let root = tempfile::tempdir().unwrap();
        let containers = Containers::open(root.path()).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..4 {
                        containers.create(new(None)).unwrap();
                    }
                });
            }
        });
        let mut names: Vec<_> = containers
            .list()
            .unwrap()
            .into_iter()
            .map(|c| c.record.name)
            .collect();
        assert_eq!(names.len(), 32);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 32);
    }
}
