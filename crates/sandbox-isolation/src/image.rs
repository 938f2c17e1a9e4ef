//! What a container of ours has in it: the probe, and empty folders. As a folder, and as an OCI image layout.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Where the probe is.
pub(crate) const PROBE: &str = "/probe";
/// The image's name.
pub(crate) const NAME: &str = "isolation-probe";

/// Folders, and their modes.
const FOLDERS: [(&str, u32); 9] = [
    ("dev", 0o755),
    ("etc", 0o755),
    ("host", 0o755),
    ("proc", 0o755),
    ("run", 0o755),
    ("share", 0o755),
    ("share-ro", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
];

/// A file that two containers have from the same layer.
pub(crate) const LAYER_FILE: &str = "layer-file";
const LAYER_TEXT: &[u8] = b"of the image\n";
/// One that nobody writes to.
pub(crate) const LAYER_DATA: &str = "layer-data";
const LAYER_DATA_BYTES: usize = 256 << 10;

/// Writes the root file system as a folder.
pub(crate) fn write_folder(folder: &Path, probe: &Path) -> io::Result<()> {
    for (name, mode) in FOLDERS {
        let path = folder.join(name);
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    fs::write(folder.join(LAYER_FILE), LAYER_TEXT)?;
    fs::write(folder.join(LAYER_DATA), layer_data())?;
    let program = folder.join(PROBE.trim_start_matches('/'));
    fs::copy(probe, &program)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
}

fn layer_data() -> Vec<u8> {
    vec![b'x'; LAYER_DATA_BYTES]
}

fn header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn layer(probe: &Path) -> io::Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    for (name, mode) in FOLDERS {
        let mut header = header(tar::EntryType::Directory, mode, 0);
        layer.append_data(&mut header, format!("{name}/"), &[][..])?;
    }
    let program = fs::read(probe)?;
    let name = PROBE.trim_start_matches('/');
    for (name, mode, content) in [
        (name, 0o755, program.as_slice()),
        (LAYER_FILE, 0o644, LAYER_TEXT),
        (LAYER_DATA, 0o644, &layer_data()),
    ] {
        let mut header = header(tar::EntryType::Regular, mode, content.len());
        layer.append_data(&mut header, name, content)?;
    }
    layer.into_inner()
}

/// Writes the same as an image layout (OCI image-spec, `image-layout.md`).
pub(crate) fn write_layout(folder: &Path, probe: &Path) -> io::Result<()> {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let blob = |kind: &str, content: &[u8]| -> io::Result<Value> {
        let digest = hex::encode(Sha256::digest(content));
        fs::write(blobs.join(&digest), content)?;
        Ok(json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": format!("sha256:{digest}"),
            "size": content.len(),
        }))
    };
    let layer = blob("layer.v1.tar", &layer(probe)?)?;
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Cmd": [PROBE, "serve"], "WorkingDir": "/" },
        "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
    });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob("config.v1+json", config.to_string().as_bytes())?,
        "layers": [layer],
    });
    let mut image = blob("manifest.v1+json", manifest.to_string().as_bytes())?;
    image["annotations"] = json!({ "org.opencontainers.image.ref.name": NAME });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [image],
    });
    fs::write(folder.join("index.json"), index.to_string())?;
    fs::write(
        folder.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_names_blobs_that_are_there() {
        let folder = tempfile::tempdir().unwrap();
        let probe = folder.path().join("a-probe");
        fs::write(&probe, b"program").unwrap();
        let layout = folder.path().join("layout");
        fs::create_dir(&layout).unwrap();
        write_layout(&layout, &probe).unwrap();
        let read =
            |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap();
            layout.join("blobs").join(digest.replace(':', "/"))
        };
        let index = read(&layout.join("index.json"));
        let manifest = read(&blob(&index["manifests"][0]));
        assert!(blob(&manifest["config"]).is_file());
        assert!(blob(&manifest["layers"][0]).is_file());
    }
}
