//! How a shim is started: what containerd says on standard input of `start`, and in which form the answer must come.
//!
//! | caller | standard input | answer |
//! | --- | --- | --- |
//! | containerd 2.3 and later | `BootstrapParams` | `BootstrapResult` |
//! | containerd 2.0 to 2.2, told to set `MAX_SHIM_VERSION` to 3 (`deploy/containerd/sandbox-2.toml`) | the runtime's options | JSON |
//! | containerd 2.0 to 2.2 otherwise (it says 2, as 1.7 does), containerd 1.x, CRI-O, Docker, `sandboxctl` | the runtime's options, or nothing | the address |
//!
//! Runtime options are `runtimeoptions.v1.Options` in a `google.protobuf.Any`. Of them `config_path` is taken: the
//! configuration file of every pod of that runtime class. CRI-O says it only later, as options of the pod's first container
//! ([`config_path`]).

use std::io::{self, IsTerminal as _, Read as _};
use std::path::PathBuf;

use protobuf::Message as _;
use serde::Serialize;

use crate::error::ShimError;
use crate::flags::Flags;

sandbox_protocol::generated! {
    mod messages = "bootstrap.rs";
}

use messages::{Any, BootstrapParams, BootstrapResult, RuntimeOptions};

/// The most that is read of standard input, in bytes (as containerd's own shims do).
const MAX_INPUT_BYTES: u64 = 10 << 20;
/// The newest version of the task service that is served.
const VERSION: i32 = 3;
/// Says how new a task service the caller can speak to.
const MAX_VERSION_VARIABLE: &str = "MAX_SHIM_VERSION";
/// Type of a runtime class's options.
const OPTIONS_TYPE: &str = "runtimeoptions.v1.Options";

/// In which form the caller wants the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Message,
    Json,
    Address,
}

/// What the caller of `start` wants beyond the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bootstrap {
    form: Form,
    /// The runtime class's configuration file.
    pub(crate) config_path: Option<PathBuf>,
    /// Where the task socket is to be.
    pub(crate) socket_dir: Option<PathBuf>,
    /// Where containerd takes events.
    pub(crate) events_address: Option<String>,
    /// Log more.
    pub(crate) debug: bool,
}

#[derive(Serialize)]
struct JsonAnswer<'a> {
    version: i32,
    address: &'a str,
    protocol: &'a str,
}

/// The configuration file that options of this type name; none in those of another runtime.
///
/// # Errors
/// When they are not what their type says.
pub(crate) fn config_path(
    type_url: &str,
    value: &[u8],
) -> Result<Option<PathBuf>, protobuf::Error> {
    if type_url.rsplit('/').next() != Some(OPTIONS_TYPE) {
        return Ok(None);
    }
    let options = RuntimeOptions::parse_from_bytes(value)?;
    Ok((!options.config_path.is_empty()).then(|| PathBuf::from(options.config_path)))
}

impl Bootstrap {
    /// Reads standard input, unless a person is there.
    ///
    /// # Errors
    /// [`ShimError`] when it is no message that containerd sends.
    pub(crate) fn read(flags: &Flags) -> Result<Self, ShimError> {
        let mut input = Vec::new();
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            stdin
                .take(MAX_INPUT_BYTES)
                .read_to_end(&mut input)
                .map_err(ShimError::system("read the options on standard input"))?;
        }
        let max_version = std::env::var(MAX_VERSION_VARIABLE).ok();
        Self::parse(&input, flags, max_version.as_deref())
    }

    /// What `input` says, when the caller can speak to the task service up to `max_version`.
    ///
    /// # Errors
    /// As of [`Self::read`].
    pub(crate) fn parse(
        input: &[u8],
        flags: &Flags,
        max_version: Option<&str>,
    ) -> Result<Self, ShimError> {
        // Both kinds begin with two strings or one, so only what they say tells them apart; containerd's own shims
        // do it this way.
        let params = BootstrapParams::parse_from_bytes(input)
            .ok()
            .filter(|params| params.instance_id == flags.id && params.namespace == flags.namespace);
        if let Some(params) = params {
            let options = params.extensions.iter().filter_map(|e| e.value.as_ref());
            let paths = options.map(|any| config_path(&any.type_url, &any.value));
            let paths = paths.collect::<Result<Vec<_>, _>>()?;
            let some = |text: String| (!text.is_empty()).then_some(text);
            return Ok(Self {
                form: Form::Message,
                config_path: paths.into_iter().flatten().next(),
                socket_dir: some(params.socket_dir).map(PathBuf::from),
                events_address: some(params.containerd_ttrpc_address),
                debug: flags.debug || params.log_level < 0,
            });
        }
        let options = Any::parse_from_bytes(input)?;
        let max_version: i32 = max_version.and_then(|text| text.parse().ok()).unwrap_or(2);
        Ok(Self {
            form: match max_version >= VERSION {
                true => Form::Json,
                false => Form::Address,
            },
            config_path: config_path(&options.type_url, &options.value)?,
            socket_dir: None,
            events_address: None,
            debug: flags.debug,
        })
    }

    /// The answer: where the task service is.
    ///
    /// # Errors
    /// [`ShimError`] when it cannot be encoded.
    pub(crate) fn answer(&self, address: &str) -> Result<Vec<u8>, ShimError> {
        Ok(match self.form {
            Form::Message => BootstrapResult {
                version: VERSION,
                address: address.to_owned(),
                protocol: "ttrpc".to_owned(),
                ..Default::default()
            }
            .write_to_bytes()?,
            Form::Json => serde_json::to_vec(&JsonAnswer {
                version: VERSION,
                address,
                protocol: "ttrpc",
            })
            .map_err(|error| ShimError::system("encode the answer")(error.into()))?,
            Form::Address => address.as_bytes().to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protobuf::MessageField;

    fn flags() -> Flags {
        let line = "-namespace ns -id pod1 -address /a start";
        Flags::parse(line.split(' ').map(str::to_owned)).unwrap()
    }

    fn options(path: &str) -> Any {
        let options = RuntimeOptions {
            config_path: path.to_owned(),
            ..Default::default()
        };
        Any {
            type_url: format!("types.googleapis.com/{OPTIONS_TYPE}"),
            value: options.write_to_bytes().unwrap(),
            ..Default::default()
        }
    }

    #[test]
    fn containerd_of_today_gets_a_message_and_is_heard() {
        let params = BootstrapParams {
            instance_id: "pod1".to_owned(),
            namespace: "ns".to_owned(),
            log_level: -4,
            containerd_ttrpc_address: "/t".to_owned(),
            socket_dir: "/run/s".to_owned(),
            extensions: vec![messages::Extension {
                value: MessageField::some(options("/etc/class.toml")),
                ..Default::default()
            }],
            ..Default::default()
        };
        let input = params.write_to_bytes().unwrap();
        let bootstrap = Bootstrap::parse(&input, &flags(), None).unwrap();
        assert_eq!(
            bootstrap,
            Bootstrap {
                form: Form::Message,
                config_path: Some("/etc/class.toml".into()),
                socket_dir: Some("/run/s".into()),
                events_address: Some("/t".to_owned()),
                debug: true,
            }
        );
        let answer = bootstrap.answer("unix:///s").unwrap();
        let answer = BootstrapResult::parse_from_bytes(&answer).unwrap();
        assert_eq!(
            (
                answer.version,
                answer.address.as_str(),
                answer.protocol.as_str()
            ),
            (3, "unix:///s", "ttrpc")
        );
    }

    #[test]
    fn older_callers_get_json_or_the_address() {
        let input = options("/etc/class.toml").write_to_bytes().unwrap();
        for (max_version, answer) in [
            (None, "unix:///s"),
            (Some("2"), "unix:///s"),
            (
                Some("3"),
                r#"{"version":3,"address":"unix:///s","protocol":"ttrpc"}"#,
            ),
        ] {
            let bootstrap = Bootstrap::parse(&input, &flags(), max_version).unwrap();
            assert_eq!(bootstrap.answer("unix:///s").unwrap(), answer.as_bytes());
            assert_eq!(bootstrap.config_path, Some("/etc/class.toml".into()));
        }
        let nothing = Bootstrap::parse(b"", &flags(), None).unwrap();
        assert_eq!(nothing.config_path, None);
        // Options of another runtime are not ours.
        let mut other = options("/x");
        other.type_url = "containerd.runc.v1.Options".to_owned();
        let input = other.write_to_bytes().unwrap();
        assert_eq!(
            Bootstrap::parse(&input, &flags(), None)
                .unwrap()
                .config_path,
            None
        );
    }

    #[test]
    fn params_of_another_pod_are_not_taken() {
        let params = BootstrapParams {
            instance_id: "other".to_owned(),
            namespace: "ns".to_owned(),
            ..Default::default()
        };
        let input = params.write_to_bytes().unwrap();
        // By its bytes it is also the options of some other runtime.
        let parsed = Bootstrap::parse(&input, &flags(), None).unwrap();
        assert_eq!((parsed.form, parsed.config_path), (Form::Address, None));
    }
}
