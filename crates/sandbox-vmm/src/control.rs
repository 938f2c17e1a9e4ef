//! What the monitor is told when it starts, and what it tells: see [`sandbox_types::monitor`].

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use sandbox_types::monitor::{CONFIG_FD, MonitorConfig, MonitorEvent};

/// The longest configuration, in bytes: far more than one with every device has.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
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
pub fn read_config(fd: OwnedFd) -> Result<MonitorConfig, ConfigError> {
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
pub struct Control {
    stream: UnixStream,
}

impl Control {
    /// The socket that was handed over.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        Self {
            stream: UnixStream::from(fd),
        }
    }

    /// Tells the other side. It being gone is no error here: it is noticed where it matters, by
    /// [`Self::is_closed`].
    pub fn tell(&mut self, event: &MonitorEvent) {
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

    /// To be called when the socket is readable: whether the other side is gone. Nothing is ever sent to the
    /// monitor, and what is sent nevertheless is thrown away.
    pub fn is_closed(&mut self) -> bool {
        match self.stream.read(&mut [0; 64]) {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => error.kind() != io::ErrorKind::Interrupted,
        }
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
        assert!(control.is_closed());
    }
}
