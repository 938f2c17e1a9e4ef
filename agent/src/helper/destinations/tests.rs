use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};

use serde_json::json;

use super::*;
use crate::spec::Propagation;

fn tree() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("etc")).unwrap();
    fs::create_dir_all(root.path().join("run/inner")).unwrap();
    for (link, target) in [
        ("etc/resolv.conf", "../run/systemd/resolve/stub.conf"),
        ("data", "/mnt/missing"),
        ("var", "run"),
        ("out", "../../../../etc"),
        ("one", "two"),
        ("two", "one"),
        ("twice", "/data/more"),
        ("run/inner/link", "/etc"),
    ] {
        symlink(target, root.path().join(link)).unwrap();
    }
    root
}

fn spec(mounts: &serde_json::Value) -> Spec {
    serde_json::from_value(json!({"ociVersion": "1.1.0", "mounts": mounts})).unwrap()
}

fn tmpfs(destination: &str) -> serde_json::Value {
    json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"]})
}

/// The places, and the options, that the mounts come to.
fn found(root: &Path, mounts: &serde_json::Value) -> Result<Vec<(String, Vec<String>)>, String> {
    let mut spec = spec(mounts);
    find(&mut spec, &mut [], root).map_err(|error| error.to_string())?;
    let mounts = spec.mounts().clone().unwrap();
    Ok(mounts
        .into_iter()
        .map(|mount| {
            (
                mount.destination().display().to_string(),
                mount.options().clone().unwrap_or_default(),
            )
        })
        .collect())
}

#[test]
fn links_are_followed_within_the_root_whether_anything_is_behind_them() {
    let root = tree();
    for (destination, expected) in [
        ("/etc/resolv.conf", "/run/systemd/resolve/stub.conf"),
        ("/data", "/mnt/missing"),
        ("/data/sub", "/mnt/missing/sub"),
        ("/twice", "/mnt/missing/more"),
        ("/var/lock", "/run/lock"),
        ("/out/new", "/etc/new"),
        ("/run/inner/link/x", "/etc/x"),
        ("/new/../../etc", "/etc"),
        ("relative/./path", "/relative/path"),
        ("/", "/"),
    ] {
        let places = found(root.path(), &json!([tmpfs(destination)])).unwrap();
        assert_eq!(places[0].0, expected, "{destination}");
    }
}

#[test]
fn links_that_lead_to_each_other_are_refused() {
    let root = tree();
    let error = found(root.path(), &json!([tmpfs("/one/x")])).unwrap_err();
    assert!(error.contains("/one/x"), "{error}");
}

#[test]
fn link_in_the_place_of_dev_is_refused_with_what_it_says() {
    let root = tree();
    assert!(found(root.path(), &json!([])).is_ok());
    symlink("/run", root.path().join("dev")).unwrap();
    let error = found(root.path(), &json!([])).unwrap_err();
    assert!(error.contains("link to \"/run\""), "{error}");
}

#[test]
fn links_that_an_earlier_mount_hides_are_not_followed() {
    let root = tree();
    let mounts = json!([tmpfs("/var"), tmpfs("/run/inner/link"), tmpfs("/etc")]);
    let places: Vec<_> = found(root.path(), &mounts).unwrap();
    let places: Vec<_> = places.iter().map(|(place, _)| place.as_str()).collect();
    assert_eq!(places, ["/run", "/run/inner/link", "/etc"]);
}

#[test]
fn propagation_is_told_of_the_place_that_was_found() {
    let root = tree();
    let mut propagation = ["/data", "/proc"].map(|destination| MountPropagation {
        destination: destination.into(),
        kind: Propagation::Slave,
        recursive: true,
    });
    let mut spec = spec(&json!([tmpfs("/data")]));
    assert!(find(&mut spec, &mut propagation, root.path()).unwrap());
    assert_eq!(propagation[0].destination, Path::new("/mnt/missing"));
    assert_eq!(propagation[1].destination, Path::new("/proc"));
}

#[test]
fn file_system_in_memory_has_the_mode_of_the_folder_that_it_covers() {
    let root = tree();
    let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    mode(&root.path().join("run"), 0o1710);
    let shared = tempfile::tempdir().unwrap();
    fs::create_dir(shared.path().join("below")).unwrap();
    mode(&shared.path().join("below"), 0o700);
    let mut said = tmpfs("/run");
    said["options"] = json!(["mode=0755"]);
    let bind = json!({"destination": "/mnt", "type": "bind", "source": shared.path(), "options": ["rbind"]});
    let other = json!({"destination": "/etc", "type": "proc", "source": "proc"});
    let mounts = json!([
        tmpfs("/var"),
        said,
        tmpfs("/new"),
        bind,
        tmpfs("/mnt/below"),
        tmpfs("/run/x"),
        other,
    ]);
    let options: Vec<_> = found(root.path(), &mounts).unwrap();
    let options: Vec<_> = options
        .iter()
        .map(|(_, options)| options.join(","))
        .collect();
    assert_eq!(
        options,
        [
            "size=1m,mode=1710",
            "mode=0755",
            "size=1m",
            "rbind",
            "size=1m,mode=0700",
            "size=1m",
            "",
        ]
    );
}

#[test]
fn spec_whose_mounts_go_where_they_say_is_left_as_it_is() {
    let root = tree();
    let mut spec = spec(&json!([{"destination": "/proc", "type": "proc", "source": "proc"}]));
    assert!(!find(&mut spec, &mut [], root.path()).unwrap());
}
