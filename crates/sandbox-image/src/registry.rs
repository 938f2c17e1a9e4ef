//! A client of registries (OCI distribution specification 1.1, and what docker's registries do beyond it).
//!
//! Own code on a small HTTP library, because what it is made for is a hostile registry: every answer is bounded in size and
//! time, digests and sizes hold before anything is used, credentials go to nobody else, and every loop ends. See [`http`] for
//! redirects, [`auth`] for authentication, [`blob`] for resumed downloads, [`push`] for uploads, [`settings`] for mirrors and
//! registries without TLS, [`credentials`] for docker's `config.json`.
//!
//! What comes through here is only bytes with the right digest. What they mean is for [`crate::import`].

mod auth;
mod blob;
pub mod credentials;
mod error;
mod http;
mod progress;
mod push;
mod settings;

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ureq::http::{Method, StatusCode};

use crate::digest::Digest;
use crate::reference::Reference;
use crate::store::MAX_METADATA_BYTES;

use auth::Session;
pub(crate) use blob::Wanted;
pub use credentials::{CredentialStore, Credentials, CredentialsError};
pub use error::RegistryError;
use error::{Again, Elsewhere, printable};
use http::{Call, Http};
pub use progress::{Event, Progress, Silent};
pub(crate) use push::Upload;
pub use settings::{Patience, RegistrySettings, Settings};

/// The media types of what stands for an image, in the order in which they are liked.
pub(crate) const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// Speaks to registries.
#[derive(Debug, Clone)]
pub struct Client {
    pub(super) settings: Settings,
    credentials: CredentialStore,
}

/// What stands for an image: a manifest or an index, as it came.
#[derive(Debug, Clone)]
pub(crate) struct ManifestBytes {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    pub(crate) bytes: Vec<u8>,
}

/// A repository, at all addresses at which it can be asked for.
pub(crate) struct Repository<'a> {
    client: &'a Client,
    /// Mirrors first.
    addresses: Vec<Address>,
}

/// One address of a repository.
struct Address {
    session: Session,
    base: String,
    /// There was no answer here while there are other addresses: a mirror that swallows packets would cost the whole of
    /// its silence again with every part of an image.
    is_silent: AtomicBool,
}

impl Client {
    /// A client with these settings and credentials.
    #[must_use]
    pub fn new(settings: Settings, credentials: CredentialStore) -> Self {
        Self {
            settings,
            credentials,
        }
    }

    /// Opens the repository that a name stands for.
    pub(crate) fn repository(
        &self,
        reference: &Reference,
    ) -> Result<Repository<'_>, RegistryError> {
        let (registry, path) = parts(reference)?;
        let mut addresses = Vec::new();
        for endpoint in self.settings.endpoints(registry)? {
            let base = format!("{}/v2/{path}", endpoint.base);
            let http = Http::new(endpoint, &self.settings.patience)?;
            let scope = format!("repository:{path}:pull");
            addresses.push(Address {
                session: Session::new(http, self.credentials.clone(), Some(scope)),
                base,
                is_silent: AtomicBool::new(false),
            });
        }
        Ok(Repository {
            client: self,
            addresses,
        })
    }

    /// Finds out whether `registry` takes these credentials.
    ///
    /// # Errors
    /// [`RegistryError::Denied`] if not, or whatever kept it from saying.
    pub fn check_login(
        &self,
        registry: &str,
        credentials: &Credentials,
    ) -> Result<(), RegistryError> {
        let endpoint = self.settings.registry(registry);
        let url = format!("{}/v2/", endpoint.base);
        let http = Http::new(endpoint, &self.settings.patience)?;
        let session = Session::new(http, self.credentials.clone(), None)
            .with_credentials(credentials.clone());
        let call = Call::new(Method::GET, url, "log in");
        self.patiently(&Silent, || {
            let reply = session.send(&call)?;
            match reply.status {
                StatusCode::OK => Ok(()),
                _ => Err(reply.refusal(registry, "this login")),
            }
        })
    }

    /// Tries until it works, it can not, or patience is at its end.
    pub(super) fn patiently<T>(
        &self,
        progress: &dyn Progress,
        attempt: impl FnMut() -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        self.try_at(Elsewhere::No, progress, attempt)
    }

    /// As [`Self::patiently`], but without an answer only once if the same can be had elsewhere.
    fn try_at<T>(
        &self,
        elsewhere: Elsewhere,
        progress: &dyn Progress,
        mut attempt: impl FnMut() -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let mut failures = 0;
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(error) => {
                    failures += 1;
                    let goes_on = elsewhere == Elsewhere::Yes && error.is_silence();
                    if goes_on || failures >= self.settings.patience.attempts {
                        return Err(error);
                    }
                    let again = error.again();
                    self.wait(again, failures, error, progress)?;
                }
            }
        }
    }

    /// Waits before the next attempt; gives the error back if there shall be none.
    fn wait(
        &self,
        again: Again,
        failures: u32,
        error: RegistryError,
        progress: &dyn Progress,
    ) -> Result<(), RegistryError> {
        let patience = &self.settings.patience;
        let wait = match again {
            Again::No => return Err(error),
            Again::Soon => patience
                .first_wait
                .saturating_mul(1 << failures.saturating_sub(1).min(16))
                .min(patience.longest_wait),
            Again::After(wait) if wait > patience.longest_wait => return Err(error),
            Again::After(wait) => wait,
        };
        if progress.cancelled() {
            return Err(RegistryError::Cancelled);
        }
        std::thread::sleep(wait.max(Duration::from_millis(1)));
        Ok(())
    }
}

/// The registry and the path of a repository.
pub(super) fn parts(reference: &Reference) -> Result<(&str, &str), RegistryError> {
    reference
        .registry_and_path()
        .ok_or_else(|| RegistryError::NotAName {
            reference: reference.to_string(),
        })
}

impl Repository<'_> {
    /// What a tag or a digest stands for. With a digest it has that digest.
    pub(crate) fn manifest(
        &self,
        tag: &str,
        digest: Option<Digest>,
        progress: &dyn Progress,
    ) -> Result<ManifestBytes, RegistryError> {
        let target = digest.map_or_else(|| tag.to_owned(), |digest| digest.to_string());
        self.first(progress, |session, base| {
            let what = format!("manifest {target} in {}", path_of(base));
            let call = Call::new(
                Method::GET,
                format!("{base}/manifests/{target}"),
                "get a manifest",
            )
            .header("Accept", MANIFEST_TYPES.join(", "));
            let reply = session.send(&call)?;
            if reply.status != StatusCode::OK {
                return Err(reply.refusal(session.name(), &what));
            }
            let declared = reply.header("content-type").map(str::to_owned);
            let bytes = reply.bytes(MAX_METADATA_BYTES, session.name(), &what, call.action)?;
            let found = Digest::of(&bytes);
            if digest.is_some_and(|digest| digest != found) {
                return Err(RegistryError::Digest {
                    registry: session.name().to_owned(),
                    what,
                    found,
                });
            }
            Ok(ManifestBytes {
                digest: found,
                media_type: media_type(session, &what, declared.as_deref(), &bytes)?,
                bytes,
            })
        })
    }

    /// A small blob.
    pub(crate) fn small_blob(
        &self,
        digest: Digest,
        progress: &dyn Progress,
    ) -> Result<Vec<u8>, RegistryError> {
        let what = format!("blob {digest}");
        self.first(progress, |session, base| {
            let call = Call::new(Method::GET, format!("{base}/blobs/{digest}"), "get a blob")
                .header("Accept-Encoding", "identity");
            let reply = session.send(&call)?;
            if reply.status != StatusCode::OK {
                return Err(reply.refusal(session.name(), &what));
            }
            let bytes = reply.bytes(MAX_METADATA_BYTES, session.name(), &what, call.action)?;
            let found = Digest::of(&bytes);
            if found == digest {
                Ok(bytes)
            } else {
                Err(RegistryError::Digest {
                    registry: session.name().to_owned(),
                    what: what.clone(),
                    found,
                })
            }
        })
    }

    /// Fills an empty file with a blob.
    pub(crate) fn blob(
        &self,
        wanted: Wanted,
        file: &mut File,
        path: &Path,
        progress: &dyn Progress,
    ) -> Result<(), RegistryError> {
        self.anywhere(progress, |address, elsewhere| {
            let url = format!("{}/blobs/{}", address.base, wanted.digest);
            self.client.download(
                (&address.session, elsewhere),
                &url,
                wanted,
                (&mut *file, path),
                progress,
            )
        })
    }

    /// Asks the mirrors, then the registry, each with patience; the last one's error counts.
    fn first<T>(
        &self,
        progress: &dyn Progress,
        ask: impl Fn(&Session, &str) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        self.anywhere(progress, |address, elsewhere| {
            self.client
                .try_at(elsewhere, progress, || ask(&address.session, &address.base))
        })
    }

    /// Tries one address after the other, but for those that were silent before; the last one's error counts.
    fn anywhere<T>(
        &self,
        progress: &dyn Progress,
        mut work: impl FnMut(&Address, Elsewhere) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let Some((last, mirrors)) = self.addresses.split_last() else {
            return Err(RegistryError::Cancelled);
        };
        for mirror in mirrors {
            if mirror.is_silent.load(Ordering::Relaxed) {
                continue;
            }
            match work(mirror, Elsewhere::Yes) {
                Err(RegistryError::Cancelled) => return Err(RegistryError::Cancelled),
                Err(error) => {
                    if error.is_silence() {
                        mirror.is_silent.store(true, Ordering::Relaxed);
                    }
                    progress.event(Event::Mirror {
                        name: mirror.session.name(),
                        error: &error,
                    });
                }
                found => return found,
            }
        }
        work(last, Elsewhere::No)
    }
}

/// The repository's path in an address, for messages.
fn path_of(base: &str) -> &str {
    base.split_once("/v2/").map_or(base, |(_, path)| path)
}

/// What kind of thing a manifest is: what it says itself counts before what the registry says.
fn media_type(
    session: &Session,
    what: &str,
    declared: Option<&str>,
    bytes: &[u8],
) -> Result<String, RegistryError> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        media_type: Option<String>,
        #[serde(default)]
        schema_version: u32,
    }
    let malformed = |reason: String| RegistryError::Malformed {
        registry: session.name().to_owned(),
        what: what.to_owned(),
        reason,
    };
    let typed: Typed = serde_json::from_slice(bytes)
        .map_err(|_| malformed("it is not a manifest in JSON".to_owned()))?;
    if typed.schema_version == 1 {
        return Err(malformed(
            "it is in docker's first format, which was given up long ago; push the image again"
                .to_owned(),
        ));
    }
    let declared = declared
        .and_then(|text| text.split(';').next())
        .map(str::trim);
    let found = typed.media_type.as_deref().or(declared).unwrap_or_default();
    if MANIFEST_TYPES.contains(&found) {
        Ok(found.to_owned())
    } else {
        Err(malformed(format!(
            "its media type is {:?}",
            printable(found)
        )))
    }
}
