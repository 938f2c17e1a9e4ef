//! Containers whose state cannot be read, of which only the folder is known.
//!
//! They are no part of [`Containers::list`], because nothing can be said of them. But they may run, and have what they have: who
//! asks what belongs to somebody asks [`Containers::holders`], and `rm -f` takes hold of a stand-in ([`crate::settle`]).

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

use sandbox_types::ContainerId;

use super::{Attended, Container, ContainerError, Containers, Record, Status, failed, gone};
use crate::look::KILLED;
use crate::names;

/// A container whose state cannot be read.
pub(crate) struct Damaged {
    /// What stands in for it: its folder and identifier, and a state that says nothing.
    pub(crate) stand_in: Container,
    /// Why it cannot be read.
    pub(crate) error: ContainerError,
}

impl Damaged {
    /// The container in this folder; none if the folder is no container's, or is gone.
    pub(super) fn new(folder: &Path, error: ContainerError) -> Option<Self> {
        let id: ContainerId = folder.file_name()?.to_str()?.parse().ok()?;
        // It may have been removed before its state was read.
        if !folder.is_dir() {
            return None;
        }
        let name = names::short(id.as_str()).parse().ok()?;
        let record = Record {
            id,
            name,
            image: String::new(),
            image_digest: String::new(),
            command: Vec::new(),
            created: 0,
            status: Status::Failed {
                reason: "its state cannot be read".to_owned(),
                code: KILLED,
                finished: 0,
            },
            shim: None,
            labels: BTreeMap::new(),
            attendant: None,
            started: None,
            oom_killed: false,
            auto_remove: false,
            keep: true,
            restarting: false,
        };
        let error = match error {
            ContainerError::Io { path, source, .. } => ContainerError::Damaged { path, source },
            error => error,
        };
        Some(Self {
            stand_in: Container {
                folder: folder.to_owned(),
                record,
            },
            error,
        })
    }

    /// Whether it is meant by `wanted`, an identifier or the beginning of one.
    pub(super) fn begins_with(&self, wanted: &str) -> bool {
        self.stand_in.record.id.as_str().starts_with(wanted)
    }
}

impl Containers {
    /// Every container whose state cannot be read.
    pub(crate) fn damaged(&self) -> Result<Vec<Damaged>, ContainerError> {
        Ok(self.scan()?.1)
    }

    /// Every container, also those whose state cannot be read: what they have is not free.
    pub(crate) fn holders(&self) -> Result<Vec<Container>, ContainerError> {
        let (mut all, damaged) = self.scan()?;
        all.extend(damaged.into_iter().map(|one| one.stand_in));
        Ok(all)
    }

    /// What stands in for the one container that is meant by `wanted` and whose state cannot be read.
    pub(crate) fn find_damaged(&self, wanted: &str) -> Result<Option<Container>, ContainerError> {
        let mut damaged = self.damaged()?;
        damaged.retain(|one| !wanted.is_empty() && one.begins_with(wanted));
        match (damaged.pop(), damaged.is_empty()) {
            (Some(_), false) => Err(ContainerError::Ambiguous {
                prefix: wanted.to_owned(),
            }),
            (found, _) => Ok(found.map(|one| one.stand_in)),
        }
    }

    /// Takes hold of a stand-in, if nobody attends the container.
    pub(crate) fn take_stand_in(
        &self,
        stand_in: Container,
    ) -> Result<Option<Attended>, ContainerError> {
        let folder = &stand_in.folder;
        let lock = match File::open(folder) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(gone(&stand_in)),
            Err(error) => return Err(failed("open", folder)(error)),
        };
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(failed("lock", folder)(error)),
        }
        // It may have been removed before the lock was had.
        if !folder.is_dir() {
            return Err(gone(&stand_in));
        }
        Ok(Some(Attended {
            container: stand_in,
            lock,
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::NewContainer;
    use super::super::tests::new;
    use super::*;

    fn damaged(containers: &Containers, state: &str) -> ContainerId {
        let made = containers.create(new(None)).unwrap();
        fs::write(made.folder().join("state.json"), state).unwrap();
        made.container.record.id.clone()
    }

    #[test]
    fn container_whose_state_is_cut_off_is_found_by_its_id_as_damaged() {
        let root = tempfile::tempdir().unwrap();
        let containers = Containers::open(root.path()).unwrap();
        containers.create(new(None)).unwrap();
        let id = damaged(&containers, "");
        for wanted in [id.as_str(), names::short(id.as_str())] {
            let error = containers.find(wanted).unwrap_err();
            assert!(matches!(error, ContainerError::Damaged { .. }), "{error}");
            let said = format!("rm -f {}", names::short(id.as_str()));
            assert!(error.to_string().contains(&said), "{error}");
        }
        assert!(matches!(
            containers.find("nobody"),
            Err(ContainerError::NotFound { .. })
        ));
        assert_eq!(containers.list().unwrap().len(), 1);
        assert_eq!(containers.damaged().unwrap().len(), 1);
        assert_eq!(containers.holders().unwrap().len(), 2);
    }

    #[test]
    fn container_without_a_state_is_damaged() {
        let root = tempfile::tempdir().unwrap();
        let containers = Containers::open(root.path()).unwrap();
        let id = damaged(&containers, "");
        fs::remove_file(containers.folder_of(id.as_str()).join("state.json")).unwrap();
        let error = containers.find(id.as_str()).unwrap_err();
        assert!(matches!(error, ContainerError::Damaged { .. }), "{error}");
    }

    #[test]
    fn beginning_of_a_damaged_and_another_id_is_ambiguous() {
        let root = tempfile::tempdir().unwrap();
        let containers = Containers::open(root.path()).unwrap();
        let make = |digits: &str| {
            let id = ContainerId::new(format!("{digits:0<64}")).unwrap();
            containers.create(NewContainer { id, ..new(None) }).unwrap()
        };
        make("a1");
        let damaged = [make("a2"), make("b3"), make("b4")];
        for one in &damaged {
            fs::write(one.folder().join("state.json"), "{").unwrap();
        }
        for ambiguous in ["a", "b"] {
            let error = containers.find(ambiguous).unwrap_err();
            assert!(matches!(error, ContainerError::Ambiguous { .. }), "{error}");
        }
        containers.find("a1").unwrap();
        for one in ["a2", "b3"] {
            let error = containers.find(one).unwrap_err();
            assert!(matches!(error, ContainerError::Damaged { .. }), "{error}");
            assert!(containers.find_damaged(one).unwrap().is_some());
        }
        assert!(containers.find_damaged("b").is_err());
    }

    #[test]
    fn stand_in_is_taken_unless_somebody_attends_the_container() {
        let root = tempfile::tempdir().unwrap();
        let containers = Containers::open(root.path()).unwrap();
        let made = containers.create(new(None)).unwrap();
        fs::write(made.folder().join("state.json"), "").unwrap();
        let stand_in = || containers.damaged().unwrap().remove(0).stand_in;
        assert!(containers.take_stand_in(stand_in()).unwrap().is_none());
        drop(made);
        let taken = containers.take_stand_in(stand_in()).unwrap().unwrap();
        containers.remove(&taken.container).unwrap();
        assert!(containers.damaged().unwrap().is_empty());
    }
}
