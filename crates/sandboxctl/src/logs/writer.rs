//! The writing side of the log.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use super::encode::{append_entry, newline};
use super::{FILE, LogDriver, LogOptions};

/// The longest entry: what docker takes. A longer line is several entries, of which only the last has the newline.
const ENTRY_BYTES: usize = 16 * 1024;

/// The log of one container, which both its streams write.
#[derive(Debug)]
pub(crate) struct Log {
    folder: PathBuf,
    max_size: u64,
    max_file: u32,
    file: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    file: File,
    size: u64,
}

impl Log {
    /// Opens it, to write behind what is there; none if no log is to be kept.
    pub(crate) fn open(folder: &Path, options: &LogOptions) -> io::Result<Option<Arc<Self>>> {
        if options.driver == LogDriver::None {
            return Ok(None);
        }
        Ok(Some(Arc::new(Self {
            folder: folder.to_owned(),
            max_size: options.max_size,
            max_file: options.max_file,
            file: Mutex::new(Current::open(folder)?),
        })))
    }

    /// Writes entries, as many to a file as there is room for. One that is larger than a file has one of its own.
    fn append(&self, mut entries: &[u8]) -> io::Result<()> {
        let mut current = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        while !entries.is_empty() {
            let room = self.max_size.saturating_sub(current.size);
            let fits = match entries_within(entries, room) {
                0 if current.size > 0 => {
                    self.rotate()?;
                    *current = Current::open(&self.folder)?;
                    continue;
                }
                0 => first_entry(entries),
                fits => fits,
            };
            let (now, later) = entries.split_at(fits);
            current.file.write_all(now)?;
            current.size += len(now);
            entries = later;
        }
        Ok(())
    }

    fn rotate(&self) -> io::Result<()> {
        let path = |number: u32| match number {
            0 => self.folder.join(FILE),
            number => self.folder.join(format!("{FILE}.{number}")),
        };
        if self.max_file <= 1 {
            return fs::remove_file(path(0));
        }
        for number in (0..self.max_file - 1).rev() {
            match fs::rename(path(number), path(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Current {
    fn open(folder: &Path) -> io::Result<Self> {
        let file = File::options()
            .append(true)
            .create(true)
            .open(folder.join(FILE))?;
        let size = file.metadata()?.len();
        Ok(Self { file, size })
    }
}

/// The length of the whole entries among the first `room` bytes. An entry ends with the only newline in it.
fn entries_within(entries: &[u8], room: u64) -> usize {
    let room = usize::try_from(room).unwrap_or(usize::MAX);
    let first = entries.get(..room).unwrap_or(entries);
    let last = first.iter().rposition(|byte| *byte == b'\n');
    last.map_or(0, |last| last + 1)
}

fn first_entry(entries: &[u8]) -> usize {
    let end = entries.iter().position(|byte| *byte == b'\n');
    end.map_or(entries.len(), |end| end + 1)
}

fn len(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// One stream of a container on its way into the log.
#[derive(Debug)]
pub(crate) struct LogStream {
    log: Arc<Log>,
    name: &'static str,
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    failed: bool,
}

impl LogStream {
    /// The stream called `name`.
    pub(crate) fn new(log: Arc<Log>, name: &'static str) -> Self {
        Self {
            log,
            name,
            line: Vec::new(),
            failed: false,
        }
    }

    /// Takes more of it. What cannot be written is left out, and said once: the container is not to suffer.
    pub(crate) fn take(&mut self, mut bytes: &[u8]) {
        let time = now();
        let mut entries = Vec::with_capacity(bytes.len() + bytes.len() / 8 + 128);
        while !bytes.is_empty() {
            let room = ENTRY_BYTES.saturating_sub(self.line.len());
            let window = bytes.get(..room).unwrap_or(bytes);
            let end = newline(window);
            let is_entry = end.is_some() || bytes.len() > room;
            let (part, rest) = bytes.split_at(end.map_or(window.len(), |end| end + 1));
            bytes = rest;
            if !is_entry {
                self.line.extend_from_slice(part);
            } else if self.line.is_empty() {
                // As most are: whole in what came, which is not copied first.
                let (now, later) = part.split_at(whole_characters(part));
                append_entry(&mut entries, now, self.name, &time);
                self.line.extend_from_slice(later);
            } else {
                self.line.extend_from_slice(part);
                let whole = whole_characters(&self.line);
                let now = self.line.get(..whole).unwrap_or_default();
                append_entry(&mut entries, now, self.name, &time);
                self.line.drain(..whole);
            }
        }
        self.append(&entries);
    }

    fn append(&mut self, entries: &[u8]) {
        if entries.is_empty() {
            return;
        }
        if let Err(error) = self.log.append(entries)
            && !self.failed
        {
            self.failed = true;
            eprintln!("sandboxctl: warning: cannot write the container's log: {error}");
        }
    }
}

impl Drop for LogStream {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            let mut entries = Vec::new();
            append_entry(&mut entries, &self.line, self.name, &now());
            self.append(&entries);
        }
    }
}

fn now() -> String {
    humantime::format_rfc3339_nanos(SystemTime::now()).to_string()
}

/// The length without a character at the end that is not whole.
fn whole_characters(bytes: &[u8]) -> usize {
    // It has at most four bytes, of which the first tells how many.
    let near = bytes.len().saturating_sub(3);
    let tail = bytes.get(near..).unwrap_or_default();
    let Some(first) = tail.iter().rposition(|byte| *byte >= 0xc0) else {
        return bytes.len();
    };
    let character = tail.get(first..).unwrap_or_default();
    match std::str::from_utf8(character) {
        Err(error) if error.error_len().is_none() && near + first > 0 => near + first,
        _ => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Entry;
    use super::*;

    fn entries(folder: &Path, file: &str) -> Vec<(String, String)> {
        fs::read_to_string(folder.join(file))
            .unwrap()
            .lines()
            .map(|line| {
                let entry: Entry<'_> = serde_json::from_str(line).unwrap();
                assert!(entry.time.ends_with('Z'), "{}", entry.time);
                (entry.stream.into_owned(), entry.log.into_owned())
            })
            .collect()
    }

    #[test]
    fn lines_are_entries_and_a_last_one_without_its_end_too() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::open(folder.path(), &LogOptions::default())
            .unwrap()
            .unwrap();
        let mut stream = LogStream::new(Arc::clone(&log), "stdout");
        stream.take(b"one\ntw");
        LogStream::new(log, "stderr").take(b"bad\n");
        stream.take("o\nü".as_bytes());
        drop(stream);
        let expected = [
            ("stdout", "one\n"),
            ("stderr", "bad\n"),
            ("stdout", "two\n"),
            ("stdout", "ü"),
        ];
        let expected = expected.map(|(stream, log)| (stream.to_owned(), log.to_owned()));
        assert_eq!(entries(folder.path(), FILE), expected);
    }

    #[test]
    fn long_line_is_split_between_characters() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::open(folder.path(), &LogOptions::default())
            .unwrap()
            .unwrap();
        let text = format!("x{}\n", "ü".repeat(20_000));
        let mut stream = LogStream::new(log, "stdout");
        for chunk in text.as_bytes().chunks(1000) {
            stream.take(chunk);
        }
        let got = entries(folder.path(), FILE);
        assert_eq!(got.len(), 3);
        let joined: String = got.into_iter().map(|(_, log)| log).collect();
        assert_eq!(joined, text);
    }

    #[test]
    fn entry_that_is_larger_than_a_file_has_one_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::open(folder.path(), &bounded()).unwrap().unwrap();
        let long = "x".repeat(2000);
        LogStream::new(log, "stdout").take(format!("a\n{long}\nb\n").as_bytes());
        for (file, text) in [
            ("container.log.2", "a"),
            ("container.log.1", &long),
            (FILE, "b"),
        ] {
            let line = ("stdout".to_owned(), format!("{text}\n"));
            assert_eq!(entries(folder.path(), file), [line]);
        }
    }

    fn bounded() -> LogOptions {
        LogOptions {
            max_size: 1000,
            max_file: 3,
            ..LogOptions::default()
        }
    }

    #[test]
    fn log_is_bounded_however_much_comes_at_a_time() {
        let lines: Vec<String> = (0..100).map(|number| format!("{number}\n")).collect();
        for at_a_time in [1, 3, 100] {
            log_is_bounded(&lines, at_a_time);
        }
    }

    fn log_is_bounded(lines: &[String], at_a_time: usize) {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::open(folder.path(), &bounded()).unwrap().unwrap();
        let mut stream = LogStream::new(log, "stdout");
        for some in lines.chunks(at_a_time) {
            stream.take(some.concat().as_bytes());
        }
        let mut files: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap())
            .collect();
        files.sort_by_key(fs::DirEntry::file_name);
        assert_eq!(files.len(), 3);
        assert!(
            files
                .iter()
                .all(|file| file.metadata().unwrap().len() <= 1000)
        );
        let kept = ["container.log.2", "container.log.1", FILE];
        let kept = kept.map(|file| entries(folder.path(), file)).concat();
        assert!(kept.len() > 20, "{}", kept.len());
        let newest = lines.iter().rev().take(kept.len()).rev();
        assert!(kept.iter().map(|(_, line)| line).eq(newest));
    }
}
