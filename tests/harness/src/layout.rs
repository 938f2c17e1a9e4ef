//! Writes OCI image layouts (image-spec, `image-layout.md`), so that tests and the demo can have any image
//! without a registry or a builder.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// One layer: a tar in the making. Everything belongs to root and has no time, so it is reproducible.
pub struct Layer(tar::Builder<Vec<u8>>);

impl Default for Layer {
    fn default() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }
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

impl Layer {
    /// Adds a directory.
    ///
    /// # Errors
    /// When the path does not fit a tar.
    pub fn directory(mut self, path: &str, mode: u32) -> Result<Self> {
        let mut header = header(tar::EntryType::Directory, mode, 0);
        self.0
            .append_data(&mut header, format!("{path}/"), &[][..])?;
        Ok(self)
    }

    /// Adds a file. Whiteouts are files too: `.wh.NAME`, `.wh..wh..opq`.
    ///
    /// # Errors
    /// When the path does not fit a tar.
    pub fn file(mut self, path: &str, mode: u32, content: &[u8]) -> Result<Self> {
        let mut header = header(tar::EntryType::Regular, mode, content.len());
        self.0.append_data(&mut header, path, content)?;
        Ok(self)
    }

    /// Adds a file with an extended attribute.
    ///
    /// # Errors
    /// When the path does not fit a tar.
    pub fn file_with(self, path: &str, mode: u32, attribute: (&str, &[u8])) -> Result<Self> {
        let (name, value) = attribute;
        let key = format!("SCHILY.xattr.{name}");
        let mut this = self;
        this.0.append_pax_extensions([(key.as_str(), value)])?;
        this.file(path, mode, b"")
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// When a path does not fit a tar.
    pub fn symlink(mut self, path: &str, target: &str) -> Result<Self> {
        let mut header = header(tar::EntryType::Symlink, 0o777, 0);
        self.0.append_link(&mut header, path, target)?;
        Ok(self)
    }

    /// Adds another name of a file that is there already.
    ///
    /// # Errors
    /// When a path does not fit a tar.
    pub fn hard_link(mut self, path: &str, first: &str) -> Result<Self> {
        let mut header = header(tar::EntryType::Link, 0o644, 0);
        self.0.append_link(&mut header, path, first)?;
        Ok(self)
    }

    /// The tar.
    ///
    /// # Errors
    /// None in practice: it is written to memory.
    pub fn finish(self) -> Result<Vec<u8>> {
        Ok(self.0.into_inner()?)
    }
}

/// The layer that every test image begins with: a static busybox and links for its applets.
///
/// # Errors
/// When busybox (Debian's `busybox-static`) is not there.
pub fn busybox_layer() -> Result<Vec<u8>> {
    const BUSYBOX: &str = "/bin/busybox";
    let busybox = fs::read(BUSYBOX).with_context(|| format!("cannot read {BUSYBOX}"))?;
    let applets = std::process::Command::new(BUSYBOX)
        .arg("--list")
        .output()
        .with_context(|| format!("cannot run {BUSYBOX}"))?;
    let applets = String::from_utf8(applets.stdout)?;
    let mut layer = Layer::default();
    for path in ["bin", "dev", "etc", "home", "proc", "sys", "usr", "var"] {
        layer = layer.directory(path, 0o755)?;
    }
    layer = layer
        .directory("root", 0o700)?
        .directory("tmp", 0o1777)?
        .file("bin/busybox", 0o755, &busybox)?
        .file(
            "etc/passwd",
            0o644,
            b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
        )?
        .file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?
        .file("etc/not-executable", 0o644, b"this is not a program\n")?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        layer = layer.symlink(&format!("bin/{applet}"), "busybox")?;
    }
    layer.finish()
}

/// Writes a layout with one image of these uncompressed layers, lowest first, into an existing, empty folder.
/// `config` is the `config` object of the image configuration (image-spec, `config.md`).
///
/// # Errors
/// When the file system refuses.
pub fn write(folder: &Path, name: &str, layers: &[Vec<u8>], config: &Value) -> Result<()> {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let descriptor = |media_type: &str, content: &[u8]| -> Result<Value> {
        let digest = hex::encode(Sha256::digest(content));
        fs::write(blobs.join(&digest), content)?;
        let media_type = format!("application/vnd.oci.image.{media_type}");
        Ok(
            json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": content.len()}),
        )
    };
    let layers: Vec<Value> = layers
        .iter()
        .map(|layer| descriptor("layer.v1.tar", layer))
        .collect::<Result<_>>()?;
    let diff_ids: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", &serde_json::to_vec(&config)?)?,
        "layers": layers,
    });
    let mut image = descriptor("manifest.v1+json", &serde_json::to_vec(&manifest)?)?;
    image["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [image],
    });
    fs::write(folder.join("index.json"), serde_json::to_vec(&index)?)?;
    fs::write(
        folder.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    Ok(())
}

/// Writes the demo image: busybox, with a shell as its command.
///
/// # Errors
/// As [`write`] and [`busybox_layer`].
pub fn write_demo(folder: &Path) -> Result<()> {
    let config = json!({ "Env": ["PATH=/bin"], "Cmd": ["sh"], "WorkingDir": "/" });
    write(folder, "demo", &[busybox_layer()?], &config)
}
