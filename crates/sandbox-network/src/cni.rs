//! CNI: the plugins that put an interface into a namespace, as their caller (CNI specification 1.0.0, sections 1 to 4).
//!
//! A network is a list of plugins, run one after the other, each with the result of the one before; to take the interface
//! away again they run in the reverse order, with the result of the whole.

use std::collections::BTreeMap;
use std::io::{self, Read, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Where Debian's package has the plugins, and where the project's own releases are put by custom.
pub const FOLDERS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];
/// The version of the specification that configurations are written in.
pub const VERSION: &str = "1.0.0";
/// What a plugin may print.
const MAX_OUTPUT_BYTES: u64 = 1 << 20;
/// How long one may take.
const PLUGIN_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a plugin did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// It is not there.
    #[error(
        "there is no CNI plugin {name:?} in {}; install the package containernetworking-plugins",
        FOLDERS.join(" or ")
    )]
    Missing {
        /// Which.
        name: String,
    },
    /// It could not be run.
    #[error("cannot run the CNI plugin {}", program.display())]
    Run {
        /// Its program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It took too long and was killed.
    #[error(
        "the CNI plugin {name} did not end within {} s",
        PLUGIN_TIMEOUT.as_secs()
    )]
    TimedOut {
        /// Which.
        name: String,
    },
    /// It failed.
    #[error("the CNI plugin {name} failed ({status}): {said}")]
    Failed {
        /// Which.
        name: String,
        /// How it ended.
        status: ExitStatus,
        /// Its words.
        said: String,
    },
    /// Its answer cannot be read, or the network's configuration.
    #[error("{what} is no CNI result or configuration")]
    Malformed {
        /// What.
        what: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// A network: a list of plugins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// The version of the specification that it is written in.
    #[serde(rename = "cniVersion")]
    pub version: String,
    /// Its name.
    pub name: String,
    /// The plugins' configurations.
    pub plugins: Vec<Value>,
}

/// A port of the host's that leads to one of the container's; the members' names are the `portMappings` capability's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// On the host.
    pub host_port: u16,
    /// In the container.
    pub container_port: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The host's address; empty for all.
    #[serde(rename = "hostIP", default, skip_serializing_if = "String::is_empty")]
    pub host_ip: String,
}

/// What is to be attached to a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment<'a> {
    /// The container's identifier.
    pub container: &'a str,
    /// Its network namespace.
    pub namespace: &'a Path,
    /// What the interface is called there.
    pub interface: &'a str,
    /// Its ports on the host.
    pub ports: &'a [PortMapping],
    /// The addresses that it is to have; empty leaves it to the network.
    pub addresses: &'a [IpAddr],
    /// Its hardware address; `None` for any.
    pub mac: Option<sandbox_types::MacAddress>,
}

/// What a network gave: the part of a result that is of use here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Outcome {
    /// The addresses.
    #[serde(default)]
    pub ips: Vec<GivenAddress>,
    /// The interfaces, the host's as well.
    #[serde(default)]
    pub interfaces: Vec<GivenInterface>,
}

/// An address that a network gave.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct GivenAddress {
    /// With the length of the prefix: `10.0.0.2/24`.
    pub address: String,
    /// The router.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
}

/// An interface that a network made.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct GivenInterface {
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Its hardware address.
    #[serde(default)]
    pub mac: String,
    /// The namespace's path; empty for the host's.
    #[serde(default)]
    pub sandbox: String,
}

impl Outcome {
    /// Reads a result.
    ///
    /// # Errors
    /// [`CniError::Malformed`].
    pub fn read(result: &Value) -> Result<Self, CniError> {
        Self::deserialize(result).map_err(|source| CniError::Malformed {
            what: "what the network's plugins printed".to_owned(),
            source,
        })
    }
}

/// The program of a plugin.
///
/// # Errors
/// [`CniError::Missing`].
pub fn program(name: &str) -> Result<PathBuf, CniError> {
    FOLDERS
        .iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| !name.contains('/') && path.is_file())
        .ok_or_else(|| CniError::Missing {
            name: name.to_owned(),
        })
}

impl NetworkConfig {
    /// Attaches, and returns the result of the last plugin. Blocks.
    ///
    /// # Errors
    /// [`CniError`]; what the plugins before it made must be taken away with [`Self::detach`].
    pub fn attach(&self, attachment: &Attachment<'_>) -> Result<Value, CniError> {
        let mut result = Value::Null;
        for plugin in &self.plugins {
            let input = self.input(plugin, attachment, &result);
            let printed = run(plugin, "ADD", attachment, &input)?;
            result = serde_json::from_slice(&printed).map_err(|source| CniError::Malformed {
                what: format!("what the CNI plugin {} printed", kind(plugin)),
                source,
            })?;
        }
        Ok(result)
    }

    /// Takes away what [`Self::attach`] made, also when that failed, or it is gone already. Blocks.
    ///
    /// Where attaching came to no result, a plugin that is not installed may well be why, and has nothing to take away.
    ///
    /// # Errors
    /// [`CniError`] is the first; the other plugins run all the same.
    pub fn detach(&self, attachment: &Attachment<'_>, result: &Value) -> Result<(), CniError> {
        let mut first = None;
        for plugin in self.plugins.iter().rev() {
            let input = self.input(plugin, attachment, result);
            match run(plugin, "DEL", attachment, &input) {
                Ok(_) => {}
                Err(CniError::Missing { .. }) if result.is_null() => {}
                Err(error) => {
                    first.get_or_insert(error);
                }
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// One plugin's configuration with what belongs to this call (specification, section 3, "Deriving execution
    /// configuration").
    fn input(&self, plugin: &Value, attachment: &Attachment<'_>, previous: &Value) -> Value {
        let mut input = plugin.clone();
        let Some(members) = input.as_object_mut() else {
            return input;
        };
        let can: Vec<String> = match members.remove("capabilities") {
            Some(Value::Object(capabilities)) => capabilities
                .into_iter()
                .filter(|(_, value)| *value == Value::Bool(true))
                .map(|(name, _)| name)
                .collect(),
            _ => Vec::new(),
        };
        members.insert("cniVersion".to_owned(), self.version.clone().into());
        members.insert("name".to_owned(), self.name.clone().into());
        let mut asked = BTreeMap::new();
        if !attachment.ports.is_empty() {
            asked.insert("portMappings", json!(attachment.ports));
        }
        if !attachment.addresses.is_empty() {
            asked.insert("ips", json!(attachment.addresses));
        }
        if let Some(mac) = attachment.mac {
            asked.insert("mac", json!(mac.to_string()));
        }
        asked.retain(|name, _| can.iter().any(|can| can == name));
        if !asked.is_empty() {
            members.insert("runtimeConfig".to_owned(), json!(asked));
        }
        if !previous.is_null() {
            members.insert("prevResult".to_owned(), previous.clone());
        }
        input
    }
}

fn kind(plugin: &Value) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or("")
}

fn run(
    plugin: &Value,
    verb: &str,
    attachment: &Attachment<'_>,
    input: &Value,
) -> Result<Vec<u8>, CniError> {
    let name = kind(plugin);
    let program = program(name)?;
    let failed = |source| CniError::Run {
        program: program.clone(),
        source,
    };
    let mut child = Command::new(&program)
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", attachment.container)
        .env("CNI_NETNS", attachment.namespace)
        .env("CNI_IFNAME", attachment.interface)
        .env("CNI_PATH", FOLDERS.join(":"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // It fits the pipe, so that this does not wait; a plugin that does not read says why itself.
        let _ = stdin.write_all(input.to_string().as_bytes());
    }
    let readers = [
        child.stdout.take().map(|pipe| read(Box::new(pipe))),
        child.stderr.take().map(|pipe| read(Box::new(pipe))),
    ];
    let in_time = wait(&child).map_err(failed)?;
    if !in_time {
        child.kill().map_err(failed)?;
    }
    let status = child.wait().map_err(failed)?;
    if !in_time {
        return Err(CniError::TimedOut {
            name: name.to_owned(),
        });
    }
    let [stdout, stderr] = readers.map(|reader| {
        reader
            .and_then(|reader| reader.join().ok())
            .unwrap_or_default()
    });
    if status.success() {
        return Ok(stdout);
    }
    Err(CniError::Failed {
        name: name.to_owned(),
        status,
        said: said(&stdout, &stderr),
    })
}

fn read(pipe: Box<dyn Read + Send>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What is not read is a plugin's that prints without end.
        let _ = pipe.take(MAX_OUTPUT_BYTES).read_to_end(&mut bytes);
        bytes
    })
}

/// Whether it ended in time.
fn wait(child: &Child) -> io::Result<bool> {
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(io::ErrorKind::NotFound)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let timeout = Timespec {
        tv_sec: i64::try_from(PLUGIN_TIMEOUT.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: 0,
    };
    loop {
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// A plugin's error (specification, section 5, "Error"), or whatever it printed.
fn said(stdout: &[u8], stderr: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Said {
        msg: String,
        #[serde(default)]
        details: String,
    }
    let text = match serde_json::from_slice::<Said>(stdout) {
        Ok(Said { msg, details }) if details.is_empty() => msg,
        Ok(Said { msg, details }) => format!("{msg}: {details}"),
        Err(_) => [stdout, stderr]
            .map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned())
            .join(" "),
    };
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> NetworkConfig {
        serde_json::from_value(json!({
            "cniVersion": "1.0.0",
            "name": "n",
            "plugins": [
                {"type": "bridge", "capabilities": {"mac": true, "ips": false}},
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        }))
        .unwrap()
    }

    #[test]
    fn plugin_gets_what_it_can_do_and_nothing_else() {
        let config = config();
        let ports = [PortMapping {
            host_port: 8080,
            container_port: 80,
            protocol: "tcp".to_owned(),
            host_ip: String::new(),
        }];
        let attachment = Attachment {
            container: "c",
            namespace: Path::new("/n"),
            interface: "eth0",
            ports: &ports,
            addresses: &["10.0.0.9".parse().unwrap()],
            mac: "02:00:00:00:00:01".parse().ok(),
        };
        let first = config.input(&config.plugins[0], &attachment, &Value::Null);
        assert_eq!(
            first,
            json!({"type": "bridge", "cniVersion": "1.0.0", "name": "n",
                "runtimeConfig": {"mac": "02:00:00:00:00:01"}})
        );
        let second = config.input(&config.plugins[1], &attachment, &json!({"ips": []}));
        assert_eq!(
            second,
            json!({"type": "portmap", "cniVersion": "1.0.0", "name": "n", "prevResult": {"ips": []},
                "runtimeConfig": {"portMappings": [
                    {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}})
        );
    }

    #[test]
    fn plugin_that_is_a_path_or_missing_is_not_run() {
        for name in ["../../bin/sh", "no-such-plugin", ""] {
            assert!(
                matches!(program(name), Err(CniError::Missing { .. })),
                "{name}"
            );
        }
    }

    #[test]
    fn plugin_that_is_missing_has_nothing_to_take_away_unless_it_was_there() {
        let config = NetworkConfig {
            plugins: vec![json!({"type": "no-such-plugin"})],
            ..config()
        };
        let attachment = Attachment {
            container: "c",
            namespace: Path::new("/n"),
            interface: "eth0",
            ports: &[],
            addresses: &[],
            mac: None,
        };
        config.detach(&attachment, &Value::Null).unwrap();
        let attached = config.detach(&attachment, &json!({"ips": []}));
        assert!(matches!(attached, Err(CniError::Missing { .. })));
    }

    #[test]
    fn error_is_in_the_plugins_words() {
        let text = said(br#"{"code": 7, "msg": "no range", "details": "full"}"#, b"");
        assert_eq!(text, "no range: full");
        assert_eq!(said(b"", b"panic\n"), "panic");
    }

    #[test]
    fn outcome_is_read_from_a_result() {
        let result = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/n"}],
            "ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 0}], "dns": {}});
        let outcome = Outcome::read(&result).unwrap();
        assert_eq!(outcome.ips[0].address, "10.0.0.2/24");
        assert_eq!(outcome.interfaces[0].sandbox, "/n");
    }
}
