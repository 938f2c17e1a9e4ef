//! Uploading an image: its blobs where the registry lacks them, then its manifest.

use std::fs::File;
use std::path::Path;

use ureq::http::{Method, StatusCode};

use super::auth::Session;
use super::error::RegistryError;
use super::http::{Call, Http, Payload};
use super::progress::{Event, Progress};
use super::{Client, parts};
use crate::digest::Digest;
use crate::reference::Reference;

const UPLOAD: &str = "upload a blob";

/// A repository that is pushed to: the registry itself, never a mirror.
pub(crate) struct Upload<'a> {
    client: &'a Client,
    session: Session,
    base: String,
}

impl Client {
    /// Opens the repository that a name stands for, for writing.
    pub(crate) fn upload(&self, reference: &Reference) -> Result<Upload<'_>, RegistryError> {
        let (registry, path) = parts(reference)?;
        let endpoint = self.settings.registry(registry);
        let base = format!("{}/v2/{path}", endpoint.base);
        let http = Http::new(endpoint, &self.settings.patience)?;
        let scope = format!("repository:{path}:pull,push");
        Ok(Upload {
            client: self,
            session: Session::new(http, self.credentials.clone(), Some(scope)),
            base,
        })
    }
}

impl Upload<'_> {
    /// Whether the repository has the blob.
    pub(crate) fn has(
        &self,
        digest: Digest,
        progress: &dyn Progress,
    ) -> Result<bool, RegistryError> {
        let url = format!("{}/blobs/{digest}", self.base);
        let call = Call::new(Method::HEAD, url, "look for a blob");
        self.client.patiently(progress, || {
            let reply = self.session.send(&call)?;
            match reply.status {
                StatusCode::OK => Ok(true),
                StatusCode::NOT_FOUND => Ok(false),
                _ => Err(reply.refusal(self.session.name(), &format!("to look for blob {digest}"))),
            }
        })
    }

    /// Asks the registry to take the blob from its own repository `from`. Whether it did.
    pub(crate) fn mount(
        &self,
        digest: Digest,
        from: &str,
        progress: &dyn Progress,
    ) -> Result<bool, RegistryError> {
        let url = format!("{}/blobs/uploads/?mount={digest}&from={from}", self.base);
        let call = Call::new(Method::POST, url, UPLOAD).payload(Payload::Bytes(b""));
        self.client.patiently(progress, || {
            let reply = self.session.send(&call)?;
            // An upload that was begun instead is forgotten by the registry in time.
            Ok(reply.status == StatusCode::CREATED)
        })
    }

    /// Sends a blob of this size, from the beginning of a file.
    pub(crate) fn send_file(
        &self,
        digest: Digest,
        file: &File,
        path: &Path,
        progress: &dyn Progress,
    ) -> Result<(), RegistryError> {
        let size = file
            .metadata()
            .map_err(|source| RegistryError::File {
                action: "read",
                path: path.to_owned(),
                source,
            })?
            .len();
        self.send(digest, Payload::File(file, size), progress)?;
        progress.event(Event::Sent {
            digest,
            bytes: size,
        });
        Ok(())
    }

    /// Sends a small blob.
    pub(crate) fn send_bytes(
        &self,
        digest: Digest,
        bytes: &[u8],
        progress: &dyn Progress,
    ) -> Result<(), RegistryError> {
        self.send(digest, Payload::Bytes(bytes), progress)
    }

    fn send(
        &self,
        digest: Digest,
        payload: Payload<'_>,
        progress: &dyn Progress,
    ) -> Result<(), RegistryError> {
        let what = format!("to upload blob {digest}");
        self.client.patiently(progress, || {
            let begin = Call::new(
                Method::POST,
                format!("{}/blobs/uploads/", self.base),
                UPLOAD,
            )
            .payload(Payload::Bytes(b""));
            let reply = self.session.send(&begin)?;
            if reply.status != StatusCode::ACCEPTED {
                return Err(reply.refusal(self.session.name(), &what));
            }
            let location = reply.header("location").unwrap_or_default();
            let url = self.session.http.resolve(&reply.url, location)?.to_string();
            let joint = if url.contains('?') { '&' } else { '?' };
            let put = Call::new(Method::PUT, format!("{url}{joint}digest={digest}"), UPLOAD)
                .header("Content-Type", "application/octet-stream")
                .payload(payload);
            let reply = self.session.send(&put)?;
            match reply.status {
                StatusCode::CREATED => Ok(()),
                _ => Err(reply.refusal(self.session.name(), &what)),
            }
        })
    }

    /// Sends a manifest and gives it the name `tag`, which may be its digest.
    pub(crate) fn manifest(
        &self,
        tag: &str,
        media_type: &str,
        bytes: &[u8],
        progress: &dyn Progress,
    ) -> Result<(), RegistryError> {
        let url = format!("{}/manifests/{tag}", self.base);
        let what = "to upload the manifest";
        let call = Call::new(Method::PUT, url, "upload a manifest")
            .header("Content-Type", media_type)
            .payload(Payload::Bytes(bytes));
        self.client.patiently(progress, || {
            let reply = self.session.send(&call)?;
            if !matches!(reply.status, StatusCode::CREATED | StatusCode::OK) {
                return Err(reply.refusal(self.session.name(), what));
            }
            let found = reply
                .header("docker-content-digest")
                .and_then(|text| text.parse::<Digest>().ok());
            match found.filter(|found| *found != Digest::of(bytes)) {
                None => Ok(()),
                Some(found) => Err(RegistryError::Digest {
                    registry: self.session.name().to_owned(),
                    what: "the uploaded manifest".to_owned(),
                    found,
                }),
            }
        })
    }
}
