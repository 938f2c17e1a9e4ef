//! What a user can say about registries, and where an image of a registry is asked for.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::error::RegistryError;

/// The registry of names without one.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Where that registry answers.
const DEFAULT_REGISTRY_HOST: &str = "registry-1.docker.io";

/// How often and how soon a failed request is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patience {
    /// Requests that fail one after the other until it is given up. A download that has come further since starts anew.
    pub attempts: u32,
    /// The wait before the second; it doubles with each further one.
    pub first_wait: Duration,
    /// The longest wait, and the longest `Retry-After` that is waited for.
    pub longest_wait: Duration,
    /// How long a connection may be silent.
    pub silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempts: 5,
            first_wait: Duration::from_millis(250),
            longest_wait: Duration::from_secs(60),
            silence: Duration::from_secs(30),
        }
    }
}

/// What is said about one registry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RegistrySettings {
    /// Addresses (`https://host[:port][/path]`) that are asked first, in this order.
    pub mirrors: Vec<String>,
    /// Whether it is spoken to without TLS; unless said, that is so for a registry on a loopback address.
    pub plain_http: Option<bool>,
    /// A PEM file of the certificate authorities that are believed, instead of the system's.
    pub ca_file: Option<PathBuf>,
}

/// Everything that is said about registries.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// By the registry's name in image names: `docker.io`, `localhost:5000`.
    pub registries: BTreeMap<String, RegistrySettings>,
    /// How failed requests are tried again.
    pub patience: Patience,
}

/// An address at which a registry's images are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Scheme, host, port and path, without a slash at the end.
    pub(super) base: String,
    /// Host and port, by which credentials are looked up; the registry's name unless it is a mirror.
    pub(super) name: String,
    /// Without TLS.
    pub(super) plain: bool,
    pub(super) ca_file: Option<PathBuf>,
}

impl Settings {
    /// Where to ask for images of `registry`: its mirrors, then itself.
    pub(super) fn endpoints(&self, registry: &str) -> Result<Vec<Endpoint>, RegistryError> {
        let settings = self.registries.get(registry);
        let mut endpoints = Vec::new();
        for mirror in settings.iter().flat_map(|settings| &settings.mirrors) {
            endpoints.push(self.mirror(registry, mirror)?);
        }
        endpoints.push(self.registry(registry));
        Ok(endpoints)
    }

    /// Where the registry itself answers.
    pub(super) fn registry(&self, registry: &str) -> Endpoint {
        let settings = self.registries.get(registry);
        let host = if registry == DEFAULT_REGISTRY {
            DEFAULT_REGISTRY_HOST
        } else {
            registry
        };
        let plain = settings
            .and_then(|settings| settings.plain_http)
            .unwrap_or_else(|| is_loopback(host));
        let scheme = if plain { "http" } else { "https" };
        Endpoint {
            base: format!("{scheme}://{host}"),
            name: registry.to_owned(),
            plain,
            ca_file: settings.and_then(|settings| settings.ca_file.clone()),
        }
    }

    fn mirror(&self, registry: &str, mirror: &str) -> Result<Endpoint, RegistryError> {
        let unusable = |reason: &str| RegistryError::Settings {
            registry: registry.to_owned(),
            reason: format!("mirror {mirror:?} {reason}"),
        };
        let base = mirror.trim_end_matches('/');
        let (scheme, rest) = base
            .split_once("://")
            .ok_or_else(|| unusable("is not of the form https://HOST[:PORT][/PATH]"))?;
        let name = rest.split('/').next().unwrap_or_default();
        if name.is_empty() || rest.contains(['@', '?', '#']) {
            return Err(unusable("is not of the form https://HOST[:PORT][/PATH]"));
        }
        // A mirror can have settings of its own.
        let settings = self.registries.get(name);
        let plain = match scheme {
            "https" => false,
            "http"
                if is_loopback(name)
                    || settings.and_then(|settings| settings.plain_http) == Some(true) =>
            {
                true
            }
            "http" => {
                return Err(unusable(
                    "is not on a loopback address; to speak to it without TLS all the same, set plain_http for it",
                ));
            }
            _ => return Err(unusable("has a scheme other than https and http")),
        };
        Ok(Endpoint {
            base: base.to_owned(),
            name: name.to_owned(),
            plain,
            ca_file: settings.and_then(|settings| settings.ca_file.clone()),
        })
    }
}

/// Whether `host[:port]` is this machine.
pub(super) fn is_loopback(host: &str) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        let address = rest.split(']').next().unwrap_or_default();
        return address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    }
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(registry: &str, settings: RegistrySettings) -> Settings {
        Settings {
            registries: [(registry.to_owned(), settings)].into(),
            ..Settings::default()
        }
    }

    #[test]
    fn only_loopback_is_spoken_to_without_tls_unless_said() {
        let settings = Settings::default();
        for (registry, base) in [
            ("docker.io", "https://registry-1.docker.io"),
            ("registry.example", "https://registry.example"),
            ("localhost:5000", "http://localhost:5000"),
            ("127.0.0.9:5000", "http://127.0.0.9:5000"),
            ("127.0.0.1.example:5000", "https://127.0.0.1.example:5000"),
            ("localhost.example", "https://localhost.example"),
            ("10.0.0.1:5000", "https://10.0.0.1:5000"),
        ] {
            assert_eq!(settings.registry(registry).base, base);
        }
        let said = |plain_http| RegistrySettings {
            plain_http: Some(plain_http),
            ..RegistrySettings::default()
        };
        let endpoint = with("registry.example", said(true)).registry("registry.example");
        assert_eq!(endpoint.base, "http://registry.example");
        let endpoint = with("localhost:5000", said(false)).registry("localhost:5000");
        assert_eq!(endpoint.base, "https://localhost:5000");
    }

    #[test]
    fn mirrors_come_first_and_are_checked() {
        let mirrors = |list: &[&str]| {
            let settings = RegistrySettings {
                mirrors: list.iter().map(|&mirror| mirror.to_owned()).collect(),
                ..RegistrySettings::default()
            };
            with("docker.io", settings).endpoints("docker.io")
        };
        let endpoints = mirrors(&["https://m.example/hub/", "http://127.0.0.1:5001"]).unwrap();
        let bases: Vec<&str> = endpoints
            .iter()
            .map(|endpoint| endpoint.base.as_str())
            .collect();
        assert_eq!(
            bases,
            [
                "https://m.example/hub",
                "http://127.0.0.1:5001",
                "https://registry-1.docker.io"
            ]
        );
        assert_eq!(endpoints[0].name, "m.example");
        for wrong in [
            "m.example",
            "http://m.example",
            "ftp://m.example",
            "https://",
            "https://user@m.example",
        ] {
            assert!(
                matches!(mirrors(&[wrong]), Err(RegistryError::Settings { .. })),
                "{wrong}"
            );
        }
    }
}
