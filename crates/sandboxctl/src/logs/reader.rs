//! The reading side of the log.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{Entry, FILE};

/// The entries of a log, oldest first, through all of its files and as they are written.
#[derive(Debug)]
pub(super) struct Reader {
    folder: PathBuf,
    current: Option<(BufReader<File>, u64)>,
    line: Vec<u8>,
}

impl Reader {
    /// From the beginning of what is kept.
    pub(super) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            current: None,
            line: Vec::new(),
        }
    }

    /// The next entry; none if there is none yet.
    pub(super) fn next(&mut self) -> io::Result<Option<Entry<'static>>> {
        loop {
            if let Some((file, _)) = &mut self.current {
                file.read_until(b'\n', &mut self.line)?;
                if self.line.ends_with(b"\n") {
                    let entry = serde_json::from_slice(&self.line);
                    self.line.clear();
                    match entry {
                        Ok(entry) => return Ok(Some(entry)),
                        // A line that a full disk cut off costs itself only.
                        Err(_) => continue,
                    }
                }
            }
            if !self.step()? {
                return Ok(None);
            }
            self.line.clear();
        }
    }

    /// Goes on with the next newer file, if there is one.
    fn step(&mut self) -> io::Result<bool> {
        let mut files = Vec::new();
        for number in 0_u32.. {
            let name = match number {
                0 => FILE.to_owned(),
                number => format!("{FILE}.{number}"),
            };
            match File::open(self.folder.join(name)) {
                Ok(file) => files.push((file.metadata()?.ino(), file)),
                // While files are put aside the newest may not be there yet.
                Err(error) if error.kind() == io::ErrorKind::NotFound && number == 0 => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            }
        }
        // Newest first; what was read last may have been removed since.
        let newer = match &self.current {
            Some((_, inode)) => files
                .iter()
                .position(|(other, _)| other == inode)
                .unwrap_or(files.len()),
            None => files.len(),
        };
        files.truncate(newer);
        match files.pop() {
            Some((inode, file)) => {
                self.current = Some((BufReader::new(file), inode));
                Ok(true)
            }
            None => Ok(false),
        }
    }
}

/// How many bytes the log takes, for tests of its bound.
#[cfg(test)]
pub(super) fn size(folder: &Path) -> u64 {
    std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(FILE))
        .filter_map(|entry| entry.metadata().ok())
        .map(|file| file.len())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::super::{Log, LogOptions, LogStream};
    use super::*;

    #[test]
    fn reader_follows_through_rotations() {
        let folder = tempfile::tempdir().unwrap();
        let options = LogOptions {
            max_size: 1000,
            max_file: 3,
            ..LogOptions::default()
        };
        let log = Log::open(folder.path(), &options).unwrap().unwrap();
        let mut stream = LogStream::new(log, "stdout");
        let mut reader = Reader::new(folder.path());
        let mut got = Vec::new();
        for number in 0..200 {
            stream.take(format!("{number}\n").as_bytes());
            // Not every time: some rotations happen in between.
            if number % 15 == 0 {
                while let Some(entry) = reader.next().unwrap() {
                    got.push(entry.log.trim().parse::<u32>().unwrap());
                }
            }
        }
        while let Some(entry) = reader.next().unwrap() {
            got.push(entry.log.trim().parse().unwrap());
        }
        assert_eq!(got, (0..200).collect::<Vec<u32>>());
        assert!(size(folder.path()) <= 3000);
    }
}
