//! The journal: what happened to containers, one JSON object a line in docker's form, in the state folder.
//!
//! It is bounded: when the file is full it becomes `events.jsonl.1`, in place of the one before.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::container::Record;
use crate::report;

/// Its file.
const FILE: &str = "events.jsonl";
/// How long it gets.
const MAX_BYTES: u64 = 1 << 20;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Event {
    #[serde(rename = "Type")]
    pub(crate) kind: String,
    #[serde(rename = "Action")]
    pub(crate) action: String,
    #[serde(rename = "Actor")]
    pub(crate) actor: Actor,
    pub(crate) scope: String,
    /// Seconds since the epoch.
    pub(crate) time: u64,
    #[serde(rename = "timeNano")]
    pub(crate) time_nano: u64,
}

/// To what it happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Actor {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    #[serde(rename = "Attributes")]
    pub(crate) attributes: BTreeMap<String, String>,
}

/// The journal of one state folder.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    folder: PathBuf,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot write down in {} what happened", path.display())]
struct JournalError {
    path: PathBuf,
    source: io::Error,
}

impl Journal {
    pub(crate) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    /// Where it is: the file that is written, and the one before.
    pub(crate) fn files(&self) -> [PathBuf; 2] {
        [
            self.folder.join(FILE),
            self.folder.join(format!("{FILE}.1")),
        ]
    }

    /// The folder it is in.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Notes that something happened to a container. That it cannot be noted is said, and stops nothing.
    pub(crate) fn note(&self, record: &Record, action: &str, more: &[(&str, String)]) {
        let mut attributes = record.labels.clone();
        attributes.insert("image".to_owned(), record.image.clone());
        attributes.insert("name".to_owned(), record.name.to_string());
        for (key, value) in more {
            attributes.insert((*key).to_owned(), value.clone());
        }
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let event = Event {
            kind: "container".to_owned(),
            action: action.to_owned(),
            actor: Actor {
                id: record.id.to_string(),
                attributes,
            },
            scope: "local".to_owned(),
            time: now.as_secs(),
            time_nano: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
        };
        if let Err(source) = self.append(&event) {
            report::warn(&JournalError {
                path: self.folder.join(FILE),
                source,
            });
        }
    }

    /// The exit code of the container's last end since then, in seconds since the epoch, if it was noted and still is.
    pub(crate) fn exit_code(&self, id: &str, since: u64) -> Option<i32> {
        self.files().iter().find_map(|path| {
            let text = fs::read_to_string(path).ok()?;
            let events = text.lines().rev().filter(|line| line.contains(id));
            events
                .filter_map(|line| serde_json::from_str::<Event>(line).ok())
                .find(|event| event.action == "die" && event.actor.id == id && event.time >= since)?
                .actor
                .attributes
                .get("exitCode")?
                .parse()
                .ok()
        })
    }

    fn append(&self, event: &Event) -> io::Result<()> {
        let [path, before] = self.files();
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        loop {
            let mut file = File::options().append(true).create(true).open(&path)?;
            file.lock()?;
            // Another may have put it aside between the two.
            if !is_at(&file, &path) {
                continue;
            }
            if file.metadata()?.len() >= MAX_BYTES {
                fs::rename(&path, &before)?;
                continue;
            }
            return file.write_all(&line);
        }
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(named)) => open.ino() == named.ino(),
        _ => false,
    }
}
