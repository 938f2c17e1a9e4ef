//! From a file or folder to an image in the store.
//!
//! [`Files`] gives an image's files by name, from a folder or out of a tar. `oci` or `docker` find the one image in them: the
//! verified manifest and configuration, and which file holds each layer. From there all goes one way: each layer
//! blob is verified, then unpacked and packed ([`crate::layer`]) unless the store has the layer; then the metadata is
//! written, and last the names. A failure on the way leaves nothing: what was unfinished is in a temporary folder, and
//! whole layers that nothing uses are collected.

mod docker;
mod error;
mod files;
mod oci;
mod platform;

use std::path::Path;

use oci_spec::image::ImageConfiguration;

use crate::digest::{Digest, HashingReader};
use crate::image::{Image, ImportedImage};
use crate::layer::{Decompressed, LayerError, Limit, erofs, unpack};
use crate::reference::Reference;
use crate::store::{Activity, ImageRecord, Store, StoreError, seconds_now};

pub use error::{ImportError, Part};
use files::Files;

/// An image found in a source, its metadata verified.
struct Found {
    /// The manifest as it came; archives of docker's have none.
    manifest: Option<Vec<u8>>,
    config: Vec<u8>,
    diff_ids: Vec<Digest>,
    layers: Vec<LayerBlob>,
    names: Vec<String>,
}

/// A layer in a source.
struct LayerBlob {
    /// The file that it is in.
    file: String,
    /// The digest and size of the blob, where the source declares them.
    declared: Option<(Digest, u64)>,
}

/// A layer that is in the store.
struct Installed {
    diff_id: Digest,
    uncompressed_bytes: u64,
    new: bool,
}

impl Store {
    /// Brings the image in `path` (an OCI layout as folder or tar, or a docker archive; tars may be compressed with
    /// gzip or zstd) into the store, under `name` or else the names that it carries itself. A name that another image had
    /// goes over to this one.
    ///
    /// # Errors
    /// See [`ImportError`]. Nothing half-made stays.
    pub fn import(
        &self,
        path: &Path,
        name: Option<&Reference>,
    ) -> Result<ImportedImage, ImportError> {
        if !rustix::process::geteuid().is_root() {
            return Err(ImportError::NotRoot);
        }
        let activity = self.begin_activity()?;
        let result = self.import_during(path, name, &activity);
        drop(activity);
        // Layers of a failed import, and those of an image that has lost its last name to this one.
        match (self.collect(), result) {
            (Err(error), Ok(_)) => Err(error.into()),
            (_, result) => result,
        }
    }

    fn import_during(
        &self,
        path: &Path,
        name: Option<&Reference>,
        activity: &Activity,
    ) -> Result<ImportedImage, ImportError> {
        let unfinished = self.unfinished_folder();
        let work = tempfile::Builder::new()
            .prefix("import-")
            .tempdir_in(&unfinished)
            .map_err(|source| StoreError::io("create a folder in", &unfinished, source))?;
        let files = Files::open(path, work.path(), &self.limits)?;
        let found = find(&files, path, name)?;
        if found.layers.len() != found.diff_ids.len() {
            return Err(ImportError::LayerCount {
                layers: found.layers.len(),
                diff_ids: found.diff_ids.len(),
            });
        }
        if found.layers.len() > self.limits.layers {
            return Err(ImportError::TooManyLayers {
                found: found.layers.len(),
                limit: self.limits.layers,
            });
        }
        let names = names(path, name, &found)?;
        let mut installed = Vec::with_capacity(found.layers.len());
        for (layer, diff_id) in found.layers.iter().zip(&found.diff_ids) {
            installed.push(self.install_layer(&files, layer, *diff_id, work.path(), activity)?);
        }
        let new_layers = installed.iter().filter(|layer| layer.new).count();
        let image = self.publish_found(&found, &installed, name, &names)?;
        Ok(ImportedImage {
            image,
            names,
            new_layers,
        })
    }

    /// Writes the metadata and the names of an image whose layers are in the store.
    fn publish_found(
        &self,
        found: &Found,
        installed: &[Installed],
        name: Option<&Reference>,
        names: &[Reference],
    ) -> Result<Image, ImportError> {
        let layers: Vec<(Digest, u64)> = installed
            .iter()
            .map(|layer| (layer.diff_id, layer.uncompressed_bytes))
            .collect();
        let manifest = match &found.manifest {
            Some(manifest) => manifest.clone(),
            None => docker::manifest(&found.config, &layers).map_err(|source| {
                ImportError::Malformed {
                    part: Part::Manifest,
                    name: "made for the archive".to_owned(),
                    source,
                }
            })?,
        };
        let id = Digest::of(&manifest);
        if let Some(name) = name.filter(|name| name.digest().is_some_and(|digest| digest != id)) {
            return Err(ImportError::NameDigest {
                name: name.to_string(),
                found: id,
            });
        }
        let record = ImageRecord {
            manifest: self.write_blob(&manifest)?,
            config: self.write_blob(&found.config)?,
            layers: found.diff_ids.clone(),
            imported: seconds_now(),
        };
        let names: Vec<String> = names.iter().filter_map(Reference::canonical).collect();
        Ok(self.publish(&names, &record)?)
    }

    /// Verifies a layer and has it in the store afterwards.
    fn install_layer(
        &self,
        files: &Files,
        layer: &LayerBlob,
        diff_id: Digest,
        work: &Path,
        activity: &Activity,
    ) -> Result<Installed, ImportError> {
        if let Some((digest, size)) = layer.declared {
            verify_blob(files, &layer.file, digest, size)?;
        }
        let _lock = self.lock_layer(diff_id, activity)?;
        let final_path = self.layer_path(diff_id);
        let present =
            std::fs::File::open(&final_path).is_ok_and(|file| erofs::checked_size(&file).is_ok());
        if present && layer.declared.is_some() {
            return Ok(Installed {
                diff_id,
                uncompressed_bytes: 0,
                new: false,
            });
        }
        let shown = layer.declared.map_or(diff_id, |(digest, _)| digest);
        let refused = |source| ImportError::Layer {
            digest: shown,
            source: Box::new(source),
        };
        let tree = tempfile::tempdir_in(work)
            .map_err(|source| StoreError::io("create a folder in", work, source))?;
        let root = (!present).then(|| tree.path());
        let uncompressed_bytes = self.unpack_verified(files, layer, diff_id, root, &refused)?;
        if !present {
            let image = tempfile::Builder::new()
                .suffix(".erofs")
                .tempfile_in(work)
                .map_err(|source| StoreError::io("create a file in", work, source))?
                .into_temp_path();
            let mut uuid = [0; 16];
            uuid.copy_from_slice(diff_id.as_bytes().first_chunk::<16>().unwrap_or(&[0; 16]));
            erofs::make(tree.path(), &image, uuid).map_err(|source| refused(source.into()))?;
            self.put_in_place(image, &final_path)?;
        }
        Ok(Installed {
            diff_id,
            uncompressed_bytes,
            new: !present,
        })
    }

    /// Decompresses a layer into the folder `root`, or nowhere, and holds it to its `diff_id`. Gives its uncompressed size.
    fn unpack_verified(
        &self,
        files: &Files,
        layer: &LayerBlob,
        diff_id: Digest,
        root: Option<&Path>,
        refused: &dyn Fn(LayerError) -> ImportError,
    ) -> Result<u64, ImportError> {
        let file = open_layer(files, &layer.file)?;
        let stream =
            Decompressed::new(file.reader).map_err(|source| read_failed(&layer.file, source))?;
        let compression = stream.compression;
        let mut stream = HashingReader::new(stream);
        let result = root.map_or(Ok(()), |root| unpack(&mut stream, root, &self.limits));
        if let Err(error @ LayerError::Limit { .. }) = result {
            // Reading on could take for ever.
            return Err(refused(error));
        }
        let result = match result {
            Err(LayerError::Tar { source, .. }) if stream.inner().broken => {
                return Err(refused(LayerError::Decompress {
                    compression,
                    source,
                }));
            }
            other => other,
        };
        let end = stream.finish(self.limits.bytes).map_err(|source| {
            refused(LayerError::Decompress {
                compression,
                source,
            })
        })?;
        match (end, result) {
            (None, _) => Err(refused(LayerError::Limit {
                limit: Limit::Bytes(self.limits.bytes),
                path: String::new(),
            })),
            // Damage on the way is the better explanation of whatever else was found.
            (Some((found, _)), _) if found != diff_id => Err(refused(LayerError::DiffId {
                expected: diff_id,
                found,
            })),
            (Some(_), Err(error)) => Err(refused(error)),
            (Some((_, bytes)), Ok(())) => Ok(bytes),
        }
    }
}

/// Tells what kind of image the files are, and finds it.
fn find(files: &Files, path: &Path, name: Option<&Reference>) -> Result<Found, ImportError> {
    let no_image = |reason: &str| ImportError::NotAnImage {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    let layout = files
        .read(Part::Index, "oci-layout", "oci-layout")?
        .is_some();
    if let Some(index) = files.read(Part::Index, "index.json", "index.json")? {
        if !layout {
            return Err(no_image("it has an index.json but no file oci-layout"));
        }
        return oci::find(files, &index, name, &stem(path));
    }
    if layout {
        return Err(ImportError::Missing {
            part: Part::Index,
            name: "index.json".to_owned(),
        });
    }
    match files {
        Files::Folder(_) => Err(no_image("the folder has no file oci-layout")),
        Files::Tar(_) => match files.read(Part::Manifest, "manifest.json", "manifest.json")? {
            Some(manifest) => docker::find(files, &manifest, name),
            None => Err(no_image(
                "the tar has neither a file oci-layout nor a manifest.json",
            )),
        },
    }
}

/// The names that the image is to have.
fn names(
    path: &Path,
    name: Option<&Reference>,
    found: &Found,
) -> Result<Vec<Reference>, ImportError> {
    let no_name = || ImportError::NoName {
        path: path.to_owned(),
    };
    if let Some(name) = name {
        return if name.canonical().is_some() {
            Ok(vec![name.clone()])
        } else {
            Err(no_name())
        };
    }
    let mut names = Vec::new();
    for name in &found.names {
        let name: Reference = name.parse().map_err(ImportError::BadName)?;
        if name.canonical().is_some() && !names.contains(&name) {
            names.push(name);
        }
    }
    if names.is_empty() {
        Err(no_name())
    } else {
        Ok(names)
    }
}

/// What a layout that has tags but no names is called: its file's name without endings.
fn stem(path: &Path) -> String {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let name = absolute
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .to_lowercase();
    let mut stem = name.as_str();
    while let Some(shorter) = [".tar", ".gz", ".tgz", ".zst", ".oci", ".zstd"]
        .iter()
        .find_map(|ending| stem.strip_suffix(ending))
    {
        stem = shorter;
    }
    stem.to_owned()
}

/// The layers' digests in the configuration.
fn diff_ids(config: &ImageConfiguration) -> Result<Vec<Digest>, ImportError> {
    config
        .rootfs()
        .diff_ids()
        .iter()
        .map(|text| text.parse())
        .collect::<Result<_, _>>()
        .map_err(|source| ImportError::Digest {
            part: Part::Layer,
            source,
        })
}

fn open_layer(files: &Files, file: &str) -> Result<files::OpenFile, ImportError> {
    files
        .get(file)
        .map_err(|source| read_failed(file, source))?
        .ok_or_else(|| ImportError::Missing {
            part: Part::Layer,
            name: file
                .rsplit_once("blobs/sha256/")
                .map_or_else(|| file.to_owned(), |(_, hex)| format!("sha256:{hex}")),
        })
}

fn read_failed(file: &str, source: std::io::Error) -> ImportError {
    ImportError::Read {
        action: "read the image's file",
        path: file.into(),
        source,
    }
}

/// Holds a layer's blob to its digest and size, before anything looks into it.
fn verify_blob(files: &Files, file: &str, expected: Digest, size: u64) -> Result<(), ImportError> {
    let open = open_layer(files, file)?;
    if open.size != size {
        return Err(ImportError::SizeMismatch {
            part: Part::Layer,
            digest: expected,
            expected: size,
            found: open.size,
        });
    }
    let end = HashingReader::new(std::io::BufReader::with_capacity(128 << 10, open.reader))
        .finish(size)
        .map_err(|source| read_failed(file, source))?;
    match end {
        Some((found, _)) if found == expected => Ok(()),
        Some((found, _)) => Err(ImportError::DigestMismatch {
            part: Part::Layer,
            expected,
            found,
        }),
        // It grew meanwhile.
        None => Err(ImportError::SizeMismatch {
            part: Part::Layer,
            digest: expected,
            expected: size,
            found: open.size,
        }),
    }
}
