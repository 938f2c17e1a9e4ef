//! Why a registry did not give or take what was asked for.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use crate::digest::Digest;

use super::credentials::CredentialsError;

/// Why a registry did not give or take what was asked for.
///
/// Texts that come from a registry are cut and escaped before they get in here.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A registry's settings cannot be used.
    #[error("the settings of registry {registry} cannot be used: {reason}")]
    Settings {
        /// Its name.
        registry: String,
        /// What is wrong.
        reason: String,
    },
    /// The file with a registry's certificate authorities cannot be read.
    #[error("cannot read the certificates for registry {registry} from {}", path.display())]
    Certificates {
        /// Its name.
        registry: String,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The name is an image ID, which no registry knows.
    #[error("{reference} is an image ID; registries only know names")]
    NotAName {
        /// What was given.
        reference: String,
    },
    /// The request did not get through, or its answer did not come whole.
    #[error("cannot {action} from {url}")]
    Transport {
        /// What was tried, as a verb with its object.
        action: &'static str,
        /// Where, without the query.
        url: String,
        /// Why.
        source: Box<ureq::Error>,
    },
    /// Its certificate is not one of an authority that is believed.
    #[error(
        "registry {registry} has a certificate that is not believed; if its authority is one of your own, name that authority's PEM file as `ca_file` under [registries.{registry:?}] in the configuration"
    )]
    Untrusted {
        /// Its name.
        registry: String,
        /// What is wrong with the certificate.
        source: Box<ureq::Error>,
    },
    /// It does not speak TLS.
    #[error(
        "registry {registry} does not answer with TLS; if that is right and its network is yours, set `plain_http = true` under [registries.{registry:?}] in the configuration"
    )]
    NotTls {
        /// Its name.
        registry: String,
        /// What was wrong with the answer.
        source: Box<ureq::Error>,
    },
    /// An address that the registry gave is none.
    #[error("registry {registry} gave the unusable address {address:?}: {reason}")]
    Address {
        /// Its host.
        registry: String,
        /// What it gave.
        address: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// What was asked for is not there.
    #[error("registry {registry} has no {what}")]
    NotFound {
        /// Its host.
        registry: String,
        /// What was asked for.
        what: String,
    },
    /// Not without logging in, or not with these credentials.
    #[error(
        "registry {registry} denies {what}{}; check the name, or log in with `sandboxctl login {registry}`",
        with_detail(detail)
    )]
    Denied {
        /// Its host.
        registry: String,
        /// What was asked for.
        what: String,
        /// What it says.
        detail: String,
    },
    /// The way in which it wants to be convinced is not known.
    #[error("registry {registry} asks for an authentication that is not supported: {reason}")]
    Challenge {
        /// Its host.
        registry: String,
        /// What it asks for.
        reason: String,
    },
    /// It wants to be asked less.
    #[error(
        "registry {registry} refuses further requests for now{}; try again later, or log in for a higher limit",
        wait.map(|wait| format!(" (for {} s)", wait.as_secs())).unwrap_or_default()
    )]
    TooManyRequests {
        /// Its host.
        registry: String,
        /// How long it wants to be left alone.
        wait: Option<Duration>,
    },
    /// Another status than expected.
    #[error(
        "registry {registry} answered {status} to a request for {what}{}",
        with_detail(detail)
    )]
    Status {
        /// Its host.
        registry: String,
        /// The HTTP status.
        status: u16,
        /// What was asked for.
        what: String,
        /// What it says.
        detail: String,
    },
    /// More than there should be.
    #[error("registry {registry} sends more than {limit} bytes as {what}")]
    TooLong {
        /// Its host.
        registry: String,
        /// What was asked for.
        what: String,
        /// The bound, or the declared size.
        limit: u64,
    },
    /// Fewer bytes than were declared, again and again.
    #[error(
        "registry {registry} sent {found} of {expected} bytes of {what}, in {requests} attempts"
    )]
    Short {
        /// Its host.
        registry: String,
        /// What was asked for.
        what: String,
        /// What came.
        found: u64,
        /// The declared size.
        expected: u64,
        /// How often it was asked.
        requests: u32,
    },
    /// Other bytes than were asked for.
    #[error("registry {registry} sent something else as {what}: its digest is {found}")]
    Digest {
        /// Its host.
        registry: String,
        /// What was asked for.
        what: String,
        /// The digest of what came.
        found: Digest,
    },
    /// An answer is not what the protocol says.
    #[error("registry {registry} answered a request for {what} with something malformed: {reason}")]
    Malformed {
        /// Its host.
        registry: String,
        /// What was asked for.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// The user's credentials cannot be had.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// What came cannot be written down, or what shall go cannot be read.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another part of the same image failed, so this one was given up.
    #[error("given up, because another part of the image failed")]
    Cancelled,
}

fn with_detail(detail: &str) -> String {
    if detail.is_empty() {
        String::new()
    } else {
        format!(" ({detail})")
    }
}

/// What went wrong with TLS, if that is what an error is about. The HTTP library hands a failed handshake on as an I/O error.
fn tls_error(error: &ureq::Error) -> Option<&rustls::Error> {
    match error {
        ureq::Error::Rustls(error) => Some(error),
        ureq::Error::Io(error) => error.get_ref()?.downcast_ref(),
        _ => None,
    }
}

impl RegistryError {
    /// A request to the registry named so did not get through.
    pub(super) fn transport(
        registry: &str,
        action: &'static str,
        url: String,
        source: ureq::Error,
    ) -> Self {
        let registry = registry.to_owned();
        match tls_error(&source) {
            Some(rustls::Error::InvalidCertificate(_)) => Self::Untrusted {
                registry,
                source: Box::new(source),
            },
            Some(rustls::Error::InvalidMessage(_)) => Self::NotTls {
                registry,
                source: Box::new(source),
            },
            _ => Self::Transport {
                action,
                url,
                source: Box::new(source),
            },
        }
    }
}

/// Whether asking again can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    No,
    Soon,
    After(Duration),
}

impl RegistryError {
    pub(super) fn again(&self) -> Again {
        match self {
            Self::Transport { source, .. } => match source.as_ref() {
                ureq::Error::Timeout(_)
                | ureq::Error::Protocol(_)
                | ureq::Error::ConnectionFailed
                | ureq::Error::BodyStalled => Again::Soon,
                // A connection that broke; not that nobody listens, or that there is no such host or certificate.
                ureq::Error::Io(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::BrokenPipe
                            | ErrorKind::ConnectionAborted
                            | ErrorKind::ConnectionReset
                            | ErrorKind::NotConnected
                            | ErrorKind::TimedOut
                            | ErrorKind::UnexpectedEof
                            | ErrorKind::WouldBlock
                    ) =>
                {
                    Again::Soon
                }
                _ => Again::No,
            },
            Self::Status {
                status: 408 | 500 | 502 | 503 | 504,
                ..
            } => Again::Soon,
            Self::TooManyRequests { wait, .. } => wait.map_or(Again::Soon, Again::After),
            _ => Again::No,
        }
    }
}

/// Whether what is asked for may be had elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Elsewhere {
    /// There is no other address: it is asked with patience.
    No,
    /// There is: who does not answer at all is not asked again.
    Yes,
}

impl RegistryError {
    /// Whether there was no answer, or none that can be believed, rather than one that is of no use.
    pub(super) fn is_silence(&self) -> bool {
        matches!(
            self,
            Self::Transport { .. } | Self::Untrusted { .. } | Self::NotTls { .. }
        )
    }
}

/// A registry's text, cut and fit for a terminal.
pub(super) fn printable(text: &str) -> String {
    const MOST: usize = 200;
    let mut out: String = text
        .chars()
        .take(MOST)
        .collect::<String>()
        .escape_debug()
        .to_string();
    if text.chars().nth(MOST).is_some() {
        out.push('…');
    }
    out
}
