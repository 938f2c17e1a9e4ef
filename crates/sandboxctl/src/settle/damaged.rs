//! The removal of a container whose state cannot be read.

use std::fs;

use sandbox_protocol::bundle::ADDRESS_FILE;

use super::{AnonymousVolumes, abandon_network, end_shim, remove};
use crate::app::App;
use crate::container::{Container, ContainerError, Containers};
use crate::shim::Shim;
use crate::stop::{self, Executioner, StopError};

/// Removes the container with all that its folder tells of: what runs of it, its network, its layers' lease, and its volumes
/// that nobody named, if they are to go too.
pub(crate) async fn remove_damaged(
    app: &App,
    containers: &Containers,
    wanted: &str,
    anonymous: AnonymousVolumes,
) -> Result<(), StopError> {
    let container = containers.find_damaged(wanted)?;
    let container = container.ok_or_else(|| ContainerError::NotFound {
        name: wanted.to_owned(),
        near: Vec::new(),
    })?;
    let by = shim(&container).await;
    let by = by.map_or(Executioner::Attendant, Executioner::Shim);
    stop::end(&container, by).await?;
    let attended = match containers.take_stand_in(container) {
        Ok(Some(attended)) => attended,
        Ok(None) => {
            return Err(StopError::Held {
                name: wanted.to_owned(),
            });
        }
        // Whoever attended it has removed it.
        Err(ContainerError::NotFound { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    end_shim(app, &attended.container).await?;
    abandon_network(&attended.container);
    Ok(remove(app, containers, &attended, anonymous)?)
}

/// Its shim, by the address that it wrote into the folder itself.
async fn shim(container: &Container) -> Option<Shim> {
    let address = fs::read_to_string(container.folder.join(ADDRESS_FILE)).ok()?;
    Shim::reach(address.trim()).await
}

#[cfg(test)]
mod tests {
    use super::super::tests::{app, holders, lease};
    use super::*;
    use crate::container::tests::made;

    #[tokio::test]
    async fn damaged_container_goes_with_its_folder_and_its_lease() {
        let (_root, app) = app();
        let (containers, store) = (app.containers().unwrap(), app.leases().unwrap());
        let attended = made(&containers);
        lease(&store, &attended);
        let id = attended.container.record.id.to_string();
        let folder = attended.folder().to_owned();
        drop(attended);
        fs::write(folder.join("state.json"), "").unwrap();
        remove_damaged(&app, &containers, &id, AnonymousVolumes::Removed)
            .await
            .unwrap();
        assert!(!folder.exists());
        assert!(holders(&app).is_empty());
    }
}
