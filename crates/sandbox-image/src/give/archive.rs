//! Archives of images, for `save`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek as _, Write};

use serde::Serialize;
use serde_json::json;
use tar::{Builder, EntryType, Header};

use super::{GiveError, Outgoing, OutgoingLayer};
use crate::digest::{Digest, HashingReader};
use crate::image::Image;
use crate::layer::Decompressed;
use crate::reference::Reference;
use crate::store::Store;

const NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// What an archive looks like inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ArchiveFormat {
    /// An OCI layout, with the file `manifest.json` that `docker load` looks for: every digest stays.
    #[default]
    Oci,
    /// What old versions of docker write: layers as plain tars, and no manifest. The images' IDs are others afterwards.
    Docker,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Archived {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

/// A tar in the making.
struct Archive<W: Write> {
    tar: Builder<W>,
    written: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    fn add(&mut self, name: &str, size: u64, content: impl Read) -> Result<(), GiveError> {
        if !self.written.insert(name.to_owned()) {
            return Ok(());
        }
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o644);
        header.set_size(size);
        header.set_mtime(0);
        self.tar
            .append_data(&mut header, name, content.take(size))
            .map_err(GiveError::Write)
    }

    fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<(), GiveError> {
        self.add(name, bytes.len() as u64, bytes)
    }

    /// A layer's blob, held to its digest: a damaged one does not go out as if it were whole.
    fn blob(&mut self, image: &Image, layer: &OutgoingLayer) -> Result<(), GiveError> {
        let name = blob_name(layer.blob);
        if self.written.contains(&name) {
            return Ok(());
        }
        let (mut file, size) = layer.file(image)?;
        file.rewind().map_err(GiveError::Write)?;
        let mut reader = HashingReader::new(file);
        self.add(&name, size, &mut reader)?;
        checked(image, layer, reader.finish(0).map_err(GiveError::Write)?)
    }
}

fn checked(
    image: &Image,
    layer: &OutgoingLayer,
    end: Option<(Digest, u64)>,
) -> Result<(), GiveError> {
    let found = end.map_or_else(|| Digest::of(b""), |(found, _)| found);
    if found == layer.blob {
        Ok(())
    } else {
        Err(GiveError::Damaged {
            image: image.name.to_string(),
            blob: layer.blob,
            found,
        })
    }
}

fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A name as `docker load` expects it; nothing for one that is only a digest.
fn tags(images: &[&Outgoing]) -> Vec<String> {
    images
        .iter()
        .filter(|out| out.image.name.tag().is_some())
        .map(|out| out.image.name.to_string())
        .collect()
}

impl Store {
    /// Writes images into one tar, under the names by which they were asked for.
    ///
    /// # Errors
    /// See [`GiveError`]; what was written until then is no whole archive.
    pub fn save(
        &self,
        references: &[Reference],
        format: ArchiveFormat,
        to: impl Write,
    ) -> Result<(), GiveError> {
        let mut outgoing = Vec::new();
        for reference in references {
            outgoing.push(self.outgoing(reference)?);
        }
        let mut images: BTreeMap<Digest, Vec<&Outgoing>> = BTreeMap::new();
        for out in &outgoing {
            images.entry(out.image.digest).or_default().push(out);
        }
        let mut archive = Archive {
            tar: Builder::new(to),
            written: BTreeSet::new(),
        };
        match format {
            ArchiveFormat::Oci => write_oci(&mut archive, &images)?,
            ArchiveFormat::Docker => write_docker(&mut archive, &images)?,
        }
        let mut to = archive.tar.into_inner().map_err(GiveError::Write)?;
        to.flush().map_err(GiveError::Write)
    }
}

fn write_oci(
    archive: &mut Archive<impl Write>,
    images: &BTreeMap<Digest, Vec<&Outgoing>>,
) -> Result<(), GiveError> {
    let mut manifests = Vec::new();
    let mut archived = Vec::new();
    for (id, outs) in images {
        let Some(out) = outs.first() else { continue };
        for layer in &out.layers {
            archive.blob(&out.image, layer)?;
        }
        archive.bytes(&blob_name(out.config.0), &out.config.1)?;
        archive.bytes(&blob_name(*id), &out.manifest)?;
        for named in outs {
            let mut annotations = serde_json::Map::new();
            if let Some(name) = named
                .image
                .name
                .canonical()
                .filter(|_| named.image.name.tag().is_some())
            {
                annotations.insert(NAME.to_owned(), json!(name));
            }
            if let Some(tag) = named.image.name.tag() {
                annotations.insert(REF_NAME.to_owned(), json!(tag));
            }
            manifests.push(json!({
                "mediaType": out.media_type,
                "digest": id,
                "size": out.manifest.len(),
                "annotations": annotations,
            }));
        }
        archived.push(Archived {
            config: blob_name(out.config.0),
            repo_tags: tags(outs),
            layers: out
                .layers
                .iter()
                .map(|layer| blob_name(layer.blob))
                .collect(),
        });
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    });
    archive.bytes("index.json", index.to_string().as_bytes())?;
    archive.bytes("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    archive.bytes("manifest.json", json!(archived).to_string().as_bytes())
}

fn write_docker(
    archive: &mut Archive<impl Write>,
    images: &BTreeMap<Digest, Vec<&Outgoing>>,
) -> Result<(), GiveError> {
    let mut archived = Vec::new();
    for outs in images.values() {
        let Some(out) = outs.first() else { continue };
        let mut names = Vec::new();
        for (layer, stored) in out.layers.iter().zip(&out.image.layers) {
            let name = format!("{}/layer.tar", stored.diff_id.hex());
            if !archive.written.contains(&name) {
                // A tar says the size first, so it is decompressed twice.
                let (size, found) = plain(&out.image, layer)?;
                if found != stored.diff_id {
                    return Err(GiveError::Damaged {
                        image: out.image.name.to_string(),
                        blob: layer.blob,
                        found,
                    });
                }
                archive.add(&name, size, open_plain(&out.image, layer)?)?;
            }
            names.push(name);
        }
        let config = format!("{}.json", out.config.0.hex());
        archive.bytes(&config, &out.config.1)?;
        archived.push(Archived {
            config,
            repo_tags: tags(outs),
            layers: names,
        });
    }
    archive.bytes("manifest.json", json!(archived).to_string().as_bytes())
}

fn open_plain<'a>(image: &Image, layer: &'a OutgoingLayer) -> Result<Decompressed<'a>, GiveError> {
    let (mut file, _): (&'a File, u64) = layer.file(image)?;
    file.rewind().map_err(GiveError::Write)?;
    Decompressed::new(file).map_err(GiveError::Write)
}

/// The size and digest of a layer's tar.
fn plain(image: &Image, layer: &OutgoingLayer) -> Result<(u64, Digest), GiveError> {
    let mut reader = HashingReader::new(open_plain(image, layer)?);
    let end = reader.finish(u64::MAX).map_err(GiveError::Write)?;
    let (found, size) =
        end.ok_or_else(|| GiveError::Write(io::Error::other("the layer does not end")))?;
    Ok((size, found))
}
