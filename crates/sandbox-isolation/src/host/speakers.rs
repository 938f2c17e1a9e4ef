//! Things on this machine's network that say a secret to whoever reaches them, and a listener to what passes.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};

use super::raw;

/// Ports below those that the kernel chooses from for whoever asks for none (`ip_local_port_range`).
const CHOSEN_PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A TCP port of the loopback interface where nobody listens, and that nobody else is given meanwhile.
pub(crate) fn free_port() -> io::Result<u16> {
    let width = u32::from(CHOSEN_PORTS.end - CHOSEN_PORTS.start);
    let mut last = io::ErrorKind::AddrInUse.into();
    for _ in 0..100 {
        let offset = u16::try_from(super::key()? % width).unwrap_or(0);
        match TcpListener::bind((Ipv4Addr::LOCALHOST, CHOSEN_PORTS.start + offset)) {
            Ok(listener) => return Ok(listener.local_addr()?.port()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// How often a speaker looks whether it should end.
const LOOK_MS: u16 = 20;

/// A thread that speaks until it is dropped.
pub(crate) struct Speaker {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Speaker {
    fn start(mut step: impl FnMut() + Send + 'static) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&end);
        let thread = std::thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                step();
            }
        });
        Self {
            end,
            thread: Some(thread),
        }
    }

    /// Takes connections of `listener` with `accept`, and says `secret` to each.
    fn to_connections<L: AsFd + Send + 'static, S: Write>(
        listener: L,
        secret: String,
        accept: impl Fn(&L) -> io::Result<S> + Send + 'static,
    ) -> Self {
        Self::start(move || {
            if readable(&listener)
                && let Ok(mut stream) = accept(&listener)
            {
                // Who goes away has not heard it.
                let _ = stream.write_all(secret.as_bytes());
            }
        })
    }

    /// On a TCP port of this address, which is given back.
    pub(crate) fn tcp(address: &str, secret: String) -> io::Result<(Self, u16)> {
        let listener = TcpListener::bind((address, 0))?;
        let port = listener.local_addr()?.port();
        let accept = |listener: &TcpListener| listener.accept().map(|(stream, _)| stream);
        Ok((Self::to_connections(listener, secret, accept), port))
    }

    /// On an abstract Unix socket.
    pub(crate) fn abstract_socket(name: &str, secret: String) -> io::Result<Self> {
        let listener = UnixListener::bind_addr(&UnixAddress::from_abstract_name(name)?)?;
        let accept = |listener: &UnixListener| listener.accept().map(|(stream, _)| stream);
        Ok(Self::to_connections(listener, secret, accept))
    }

    /// On a Unix socket in a folder.
    pub(crate) fn socket_file(path: &Path, secret: String) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        let accept = |listener: &UnixListener| listener.accept().map(|(stream, _)| stream);
        Ok(Self::to_connections(listener, secret, accept))
    }

    /// Answers datagrams on a UDP port of the loopback interface.
    pub(crate) fn udp(secret: String) -> io::Result<(Self, u16)> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        let port = socket.local_addr()?.port();
        let speaker = Self::start(move || {
            let mut ask = [0u8; 64];
            if readable(&socket)
                && let Ok((_, from)) = socket.recv_from(&mut ask)
            {
                let _ = socket.send_to(secret.as_bytes(), from);
            }
        });
        Ok((speaker, port))
    }

    /// Has the kernel tell of a device again and again, with this text (Documentation/ABI/testing/sysfs-uevent). Nothing
    /// happens to the device.
    pub(crate) fn device_events(text: &str) -> io::Result<Self> {
        const DEVICE: &str = "/sys/class/mem/null/uevent";
        let event = format!("change 5a4d0b0e-0000-4000-8000-73616e64626f ISOLATION={text}");
        std::fs::write(DEVICE, &event)?;
        let pause = UdpSocket::bind("127.0.0.1:0")?;
        Ok(Self::start(move || {
            let _ = std::fs::write(DEVICE, &event);
            // Nobody writes to it: this is the pause between two.
            let _ = readable(&pause);
        }))
    }

    /// Sends datagrams with this text on the loopback interface, again and again.
    pub(crate) fn chatter(text: String) -> io::Result<Self> {
        let receiver = UdpSocket::bind("127.0.0.1:0")?;
        let to: SocketAddr = receiver.local_addr()?;
        let sender = UdpSocket::bind("127.0.0.1:0")?;
        Ok(Self::start(move || {
            let _ = sender.send_to(text.as_bytes(), to);
            // Nobody answers the sender: this is the pause between two.
            let _ = readable(&sender);
            let mut heard = [0u8; 256];
            let _ = readable(&receiver) && receiver.recv(&mut heard).is_ok();
        }))
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn readable(socket: &impl AsFd) -> bool {
    let mut wait = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    poll(&mut wait, PollTimeout::from(LOOK_MS)).is_ok_and(|ready| ready > 0)
}

/// Who is heard.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Source {
    /// The source of IPv4 packets (RFC 791).
    Ipv4(Ipv4Addr),
    /// The sender in ARP (RFC 826).
    Arp(Ipv4Addr),
}

/// Hears every frame of this machine's interfaces.
pub(crate) struct Frames(OwnedFd);

impl Frames {
    /// Those from this address, from now on. No others: what else passes on a machine with much to do would fill the buffer, and
    /// the frame that is waited for would be dropped.
    pub(crate) fn listen(source: Source) -> nix::Result<Self> {
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            Some(SockProtocol::EthAll),
        )?;
        match source {
            Source::Ipv4(address) => raw::keep_from_source(&socket, 0x0800, 12, address)?,
            Source::Arp(address) => raw::keep_from_source(&socket, 0x0806, 14, address)?,
        }
        Ok(Self(socket))
    }

    /// Whether a frame since had `wanted` in it; its bytes.
    pub(crate) fn heard(&self, wanted: &str) -> Option<Vec<u8>> {
        let mut frame = vec![0u8; 2048];
        let end = std::time::Instant::now() + Duration::from_secs(1);
        while std::time::Instant::now() < end {
            let Ok(length) = recv(self.0.as_raw_fd(), &mut frame, MsgFlags::empty()) else {
                let _ = readable(&self.0);
                continue;
            };
            let bytes = frame.get(..length).unwrap_or_default();
            if bytes
                .windows(wanted.len().max(1))
                .any(|part| part == wanted.as_bytes())
            {
                return Some(bytes.to_vec());
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_port_can_be_listened_at() {
        let port = free_port().unwrap();
        assert!(CHOSEN_PORTS.contains(&port));
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    }

    #[test]
    fn frames_from_another_address_do_not_take_the_room() {
        let frames = match Frames::listen(Source::Ipv4(Ipv4Addr::LOCALHOST)) {
            // Packet sockets are not for everybody (CAP_NET_RAW).
            Err(nix::errno::Errno::EPERM) => return,
            frames => frames.unwrap(),
        };
        let elsewhere = Frames::listen(Source::Ipv4(Ipv4Addr::new(198, 51, 100, 7))).unwrap();
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = receiver.local_addr().unwrap();
        let word = super::super::token().unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(word.as_bytes(), to).unwrap();
        assert!(frames.heard(&word).is_some());
        let mut frame = [0u8; 64];
        let waiting = recv(elsewhere.0.as_raw_fd(), &mut frame, MsgFlags::empty());
        assert_eq!(waiting, Err(nix::errno::Errno::EAGAIN));
    }
}
