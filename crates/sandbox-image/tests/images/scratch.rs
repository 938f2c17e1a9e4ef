//! The writable layer: what `mke2fs` makes is valid, small, and survives cloning.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use libtest_mimic::Trial;
use sandbox_image::scratch::{clone_template, create_template};

use crate::build::{chain, check};
use crate::{Needs, test};

const SIZE: u64 = 8 << 30;

pub(crate) fn tests() -> Vec<Trial> {
    vec![test(
        "template_is_valid_sparse_and_clones",
        Needs::Programs(&["mke2fs", "e2fsck"]),
        template,
    )]
}

fn sound(path: &Path) -> Result<(), String> {
    let program = if Path::new("/usr/sbin/e2fsck").exists() {
        "/usr/sbin/e2fsck"
    } else {
        "e2fsck"
    };
    let output = Command::new(program)
        .arg("-fn")
        .arg(path)
        .output()
        .map_err(|error| error.to_string())?;
    check(
        output.status.success(),
        String::from_utf8_lossy(&output.stdout),
    )
}

fn template() -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let (template, clone) = (folder.path().join("template"), folder.path().join("clone"));
    create_template(&template, SIZE).map_err(|error| chain(&error))?;
    clone_template(&template, &clone).map_err(|error| chain(&error))?;
    for path in [&template, &clone] {
        let stat = std::fs::metadata(path).unwrap();
        let allocated = stat.blocks() * 512;
        check(
            stat.len() == SIZE && allocated < 1 << 20,
            format!("{allocated} bytes allocated"),
        )?;
        sound(path)?;
    }
    check(
        std::fs::read_dir(folder.path()).unwrap().count() == 2,
        "leftovers",
    )
}
