//! Images made by the tools that people use.

use std::path::Path;
use std::process::Command;

use libtest_mimic::Trial;

use crate::build::{chain, check, new_store};
use crate::import::name;
use crate::{Needs, test};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test(
            "image_made_by_umoci_imports",
            Needs::RootAnd(&["umoci", "mkfs.erofs"]),
            umoci,
        ),
        test(
            "every_archive_form_of_skopeo_imports",
            Needs::RootAnd(&["umoci", "skopeo", "mkfs.erofs"]),
            skopeo,
        ),
    ]
}

fn run(folder: &Path, program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    check(
        output.status.success(),
        format!(
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        ),
    )
}

/// A layout `img` with the image `demo`: two layers, the second with a whiteout and a folder made anew.
fn make(folder: &Path) -> Result<(), String> {
    run(folder, "umoci", &["init", "--layout", "img"])?;
    run(folder, "umoci", &["new", "--image", "img:demo"])?;
    std::fs::create_dir_all(folder.join("tree/bin")).unwrap();
    std::fs::write(folder.join("tree/bin/sh"), "#!").unwrap();
    std::fs::write(folder.join("tree/gone"), "x").unwrap();
    run(
        folder,
        "umoci",
        &["insert", "--image", "img:demo", "tree", "/"],
    )?;
    run(
        folder,
        "umoci",
        &["insert", "--image", "img:demo", "--whiteout", "/gone"],
    )?;
    run(
        folder,
        "umoci",
        &["config", "--image", "img:demo", "--config.cmd", "/bin/sh"],
    )
}

fn umoci() -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path())?;
    let (_store_folder, store) = new_store();
    let imported = store
        .import(&folder.path().join("img"), None)
        .map_err(|error| chain(&error))?;
    check(
        imported.names == [name("img:demo")],
        format!("{:?}", imported.names),
    )?;
    check(imported.image.layers.len() == 2, "layers")?;
    let command = imported
        .image
        .config
        .config()
        .as_ref()
        .and_then(|config| config.cmd().clone());
    check(
        command == Some(vec!["/bin/sh".to_owned()]),
        format!("{command:?}"),
    )
}

fn skopeo() -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path())?;
    let (_store_folder, store) = new_store();
    let layers = store
        .import(&folder.path().join("img"), None)
        .map_err(|error| chain(&error))?
        .image
        .layers;
    for (form, file, expected) in [
        ("oci-archive:oci.tar:demo", "oci.tar", "oci:demo"),
        (
            "docker-archive:docker.tar:me/demo:3",
            "docker.tar",
            "me/demo:3",
        ),
        ("oci:dir:latest", "dir", "dir:latest"),
    ] {
        run(
            folder.path(),
            "skopeo",
            &["--insecure-policy", "copy", "-q", "oci:img:demo", form],
        )?;
        let imported = store
            .import(&folder.path().join(file), None)
            .map_err(|error| format!("{form}: {}", chain(&error)))?;
        check(
            imported.names == [name(expected)],
            format!("{form}: {:?}", imported.names),
        )?;
        check(
            imported.image.layers == layers && imported.new_layers == 0,
            format!("{form}: layers"),
        )?;
    }
    Ok(())
}
