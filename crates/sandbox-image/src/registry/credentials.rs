//! The user's credentials, where docker keeps them: `config.json`, and the programs that it names.
//!
//! `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`. For a registry: the helper that `credHelpers` names, else the
//! one in `credsStore`, else what `auths` holds. A helper is a program `docker-credential-NAME` that speaks JSON on its
//! standard input and output (docker-credential-helpers' protocol).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};

/// Docker's key for its own registry, from the time of its first API.
const DEFAULT_REGISTRY_KEY: &str = "https://index.docker.io/v1/";
const DEFAULT_REGISTRY: &str = "docker.io";
/// The user name by which a helper says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";
const MAX_CONFIG_BYTES: u64 = 1 << 20;
const MAX_HELPER_BYTES: u64 = 64 << 10;

/// Why credentials could not be had or kept.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("{} is malformed: {reason}; correct it or move it away", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, without showing secrets.
        reason: String,
    },
    /// There is no place for the file.
    #[error("neither DOCKER_CONFIG nor HOME is set, so there is no place for credentials")]
    NoHome,
    /// A helper's name could be a path.
    #[error("{} names the credential helper {name:?}, which is not a plain name", path.display())]
    HelperName {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// A helper cannot be run.
    #[error("cannot run the credential helper {program}; install it, or remove it from {}", path.display())]
    HelperRun {
        /// The program.
        program: String,
        /// The file that names it.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A helper failed.
    #[error("the credential helper {program} failed to {verb} ({status}): {output}")]
    HelperFailed {
        /// The program.
        program: String,
        /// What it was to do.
        verb: &'static str,
        /// How it ended.
        status: String,
        /// What it said.
        output: String,
    },
}

/// What proves who the user is.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A name and a password or access token.
    Password {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// A refresh token for the registry's token server.
    IdentityToken(String),
}

impl std::fmt::Debug for Credentials {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Password { user, .. } => write!(f, "Password({user:?})"),
            Self::IdentityToken(_) => write!(f, "IdentityToken"),
        }
    }
}

impl Credentials {
    /// The `Authorization` of HTTP's basic scheme; `None` for a token.
    pub(super) fn basic(&self) -> Option<String> {
        match self {
            Self::Password { user, password } => Some(format!(
                "Basic {}",
                BASE64.encode(format!("{user}:{password}"))
            )),
            Self::IdentityToken(_) => None,
        }
    }
}

/// Docker's configuration file.
#[derive(Debug, Clone)]
pub struct CredentialStore {
    path: Option<PathBuf>,
}

impl CredentialStore {
    /// The file that the environment names.
    #[must_use]
    pub fn from_environment() -> Self {
        let folder = std::env::var_os("DOCKER_CONFIG")
            .filter(|folder| !folder.is_empty())
            .map(PathBuf::from)
            .or_else(|| {
                let home = std::env::var_os("HOME").filter(|home| !home.is_empty())?;
                Some(Path::new(&home).join(".docker"))
            });
        Self {
            path: folder.map(|folder| folder.join("config.json")),
        }
    }

    /// The file at `path`.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self {
            path: Some(path.to_owned()),
        }
    }

    /// The credentials for `registry`, if the user has some.
    ///
    /// # Errors
    /// When the file or a helper cannot be used.
    pub fn get(&self, registry: &str) -> Result<Option<Credentials>, CredentialsError> {
        let Some(path) = &self.path else {
            return Ok(None);
        };
        let config = read(path)?;
        let key = key_of(registry);
        if let Some(helper) = helper_for(&config, registry) {
            return Helper::new(helper, path)?.get(key);
        }
        let Some(auths) = config.get("auths").and_then(Value::as_object) else {
            return Ok(None);
        };
        let spellings = [
            key.to_owned(),
            registry.to_owned(),
            format!("https://{registry}"),
            format!("https://{registry}/"),
            format!("https://{registry}/v1/"),
            format!("https://{registry}/v2/"),
            format!("http://{registry}"),
        ];
        let Some(entry) = spellings.iter().find_map(|spelling| auths.get(spelling)) else {
            return Ok(None);
        };
        entry_credentials(entry).ok_or_else(|| CredentialsError::Malformed {
            path: path.clone(),
            reason: format!("what it holds for {registry} is not base64 of USER:PASSWORD"),
        })
    }

    /// Keeps credentials for `registry`: by the helper that the file names, else in the file, readable by its owner only. Gives
    /// the place where they are if that is the file.
    ///
    /// # Errors
    /// When the file or a helper cannot be used.
    pub fn put(
        &self,
        registry: &str,
        user: &str,
        password: &str,
    ) -> Result<Option<PathBuf>, CredentialsError> {
        let path = self.path.as_ref().ok_or(CredentialsError::NoHome)?;
        let mut config = read(path)?;
        let key = key_of(registry);
        let helper = helper_for(&config, registry).map(str::to_owned);
        let entry = match &helper {
            Some(helper) => {
                Helper::new(helper, path)?.store(key, user, password)?;
                json!({})
            }
            None => json!({ "auth": BASE64.encode(format!("{user}:{password}")) }),
        };
        auths_of(&mut config, path)?.insert(key.to_owned(), entry);
        write(path, &config)?;
        Ok(helper.is_none().then(|| path.clone()))
    }

    /// Forgets the credentials for `registry`. `false` if there were none.
    ///
    /// # Errors
    /// When the file or a helper cannot be used.
    pub fn remove(&self, registry: &str) -> Result<bool, CredentialsError> {
        let path = self.path.as_ref().ok_or(CredentialsError::NoHome)?;
        let mut config = read(path)?;
        let key = key_of(registry);
        if let Some(helper) = helper_for(&config, registry) {
            Helper::new(helper, path)?.erase(key)?;
        }
        let auths = auths_of(&mut config, path)?;
        let mut found = false;
        for spelling in [key, registry] {
            found |= auths.remove(spelling).is_some();
        }
        if found {
            write(path, &config)?;
        }
        Ok(found)
    }
}

fn key_of(registry: &str) -> &str {
    if registry == DEFAULT_REGISTRY {
        DEFAULT_REGISTRY_KEY
    } else {
        registry
    }
}

fn helper_for<'a>(config: &'a Map<String, Value>, registry: &str) -> Option<&'a str> {
    let own = config.get("credHelpers").and_then(|helpers| {
        helpers
            .get(registry)
            .or_else(|| helpers.get(key_of(registry)))
    });
    own.or_else(|| config.get("credsStore"))
        .and_then(Value::as_str)
        .filter(|name| !name.is_empty())
}

fn entry_credentials(entry: &Value) -> Option<Option<Credentials>> {
    let text = |key: &str| {
        entry
            .get(key)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
    };
    if let Some(token) = text("identitytoken") {
        return Some(Some(Credentials::IdentityToken(token.to_owned())));
    }
    if let Some(auth) = text("auth") {
        let decoded = String::from_utf8(BASE64.decode(auth.trim()).ok()?).ok()?;
        let (user, password) = decoded.split_once(':')?;
        return Some(Some(Credentials::Password {
            user: user.to_owned(),
            // Docker once padded it with zeros.
            password: password.trim_end_matches('\0').to_owned(),
        }));
    }
    let (Some(user), Some(password)) = (text("username"), text("password")) else {
        // An empty entry says that a helper has it.
        return Some(None);
    };
    Some(Some(Credentials::Password {
        user: user.to_owned(),
        password: password.to_owned(),
    }))
}

fn auths_of<'a>(
    config: &'a mut Map<String, Value>,
    path: &Path,
) -> Result<&'a mut Map<String, Value>, CredentialsError> {
    config
        .entry("auths")
        .or_insert_with(|| json!({}))
        .as_object_mut()
        .ok_or_else(|| CredentialsError::Malformed {
            path: path.to_owned(),
            reason: "\"auths\" is not an object".to_owned(),
        })
}

fn read(path: &Path) -> Result<Map<String, Value>, CredentialsError> {
    let failed = |source| CredentialsError::File {
        action: "read",
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    match File::open(path) {
        Ok(file) => file
            .take(MAX_CONFIG_BYTES)
            .read_to_string(&mut text)
            .map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(error) => return Err(failed(error)),
    };
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_str(&text).map_err(|error| CredentialsError::Malformed {
        path: path.to_owned(),
        // Only where: what is there may be a secret.
        reason: format!(
            "line {}, column {} is not the JSON expected",
            error.line(),
            error.column()
        ),
    })
}

/// Writes the file anew: where it is, if it is a link, and as the user's whose it was (docker does so too).
fn write(path: &Path, config: &Map<String, Value>) -> Result<(), CredentialsError> {
    let real = fs::canonicalize(path);
    let path = real.as_deref().unwrap_or(path);
    let failed = |action| {
        move |source| CredentialsError::File {
            action,
            path: path.to_owned(),
            source,
        }
    };
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(failed("make the folder of"))?;
    let unfinished = tempfile::Builder::new()
        .prefix(".config-")
        .make_in(folder, |path| {
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)
        })
        .map_err(failed("write"))?;
    if let Ok(before) = fs::metadata(path) {
        // Who may not give files away writes one of its own.
        let _ =
            std::os::unix::fs::fchown(unfinished.as_file(), Some(before.uid()), Some(before.gid()));
    }
    serde_json::to_writer_pretty(unfinished.as_file(), config)
        .map_err(|error| failed("write")(error.into()))?;
    unfinished.as_file().sync_all().map_err(failed("write"))?;
    unfinished
        .persist(path)
        .map(drop)
        .map_err(|error| failed("write")(error.error))
}

/// A program that keeps credentials.
struct Helper<'a> {
    program: String,
    path: &'a Path,
}

impl<'a> Helper<'a> {
    fn new(name: &str, path: &'a Path) -> Result<Self, CredentialsError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if name.is_empty() || !name.bytes().all(plain) {
            return Err(CredentialsError::HelperName {
                path: path.to_owned(),
                name: name.to_owned(),
            });
        }
        Ok(Self {
            program: format!("docker-credential-{name}"),
            path,
        })
    }

    fn get(&self, key: &str) -> Result<Option<Credentials>, CredentialsError> {
        let (status, output) = self.run("get", key.as_bytes())?;
        if !status.success() {
            // The protocol has this text, and no status, for it.
            return if output.contains("credentials not found") {
                Ok(None)
            } else {
                Err(self.failed("get", status, &output))
            };
        }
        let answer: Value = serde_json::from_str(&output)
            .map_err(|_| self.failed("get", status, "its answer is not JSON"))?;
        let text = |key: &str| answer.get(key).and_then(Value::as_str).unwrap_or_default();
        let (user, secret) = (text("Username").to_owned(), text("Secret").to_owned());
        Ok(match (user.as_str(), secret.is_empty()) {
            (_, true) => None,
            (TOKEN_USER, false) => Some(Credentials::IdentityToken(secret)),
            _ => Some(Credentials::Password {
                user,
                password: secret,
            }),
        })
    }

    fn store(&self, key: &str, user: &str, password: &str) -> Result<(), CredentialsError> {
        let entry = json!({ "ServerURL": key, "Username": user, "Secret": password });
        self.expect("store", entry.to_string().as_bytes())
    }

    fn erase(&self, key: &str) -> Result<(), CredentialsError> {
        self.expect("erase", key.as_bytes())
    }

    fn expect(&self, verb: &'static str, input: &[u8]) -> Result<(), CredentialsError> {
        let (status, output) = self.run(verb, input)?;
        if status.success() {
            Ok(())
        } else {
            Err(self.failed(verb, status, &output))
        }
    }

    fn failed(
        &self,
        verb: &'static str,
        status: std::process::ExitStatus,
        output: &str,
    ) -> CredentialsError {
        CredentialsError::HelperFailed {
            program: self.program.clone(),
            verb,
            status: status.to_string(),
            output: super::error::printable(output.trim()),
        }
    }

    fn run(
        &self,
        verb: &'static str,
        input: &[u8],
    ) -> Result<(std::process::ExitStatus, String), CredentialsError> {
        let failed = |source| CredentialsError::HelperRun {
            program: self.program.clone(),
            path: self.path.to_owned(),
            source,
        };
        let mut child = Command::new(&self.program)
            .arg(verb)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A helper that does not read its input says why by its status.
            let _ = stdin.write_all(input);
        }
        let mut output = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout
                .take(MAX_HELPER_BYTES)
                .read_to_end(&mut output)
                .map_err(failed)?;
        }
        let status = child.wait().map_err(failed)?;
        Ok((status, String::from_utf8_lossy(&output).into_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn store(text: &str) -> (tempfile::TempDir, CredentialStore) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        fs::write(&path, text).unwrap();
        (folder, CredentialStore::at(&path))
    }

    fn password(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Password {
            user: user.to_owned(),
            password: password.to_owned(),
        })
    }

    #[test]
    fn auths_are_found_in_every_spelling() {
        let (_folder, store) = store(
            r#"{"auths": {"https://index.docker.io/v1/": {"auth": "bWU6c2VjcmV0"},
                          "https://r.example": {"username": "u", "password": "p:q"},
                          "t.example:5000": {"auth": "", "identitytoken": "tok"},
                          "h.example": {}}}"#,
        );
        assert_eq!(store.get("docker.io").unwrap(), password("me", "secret"));
        assert_eq!(store.get("r.example").unwrap(), password("u", "p:q"));
        assert_eq!(
            store.get("t.example:5000").unwrap(),
            Some(Credentials::IdentityToken("tok".to_owned()))
        );
        assert_eq!(store.get("t.example").unwrap(), None);
        assert_eq!(store.get("h.example").unwrap(), None);
    }

    #[test]
    fn file_that_is_not_there_or_damaged_is_told_apart() {
        let (folder, _) = store("");
        let missing = CredentialStore::at(&folder.path().join("none"));
        assert_eq!(missing.get("r.example").unwrap(), None);
        let (_folder, store) = store(r#"{"auths": {"r.example": {"auth": "!secret!"}}}"#);
        let error = store.get("r.example").unwrap_err();
        assert!(matches!(error, CredentialsError::Malformed { .. }));
        assert!(!error.to_string().contains("secret"));
    }

    #[test]
    fn login_and_logout_keep_the_rest_of_the_file() {
        let (folder, store) =
            store(r#"{"auths": {"a.example": {"auth": "eDp5"}}, "psFormat": "x"}"#);
        store.put("r.example", "u", "p").unwrap();
        assert_eq!(store.get("r.example").unwrap(), password("u", "p"));
        let path = folder.path().join("config.json");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(store.remove("r.example").unwrap());
        assert!(!store.remove("r.example").unwrap());
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("psFormat") && text.contains("eDp5"), "{text}");
    }

    #[test]
    fn link_stays_a_link_and_the_file_its_owners() {
        let (folder, _) = store("{}");
        let (real, link) = (
            folder.path().join("config.json"),
            folder.path().join("link.json"),
        );
        std::os::unix::fs::symlink("config.json", &link).unwrap();
        // Only root can give a file away.
        let is_root = rustix::process::geteuid().is_root();
        if is_root {
            std::os::unix::fs::chown(&real, Some(12345), Some(12346)).unwrap();
        }
        let store = CredentialStore::at(&link);
        store.put("r.example", "u", "p").unwrap();
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(store.get("r.example").unwrap(), password("u", "p"));
        let after = fs::metadata(&real).unwrap();
        assert!(!is_root || (after.uid(), after.gid()) == (12345, 12346));
    }

    #[test]
    fn helper_that_is_a_path_is_refused() {
        let (_folder, store) = store(r#"{"credsStore": "../../bin/sh"}"#);
        assert!(matches!(
            store.get("r.example"),
            Err(CredentialsError::HelperName { .. })
        ));
    }
}
