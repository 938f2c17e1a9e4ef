//! Named volumes: folders of this host that outlive the containers they are mounted in, and `sandboxctl volume …`.
//!
//! ```text
//! <root>/volumes/<name>/volume.json    when it was made, and its labels
//! <root>/volumes/<name>/_data          what containers see
//! ```
//!
//! Which containers have a volume is what their settings say; nothing is counted. A container's settings are written
//! before its volumes are made, and volumes are removed under the same lock as they are made, so that a volume is
//! never removed from under a container that was there first.

mod store;
mod verbs;

pub(crate) use store::{Volume, VolumeError, Volumes};
pub(crate) use verbs::{VolumeFilter, volume, volume_filter};
