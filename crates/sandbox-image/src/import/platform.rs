//! The platform whose images run here.

use oci_spec::image::{Arch, ImageConfiguration, Os};

use super::error::ImportError;

const WANTED: &str = "linux/amd64";

pub(super) fn fits(os: &Os, architecture: &Arch) -> bool {
    shown(os, architecture) == WANTED
}

pub(super) fn shown(os: &Os, architecture: &Arch) -> String {
    format!("{os}/{architecture}")
}

/// Refuses an image whose configuration is for another platform, whatever the index said.
pub(super) fn check(config: &ImageConfiguration) -> Result<(), ImportError> {
    if fits(config.os(), config.architecture()) {
        Ok(())
    } else {
        Err(none(vec![shown(config.os(), config.architecture())]))
    }
}

pub(super) fn none(mut offered: Vec<String>) -> ImportError {
    offered.sort();
    offered.dedup();
    if offered.is_empty() {
        offered.push("no platform at all".to_owned());
    }
    ImportError::Platform {
        wanted: WANTED,
        offered,
    }
}
