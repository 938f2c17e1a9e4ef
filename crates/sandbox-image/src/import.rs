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
mod layers;
mod oci;
mod platform;
mod pull;

use std::cell::Cell;
use std::path::Path;

use oci_spec::image::ImageConfiguration;

use crate::digest::Digest;
use crate::image::{Image, ImportedImage};
use crate::reference::Reference;
use crate::registry::Silent;
use crate::store::{Activity, ImageRecord, Store, StoreError, seconds_now};

pub use error::{ImportError, Part};
use files::Files;
use layers::{Installed, Site};
pub(crate) use oci::MANIFESTS;
pub use platform::{Platform, PlatformError};
pub use pull::Pull;

/// Where the small parts of an image come from.
trait Blobs {
    /// The manifest, index or configuration with this digest, which is not checked yet; `None` if it is not there.
    fn small(&self, part: Part, digest: Digest) -> Result<Option<Vec<u8>>, ImportError>;
}

impl Blobs for Files {
    fn small(&self, part: Part, digest: Digest) -> Result<Option<Vec<u8>>, ImportError> {
        self.read(part, &oci::blob_name(digest), &digest.to_string())
    }
}

/// Which of the images in a source is wanted.
struct Choice<'a> {
    /// The one of this name, if there are several.
    name: Option<&'a Reference>,
    /// All, instead of the only one.
    all: bool,
    platform: &'a Platform,
}

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

/// The names that an image gets.
struct Naming<'a> {
    /// What it was asked for as.
    wanted: Option<&'a Reference>,
    /// The names to give, in full.
    names: Vec<Reference>,
    /// The digest of the index through which it was found, if it was one.
    index: Option<Digest>,
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
        let mut imported = None;
        self.import_chosen(path, name, false, &mut |image| imported = Some(image))?;
        imported.ok_or_else(|| Platform::host().none(Vec::new()))
    }

    /// Brings every image in `path` into the store, under the names that they carry, as [`Self::import`] does with one. One without
    /// a name is kept by its ID. `loaded` is told of each as soon as it is there.
    ///
    /// # Errors
    /// See [`ImportError`]. Images before the one that failed stay.
    pub fn load(
        &self,
        path: &Path,
        loaded: &mut dyn FnMut(ImportedImage),
    ) -> Result<(), ImportError> {
        self.import_chosen(path, None, true, loaded)
    }

    fn import_chosen(
        &self,
        path: &Path,
        name: Option<&Reference>,
        all: bool,
        done: &mut dyn FnMut(ImportedImage),
    ) -> Result<(), ImportError> {
        self.adding(|work, activity| {
            let files = Files::open(path, work, &self.limits)?;
            let platform = Platform::host();
            let choice = Choice {
                name,
                all,
                platform: &platform,
            };
            for found in find(&files, path, &choice)? {
                let names = names(path, name, &found)?;
                if names.is_empty() && !all {
                    return Err(ImportError::NoName {
                        path: path.to_owned(),
                    });
                }
                let naming = Naming {
                    wanted: name,
                    names,
                    index: None,
                };
                self.check_layers(&found)?;
                let site = Site {
                    work,
                    activity,
                    progress: &Silent,
                };
                let installed = self.install_layers(&files, &found, site, 1)?;
                done(self.publish_found(&found, &installed, naming)?);
            }
            Ok(())
        })
    }

    /// Does something that adds to the store, with a folder for what is unfinished, and clears away after it.
    fn adding<T>(
        &self,
        add: impl FnOnce(&Path, &Activity) -> Result<T, ImportError>,
    ) -> Result<T, ImportError> {
        if !rustix::process::geteuid().is_root() {
            return Err(ImportError::NotRoot);
        }
        let activity = self.begin_activity()?;
        let unfinished = self.unfinished_folder();
        let work = tempfile::Builder::new()
            .prefix("import-")
            .tempdir_in(&unfinished)
            .map_err(|source| StoreError::io("create a folder in", &unfinished, source))?;
        let result = add(work.path(), &activity);
        drop(work);
        drop(activity);
        // Layers of a failed import, and those of an image that has lost its last name to this one.
        match (self.collect(), result) {
            (Err(error), Ok(_)) => Err(error.into()),
            (_, result) => result,
        }
    }

    /// Holds the number of layers to what the configuration says and to the limit.
    fn check_layers(&self, found: &Found) -> Result<(), ImportError> {
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
        Ok(())
    }

    /// Writes the metadata and the names of an image whose layers are in the store.
    fn publish_found(
        &self,
        found: &Found,
        installed: &[Installed],
        naming: Naming<'_>,
    ) -> Result<ImportedImage, ImportError> {
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
        let is_other = |digest| digest != id && Some(digest) != naming.index;
        if let Some(name) = naming
            .wanted
            .filter(|name| name.digest().is_some_and(is_other))
        {
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
            index: naming.index,
            blobs: installed.iter().filter_map(|layer| layer.kept).collect(),
        };
        let keys: Vec<String> = naming
            .names
            .iter()
            .filter_map(Reference::pulled_name)
            .collect();
        let image: Image = self.publish(&keys, &record)?;
        Ok(ImportedImage {
            image,
            names: naming.names,
            new_layers: installed.iter().filter(|layer| layer.new).count(),
        })
    }
}

/// What [`find_among`] came to.
#[doc(hidden)]
#[derive(Debug)]
pub struct Search {
    /// How often a document was asked for.
    pub read: usize,
    /// The number of layers.
    pub layers: Result<usize, ImportError>,
}

/// Finds the image in these documents, of which the first is its index or its manifest, as a pull does up to where layers are
/// read: for tests that try any documents.
#[doc(hidden)]
#[must_use]
pub fn find_among(documents: &[Vec<u8>], begins_with_index: bool) -> Search {
    struct Memory<'a>(&'a [Vec<u8>], Cell<usize>);
    impl Blobs for Memory<'_> {
        fn small(&self, _: Part, digest: Digest) -> Result<Option<Vec<u8>>, ImportError> {
            self.1.set(self.1.get() + 1);
            let found = self.0.iter().find(|bytes| Digest::of(bytes) == digest);
            Ok(found.cloned())
        }
    }
    let source = Memory(documents, Cell::new(0));
    let first = documents.first().map_or(&[][..], Vec::as_slice);
    let media_type = match begins_with_index {
        true => oci::INDEXES[0],
        false => oci::MANIFESTS[0],
    };
    let found = pull::descriptor(media_type, Digest::of(first), first.len())
        .and_then(|descriptor| oci::find_at(&source, &descriptor, &Platform::host()));
    Search {
        read: source.1.get(),
        layers: found.map(|found| found.layers.len()),
    }
}

/// Tells what kind of image the files are, and finds it.
fn find(files: &Files, path: &Path, choice: &Choice<'_>) -> Result<Vec<Found>, ImportError> {
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
        return oci::find(files, &index, choice, &stem(path));
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
            Some(manifest) => docker::find(files, &manifest, choice),
            None => Err(no_image(
                "the tar has neither a file oci-layout nor a manifest.json",
            )),
        },
    }
}

/// The names that the image is to have; none if it carries none. A name with the digest of another image is left out.
fn names(
    path: &Path,
    name: Option<&Reference>,
    found: &Found,
) -> Result<Vec<Reference>, ImportError> {
    if let Some(name) = name {
        return if name.canonical().is_some() {
            Ok(vec![name.clone()])
        } else {
            Err(ImportError::NoName {
                path: path.to_owned(),
            })
        };
    }
    let id = found.manifest.as_deref().map(Digest::of);
    let mut names = Vec::new();
    for name in &found.names {
        let name: Reference = name.parse().map_err(ImportError::BadName)?;
        let is_others = name.digest().is_some() && name.digest() != id;
        if name.canonical().is_some() && !is_others && !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
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
