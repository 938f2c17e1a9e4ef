//! Containers that nobody attends although their state says that somebody should: their attendant was killed, or
//! whoever made them was.
//!
//! What still runs of such a container is ended: nobody reads its output, so that it would stand still as soon as the
//! fifos are full, and nobody would notice its end. Its state then says what happened.

mod damaged;

use std::fs;
use std::path::Path;

use sandbox_image::Store;
use sandbox_protocol::bundle::ADDRESS_FILE;
use sandbox_runtime::config::{ConfigError, sibling_program};

use crate::app::{App, AppError};
use crate::container::{Attended, Container, ContainerError, Containers, Status, now};
use crate::cp;
use crate::launch::{CONFIG_FILE, Launch};
use crate::network::{self, NetworkError};
use crate::report;
use crate::settings::Settings;
use crate::shim::{PROGRAM, Shim, ShimError, ShimProgram, kill_recorded};
use crate::stdio::Fifos;
use crate::volume::{VolumeError, Volumes};

pub(crate) use damaged::remove_damaged;

/// Why the state of a container cannot be put in order.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettleError {
    #[error(transparent)]
    App(#[from] AppError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error(transparent)]
    Shim(#[from] ShimError),
    /// What leads to it would lead to another.
    #[error(
        "container {name} is not off its network; try again, or give that up with `sandboxctl rm -f {name}`"
    )]
    Network {
        name: String,
        source: Box<NetworkError>,
    },
}

/// The container as it is, once what nobody attends has been ended; none if it is gone then.
pub(crate) async fn settle(
    app: &App,
    containers: &Containers,
    container: Container,
) -> Result<Option<Container>, SettleError> {
    // One that has ended may have been started for the copying of files.
    if !container.record.status.is_live()
        && container.record.shim.is_none()
        && !is_left_over(&container)
    {
        return Ok(Some(container));
    }
    let attended = match containers.take(&container) {
        Ok(Some(attended)) => attended,
        Ok(None) => return Ok(Some(container)),
        Err(ContainerError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if attended.container.record.status.is_live() {
        return end_abandoned(app, containers, attended).await;
    }
    // It was concluded just now, or there is a machine that nobody copies from any more.
    if attended.container.record.shim.is_some() {
        end_shim(app, &attended.container).await?;
        cp::forget_awake(attended.folder());
        let mut attended = attended;
        attended.update(|state| state.shim = None)?;
        return Ok(Some(attended.container));
    }
    if is_left_over(&attended.container) {
        leave_network(&attended.container);
        let record = &attended.container.record;
        if record.goes_with_its_end() || !record.keep {
            remove(app, containers, &attended, AnonymousVolumes::Removed)?;
            return Ok(None);
        }
    }
    Ok(Some(attended.container))
}

/// Whether who attended a container that has ended did not come to the end of it: it is still on its network.
fn is_left_over(container: &Container) -> bool {
    network::attach::is_attached(&container.folder)
}

/// Every container, each settled. One that cannot be is as it was read, and the reason is said: it is no reason not to see the others.
pub(crate) async fn all(app: &App, containers: &Containers) -> Result<Vec<Container>, SettleError> {
    let mut settled = Vec::new();
    for container in containers.list()? {
        match settle(app, containers, container.clone()).await {
            Ok(one) => settled.extend(one),
            Err(error) => {
                report::warn(&error);
                settled.push(container);
            }
        }
    }
    Ok(settled)
}

/// The container of that name, settled.
pub(crate) async fn find(
    app: &App,
    containers: &Containers,
    wanted: &str,
) -> Result<Container, SettleError> {
    let found = containers.find(wanted)?;
    let settled = settle(app, containers, found).await?;
    Ok(settled.ok_or_else(|| ContainerError::NotFound {
        name: wanted.to_owned(),
        near: Vec::new(),
    })?)
}

async fn end_abandoned(
    app: &App,
    containers: &Containers,
    mut attended: Attended,
) -> Result<Option<Container>, SettleError> {
    end_shim(app, &attended.container).await?;
    let record = &attended.container.record;
    let code = [("exitCode", crate::look::KILLED.to_string())];
    if record.goes_with_its_end() || !record.keep {
        if record.status != Status::Creating {
            app.journal().note(record, "die", &code);
        }
        remove(app, containers, &attended, AnonymousVolumes::Removed)?;
        return Ok(None);
    }
    let finished = now();
    let reason = match record.status {
        Status::Creating => "sandboxctl was killed before the container was started",
        _ => "the process that attended it (sandboxctl) was killed, and it was ended",
    };
    attended.update(|state| {
        state.status = Status::Failed {
            reason: reason.to_owned(),
            code: crate::look::KILLED,
            finished,
        };
        state.shim = None;
        state.attendant = None;
    })?;
    app.journal().note(&attended.container.record, "die", &code);
    Ok(Some(attended.container))
}

/// Ends a container's shim with everything that it runs, and removes what that leaves.
pub(crate) async fn end_shim(app: &App, container: &Container) -> Result<(), SettleError> {
    let id = container.record.id.to_string();
    let known = match &container.record.shim {
        Some(shim) => {
            kill_recorded(shim.process).await?;
            true
        }
        // It wrote its address before anybody could note it.
        None => match fs::read_to_string(container.folder.join(ADDRESS_FILE)) {
            Ok(address) => {
                if let Some(shim) = Shim::reach(address.trim()).await {
                    shim.kill().await?;
                }
                true
            }
            Err(_) => false,
        },
    };
    if known {
        let program = ShimProgram {
            program: sibling_program(PROGRAM)?,
            id: id.clone(),
            bundle: container.folder.clone(),
            config: container.folder.join(CONFIG_FILE),
        };
        program.delete().await?;
    }
    leave_network(container);
    match Launch::load(&container.folder) {
        Ok(launch) => forget_sockets(&launch, &container.folder),
        // It was not made as far as that.
        Err(_) => {
            let _ = fs::remove_dir_all(App::socket_dir(&app.configuration()?, &id));
        }
    }
    Ok(())
}

/// Removes volumes that no other container has; what cannot be removed stays for `volume prune`.
fn remove_volumes(volumes: &Volumes, containers: &Containers, names: &[String]) {
    let remove = |name: &String| match volumes.remove(&name.parse()?, containers) {
        Err(VolumeError::InUse { .. } | VolumeError::NotFound { .. }) => Ok(()),
        other => other,
    };
    for error in names.iter().filter_map(|name| remove(name).err()) {
        report::warn(&error);
    }
}

/// Takes the container off its network, once nothing of it runs any more.
pub(crate) fn leave_network(container: &Container) {
    let left = network::attach::detach(&container.folder, container.record.id.as_str());
    if let Err(error) = left {
        report::warn(&error);
    }
}

/// Removes the sockets and fifos of a container that has ended.
pub(crate) fn forget_sockets(launch: &Launch, folder: &Path) {
    // What is not there needs no removing.
    let _ = fs::remove_dir_all(&launch.socket_dir);
    let _ = fs::remove_dir_all(folder.join("exec"));
    let _ = fs::remove_file(folder.join(ADDRESS_FILE));
    Fifos::remove(folder);
}

/// What becomes of the volumes that nobody named when their container is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AnonymousVolumes {
    Kept,
    Removed,
}

impl From<bool> for AnonymousVolumes {
    /// Whether they are to go too.
    fn from(removed: bool) -> Self {
        if removed { Self::Removed } else { Self::Kept }
    }
}

/// Takes the container off its network, and gives up what cannot be taken away.
pub(crate) fn abandon_network(container: &Container) {
    leave_network(container);
    network::attach::forget(&container.folder);
}

/// Removes a container that has ended. One that does not come off its network stays: its folder has the only record of what leads to
/// its address.
pub(crate) fn remove(
    app: &App,
    containers: &Containers,
    attended: &Attended,
    anonymous: AnonymousVolumes,
) -> Result<(), SettleError> {
    let container = &attended.container;
    let id = container.record.id.as_str();
    network::attach::detach(&container.folder, id).map_err(|source| SettleError::Network {
        name: container.record.name.to_string(),
        source: Box::new(source),
    })?;
    // One that was not made as far as that has none.
    let volumes = Settings::load(&container.folder)
        .map(|settings| settings.anonymous_volumes)
        .unwrap_or_default();
    let all_volumes = app.volumes()?;
    // Whatever cannot be opened is found out while the container is still there to be removed again.
    let store = app.leases()?;
    containers.remove(container)?;
    store
        .release(&container.record.id)
        .map_err(AppError::from)?;
    if anonymous == AnonymousVolumes::Removed {
        remove_volumes(&all_volumes, containers, &volumes);
    }
    app.journal().note(&container.record, "destroy", &[]);
    Ok(())
}

/// Gives up the layers that are kept for containers that are gone: whoever removed one was killed before it came to its lease.
///
/// A lease is taken for a folder that is there already, by who holds the lock of that folder ([`crate::run`]), and folders come
/// and go only under the lock of all containers, which is held here: a lease without a folder belongs to nobody, and nobody
/// will come for it. Only who deletes images has to ask for this, so that no start pays for it.
pub(crate) fn release_orphans(app: &App, store: &Store) -> Result<(), AppError> {
    app.containers()?
        .while_none_comes_or_goes(|is_gone| store.release_orphans(is_gone))??;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use sandbox_image::{Digest, Image};

    use super::*;
    use crate::container::tests::made;

    /// Takes a lease on an image without layers, and tells whose leases there are.
    pub(super) fn lease(store: &Store, container: &Attended) {
        let image = Image {
            name: "demo".parse().unwrap(),
            digest: Digest::of(b"demo"),
            config: oci_spec::image::ImageConfiguration::default(),
            layers: Vec::new(),
            created: None,
            imported: SystemTime::UNIX_EPOCH,
            size: 0,
        };
        store.lease(&container.container.record.id, &image).unwrap();
    }

    pub(super) fn holders(app: &App) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(app.root().join("images/leases"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub(super) fn app() -> (tempfile::TempDir, App) {
        let root = tempfile::tempdir().unwrap();
        let app = App::new(root.path(), None).unwrap();
        (root, app)
    }

    #[test]
    fn lease_whose_container_is_gone_is_released_and_no_other() {
        let (_root, app) = app();
        let (containers, store) = (app.containers().unwrap(), app.leases().unwrap());
        let (being_made, removed) = (made(&containers), made(&containers));
        lease(&store, &being_made);
        lease(&store, &removed);
        // As far as a removal comes that is killed.
        containers.remove(&removed.container).unwrap();
        assert_eq!(holders(&app).len(), 2);
        release_orphans(&app, &store).unwrap();
        assert_eq!(holders(&app), [being_made.container.record.id.to_string()]);
    }

    /// Has the container be on a network of this one plugin, with a result.
    fn attach(container: &Attended, plugin: &str) {
        let text = serde_json::json!({
            "plan": {"name": "bridge", "namespace": "/no/such/namespace", "ports": [], "addresses": [], "mac": null},
            "config": {"cniVersion": "1.0.0", "name": "bridge", "plugins": serde_json::from_str::<serde_json::Value>(plugin).unwrap()},
            "result": {"ips": []},
        });
        fs::write(container.folder().join("network.json"), text.to_string()).unwrap();
    }

    #[tokio::test]
    async fn container_that_does_not_come_off_its_network_stays_until_it_does() {
        let (_root, app) = app();
        let containers = app.containers().unwrap();
        let mut attended = made(&containers);
        let ended = Status::Exited {
            code: 0,
            finished: 1,
        };
        attended.update(|record| record.status = ended).unwrap();
        attach(&attended, r#"[{"type": "no-such-plugin"}]"#);
        let removed = remove(&app, &containers, &attended, AnonymousVolumes::Kept);
        assert!(matches!(removed, Err(SettleError::Network { .. })));
        assert!(attended.folder().join("network.json").exists());
        // The next command tries again.
        attach(&attended, "[]");
        let container = attended.container.clone();
        drop(attended);
        let settled = settle(&app, &containers, container).await.unwrap().unwrap();
        assert!(!is_left_over(&settled));
        assert!(settled.folder.exists());
    }

    #[tokio::test]
    async fn container_that_goes_with_its_end_goes_once_it_is_off_its_network() {
        let (_root, app) = app();
        let containers = app.containers().unwrap();
        let mut attended = made(&containers);
        let change = |record: &mut crate::container::Record| {
            record.auto_remove = true;
            record.status = Status::Exited {
                code: 0,
                finished: 1,
            };
        };
        attended.update(change).unwrap();
        attach(&attended, "[]");
        let container = attended.container.clone();
        drop(attended);
        let settled = settle(&app, &containers, container.clone()).await.unwrap();
        assert!(settled.is_none() && !container.folder.exists());
    }

    #[tokio::test]
    async fn container_that_cannot_be_settled_does_not_hide_the_others() {
        let (root, app) = app();
        let containers = app.containers().unwrap();
        let (mut stuck, mut other) = (made(&containers), made(&containers));
        // It is to be removed, but its layers cannot be given up.
        stuck.update(|record| record.keep = false).unwrap();
        fs::write(root.path().join("images"), "no folder").unwrap();
        let created = Status::Created;
        other.update(|record| record.status = created).unwrap();
        drop((stuck, other));
        assert_eq!(all(&app, &containers).await.unwrap().len(), 2);
    }

    #[test]
    fn removal_that_cannot_open_the_store_leaves_the_container() {
        let (root, app) = app();
        let containers = app.containers().unwrap();
        let attended = made(&containers);
        let images = root.path().join("images");
        fs::write(&images, "no folder").unwrap();
        let remove = || remove(&app, &containers, &attended, AnonymousVolumes::Kept);
        assert!(remove().is_err());
        assert!(attended.folder().exists());
        fs::remove_file(&images).unwrap();
        lease(&app.leases().unwrap(), &attended);
        remove().unwrap();
        assert!(!attended.folder().exists());
        assert!(holders(&app).is_empty());
    }
}
