//! A small OCI image made from Debian's static busybox: something to run on a machine that has no registry at
//! hand.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::cache::{self, Inputs};
use crate::project_root;

/// Where the layout is linked.
pub(crate) fn path() -> PathBuf {
    project_root().join("target/demo")
}

/// Makes the layout when it is not in the cache.
///
/// # Errors
/// When busybox is missing, or the file system refuses.
pub(crate) fn build() -> Result<PathBuf> {
    let inputs = Inputs::default()
        .text("recipe", "2")
        .file(Path::new("/bin/busybox"))?;
    let folder = cache::product("demo", inputs, sandbox_harness::layout::write_demo)?;
    cache::link(&folder, &path())?;
    Ok(path())
}
