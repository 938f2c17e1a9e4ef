//! Exec and Attach as `kubectl` uses them: a WebSocket to the CRI plugin's streaming server
//! (`v4.channel.k8s.io`: the first byte of each message is its channel).

use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use http::HeaderValue;
use http::header::SEC_WEBSOCKET_PROTOCOL;
use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest as _;
use tungstenite::{Message, WebSocket};

use super::Cri;
use super::api::{AttachRequest, ExecRequest, StreamResponse};

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
        let place = url
            .strip_prefix("http://")
            .and_then(|rest| rest.split('/').next())
            .with_context(|| format!("the streaming server is at {url:?}"))?;
        let stream = TcpStream::connect(place)?;
        stream.set_read_timeout(Some(limit))?;
        let mut request = url.replacen("http", "ws", 1).into_client_request()?;
        let protocol = HeaderValue::from_static(PROTOCOL);
        request
            .headers_mut()
            .insert(SEC_WEBSOCKET_PROTOCOL, protocol);
        let (socket, _) = tungstenite::client(request, stream)
            .map_err(|error| anyhow::anyhow!("{url} refused: {error}"))?;
        Ok(Self {
            socket,
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
        let message = [&[channel], bytes].concat();
        self.socket.send(Message::Binary(message.into()))?;
        Ok(())
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
}
