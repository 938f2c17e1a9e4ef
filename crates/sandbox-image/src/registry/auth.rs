//! Authentication, when a registry asks for it: HTTP's basic scheme, and docker's bearer tokens (distribution, "Token
//! Authentication Specification").
//!
//! Nothing is sent before it is asked for, credentials go to the registry that they are for and to the token server that it
//! names over TLS, and a request is repeated once with what was obtained, never more.

use std::sync::Mutex;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use ureq::http::header::WWW_AUTHENTICATE;
use ureq::http::{HeaderMap, Method, StatusCode};

use super::credentials::{CredentialStore, Credentials};
use super::error::{RegistryError, printable};
use super::http::{Call, Http, Payload, Reply, same_place};

/// The largest answer of a token server.
const MAX_TOKEN_BYTES: u64 = 256 << 10;
/// By what name token servers know us.
const CLIENT_ID: &str = "sandboxctl";
const GET_TOKEN: &str = "get a token";

/// What a registry asks for.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

/// Requests to one endpoint for the sake of one repository.
pub(super) struct Session {
    pub(super) http: Http,
    credentials: CredentialStore,
    /// Credentials that are tried out, instead of the stored ones.
    given: Option<Credentials>,
    /// `repository:NAME:ACTIONS`, for registries that do not say which scope they want.
    scope: Option<String>,
    authorization: Mutex<Option<String>>,
}

impl Session {
    pub(super) fn new(http: Http, credentials: CredentialStore, scope: Option<String>) -> Self {
        Self {
            http,
            credentials,
            given: None,
            scope,
            authorization: Mutex::new(None),
        }
    }

    pub(super) fn with_credentials(mut self, credentials: Credentials) -> Self {
        self.given = Some(credentials);
        self
    }

    pub(super) fn name(&self) -> &str {
        &self.http.endpoint().name
    }

    /// Sends a request, and once more if the registry wants to know who we are.
    pub(super) fn send(&self, call: &Call<'_>) -> Result<Reply, RegistryError> {
        // An upload's address may be another host's, and a download may have been redirected to one: that one gets nothing, and
        // what it asks for is not answered.
        let base = self.http.parse(&self.http.endpoint().base)?;
        let ours = same_place(&self.http.parse(&call.url)?, &base);
        let before = self.known().filter(|_| ours);
        let reply = self.http.send(call, before.as_deref())?;
        if reply.status != StatusCode::UNAUTHORIZED || !ours || !same_place(&reply.url, &base) {
            return Ok(reply);
        }
        let challenge = self.challenge(&reply.headers)?;
        drop(reply);
        let authorization = self.answer(&challenge, call)?;
        if let Ok(mut known) = self.authorization.lock() {
            *known = Some(authorization.clone());
        }
        self.http.send(call, Some(&authorization))
    }

    fn known(&self) -> Option<String> {
        self.authorization
            .lock()
            .ok()
            .and_then(|known| known.clone())
    }

    fn credentials(&self) -> Result<Option<Credentials>, RegistryError> {
        match &self.given {
            Some(given) => Ok(Some(given.clone())),
            None => Ok(self.credentials.get(self.name())?),
        }
    }

    fn challenge(&self, headers: &HeaderMap) -> Result<Challenge, RegistryError> {
        let mut schemes = Vec::new();
        let mut basic = None;
        for value in headers.get_all(WWW_AUTHENTICATE) {
            let Ok(text) = value.to_str() else { continue };
            for challenge in http_auth::parse_challenges(text).unwrap_or_default() {
                let parameter = |name: &str| {
                    challenge
                        .params
                        .iter()
                        .find(|(key, _)| key.eq_ignore_ascii_case(name))
                        .map(|(_, value)| value.to_unescaped())
                };
                if challenge.scheme.eq_ignore_ascii_case("bearer")
                    && let Some(realm) = parameter("realm")
                {
                    return Ok(Challenge::Bearer {
                        realm,
                        service: parameter("service"),
                        scope: parameter("scope"),
                    });
                }
                if challenge.scheme.eq_ignore_ascii_case("basic") {
                    basic = Some(Challenge::Basic);
                }
                schemes.push(challenge.scheme.to_owned());
            }
        }
        basic.ok_or_else(|| RegistryError::Challenge {
            registry: self.name().to_owned(),
            reason: if schemes.is_empty() {
                "it does not say which".to_owned()
            } else {
                printable(&schemes.join(", "))
            },
        })
    }

    fn answer(&self, challenge: &Challenge, call: &Call<'_>) -> Result<String, RegistryError> {
        match challenge {
            Challenge::Basic => self
                .credentials()?
                .and_then(|credentials| credentials.basic())
                .ok_or_else(|| RegistryError::Denied {
                    registry: self.name().to_owned(),
                    what: format!("to {} without a login", call.action),
                    detail: String::new(),
                }),
            Challenge::Bearer {
                realm,
                service,
                scope,
            } => {
                let token = self.token(realm, service.as_deref(), scope.as_deref())?;
                Ok(format!("Bearer {token}"))
            }
        }
    }

    fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
    ) -> Result<String, RegistryError> {
        // The same rules as for a redirect: a token server without TLS only for a registry without.
        self.http.parse(realm)?;
        let credentials = self.credentials()?;
        let mut parameters: Vec<(&str, &str)> = Vec::new();
        parameters.extend(service.map(|service| ("service", service)));
        let own_scope = self.scope.as_deref();
        parameters.extend(scope.or(own_scope).map(|scope| ("scope", scope)));
        let reply = if let Some(Credentials::IdentityToken(token)) = &credentials {
            parameters.extend([
                ("grant_type", "refresh_token"),
                ("client_id", CLIENT_ID),
                ("refresh_token", token),
            ]);
            let form = encode(&parameters);
            let call = Call::new(Method::POST, realm.to_owned(), GET_TOKEN)
                .header("Content-Type", "application/x-www-form-urlencoded")
                .payload(Payload::Bytes(form.as_bytes()));
            self.http.send(&call, None)?
        } else {
            let joint = if realm.contains('?') { '&' } else { '?' };
            let url = format!("{realm}{joint}{}", encode(&parameters));
            let basic = credentials.and_then(|credentials| credentials.basic());
            let call = Call::new(Method::GET, url, GET_TOKEN);
            self.http.send(&call, basic.as_deref())?
        };
        const WHAT: &str = "a token";
        if reply.status != StatusCode::OK {
            return Err(reply.refusal(self.name(), WHAT));
        }
        let bytes = reply.bytes(MAX_TOKEN_BYTES, self.name(), WHAT, GET_TOKEN)?;
        let malformed = |reason: &str| RegistryError::Malformed {
            registry: self.name().to_owned(),
            what: WHAT.to_owned(),
            reason: reason.to_owned(),
        };
        let answer: TokenAnswer =
            serde_json::from_slice(&bytes).map_err(|_| malformed("it is not the JSON expected"))?;
        let token = answer
            .token
            .or(answer.access_token)
            .filter(|token| !token.is_empty())
            .ok_or_else(|| malformed("there is none in it"))?;
        // It becomes a header.
        if token.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(token)
        } else {
            Err(malformed("it has characters that no token has"))
        }
    }
}

fn encode(parameters: &[(&str, &str)]) -> String {
    let encoded = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
    let pairs: Vec<String> = parameters
        .iter()
        .map(|(name, value)| format!("{name}={}", encoded(value)))
        .collect();
    pairs.join("&")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::settings::Settings;
    use proptest::prelude::*;

    fn session() -> Session {
        let settings = Settings::default();
        let http = Http::new(settings.registry("r.example"), &settings.patience).unwrap();
        let nowhere = CredentialStore::at(std::path::Path::new("/nonexistent/config.json"));
        Session::new(http, nowhere, None)
    }

    fn challenge(text: &str) -> Result<Challenge, RegistryError> {
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, text.parse().unwrap());
        session().challenge(&headers)
    }

    #[test]
    fn bearer_is_preferred_and_its_parameters_are_read() {
        let found = challenge(
            r#"Basic realm="x", Bearer realm="https://a.example/token",service="r.example",scope="repository:a/b:pull,push""#,
        );
        assert_eq!(
            found.unwrap(),
            Challenge::Bearer {
                realm: "https://a.example/token".to_owned(),
                service: Some("r.example".to_owned()),
                scope: Some("repository:a/b:pull,push".to_owned()),
            }
        );
        assert_eq!(challenge("basic realm=\"x\"").unwrap(), Challenge::Basic);
        for wrong in ["Negotiate", "Bearer", "", "\"", "Bearer service=\"x\""] {
            assert!(
                matches!(challenge(wrong), Err(RegistryError::Challenge { .. })),
                "{wrong}"
            );
        }
    }

    #[test]
    fn token_server_without_tls_is_refused() {
        let error = session().token("http://a.example/token", None, None);
        assert!(matches!(error, Err(RegistryError::Address { .. })));
    }

    #[test]
    fn parameters_cannot_add_parameters() {
        assert_eq!(encode(&[("scope", "a b&c=d")]), "scope=a%20b%26c%3Dd");
    }

    proptest! {
        #[test]
        fn any_challenge_is_read_or_refused(text in "[ -~]{0,80}") {
            let _ = challenge(&text);
        }
    }
}
