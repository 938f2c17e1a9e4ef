//! Requests to registries: bounded in size, time, redirects and attempts.
//!
//! **Redirects** are followed here and not by the HTTP library, because of what a hostile registry could do with them: an
//! `Authorization` never goes to another scheme, host or port, and a registry that is spoken to with TLS, or that is not this
//! machine, cannot send us to an address without TLS.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use ureq::http::header::{AUTHORIZATION, LOCATION, RETRY_AFTER};
use ureq::http::{HeaderMap, Method, Request, StatusCode, Uri};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, SendBody};

use super::error::{RegistryError, printable};
use super::settings::{Endpoint, Patience, is_loopback};
use crate::extent::Extent;

/// How many redirects one request may take.
const MAX_REDIRECTS: u32 = 5;
/// The largest header of an answer.
const MAX_HEADER_BYTES: usize = 64 << 10;
/// How much of an error's body is read.
const MAX_ERROR_BYTES: u64 = 16 << 10;
/// How long a small answer may take in all.
const SMALL_ANSWER: Duration = Duration::from_secs(60);
/// The slowest rate at which a large body is waited for, in bytes a second.
const SLOWEST_RATE: u64 = 4 << 10;

/// What goes along with a request.
#[derive(Clone, Copy)]
pub(super) enum Payload<'a> {
    None,
    Bytes(&'a [u8]),
    /// A file from its beginning, of this size.
    File(&'a File, u64),
}

/// A request, but for its authorization.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) url: String,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) payload: Payload<'a>,
    /// The size of the answer's body, as far as it is known.
    pub(super) expected: u64,
    /// What is tried, for messages: a verb with its object.
    pub(super) action: &'static str,
}

impl<'a> Call<'a> {
    pub(super) fn new(method: Method, url: String, action: &'static str) -> Self {
        Self {
            method,
            url,
            headers: Vec::new(),
            payload: Payload::None,
            expected: 0,
            action,
        }
    }

    pub(super) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn payload(mut self, payload: Payload<'a>) -> Self {
        self.payload = payload;
        self
    }
}

/// An answer whose body was not read yet.
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// Where it came from at last.
    pub(super) url: Uri,
    body: Body,
}

impl Reply {
    /// A header's value, if it is text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body, without a bound: the reader counts.
    pub(super) fn into_reader(self) -> impl Read {
        self.body.into_with_config().limit(u64::MAX).reader()
    }

    /// The whole body, if it has at most `limit` bytes.
    pub(super) fn bytes(
        self,
        limit: u64,
        registry: &str,
        what: &str,
        action: &'static str,
    ) -> Result<Vec<u8>, RegistryError> {
        let url = shown(&self.url);
        let mut bytes = Vec::new();
        let read = self
            .into_reader()
            .take(limit.saturating_add(1))
            .read_to_end(&mut bytes);
        read.map_err(|source| RegistryError::Transport {
            action,
            url,
            source: Box::new(source.into()),
        })?;
        if bytes.len() as u64 > limit {
            return Err(RegistryError::TooLong {
                registry: registry.to_owned(),
                what: what.to_owned(),
                limit,
            });
        }
        Ok(bytes)
    }

    /// What an answer that is not a success means.
    pub(super) fn refusal(self, registry: &str, what: &str) -> RegistryError {
        let registry = registry.to_owned();
        let what = what.to_owned();
        let (status, wait) = (self.status, self.wait());
        match status {
            StatusCode::NOT_FOUND => RegistryError::NotFound { registry, what },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Denied {
                registry,
                what,
                detail: self.detail(),
            },
            StatusCode::TOO_MANY_REQUESTS => RegistryError::TooManyRequests { registry, wait },
            status => RegistryError::Status {
                registry,
                status: status.as_u16(),
                what,
                detail: self.detail(),
            },
        }
    }

    /// `Retry-After` in seconds; its form as a date is not in use among registries.
    fn wait(&self) -> Option<Duration> {
        let seconds = self.header(RETRY_AFTER.as_str())?.trim().parse().ok()?;
        Some(Duration::from_secs(seconds))
    }

    /// The message of an error in the distribution specification's form ("Error Codes").
    fn detail(self) -> String {
        let mut bytes = Vec::new();
        // Whatever came is good enough for a message.
        let _ = self
            .into_reader()
            .take(MAX_ERROR_BYTES)
            .read_to_end(&mut bytes);
        let Ok(json) = serde_json::from_slice::<serde_json::Value>(&bytes) else {
            return String::new();
        };
        let text = ["/errors/0/message", "/errors/0/code", "/details", "/error"]
            .iter()
            .find_map(|pointer| json.pointer(pointer)?.as_str());
        printable(text.unwrap_or_default())
    }
}

/// An address without its query, which may hold a signature that is as good as a password.
pub(super) fn shown(url: &Uri) -> String {
    let scheme = url.scheme_str().unwrap_or("http");
    let host = url.authority().map_or("", |authority| authority.as_str());
    printable(&format!("{scheme}://{host}{}", url.path()))
}

/// Speaks to one endpoint, and to where it redirects.
pub(super) struct Http {
    agent: Agent,
    endpoint: Endpoint,
}

impl Http {
    pub(super) fn new(endpoint: Endpoint, patience: &Patience) -> Result<Self, RegistryError> {
        let roots = match &endpoint.ca_file {
            None => RootCerts::PlatformVerifier,
            Some(path) => RootCerts::Specific(Arc::new(certificates(&endpoint.name, path)?)),
        };
        let tls = TlsConfig::builder()
            .root_certs(roots)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let mut config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_response_header_size(MAX_HEADER_BYTES)
            .user_agent(concat!("sandboxctl/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(patience.silence))
            .timeout_recv_response(Some(patience.silence))
            .timeout_per_read(Some(patience.silence))
            .timeout_per_write(Some(patience.silence));
        if endpoint.plain {
            // A proxy is for the way out, not for this machine.
            config = config.proxy(None);
        }
        Ok(Self {
            agent: config.build().new_agent(),
            endpoint,
        })
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Sends a request once, following redirects of those that only read.
    pub(super) fn send(
        &self,
        call: &Call<'_>,
        authorization: Option<&str>,
    ) -> Result<Reply, RegistryError> {
        let mut url = self.parse(&call.url)?;
        let mut authorization = authorization;
        let follows = matches!(call.method, Method::GET | Method::HEAD);
        for _ in 0..=MAX_REDIRECTS {
            let reply = self.once(call, &url, authorization)?;
            if !follows || !is_redirect(reply.status) {
                return Ok(reply);
            }
            let location = reply.header(LOCATION.as_str()).unwrap_or_default();
            let next = self.resolve(&url, location)?;
            if !same_place(&url, &next) {
                authorization = None;
            }
            url = next;
        }
        Err(self.unusable(&call.url, "it is redirected without end"))
    }

    fn once(
        &self,
        call: &Call<'_>,
        url: &Uri,
        authorization: Option<&str>,
    ) -> Result<Reply, RegistryError> {
        let failed = |source: ureq::Error| {
            // By the name under which its settings are; where it redirects to has none.
            let own = self.endpoint.base.strip_prefix("https://");
            let host = own.and_then(|rest| rest.split('/').next());
            let place = url.authority().map_or("", |authority| authority.as_str());
            let name = if host == Some(place) {
                &self.endpoint.name
            } else {
                place
            };
            RegistryError::transport(name, call.action, shown(url), source)
        };
        let mut request = Request::builder().method(call.method.clone()).uri(url);
        for (name, value) in &call.headers {
            request = request.header(*name, value);
        }
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value);
        }
        let allowed =
            SMALL_ANSWER.saturating_add(Duration::from_secs(call.expected / SLOWEST_RATE));
        let result = match call.payload {
            Payload::None => {
                let request = request.body(()).map_err(|source| failed(source.into()))?;
                let request = self.agent.configure_request(request);
                self.agent
                    .run(request.timeout_recv_body(Some(allowed)).build())
            }
            Payload::Bytes(bytes) => {
                let request = request
                    .body(bytes)
                    .map_err(|source| failed(source.into()))?;
                let request = self.agent.configure_request(request);
                self.agent
                    .run(request.timeout_recv_body(Some(allowed)).build())
            }
            Payload::File(file, size) => {
                let mut reader = Extent {
                    file,
                    position: 0,
                    end: size,
                };
                let request = request
                    .header("Content-Length", size)
                    .body(SendBody::from_reader(&mut reader))
                    .map_err(|source| failed(source.into()))?;
                self.agent.run(request)
            }
        };
        let (parts, body) = result.map_err(failed)?.into_parts();
        Ok(Reply {
            status: parts.status,
            headers: parts.headers,
            url: url.clone(),
            body,
        })
    }

    /// Where `location`, which came in an answer from `base`, leads.
    pub(super) fn resolve(&self, base: &Uri, location: &str) -> Result<Uri, RegistryError> {
        let target = if location.starts_with('/') && !location.starts_with("//") {
            format!(
                "{}://{}{location}",
                base.scheme_str().unwrap_or("https"),
                base.authority().map_or("", |authority| authority.as_str()),
            )
        } else {
            location.to_owned()
        };
        self.parse(&target)
    }

    /// An address that this endpoint may send us to.
    pub(super) fn parse(&self, address: &str) -> Result<Uri, RegistryError> {
        let url: Uri = address
            .parse()
            .map_err(|_| self.unusable(address, "it is malformed"))?;
        let Some(authority) = url.authority() else {
            return Err(self.unusable(address, "it has no host"));
        };
        if authority.as_str().contains('@') {
            return Err(self.unusable(address, "it has credentials in it"));
        }
        match url.scheme_str() {
            Some("https") => Ok(url),
            Some("http") if self.endpoint.plain => {
                let own = self
                    .endpoint
                    .base
                    .strip_prefix("http://")
                    .unwrap_or_default();
                let own = own.split('/').next().unwrap_or_default();
                if authority.as_str() == own
                    || (is_loopback(own) && is_loopback(authority.as_str()))
                {
                    Ok(url)
                } else {
                    Err(self.unusable(address, "it leads to another host without TLS"))
                }
            }
            Some("http") => Err(self.unusable(address, "it leads away from TLS")),
            _ => Err(self.unusable(address, "its scheme is not https")),
        }
    }

    fn unusable(&self, address: &str, reason: &'static str) -> RegistryError {
        let without_query = address.split('?').next().unwrap_or_default();
        RegistryError::Address {
            registry: self.endpoint.name.clone(),
            address: printable(without_query),
            reason,
        }
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Whether two addresses are of the same scheme, host and port, so that one may see what is for the other.
pub(super) fn same_place(one: &Uri, other: &Uri) -> bool {
    one.scheme() == other.scheme() && one.authority() == other.authority()
}

fn certificates(
    registry: &str,
    path: &std::path::Path,
) -> Result<Vec<Certificate<'static>>, RegistryError> {
    let pem = std::fs::read(path).map_err(|source| RegistryError::Certificates {
        registry: registry.to_owned(),
        path: path.to_owned(),
        source,
    })?;
    let found: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if found.is_empty() {
        return Err(RegistryError::Settings {
            registry: registry.to_owned(),
            reason: format!("{} holds no PEM certificate", path.display()),
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::settings::Settings;

    fn http(registry: &str) -> Http {
        let settings = Settings::default();
        Http::new(settings.registry(registry), &settings.patience).unwrap()
    }

    #[test]
    fn addresses_that_lead_away_from_tls_are_refused() {
        let secure = http("registry.example");
        assert!(secure.parse("https://cdn.example/blob?x=1").is_ok());
        for wrong in [
            "http://registry.example/x",
            "http://127.0.0.1:80/x",
            "file:///etc/passwd",
            "https://user:password@cdn.example/x",
            "/x",
            "",
            "https://",
        ] {
            assert!(secure.parse(wrong).is_err(), "{wrong}");
        }
        let local = http("127.0.0.1:5000");
        assert!(local.parse("http://127.0.0.1:6000/x").is_ok());
        assert!(local.parse("https://cdn.example/x").is_ok());
        assert!(local.parse("http://cdn.example/x").is_err());
    }

    #[test]
    fn relative_location_stays_at_its_host() {
        let secure = http("registry.example");
        let base: Uri = "https://registry.example/v2/x".parse().unwrap();
        let next = secure.resolve(&base, "/v2/y?z=1").unwrap();
        assert_eq!(next.to_string(), "https://registry.example/v2/y?z=1");
        assert!(secure.resolve(&base, "//evil.example/x").is_err());
        assert!(same_place(&base, &next));
        for other in [
            "http://registry.example/v2/x",
            "https://registry.example:444/v2/x",
            "https://registry.example.evil.example/v2/x",
        ] {
            assert!(!same_place(&base, &other.parse().unwrap()), "{other}");
        }
    }

    #[test]
    fn signature_in_an_address_is_not_shown() {
        let url: Uri = "https://cdn.example/blob?signature=secret".parse().unwrap();
        assert_eq!(shown(&url), "https://cdn.example/blob");
        let error = http("registry.example").parse("http://cdn.example/b?signature=secret");
        assert!(!error.unwrap_err().to_string().contains("secret"));
    }
}
