//! Images from files and into files.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal as _};
use std::path::Path;

use sandbox_image::{ArchiveFormat, ImportedImage};

use super::ImageError;
use crate::app::App;
use crate::cli::{ArchiveChoice, ImportArgs, LoadArgs, SaveArgs};
use crate::table;

pub(super) fn import(app: &App, args: &ImportArgs) -> Result<(), ImageError> {
    let store = app.store()?;
    let imported = store
        .import(&args.path, args.name.as_ref())
        .map_err(|source| ImageError::Import {
            path: args.path.display().to_string(),
            source: Box::new(source),
        })?;
    if args.quiet {
        table::line(&imported.image.digest.to_string());
    } else {
        print("Imported", &imported);
    }
    Ok(())
}

fn print(done: &str, imported: &ImportedImage) {
    for name in &imported.names {
        table::line(&format!(
            "{done} {name} ({} layers, {} of them new, {})",
            imported.image.layers.len(),
            imported.new_layers,
            table::bytes(imported.image.size),
        ));
    }
}

pub(super) fn load(app: &App, args: &LoadArgs) -> Result<(), ImageError> {
    let store = app.store()?;
    // As they come: when one fails, those before it stay, and were told of.
    let mut loaded = |imported: ImportedImage| print_loaded(&imported, args.quiet);
    let mut from = |path: &Path, shown: &str| {
        store
            .load(path, &mut loaded)
            .map_err(|source| ImageError::Import {
                path: shown.to_owned(),
                source: Box::new(source),
            })
    };
    match &args.input {
        Some(path) => from(path, &path.display().to_string()),
        None => {
            // An archive is read in no particular order, so it has to be a file.
            let shown = "standard input";
            let failed = |source| ImageError::File {
                action: "read",
                path: shown.to_owned(),
                source,
            };
            if io::stdin().is_terminal() {
                return Err(ImageError::Terminal);
            }
            let mut file = tempfile::NamedTempFile::new().map_err(failed)?;
            io::copy(&mut io::stdin().lock(), file.as_file_mut()).map_err(failed)?;
            from(file.path(), shown)
        }
    }
}

fn print_loaded(imported: &ImportedImage, quiet: bool) {
    let id = imported.image.digest;
    match (imported.names.as_slice(), quiet) {
        ([], true) => table::line(&id.to_string()),
        ([], false) => table::line(&format!("Loaded image ID: {id}")),
        (names, true) => names.iter().for_each(|name| table::line(&name.to_string())),
        (_, false) => print("Loaded", imported),
    }
}

pub(super) fn save(app: &App, args: &SaveArgs) -> Result<(), ImageError> {
    let store = app.store()?;
    let format = match args.format {
        ArchiveChoice::Oci => ArchiveFormat::Oci,
        ArchiveChoice::Docker => ArchiveFormat::Docker,
    };
    let failed = |source| ImageError::Save {
        images: args.images.iter().map(ToString::to_string).collect(),
        source: Box::new(source),
    };
    let Some(path) = &args.output else {
        if io::stdout().is_terminal() {
            return Err(ImageError::Terminal);
        }
        let out = BufWriter::new(io::stdout().lock());
        return store.save(&args.images, format, out).map_err(failed);
    };
    // Whole or not there: what failed half-way does not look like an archive.
    let file_failed = |source| ImageError::File {
        action: "write",
        path: path.display().to_string(),
        source,
    };
    if path.exists() && !path.is_file() {
        let file = File::create(path).map_err(file_failed)?;
        return store
            .save(&args.images, format, BufWriter::new(file))
            .map_err(failed);
    }
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let unfinished = tempfile::Builder::new()
        .prefix(".save-")
        .tempfile_in(folder)
        .map_err(file_failed)?;
    store
        .save(&args.images, format, BufWriter::new(unfinished.as_file()))
        .map_err(failed)?;
    unfinished
        .persist(path)
        .map(drop)
        .map_err(|error| file_failed(error.error))
}
