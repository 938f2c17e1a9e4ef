//! Files: of the image, and of the writable layer.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use serde_json::{Value, json};

use super::{each, mib_per_s, next};

/// Read and written at once.
const CHUNK: usize = 256 << 10;
/// Read at once where places are random.
const PAGE: usize = 4_096;
/// Written to the writable layer.
const WRITTEN: usize = 32 << 20;

fn failed<'a>(action: &'a str, path: &'a str) -> impl Fn(std::io::Error) -> String + 'a {
    move |error| format!("cannot {action} {path}: {error}")
}

/// Reads a file to its end: its length, and how fast.
fn whole(path: &str) -> Result<(usize, f64), String> {
    let mut file = File::open(path).map_err(failed("open", path))?;
    let mut chunk = vec![0u8; CHUNK];
    let start = Instant::now();
    let mut bytes = 0;
    loop {
        let length = file.read(&mut chunk).map_err(failed("read", path))?;
        if length == 0 {
            return Ok((bytes, mib_per_s(bytes, start.elapsed())));
        }
        bytes += length;
    }
}

/// Reads a file of the image's: for the first time, once more, and pages of it at random.
pub(super) fn read(path: &str) -> Result<Value, String> {
    let (bytes, first) = whole(path)?;
    let (_, again) = whole(path)?;
    let file = File::open(path).map_err(failed("open", path))?;
    let pages = (bytes / PAGE).max(1) as u64;
    let mut page = [0u8; PAGE];
    let mut state = 0x9e37_79b9_7f4a_7c15;
    let mut problem = None;
    let random = each(1, || {
        state = next(state);
        let offset = state % pages * PAGE as u64;
        problem = file.read_at(&mut page, offset).err().or(problem.take());
    });
    if let Some(error) = problem {
        return Err(failed("read", path)(error));
    }
    Ok(json!({
        "bytes": bytes,
        "first_mib_per_s": first,
        "again_mib_per_s": again,
        "random_page_us": random / 1_000.0,
    }))
}

/// Writes a file to the disk, and reads it from there, past the kernel's cache. It is removed again.
pub(super) fn block(path: &str) -> Result<Value, String> {
    let chunk = vec![0x5au8; CHUNK];
    let start = Instant::now();
    let mut file = File::create_new(path).map_err(failed("create", path))?;
    let measured = (|| {
        for _ in 0..WRITTEN / CHUNK {
            file.write_all(&chunk).map_err(failed("write", path))?;
        }
        file.sync_all().map_err(failed("sync", path))?;
        let written = mib_per_s(WRITTEN, start.elapsed());
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
            .map_err(|errno| failed("drop the cache of", path)(errno.into()))?;
        let (_, read) = whole(path)?;
        Ok(json!({ "write_mib_per_s": written, "read_mib_per_s": read }))
    })();
    // Whatever came of it.
    let _ = fs::remove_file(path);
    measured
}

/// Reads a file to its end, as it is found in the caches.
pub(super) fn once(path: &str) -> Result<Value, String> {
    let (bytes, rate) = whole(path)?;
    Ok(json!({ "bytes": bytes, "mib_per_s": rate }))
}

/// Microseconds for each of so many.
fn us_each(spent: Duration, count: u32) -> f64 {
    spent.as_secs_f64() * 1e6 / f64::from(count.max(1))
}

/// Lists every folder of a tree and asks for every entry's metadata: how many there are, and how long that took.
fn walk(path: &str) -> Result<(u32, Duration), String> {
    let start = Instant::now();
    let mut entries = 0;
    let mut waiting = vec![PathBuf::from(path)];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(&folder).map_err(failed("list", path))? {
            let entry = entry.map_err(failed("list", path))?;
            let metadata = entry.metadata().map_err(failed("look at", path))?;
            entries += 1;
            if metadata.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    Ok((entries, start.elapsed()))
}

/// Walks a tree for the first time, and once more.
pub(super) fn tree(path: &str) -> Result<Value, String> {
    let (entries, first) = walk(path)?;
    let (_, again) = walk(path)?;
    Ok(json!({
        "entries": entries,
        "first_us": us_each(first, entries),
        "again_us": us_each(again, entries),
    }))
}

/// Creates small files in a new folder, and deletes them again.
pub(super) fn small(path: &str) -> Result<Value, String> {
    const FILES: u32 = 500;
    fs::create_dir(path).map_err(failed("create", path))?;
    let measured = (|| {
        let start = Instant::now();
        for n in 0..FILES {
            fs::write(format!("{path}/{n}"), [0x5a; PAGE]).map_err(failed("write in", path))?;
        }
        let created = start.elapsed();
        let start = Instant::now();
        for n in 0..FILES {
            fs::remove_file(format!("{path}/{n}")).map_err(failed("delete in", path))?;
        }
        Ok(json!({
            "create_us": us_each(created, FILES),
            "delete_us": us_each(start.elapsed(), FILES),
        }))
    })();
    // Whatever came of it.
    let _ = fs::remove_dir_all(path);
    measured
}
