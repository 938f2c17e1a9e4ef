//! Exec, Attach and PortForward as `kubectl` uses them: a WebSocket to the CRI plugin's streaming server
//! (`v4.channel.k8s.io`: the first byte of each message is its channel).

use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use http::HeaderValue;
use http::header::SEC_WEBSOCKET_PROTOCOL;
use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest as _;
use tungstenite::{Message, WebSocket};

use super::api::{AttachRequest, ExecRequest, PortForwardRequest, StreamResponse};
use super::{Cri, Pod};
use crate::netns::HostNet;

const PROTOCOL: &str = "v4.channel.k8s.io";
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;

/// The streams of a process in a container.
pub struct Stream {
    socket: WebSocket<TcpStream>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// How an exec ended.
#[derive(Debug)]
pub struct End {
    /// Its exit code.
    pub code: u32,
    /// All that it wrote to standard output.
    pub stdout: String,
    /// All that it wrote to standard error.
    pub stderr: String,
}

impl Stream {
    fn connect(url: &str, limit: Duration) -> Result<Self> {
        let stream = TcpStream::connect(place(url)?)?;
        Ok(Self {
            socket: connect(url, stream, limit)?,
            stdout: Vec::new(),
            stderr: Vec::new(),
        })
    }

    /// Writes to its standard input.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn write(&mut self, text: &str) -> Result<()> {
        self.send(STDIN, text.as_bytes())
    }

    /// Gives its terminal a size.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn resize(&mut self, columns: u16, rows: u16) -> Result<()> {
        let size = json!({"Width": columns, "Height": rows}).to_string();
        self.send(RESIZE, size.as_bytes())
    }

    fn send(&mut self, channel: u8, bytes: &[u8]) -> Result<()> {
        send(&mut self.socket, channel, bytes)
    }

    /// Reads until standard output has `wanted`.
    ///
    /// # Errors
    /// With what came, when that does not.
    pub fn until(&mut self, wanted: &str) -> Result<()> {
        while !text(&self.stdout).contains(wanted) {
            let status = self.next().with_context(|| {
                format!("{wanted:?} did not come, but {:?}", text(&self.stdout))
            })?;
            ensure!(status.is_none(), "ended before {wanted:?}: {status:?}");
        }
        Ok(())
    }

    /// Reads until the process has ended.
    ///
    /// # Errors
    /// When it does not end in time, or the server does not say how.
    pub fn end(mut self) -> Result<End> {
        let status = loop {
            if let Some(status) = self.next()? {
                break status;
            }
        };
        let cause = &status["details"]["causes"][0];
        let code = match (status["status"].as_str(), cause["reason"].as_str()) {
            (Some("Success"), _) => 0,
            (_, Some("ExitCode")) => cause["message"].as_str().unwrap_or_default().parse()?,
            _ => bail!("the exec failed: {status}"),
        };
        Ok(End {
            code,
            stdout: text(&self.stdout),
            stderr: text(&self.stderr),
        })
    }

    /// Takes the next message; the status, when it is that.
    fn next(&mut self) -> Result<Option<Value>> {
        match self.socket.read()? {
            Message::Binary(message) => match message.split_first() {
                Some((&STDOUT, bytes)) => self.stdout.extend_from_slice(bytes),
                Some((&STDERR, bytes)) => self.stderr.extend_from_slice(bytes),
                Some((&STATUS, bytes)) if !bytes.is_empty() => {
                    return Ok(Some(serde_json::from_slice(bytes)?));
                }
                _ => {}
            },
            Message::Close(why) => bail!("the server closed the connection: {why:?}"),
            _ => {}
        }
        Ok(None)
    }
}

/// The address and port of a URL.
fn place(url: &str) -> Result<&str> {
    url.strip_prefix("http://")
        .and_then(|rest| rest.split('/').next())
        .with_context(|| format!("the streaming server is at {url:?}"))
}

fn connect(url: &str, stream: TcpStream, limit: Duration) -> Result<WebSocket<TcpStream>> {
    stream.set_read_timeout(Some(limit))?;
    let mut request = url.replacen("http", "ws", 1).into_client_request()?;
    let protocol = HeaderValue::from_static(PROTOCOL);
    request
        .headers_mut()
        .insert(SEC_WEBSOCKET_PROTOCOL, protocol);
    let (socket, _) = tungstenite::client(request, stream)
        .map_err(|error| anyhow::anyhow!("{url} refused: {error}"))?;
    Ok(socket)
}

fn send(socket: &mut WebSocket<TcpStream>, channel: u8, bytes: &[u8]) -> Result<()> {
    let message = [&[channel], bytes].concat();
    socket.send(Message::Binary(message.into()))?;
    Ok(())
}

/// A connection to a port of a pod. Of its two channels, the first carries bytes and the second says what failed; each
/// begins with the port's number.
pub struct Forwarded {
    socket: WebSocket<TcpStream>,
    channels: [Vec<u8>; 2],
}

impl Forwarded {
    /// Writes to the port.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        send(&mut self.socket, 0, bytes)
    }

    /// Reads until `enough` says that it is; returns what the port has said.
    ///
    /// # Errors
    /// With what came, when the connection ends before that.
    pub fn until(&mut self, enough: impl Fn(&[u8]) -> bool) -> Result<&[u8]> {
        while !enough(self.said()) {
            let more = self.next()?;
            let [_, failure] = &self.channels;
            ensure!(
                more,
                "the connection ended after {:?} ({:?})",
                text(self.said()),
                text(failure)
            );
        }
        Ok(self.said())
    }

    /// Reads to the end; returns all that the port has said.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn end(mut self) -> Result<Vec<u8>> {
        while self.next()? {}
        Ok(self.said().to_vec())
    }

    /// What came after the port's number.
    fn said(&self) -> &[u8] {
        self.channels[0].get(2..).unwrap_or_default()
    }

    /// Takes the next message; false when there is none any more.
    fn next(&mut self) -> Result<bool> {
        match self.socket.read() {
            Ok(Message::Binary(message)) => {
                if let Some((&channel, bytes)) = message.split_first() {
                    let channel = self.channels.get_mut(usize::from(channel));
                    channel.context("another channel")?.extend_from_slice(bytes);
                }
                Ok(true)
            }
            Ok(Message::Close(_)) => Ok(false),
            Ok(_) => Ok(true),
            Err(tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed) => {
                Ok(false)
            }
            Err(tungstenite::Error::Protocol(
                tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
            )) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Cri {
    /// Runs a command in a container with its streams here.
    ///
    /// # Errors
    /// With what the plugin or its streaming server said.
    pub fn stream_exec(&self, id: &str, terminal: bool, command: &[&str]) -> Result<Stream> {
        let request = ExecRequest {
            container_id: id.to_owned(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            tty: terminal,
            stdin: true,
            stdout: true,
            stderr: !terminal,
            ..Default::default()
        };
        let answer: StreamResponse = self.call("RuntimeService/Exec", &request)?;
        Stream::connect(&answer.url, self.limit)
    }

    /// Attaches to a container.
    ///
    /// # Errors
    /// With what the plugin or its streaming server said.
    pub fn attach(&self, id: &str) -> Result<Stream> {
        let request = AttachRequest {
            container_id: id.to_owned(),
            stdin: true,
            stdout: true,
            stderr: true,
            ..Default::default()
        };
        let answer: StreamResponse = self.call("RuntimeService/Attach", &request)?;
        Stream::connect(&answer.url, self.limit)
    }

    /// Connects to a port of a pod, from the network namespace that containerd is in.
    ///
    /// # Errors
    /// With what the plugin or its streaming server said.
    pub fn forward(&self, net: &HostNet, pod: &Pod, port: u16) -> Result<Forwarded> {
        let request = PortForwardRequest {
            pod_sandbox_id: pod.id.clone(),
            port: vec![port.into()],
            ..Default::default()
        };
        let answer: StreamResponse = self.call("RuntimeService/PortForward", &request)?;
        let server = place(&answer.url)?.to_owned();
        let stream = net.within(move || Ok(TcpStream::connect(server)?))?;
        let url = format!("{}?port={port}", answer.url);
        Ok(Forwarded {
            socket: connect(&url, stream, self.limit)?,
            channels: [Vec::new(), Vec::new()],
        })
    }
}
