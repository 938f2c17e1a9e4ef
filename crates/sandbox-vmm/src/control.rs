//! What the monitor is told, and what it tells: see [`sandbox_types::monitor`].

mod first;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use sandbox_types::monitor::{CONFIG_FD, MonitorConfig, MonitorEvent, MonitorRequest};

pub(crate) use first::FirstRequestError;

/// The longest configuration, in bytes: far more than one with every device has.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// The longest request, in bytes.
const MAX_REQUEST_BYTES: usize = 4096;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// It cannot be read.
    #[error("cannot read the configuration from descriptor {CONFIG_FD}")]
    Read {
        /// What the kernel said.
        source: io::Error,
    },
    /// It is too long.
    #[error("the configuration has more than {MAX_CONFIG_BYTES} bytes")]
    TooLong,
    /// It is not one.
    #[error("the configuration on descriptor {CONFIG_FD} is not understood")]
    Parse {
        /// Why.
        source: serde_json::Error,
    },
}

/// Reads the configuration to its end.
///
/// # Errors
/// [`ConfigError`].
pub(crate) fn read_config(fd: OwnedFd) -> Result<MonitorConfig, ConfigError> {
    let mut text = Vec::new();
    let read = File::from(fd)
        .take(MAX_CONFIG_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(|source| ConfigError::Read { source })?;
    if read as u64 > MAX_CONFIG_BYTES {
        return Err(ConfigError::TooLong);
    }
    serde_json::from_slice(&text).map_err(|source| ConfigError::Parse { source })
}

/// The control socket.
#[derive(Debug)]
pub(crate) struct Control {
    stream: UnixStream,
    /// The beginning of a request of which the rest has not come.
    begun: Vec<u8>,
}

impl Control {
    /// The socket that was handed over.
    #[must_use]
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self {
            stream: UnixStream::from(fd),
            begun: Vec::new(),
        }
    }

    /// Tells the other side. It being gone is no error here: it is noticed where it matters, by
    /// [`Self::requests`].
    pub(crate) fn tell(&mut self, event: &MonitorEvent) {
        let told = serde_json::to_vec(event)
            .map_err(io::Error::from)
            .and_then(|mut line| {
                line.push(b'\n');
                self.stream.write_all(&line)
            });
        if let Err(error) = told {
            eprintln!("sandbox-vmm: cannot report {event:?} on the control socket: {error}");
        }
    }

    /// To be called when the socket is readable: what has been asked since, or `None` if the other side is gone, or asks for what is too
    /// long. What is no request is named on standard error, and otherwise passed over.
    pub(crate) fn requests(&mut self) -> Option<Vec<MonitorRequest>> {
        let mut bytes = [0; 512];
        let count = match self.stream.read(&mut bytes) {
            Ok(0) => return None,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Some(Vec::new()),
            Err(_) => return None,
        };
        self.begun
            .extend_from_slice(bytes.get(..count).unwrap_or_default());
        let requests = self.begun_requests();
        (self.begun.len() <= MAX_REQUEST_BYTES).then_some(requests)
    }

    /// What has been asked and read already. The socket does not become readable for it: what came along with the first request.
    pub(crate) fn begun_requests(&mut self) -> Vec<MonitorRequest> {
        let mut requests = Vec::new();
        while let Some(line) = self.take_line() {
            match serde_json::from_slice(&line) {
                Ok(request) => requests.push(request),
                Err(error) => eprintln!("sandbox-vmm: a request is not understood: {error}"),
            }
        }
        requests
    }

    /// The first line of what has been read.
    fn take_line(&mut self) -> Option<Vec<u8>> {
        let end = self.begun.iter().position(|byte| *byte == b'\n')?;
        Some(self.begun.drain(..=end).collect())
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Seek};

    use sandbox_types::MemMib;
    use sandbox_types::monitor::GuestExit;

    use super::*;

    fn config_from(text: &[u8]) -> Result<MonitorConfig, ConfigError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text).unwrap();
        file.rewind().unwrap();
        read_config(file.into())
    }

    #[test]
    fn configuration_that_is_no_json_or_too_long_is_refused() {
        assert!(matches!(
            config_from(b"{\"kvm_fd\": 5"),
            Err(ConfigError::Parse { .. })
        ));
        let long = vec![b' '; 1 << 21];
        assert!(matches!(config_from(&long), Err(ConfigError::TooLong)));
    }

    #[test]
    fn event_is_one_line_and_closing_is_seen() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut control = Control::new(theirs.into());
        let event = MonitorEvent::Exited {
            reason: GuestExit::Shutdown,
        };
        control.tell(&event);
        let mut line = String::new();
        let mut reader = BufReader::new(ours);
        reader.read_line(&mut line).unwrap();
        assert_eq!(serde_json::from_str::<MonitorEvent>(&line).unwrap(), event);
        drop(reader);
        assert_eq!(control.requests(), None);
    }

    #[test]
    fn requests_are_read_in_pieces_and_nonsense_is_passed_over() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut control = Control::new(theirs.into());
        let memory = MemMib::new(256).unwrap();
        let line = b"{\"request\":\"set-memory\",\"memory\":256}\n";
        let (begin, rest) = line.split_at(7);
        ours.write_all(begin).unwrap();
        assert_eq!(control.requests(), Some(Vec::new()));
        ours.write_all(rest).unwrap();
        ours.write_all(b"nonsense\n").unwrap();
        ours.write_all(line).unwrap();
        let request = MonitorRequest::SetMemory { memory };
        assert_eq!(control.requests(), Some(vec![request.clone(), request]));
        ours.write_all(&[b' '; 8 * MAX_REQUEST_BYTES]).unwrap();
        let mut read = control.requests();
        while read.is_some() {
            assert_eq!(read, Some(Vec::new()));
            read = control.requests();
        }
    }
}
