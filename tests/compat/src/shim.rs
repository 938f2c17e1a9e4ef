//! A case under our shim.

use std::path::Path;

use anyhow::{Context as _, Result};
use sandbox_harness::World;
use sandbox_harness::shim::Shim;

use crate::Sight;
use crate::cases::Case;

/// Runs the bundle and has the probe look, from its first process and from an added one.
///
/// # Errors
/// With what the shim said.
pub(crate) fn look(world: &World, bundle: &Path, case: &Case) -> Result<Sight> {
    let shim = Shim::start(world, case.name, bundle)?;
    let seen = || -> Result<Sight> {
        let mut output = shim.run(case.name, case.terminal())?;
        let init = output.line().context("of the container")?;
        let mut output = shim.exec(case.name, "exec", &case.exec)?;
        let exec = output.line().context("of the exec")?;
        Ok(Sight {
            init: serde_json::from_str(&init).with_context(|| init.clone())?,
            exec: serde_json::from_str(&exec).with_context(|| exec.clone())?,
        })
    };
    let seen = seen().with_context(|| shim.log());
    let ended = shim.end(case.name);
    let seen = seen?;
    ended?;
    Ok(seen)
}
