//! Making tars, layouts and archives by hand.

use std::io::Write;
use std::path::Path;

use sandbox_image::{Digest, Store};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

/// One entry of a tar.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: EntryType,
    pub(crate) link: Vec<u8>,
    pub(crate) data: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) owner: (u64, u64),
    pub(crate) mtime: u64,
    pub(crate) device: (u32, u32),
    pub(crate) pax: Vec<(String, Vec<u8>)>,
}

impl Entry {
    pub(crate) fn new(kind: EntryType, name: &str) -> Self {
        Self {
            name: name.as_bytes().to_vec(),
            kind,
            link: Vec::new(),
            data: Vec::new(),
            mode: if kind == EntryType::Directory {
                0o755
            } else {
                0o644
            },
            owner: (0, 0),
            mtime: 1_000_000_000,
            device: (0, 0),
            pax: Vec::new(),
        }
    }

    pub(crate) fn file(name: &str, data: &str) -> Self {
        Self {
            data: data.into(),
            ..Self::new(EntryType::Regular, name)
        }
    }

    pub(crate) fn folder(name: &str) -> Self {
        Self::new(EntryType::Directory, name)
    }

    pub(crate) fn symlink(name: &str, target: &str) -> Self {
        Self {
            link: target.into(),
            ..Self::new(EntryType::Symlink, name)
        }
    }

    pub(crate) fn link(name: &str, target: &str) -> Self {
        Self {
            link: target.into(),
            ..Self::new(EntryType::Link, name)
        }
    }

    pub(crate) fn pax(mut self, key: &str, value: &[u8]) -> Self {
        self.pax.push((key.to_owned(), value.to_vec()));
        self
    }
}

/// The bytes of a tar. Names are put in unchecked, as an attacker would; long ones in GNU form.
pub(crate) fn tar(entries: &[Entry]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for entry in entries {
        if !entry.pax.is_empty() {
            builder
                .append_pax_extensions(
                    entry
                        .pax
                        .iter()
                        .map(|(key, value)| (key.as_str(), value.as_slice())),
                )
                .unwrap();
        }
        if entry.name.len() > 100 {
            extension(&mut builder, b'L', &entry.name);
        }
        if entry.link.len() > 100 {
            extension(&mut builder, b'K', &entry.link);
        }
        let mut header = Header::new_gnu();
        header.set_entry_type(entry.kind);
        copy(&mut header.as_gnu_mut().unwrap().name, &entry.name);
        copy(&mut header.as_gnu_mut().unwrap().linkname, &entry.link);
        header.set_mode(entry.mode);
        header.set_uid(entry.owner.0);
        header.set_gid(entry.owner.1);
        header.set_mtime(entry.mtime);
        header.set_device_major(entry.device.0).unwrap();
        header.set_device_minor(entry.device.1).unwrap();
        header.set_size(entry.data.len() as u64);
        header.set_cksum();
        builder.append(&header, entry.data.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn copy(field: &mut [u8], bytes: &[u8]) {
    let len = field.len().min(bytes.len());
    field[..len].copy_from_slice(&bytes[..len]);
}

fn extension(builder: &mut Builder<Vec<u8>>, kind: u8, bytes: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::new(kind));
    copy(&mut header.as_gnu_mut().unwrap().name, b"././@LongLink");
    header.set_mode(0);
    header.set_size(bytes.len() as u64 + 1);
    header.set_cksum();
    let mut data = bytes.to_vec();
    data.push(0);
    builder.append(&header, data.as_slice()).unwrap();
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// A layer: its blob, and the tar in it.
#[derive(Clone)]
pub(crate) struct LayerBytes {
    pub(crate) blob: Vec<u8>,
    pub(crate) tar: Vec<u8>,
}

impl LayerBytes {
    pub(crate) fn plain(entries: &[Entry]) -> Self {
        let tar = tar(entries);
        Self {
            blob: tar.clone(),
            tar,
        }
    }
}

pub(crate) fn config(layers: &[LayerBytes], architecture: &str) -> Vec<u8> {
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|layer| Digest::of(&layer.tar).to_string())
        .collect();
    serde_json::to_vec(&json!({
        "architecture": architecture, "os": "linux", "created": "2020-01-02T03:04:05Z",
        "config": {"Cmd": ["/bin/sh"], "Env": ["A=b"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }))
    .unwrap()
}

/// An OCI layout in a folder.
pub(crate) struct Layout {
    pub(crate) folder: TempDir,
}

impl Layout {
    pub(crate) fn empty() -> Self {
        let layout = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        std::fs::create_dir_all(layout.path().join("blobs/sha256")).unwrap();
        std::fs::write(
            layout.path().join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )
        .unwrap();
        layout
    }

    /// A layout with one image that has the tag `tag`.
    pub(crate) fn of(layers: &[LayerBytes], tag: &str) -> Self {
        let layout = Self::empty();
        let mut descriptor = layout.image(layers, "amd64");
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        layout.index(&[descriptor]);
        layout
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn blob_path(&self, digest: &str) -> std::path::PathBuf {
        self.path()
            .join(digest.replace(':', "/").replace("sha256/", "blobs/sha256/"))
    }

    pub(crate) fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        std::fs::write(self.blob_path(&digest.to_string()), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// Writes an image's blobs; gives the descriptor of its manifest.
    pub(crate) fn image(&self, layers: &[LayerBytes], architecture: &str) -> Value {
        let config = config(layers, architecture);
        let manifest = json!({
            "schemaVersion": 2,
            "config": self.blob("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers.iter().map(|layer| self.blob("application/vnd.oci.image.layer.v1.tar+gzip", &layer.blob)).collect::<Vec<_>>(),
        });
        self.blob(
            "application/vnd.oci.image.manifest.v1+json",
            &serde_json::to_vec(&manifest).unwrap(),
        )
    }

    pub(crate) fn index(&self, manifests: &[Value]) {
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        std::fs::write(self.path().join("index.json"), index.to_string()).unwrap();
    }

    /// The same layout as a tar.
    pub(crate) fn as_tar(&self) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        builder.append_dir_all(".", self.path()).unwrap();
        builder.into_inner().unwrap()
    }
}

/// A docker archive with one image.
pub(crate) fn docker_archive(layers: &[LayerBytes], tags: &[&str]) -> Vec<u8> {
    let config = config(layers, "amd64");
    let config_name = format!("{}.json", Digest::of(&config).hex());
    let mut entries = Vec::new();
    let mut names = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let name = format!("{number}/layer.tar");
        entries.push(Entry {
            data: layer.blob.clone(),
            ..Entry::new(EntryType::Regular, &name)
        });
        names.push(name);
    }
    let manifest = json!([{"Config": config_name, "RepoTags": tags, "Layers": names}]).to_string();
    entries.push(Entry {
        data: config,
        ..Entry::new(EntryType::Regular, &config_name)
    });
    entries.push(Entry::file("manifest.json", &manifest));
    tar(&entries)
}

/// A store in a new folder.
pub(crate) fn new_store() -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("images")).unwrap();
    (folder, store)
}

/// What is left in the store's folder for unfinished things, and how many layers it has.
pub(crate) fn leftovers(store: &Store) -> (usize, usize) {
    let count = |name: &str| std::fs::read_dir(store.root().join(name)).unwrap().count();
    (count("tmp"), count("layers"))
}

pub(crate) fn check(holds: bool, what: impl Into<String>) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.into()) }
}

/// An error with all its causes, as the command line shows it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    sandbox_types::WithCauses(error).to_string()
}
