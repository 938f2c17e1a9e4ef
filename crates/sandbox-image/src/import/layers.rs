//! Layers: from a blob in a source to a file in the store.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek as _, Write as _};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::error::{ImportError, Part};
use super::files::{self, Files};
use super::{Found, LayerBlob};
use crate::digest::{Digest, HashingReader};
use crate::layer::{Decompressed, LayerError, Limit, erofs, unpack, verity};
use crate::registry::{Event, Progress};
use crate::store::{Activity, Store, StoreError};

/// A layer that is in the store.
#[derive(Debug, Clone)]
pub(super) struct Installed {
    pub(super) diff_id: Digest,
    /// Known for layers without a declared blob only.
    pub(super) uncompressed_bytes: u64,
    pub(super) new: bool,
    /// Its blob, if that is kept in the store.
    pub(super) kept: Option<Digest>,
}

/// Where the layers of an image come from.
pub(super) trait LayerSource: Sync {
    /// The layer's blob, held to its digest and size, if it can be read where it is; `None` if it has to be fetched.
    fn in_place(&self, layer: &LayerBlob) -> Result<Option<Box<dyn Read>>, ImportError>;

    /// Fills an empty file with the layer's blob, held to its digest and size where these are declared, else to not much more
    /// than `limit` bytes.
    fn fetch(
        &self,
        layer: &LayerBlob,
        file: &mut File,
        path: &Path,
        limit: u64,
        progress: &dyn Progress,
    ) -> Result<(), ImportError>;
}

/// Where and for whom layers are worked on.
#[derive(Clone, Copy)]
pub(super) struct Site<'a> {
    /// A folder for what is unfinished.
    pub(super) work: &'a Path,
    pub(super) activity: &'a Activity,
    pub(super) progress: &'a dyn Progress,
}

/// Progress of one part that ends when another part fails.
struct Cancelling<'a> {
    inner: &'a dyn Progress,
    cancelled: AtomicBool,
}

impl Progress for Cancelling<'_> {
    fn event(&self, event: Event<'_>) {
        self.inner.event(event);
    }

    fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed) || self.inner.cancelled()
    }
}

impl Store {
    /// Has every layer of an image in the store afterwards; `parallel` of them are worked on at a time.
    pub(super) fn install_layers(
        &self,
        source: &dyn LayerSource,
        found: &Found,
        site: Site<'_>,
        parallel: usize,
    ) -> Result<Vec<Installed>, ImportError> {
        let all: Vec<(&LayerBlob, Digest)> = found
            .layers
            .iter()
            .zip(found.diff_ids.iter().copied())
            .collect();
        let same = |a: &(&LayerBlob, Digest), b: &(&LayerBlob, Digest)| {
            a.1 == b.1 && a.0.declared == b.0.declared
        };
        // Some images have a layer twice.
        let firsts: Vec<usize> = (0..all.len())
            .map(|n| (0..n).find(|&m| same(&all[m], &all[n])).unwrap_or(n))
            .collect();
        let progress = Cancelling {
            inner: site.progress,
            cancelled: AtomicBool::new(false),
        };
        let site = Site {
            progress: &progress,
            ..site
        };
        for (n, (layer, _)) in all.iter().enumerate() {
            if let Some((digest, size)) = layer.declared.filter(|_| firsts[n] == n) {
                progress.event(Event::Layer { digest, size });
            }
        }
        let next = AtomicUsize::new(0);
        let results: Mutex<Vec<Option<Result<Installed, ImportError>>>> =
            Mutex::new(all.iter().map(|_| None).collect());
        let worker = || {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                let Some((layer, diff_id)) = all.get(n) else {
                    return;
                };
                if firsts[n] != n || progress.cancelled() {
                    continue;
                }
                let result = self.install_layer(source, layer, *diff_id, site);
                if result.is_err() {
                    progress.cancelled.store(true, Ordering::Relaxed);
                }
                if let Ok(mut results) = results.lock() {
                    results[n] = Some(result);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..parallel.min(all.len()) {
                scope.spawn(worker);
            }
            worker();
        });
        let results = results.into_inner().unwrap_or_default();
        gather(results, &firsts)
    }

    /// Has a layer in the store afterwards.
    fn install_layer(
        &self,
        source: &dyn LayerSource,
        layer: &LayerBlob,
        diff_id: Digest,
        site: Site<'_>,
    ) -> Result<Installed, ImportError> {
        let Site {
            work,
            activity,
            progress,
        } = site;
        let in_place = source.in_place(layer)?;
        // Of a layer without a digest of its own the plain tar is kept, whose digest is the diff_id.
        let blob = layer.declared.map_or(diff_id, |(digest, _)| digest);
        let _lock = self.lock_layer(diff_id, activity)?;
        // Without its hash tree, from an older version, it is made again.
        let present = self.has_layer(diff_id);
        let kept = self.kept_blob(blob)?;
        let is_kept = kept.is_some();
        let known_size = match (layer.declared, kept.as_ref()) {
            (Some(_), _) => Some(0),
            (None, kept) => kept.map(|(_, size)| *size),
        };
        // A blob that is to be kept and is not is fetched although the layer is there: nothing else would bring it back.
        let enough = is_kept || !self.keep_blobs;
        if let Some(uncompressed_bytes) = known_size.filter(|_| present && enough) {
            progress.event(Event::Present { digest: blob });
            return Ok(Installed {
                diff_id,
                uncompressed_bytes,
                new: false,
                kept: is_kept.then_some(blob),
            });
        }
        let mut fetched = None;
        // A kept blob that was damaged meanwhile is fetched again.
        let kept = kept.filter(|(file, size)| !present && is_whole(file, blob, *size));
        let is_kept = kept.is_some();
        let reader: Box<dyn Read> = match (kept, in_place) {
            (Some((file, _)), _) => Box::new(file),
            (None, Some(reader)) if !self.keep_blobs => reader,
            (None, _) => {
                let mut file = tempfile::Builder::new()
                    .suffix(".blob")
                    .tempfile_in(work)
                    .map_err(|source| StoreError::io("create a file in", work, source))?;
                let path = file.path().to_owned();
                source.fetch(
                    layer,
                    file.as_file_mut(),
                    &path,
                    self.limits.bytes,
                    progress,
                )?;
                let reader =
                    File::open(&path).map_err(|source| StoreError::io("open", &path, source))?;
                fetched = Some(file.into_temp_path());
                Box::new(reader)
            }
        };
        progress.event(Event::Unpacking { digest: blob });
        let uncompressed_bytes = self.make_layer(reader, blob, diff_id, work, present)?;
        if let Some(file) = fetched.filter(|_| self.keep_blobs) {
            self.put_in_place(file, &self.blob_path(blob))?;
        }
        progress.event(Event::Done { digest: blob });
        Ok(Installed {
            diff_id,
            uncompressed_bytes,
            new: !present,
            kept: (is_kept || self.keep_blobs).then_some(blob),
        })
    }

    /// Unpacks a blob and makes the layer's image, unless that is `present`: then the blob is only held to the `diff_id`.
    fn make_layer(
        &self,
        reader: Box<dyn Read>,
        blob: Digest,
        diff_id: Digest,
        work: &Path,
        present: bool,
    ) -> Result<u64, ImportError> {
        let refused = |source| ImportError::Layer {
            digest: blob,
            source: Box::new(source),
        };
        let tree = tempfile::tempdir_in(work)
            .map_err(|source| StoreError::io("create a folder in", work, source))?;
        let root = (!present).then(|| tree.path());
        let bytes = self.unpack_verified(reader, diff_id, root, &refused)?;
        if !present {
            let image = tempfile::Builder::new()
                .suffix(".erofs")
                .tempfile_in(work)
                .map_err(|source| StoreError::io("create a file in", work, source))?
                .into_temp_path();
            let mut uuid = [0; 16];
            uuid.copy_from_slice(diff_id.as_bytes().first_chunk::<16>().unwrap_or(&[0; 16]));
            erofs::make(tree.path(), &image, uuid).map_err(|source| refused(source.into()))?;
            let tree = OpenOptions::new()
                .read(true)
                .write(true)
                .open(&image)
                .and_then(|file| verity::append(&file, diff_id.as_bytes(), uuid))
                .map_err(|source| StoreError::io("make the hash tree of", &image, source))?;
            self.write_hash_tree(diff_id, &tree)?;
            self.put_in_place(image, &self.layer_path(diff_id))?;
        }
        Ok(bytes)
    }

    /// Decompresses a layer into the folder `root`, or nowhere, and holds it to its `diff_id`. Gives its uncompressed size.
    fn unpack_verified(
        &self,
        reader: Box<dyn Read>,
        diff_id: Digest,
        root: Option<&Path>,
        refused: &dyn Fn(LayerError) -> ImportError,
    ) -> Result<u64, ImportError> {
        let stream = Decompressed::new(reader).map_err(|source| read_failed("a layer", source))?;
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

/// Whether a kept blob still has its digest; its position is at the beginning afterwards.
fn is_whole(mut file: &File, digest: Digest, size: u64) -> bool {
    let end = HashingReader::new(file).finish(size);
    matches!(end, Ok(Some((found, _))) if found == digest) && file.rewind().is_ok()
}

/// The layers in the image's order, or the error that ended it: what was only given up is no explanation.
fn gather(
    results: Vec<Option<Result<Installed, ImportError>>>,
    firsts: &[usize],
) -> Result<Vec<Installed>, ImportError> {
    let mut done: Vec<Option<Installed>> = Vec::with_capacity(results.len());
    let mut cancelled = None;
    for result in results {
        done.push(match result {
            Some(Ok(installed)) => Some(installed),
            Some(Err(error)) if error.is_cancelled() => {
                cancelled = Some(error);
                None
            }
            Some(Err(error)) => return Err(error),
            None => None,
        });
    }
    let mut all = Vec::with_capacity(done.len());
    for (n, &first) in firsts.iter().enumerate() {
        match done.get(first).and_then(Option::as_ref) {
            Some(installed) => all.push(Installed {
                new: installed.new && first == n,
                ..installed.clone()
            }),
            None => return Err(cancelled.unwrap_or_else(ImportError::cancelled)),
        }
    }
    Ok(all)
}

impl LayerSource for Files {
    fn in_place(&self, layer: &LayerBlob) -> Result<Option<Box<dyn Read>>, ImportError> {
        if let Some((digest, size)) = layer.declared {
            verify_blob(self, &layer.file, digest, size)?;
        }
        Ok(Some(open_layer(self, &layer.file)?.reader))
    }

    fn fetch(
        &self,
        layer: &LayerBlob,
        file: &mut File,
        path: &Path,
        limit: u64,
        _: &dyn Progress,
    ) -> Result<(), ImportError> {
        let failed = |source| read_failed(&layer.file, source);
        let reader = open_layer(self, &layer.file)?.reader;
        let reader: Box<dyn Read> = match layer.declared {
            Some((_, size)) => Box::new(reader.take(size)),
            None => {
                let plain = Decompressed::new(reader).map_err(failed)?;
                Box::new(plain.take(limit.saturating_add(1)))
            }
        };
        let mut reader = HashingReader::new(reader);
        let mut buffer = vec![0; 128 << 10];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => file
                    .write_all(buffer.get(..n).unwrap_or_default())
                    .map_err(|source| StoreError::io("write", path, source))?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        match (layer.declared, reader.finish(0).map_err(failed)?) {
            // It was right a moment ago.
            (Some((expected, _)), Some((found, _))) if found != expected => {
                Err(ImportError::DigestMismatch {
                    part: Part::Layer,
                    expected,
                    found,
                })
            }
            _ => Ok(()),
        }
    }
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
