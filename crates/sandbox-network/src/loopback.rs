//! The loopback interface of a pod's namespace on the host, whose connections belong to the guest.
//!
//! A pod's programs listen in the guest. Who enters the pod's namespace on the host and connects to its loopback interface
//! (containerd's `PortForward`, a debugger) finds none of them there. So a program at the namespace's socket lookup
//! (`BPF_PROG_TYPE_SK_LOOKUP`, since Linux 5.9) gives every connection to `127.0.0.1` or `::1`, whatever its port, to a
//! listener of ours. It sees the namespace's own connections only; no rule or address is changed, and nothing is left
//! when its descriptor is closed, by whatever ends this process.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

use rustix::io::Errno;

use crate::bpf::{self, Instruction};
use crate::{Namespace, NetworkError};

/// The place of the listener for `127.0.0.1` in the map, and of that for `::1`.
const IPV4: u32 = 0;
const IPV6: u32 = 1;

/// The listeners, and what leads connections to them.
#[derive(Debug)]
pub struct Loopback {
    /// Non-blocking. The address that an accepted connection has on this side is the one that its peer connected to.
    pub listeners: Vec<TcpListener>,
    /// Closed, it ends the redirection.
    pub link: OwnedFd,
}

impl Loopback {
    /// Takes over the connections to a namespace's loopback addresses.
    ///
    /// # Errors
    /// [`NetworkError::Loopback`] names the step that the kernel refused; [`NetworkError::Enter`].
    pub fn take(namespace: &Namespace) -> Result<Self, NetworkError> {
        let failed = |action| move |source| NetworkError::Loopback { action, source };
        let map = bpf::socket_map(2).map_err(failed("make a map of sockets"))?;
        let listeners = namespace.enter(|| {
            let listen = |address: SocketAddr| {
                let listener = TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Ok(listener)
            };
            let mut listeners =
                vec![listen((Ipv4Addr::LOCALHOST, 0).into()).map_err(failed("listen"))?];
            match listen((Ipv6Addr::LOCALHOST, 0).into()) {
                Ok(listener) => listeners.push(listener),
                // A namespace without IPv6 needs none.
                Err(error)
                    if matches!(
                        Errno::from_io_error(&error),
                        Some(Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT)
                    ) => {}
                Err(error) => return Err(failed("listen")(error)),
            }
            Ok(listeners)
        })?;
        for (key, listener) in (IPV4..).zip(&listeners) {
            bpf::set_socket(&map, key, listener).map_err(failed("put a socket into its map"))?;
        }
        let program = bpf::load_socket_lookup(&program(map.as_raw_fd()))
            .map_err(failed("load the program"))?;
        let link = bpf::attach_socket_lookup(&program, namespace)
            .map_err(failed("attach the program to the namespace"))?;
        Ok(Self { listeners, link })
    }
}

/// `IPPROTO_TCP`, `AF_INET6`.
const TCP: i32 = 6;
const INET6: i32 = 10;

/// Where things are in `struct bpf_sk_lookup`.
const FAMILY: i16 = 8;
const PROTOCOL: i16 = 12;
const LOCAL_IP4: i16 = 40;
const LOCAL_IP6: i16 = 44;

/// `enum bpf_func_id`.
const MAP_LOOKUP_ELEM: i32 = 1;
const SK_RELEASE: i32 = 86;
const SK_ASSIGN: i32 = 124;

/// `SK_PASS`.
const PASS: i32 = 1;

/// A word of an address, as it lies in memory.
const fn word(bytes: [u8; 4]) -> i32 {
    i32::from_ne_bytes(bytes)
}

/// Assigns TCP connections to loopback addresses to the sockets of `map`; leaves all else as it is.
fn program(map: RawFd) -> Vec<Instruction> {
    use Instruction as I;
    /// Stands for the distance to the end, which is not known yet.
    const TO_PASS: i16 = i16::MIN;
    let mut code = vec![
        I::copy(6, 1),
        I::load(2, 6, PROTOCOL),
        I::skip_unless(2, TCP, TO_PASS),
        I::load(2, 6, FAMILY),
        I::skip_if(2, INET6, 4),
        // 127.0.0.1
        I::load(2, 6, LOCAL_IP4),
        I::skip_unless(2, word([127, 0, 0, 1]), TO_PASS),
        I::set(8, IPV4.cast_signed()),
        I::skip(9),
        // ::1
        I::load(2, 6, LOCAL_IP6),
        I::skip_unless(2, 0, TO_PASS),
        I::load(2, 6, LOCAL_IP6 + 4),
        I::skip_unless(2, 0, TO_PASS),
        I::load(2, 6, LOCAL_IP6 + 8),
        I::skip_unless(2, 0, TO_PASS),
        I::load(2, 6, LOCAL_IP6 + 12),
        I::skip_unless(2, word([0, 0, 0, 1]), TO_PASS),
        I::set(8, IPV6.cast_signed()),
        // The socket, by its number on the stack.
        I::store(10, -4, 8),
        I::copy(2, 10),
        I::add(2, -4),
    ];
    code.extend(I::set_map(1, map));
    code.extend([
        I::call(MAP_LOOKUP_ELEM),
        I::skip_if(0, 0, TO_PASS),
        I::copy(7, 0),
        I::copy(1, 6),
        I::copy(2, 7),
        I::set(3, 0),
        I::call(SK_ASSIGN),
        I::copy(1, 7),
        I::call(SK_RELEASE),
    ]);
    let pass = code.len();
    code.extend([I::set(0, PASS), I::exit()]);
    for (at, instruction) in code.iter_mut().enumerate() {
        instruction.lead(TO_PASS, pass - at.min(pass));
    }
    code
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;
    use std::path::PathBuf;

    use super::*;

    /// A namespace of its own, which takes root.
    struct Own {
        path: PathBuf,
        _folder: tempfile::TempDir,
    }

    impl Own {
        fn make() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("netns");
            Namespace::make(&path).unwrap();
            Self {
                path,
                _folder: folder,
            }
        }
    }

    impl Drop for Own {
        fn drop(&mut self) {
            Namespace::remove(&self.path).unwrap();
        }
    }

    fn connect(namespace: &Namespace, to: &str) -> std::io::Result<TcpStream> {
        let mut result = Err(std::io::ErrorKind::Other.into());
        namespace
            .enter(|| {
                result = TcpStream::connect(to);
                Ok(())
            })
            .unwrap();
        result
    }

    #[test]
    fn every_port_of_the_loopback_is_led_to_us_until_the_link_is_closed() {
        let own = Own::make();
        let namespace = Namespace::open(&own.path).unwrap();
        assert!(connect(&namespace, "127.0.0.1:8080").is_err());
        let loopback = Loopback::take(&namespace).unwrap();
        for (listener, to) in loopback
            .listeners
            .iter()
            .zip(["127.0.0.1:8080", "[::1]:81"])
        {
            listener.set_nonblocking(false).unwrap();
            let mut client = connect(&namespace, to).unwrap();
            let (mut accepted, _) = listener.accept().unwrap();
            assert_eq!(accepted.local_addr().unwrap(), to.parse().unwrap());
            client.write_all(b"hello").unwrap();
            drop(client);
            let mut said = String::new();
            accepted.read_to_string(&mut said).unwrap();
            assert_eq!(said, "hello");
        }
        // Another address of the loopback's network is not ours.
        assert!(connect(&namespace, "127.0.0.2:8080").is_err());
        drop(loopback);
        assert!(connect(&namespace, "127.0.0.1:8080").is_err());
    }

    #[test]
    fn namespace_is_taken_once_more_when_the_first_is_gone() {
        let own = Own::make();
        let namespace = Namespace::open(&own.path).unwrap();
        for _ in 0..2 {
            drop(Loopback::take(&namespace).unwrap());
        }
    }
}
