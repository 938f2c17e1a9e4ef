//! What holds for every blob that is unpacked as a layer, whatever is in it. Shared by the fuzz target and the replay of its
//! corpus.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use sandbox_image::Limits;
use sandbox_image::layer::{erofs, unpack_blob};

const MAX_BYTES: u64 = 1 << 20;
const MAX_ENTRIES: u64 = 500;

/// Unpacks `blob` into a folder and makes an EROFS image of it, as an import does.
///
/// # Errors
/// If something outside that folder changed, or more came into it than the limits allow. That the blob is refused is none.
pub(crate) fn check(blob: &[u8]) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let outside = tempfile::tempdir().map_err(text)?;
    let canary = outside.path().join("canary");
    fs::write(&canary, "untouched").map_err(text)?;
    let before = fs::metadata(&canary).map_err(text)?;
    let root = outside.path().join("root");
    fs::create_dir(&root).map_err(text)?;
    let limits = Limits {
        entries: MAX_ENTRIES,
        bytes: MAX_BYTES,
        devices: 16,
        header_bytes: 64 << 10,
        ..Limits::default()
    };
    let unpacked = unpack_blob(blob, &root, &limits);
    let after = fs::symlink_metadata(&canary).map_err(text)?;
    let mut names: Vec<_> = fs::read_dir(outside.path())
        .map_err(text)?
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    names.sort();
    if names != ["canary", "root"] {
        return Err(format!("outside there is now {names:?}"));
    }
    let shown = |data: &fs::Metadata| {
        (
            data.ino(),
            data.nlink(),
            data.mode(),
            data.uid(),
            data.mtime(),
            data.ctime_nsec(),
        )
    };
    if shown(&before) != shown(&after) || fs::read(&canary).map_err(text)? != b"untouched" {
        return Err("a file outside was touched".to_owned());
    }
    let (bytes, count) = size(&root);
    // Every entry can need folders on the way, each at most as deep as paths may be.
    if bytes > MAX_BYTES + (64 << 10) || count > MAX_ENTRIES * 256 {
        return Err(format!(
            "{bytes} bytes in {count} files are more than the limits allow"
        ));
    }
    if unpacked.is_ok() {
        let image = outside.path().join("image");
        erofs::make(&root, &image, [7; 16]).map_err(|error| format!("unpacked, but: {error}"))?;
    }
    Ok(())
}

/// The bytes and number of files below `folder`.
fn size(folder: &Path) -> (u64, u64) {
    let (mut bytes, mut count) = (0, 0);
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(data) = entry.metadata() else { continue };
        count += 1;
        if data.is_dir() {
            let below = size(&entry.path());
            bytes += below.0;
            count += below.1;
        } else if data.is_file() {
            bytes += data.len() / data.nlink().max(1);
        }
    }
    (bytes, count)
}
