//! The resolver that Docker gives containers of a user-defined network: its engine listens at `127.0.0.11` in the pod's
//! namespace on the host, and leads port 53 there by rules of that namespace.
//!
//! It is there for whoever is in the namespace, such as a socket that was made in it ([`Namespace::enter`]).

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use crate::{Namespace, NetworkError};

/// Where it is asked; the address is the same in every container, and in their `resolv.conf`.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// The port of DNS (RFC 1035, 4.2).
pub const RESOLVER_PORT: u16 = 53;
/// The namespace's UDP sockets (proc_pid_net(5)).
const SOCKETS: &str = "/proc/thread-self/net/udp";

impl Namespace {
    /// Whether somebody on the host answers at [`RESOLVER`] in it.
    ///
    /// # Errors
    /// [`NetworkError::Enter`], or [`NetworkError::Sockets`].
    pub fn has_resolver(&self) -> Result<bool, NetworkError> {
        let table = self.enter(|| {
            std::fs::read_to_string(SOCKETS).map_err(|source| NetworkError::Sockets { source })
        })?;
        Ok(is_bound(&table, RESOLVER))
    }

    /// A UDP socket in it that speaks to `to` only, and does not block.
    ///
    /// # Errors
    /// [`NetworkError::Enter`], or [`NetworkError::Socket`].
    pub fn udp_socket(&self, to: SocketAddr) -> Result<std::net::UdpSocket, NetworkError> {
        let failed = |source: io::Error| NetworkError::Socket { to, source };
        self.enter(|| {
            let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(failed)?;
            socket.connect(to).map_err(failed)?;
            socket.set_nonblocking(true).map_err(failed)?;
            Ok(socket)
        })
    }

    /// A TCP connection in it, which does not block thereafter. It is meant for peers on this machine.
    ///
    /// # Errors
    /// [`NetworkError::Enter`], or [`NetworkError::Socket`].
    pub fn tcp_connection(&self, to: SocketAddr) -> Result<std::net::TcpStream, NetworkError> {
        let failed = |source: io::Error| NetworkError::Socket { to, source };
        self.enter(|| {
            let stream = std::net::TcpStream::connect(to).map_err(failed)?;
            stream.set_nonblocking(true).map_err(failed)?;
            Ok(stream)
        })
    }
}

/// Whether a socket of the table has this address. Addresses are words in memory's order, in hexadecimal.
fn is_bound(table: &str, address: Ipv4Addr) -> bool {
    let wanted = format!("{:08X}:", u32::from_ne_bytes(address.octets()));
    let local = |line: &str| line.split_ascii_whitespace().nth(1).map(str::to_owned);
    table
        .lines()
        .filter_map(local)
        .any(|local| local.starts_with(&wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolver_is_seen_where_one_listens_and_only_there() {
        let namespace = Namespace::make_unnamed().unwrap();
        assert!(!namespace.has_resolver().unwrap());
        let bind = |address: Ipv4Addr| {
            let mut socket = None;
            namespace
                .enter(|| {
                    socket = Some(std::net::UdpSocket::bind((address, 0)).unwrap());
                    Ok(())
                })
                .unwrap();
            socket.unwrap()
        };
        let _other = bind(Ipv4Addr::LOCALHOST);
        assert!(!namespace.has_resolver().unwrap());
        let resolver = bind(RESOLVER);
        assert!(namespace.has_resolver().unwrap());
        let to = resolver.local_addr().unwrap();
        let client = namespace.udp_socket(to).unwrap();
        client.send(b"a question").unwrap();
        let mut said = [0; 32];
        let (len, _) = resolver.recv_from(&mut said).unwrap();
        assert_eq!(&said[..len], b"a question");
        assert!(matches!(
            namespace.tcp_connection(to),
            Err(NetworkError::Socket { .. })
        ));
    }

    #[test]
    fn redirected_port_is_another_for_udp_and_tcp_and_for_no_other_address() {
        use std::io::{Read as _, Write as _};
        use std::net::{TcpListener, TcpStream, UdpSocket};
        let namespace = Namespace::make_unnamed().unwrap();
        let within = || {
            let udp = UdpSocket::bind((RESOLVER, 0)).unwrap();
            let tcp = TcpListener::bind((RESOLVER, 0)).unwrap();
            let redirect = sandbox_netlink::Redirect {
                table: "test",
                address: RESOLVER,
                port: RESOLVER_PORT,
                udp: udp.local_addr().unwrap().port(),
                tcp: tcp.local_addr().unwrap().port(),
            };
            // Once more makes it anew.
            redirect.make()?;
            redirect.make()?;
            // The port stays free for others.
            let _own = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, RESOLVER_PORT)).unwrap();
            let client = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            client.connect((RESOLVER, RESOLVER_PORT)).unwrap();
            client.send(b"udp").unwrap();
            let mut said = [0; 8];
            let (len, from) = udp.recv_from(&mut said).unwrap();
            assert_eq!(&said[..len], b"udp");
            udp.send_to(b"back", from).unwrap();
            // It comes from whom it was asked, or a connected socket would not take it.
            let len = client.recv(&mut said).unwrap();
            assert_eq!(&said[..len], b"back");
            let mut client = TcpStream::connect((RESOLVER, RESOLVER_PORT)).unwrap();
            let (mut accepted, _) = tcp.accept().unwrap();
            client.write_all(b"tcp").unwrap();
            drop(client);
            let mut said = String::new();
            accepted.read_to_string(&mut said).unwrap();
            assert_eq!(said, "tcp");
            assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, RESOLVER_PORT)).is_err());
            Ok(())
        };
        namespace.enter(within).unwrap();
    }

    #[test]
    fn table_of_sockets_is_read_by_its_second_column() {
        let word = format!("{:08X}", u32::from_ne_bytes(RESOLVER.octets()));
        let row = |local: &str, remote: &str| {
            format!("  sl  local_address rem_address\n 9839: {local}:ACDB {remote}:0000 07\n")
        };
        assert!(is_bound(&row(&word, "00000000"), RESOLVER));
        assert!(!is_bound(&row("00000000", &word), RESOLVER));
        assert!(!is_bound("", RESOLVER));
    }
}
