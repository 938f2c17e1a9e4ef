//! Downloading a blob: into a file, counted and hashed, resumed where the connection broke.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use sha2::{Digest as _, Sha256};
use ureq::http::{Method, StatusCode};

use super::Client;
use super::auth::Session;
use super::error::{Again, Elsewhere, RegistryError};
use super::http::{Call, Reply};
use super::progress::{Event, Progress};
use crate::digest::Digest;

const BUFFER_BYTES: usize = 128 << 10;
/// How often one blob is asked for, however far each answer came.
const MAX_REQUESTS: u32 = 64;
const ACTION: &str = "get a blob";

/// A blob that is wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// A file that fills up.
struct Filling<'a> {
    file: &'a mut File,
    path: &'a Path,
    wanted: Wanted,
    hasher: Sha256,
    count: u64,
}

impl Filling<'_> {
    fn restart(&mut self) -> Result<(), RegistryError> {
        self.hasher = Sha256::new();
        self.count = 0;
        self.file
            .set_len(0)
            .and_then(|()| self.file.rewind())
            .map_err(|source| self.failed("empty", source))
    }

    fn failed(&self, action: &'static str, source: io::Error) -> RegistryError {
        RegistryError::File {
            action,
            path: self.path.to_owned(),
            source,
        }
    }
}

impl Client {
    /// Fills the empty `file` (whose `path` is for messages) with the blob `wanted`, whose digest and size it has afterwards. A
    /// connection that broke is taken up again; without any answer the blob is asked for only once if it can be had elsewhere.
    pub(super) fn download(
        &self,
        (session, elsewhere): (&Session, Elsewhere),
        url: &str,
        wanted: Wanted,
        (file, path): (&mut File, &Path),
        progress: &dyn Progress,
    ) -> Result<(), RegistryError> {
        let mut filling = Filling {
            file,
            path,
            wanted,
            hasher: Sha256::new(),
            count: 0,
        };
        filling.restart()?;
        let mut failures = 0;
        for request in 1..=MAX_REQUESTS {
            let before = filling.count;
            let error = match self.attempt(session, url, &mut filling, progress) {
                Ok(()) if filling.count == wanted.size => {
                    return verified(session, &filling);
                }
                Ok(()) => RegistryError::Short {
                    registry: session.name().to_owned(),
                    what: what(wanted),
                    found: filling.count,
                    expected: wanted.size,
                    requests: request,
                },
                Err(error) => error,
            };
            let goes_on =
                elsewhere == Elsewhere::Yes && error.is_silence() && filling.count <= before;
            if filling.count > before {
                failures = 0;
            }
            failures += 1;
            let again = match &error {
                RegistryError::Short { .. } => Again::Soon,
                other => other.again(),
            };
            progress.event(Event::Trouble {
                digest: wanted.digest,
                error: &error,
            });
            if goes_on || failures >= self.settings.patience.attempts || request == MAX_REQUESTS {
                return Err(error);
            }
            self.wait(again, failures, error, progress)?;
        }
        Err(RegistryError::Cancelled)
    }

    /// One request for what is still missing.
    fn attempt(
        &self,
        session: &Session,
        url: &str,
        filling: &mut Filling<'_>,
        progress: &dyn Progress,
    ) -> Result<(), RegistryError> {
        let wanted = filling.wanted;
        let mut call = Call::new(Method::GET, url.to_owned(), ACTION)
            // Or else the bytes may be compressed once more on the way.
            .header("Accept-Encoding", "identity");
        call.expected = wanted.size.saturating_sub(filling.count);
        if filling.count > 0 {
            call = call.header("Range", format!("bytes={}-", filling.count));
        }
        let reply = session.send(&call)?;
        match reply.status {
            StatusCode::OK => filling.restart()?,
            StatusCode::PARTIAL_CONTENT if continues(&reply, filling.count) => {}
            // Not what was asked for: from the beginning.
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE
                if filling.count > 0 =>
            {
                return filling.restart();
            }
            _ => return Err(reply.refusal(session.name(), &what(wanted))),
        }
        let reply_url = super::http::shown(&reply.url);
        let mut reader = reply.into_reader();
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            if progress.cancelled() {
                return Err(RegistryError::Cancelled);
            }
            let n = match reader.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => {
                    return Err(RegistryError::Transport {
                        action: ACTION,
                        url: reply_url,
                        source: Box::new(source.into()),
                    });
                }
            };
            let total = filling.count.saturating_add(n as u64);
            if total > wanted.size {
                return Err(RegistryError::TooLong {
                    registry: session.name().to_owned(),
                    what: what(wanted),
                    limit: wanted.size,
                });
            }
            let part = buffer.get(..n).unwrap_or_default();
            filling
                .file
                .write_all(part)
                .map_err(|source| filling.failed("write", source))?;
            filling.hasher.update(part);
            filling.count = total;
            progress.event(Event::Received {
                digest: wanted.digest,
                bytes: total,
            });
        }
    }
}

fn what(wanted: Wanted) -> String {
    format!("blob {}", wanted.digest)
}

/// Whether an answer begins at `offset`.
fn continues(reply: &Reply, offset: u64) -> bool {
    reply
        .header("content-range")
        .and_then(|range| range.strip_prefix("bytes "))
        .and_then(|range| range.split('-').next())
        .and_then(|start| start.trim().parse().ok())
        == Some(offset)
}

fn verified(session: &Session, filling: &Filling<'_>) -> Result<(), RegistryError> {
    let found = Digest::from_hasher(&filling.hasher);
    if found == filling.wanted.digest {
        Ok(())
    } else {
        Err(RegistryError::Digest {
            registry: session.name().to_owned(),
            what: what(filling.wanted),
            found,
        })
    }
}
