//! Sockets.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto,
    setsockopt, socket, sockopt,
};
use serde_json::{Value, json};

use super::{Attempt, number, raw, text};
use crate::attempts::io_uring;
use crate::look;

pub(super) const ALL: &[Attempt] = &[
    ("tcp_connect", tcp_connect),
    ("tcp_listen", tcp_listen),
    ("udp_ask", udp_ask),
    ("udp_route", udp_route),
    ("abstract_connect", abstract_connect),
    ("abstract_listen", abstract_listen),
    ("socket_file_connect", socket_file_connect),
    ("sniff", sniff),
    ("spoof", spoof),
    ("interfaces", interfaces),
    ("vsock", vsock),
    ("device_events", device_events),
    ("datagrams", datagrams),
    ("neighbour_spoof", neighbour_spoof),
];

/// How long who listens may take to answer. Where nobody does, the kernel says so at once.
const PATIENCE: Duration = Duration::from_secs(20);

fn address(params: &Value) -> Option<SocketAddr> {
    let ip: IpAddr = text(params, "address").parse().ok()?;
    Some(SocketAddr::new(
        ip,
        u16::try_from(number(params, "port")).ok()?,
    ))
}

/// Sends `count` datagrams to a socket of its own on its loopback interface, which takes in as many as it has room for.
fn datagrams(params: &Value) -> Value {
    let mut sent = 0u64;
    let mut end = Value::Null;
    let sockets = UdpSocket::bind("127.0.0.1:0").and_then(|receiver| {
        let sender = UdpSocket::bind("127.0.0.1:0")?;
        sender.connect(receiver.local_addr()?)?;
        Ok((sender, receiver))
    });
    match sockets {
        Ok((sender, _receiver)) => {
            while sent < number(params, "count").min(100_000) {
                match sender.send(b"probe") {
                    Ok(_) => sent += 1,
                    Err(error) => {
                        end = look::io_error(&error);
                        break;
                    }
                }
            }
        }
        Err(error) => end = look::io_error(&error),
    }
    json!({ "sent": sent, "end": end })
}

/// What a connection says first.
fn heard(stream: std::io::Result<impl std::io::Read>) -> Value {
    match stream {
        Ok(stream) => {
            let mut said = String::new();
            let read = stream.take(256).read_to_string(&mut said);
            json!({ "connected": "ok", "read": look::io_outcome(read), "found": said })
        }
        Err(error) => json!({ "connected": look::io_error(&error) }),
    }
}

fn tcp_connect(params: &Value) -> Value {
    let Some(address) = address(params) else {
        return json!({ "error": "no address" });
    };
    heard(
        TcpStream::connect_timeout(&address, PATIENCE).and_then(|stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            Ok(stream)
        }),
    )
}

/// Listens, and says `text` to whoever comes.
fn tcp_listen(params: &Value) -> Value {
    let Some(address) = address(params) else {
        return json!({ "error": "no address" });
    };
    match TcpListener::bind(address) {
        Ok(listener) => {
            let secret = text(params, "text").to_owned();
            std::thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    let _ = stream.write_all(secret.as_bytes());
                }
            });
            json!({ "listening": "ok" })
        }
        Err(error) => json!({ "listening": look::io_error(&error) }),
    }
}

/// Sends a datagram and waits for the answer.
fn udp_ask(params: &Value) -> Value {
    let Some(address) = address(params) else {
        return json!({ "error": "no address" });
    };
    let mut answer = [0u8; 256];
    let asked = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(address)?;
        socket.send(b"?")?;
        socket.recv(&mut answer)
    });
    match asked {
        Ok(length) => {
            let said = String::from_utf8_lossy(answer.get(..length).unwrap_or_default());
            json!({ "asked": "ok", "found": said })
        }
        Err(error) => json!({ "asked": look::io_error(&error) }),
    }
}

/// Which address would be used to reach another. Nothing is sent.
fn udp_route(params: &Value) -> Value {
    let Some(address) = address(params) else {
        return json!({ "error": "no address" });
    };
    let found = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect(address)?;
        socket.local_addr()
    });
    match found {
        Ok(source) => json!({ "route": "ok", "source": source.ip().to_string() }),
        Err(error) => json!({ "route": look::io_error(&error) }),
    }
}

fn abstract_connect(params: &Value) -> Value {
    let listed = std::fs::read_to_string("/proc/net/unix")
        .is_ok_and(|list| list.contains(text(params, "name")));
    let connected = UnixAddress::from_abstract_name(text(params, "name"))
        .and_then(|address| UnixStream::connect_addr(&address));
    let mut seen = heard(connected);
    seen["listed"] = listed.into();
    seen
}

fn abstract_listen(params: &Value) -> Value {
    let listener = UnixAddress::from_abstract_name(text(params, "name"))
        .and_then(|address| UnixListener::bind_addr(&address));
    match listener {
        Ok(listener) => {
            let secret = text(params, "text").to_owned();
            std::thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    let _ = stream.write_all(secret.as_bytes());
                }
            });
            json!({ "listening": "ok" })
        }
        Err(error) => json!({ "listening": look::io_error(&error) }),
    }
}

fn socket_file_connect(params: &Value) -> Value {
    heard(UnixStream::connect(text(params, "path")))
}

/// Listens to every interface for `for_ms`, or until a frame has `wanted` in it.
fn sniff(params: &Value) -> Value {
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        Some(SockProtocol::EthAll),
    );
    let socket = match socket {
        Ok(socket) => socket,
        Err(errno) => return json!({ "socket": look::error(errno) }),
    };
    hear(&socket, params)
}

/// How many frames are read after the time.
const MOST_LATE: u32 = 10_000;

/// Reads from the socket for `for_ms`, or until something has `wanted` in it.
fn hear(socket: &std::os::fd::OwnedFd, params: &Value) -> Value {
    let brief = nix::sys::time::TimeVal::new(0, 100_000);
    let _ = setsockopt(socket, sockopt::ReceiveTimeout, &brief);
    let wanted = text(params, "wanted").as_bytes();
    let end = Instant::now() + Duration::from_millis(number(params, "for_ms").min(5_000));
    let (mut frames, mut frame) = (0u64, vec![0u8; 2048]);
    // What came until the end is looked at, however late it is our turn again; but what comes need not end.
    let mut late = 0;
    while late < MOST_LATE {
        use std::os::fd::AsRawFd as _;
        if Instant::now() >= end {
            late += 1;
        }
        let Ok(length) = recv(socket.as_raw_fd(), &mut frame, MsgFlags::empty()) else {
            if late > 0 {
                break;
            }
            continue;
        };
        frames += 1;
        let bytes = frame.get(..length).unwrap_or_default();
        if let Some(at) = bytes
            .windows(wanted.len().max(1))
            .position(|part| part == wanted)
        {
            let rest = bytes.get(at..).unwrap_or_default();
            let rest = String::from_utf8_lossy(rest.get(..64).unwrap_or(rest)).into_owned();
            return json!({ "socket": "ok", "frames": frames, "found": rest });
        }
    }
    json!({ "socket": "ok", "frames": frames })
}

/// Listens to what the kernel tells of devices (netlink(7), NETLINK_KOBJECT_UEVENT).
fn device_events(params: &Value) -> Value {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkKObjectUEvent,
    );
    let socket = match socket {
        Ok(socket) => socket,
        Err(errno) => return json!({ "socket": look::error(errno) }),
    };
    use std::os::fd::AsRawFd as _;
    let group = nix::sys::socket::NetlinkAddr::new(0, 1);
    if let Err(errno) = nix::sys::socket::bind(socket.as_raw_fd(), &group) {
        return json!({ "bound": look::error(errno) });
    }
    hear(&socket, params)
}

/// Sends a datagram in whose header stands another's address (`source`), by a raw socket.
fn spoof(params: &Value) -> Value {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Raw,
    );
    let socket = match socket {
        Ok(socket) => socket,
        Err(errno) => return json!({ "socket": look::error(errno) }),
    };
    let parse = |name: &str| text(params, name).parse::<std::net::Ipv4Addr>();
    let (Ok(source), Ok(target)) = (parse("source"), parse("target")) else {
        return json!({ "error": "no address" });
    };
    let payload = text(params, "text").as_bytes();
    let port = u16::try_from(number(params, "port")).unwrap_or(0);
    let udp_length = u16::try_from(8 + payload.len()).unwrap_or(8);
    // RFC 791, then RFC 768 without a checksum; the kernel fills in the IP header's length and checksum.
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend_from_slice(&source.octets());
    packet.extend_from_slice(&target.octets());
    packet.extend_from_slice(&[0x30, 0x39]);
    packet.extend_from_slice(&port.to_be_bytes());
    packet.extend_from_slice(&udp_length.to_be_bytes());
    packet.extend_from_slice(&[0, 0]);
    packet.extend_from_slice(payload);
    use std::os::fd::AsRawFd as _;
    let sent = sendto(
        socket.as_raw_fd(),
        &packet,
        &SockaddrIn::from(std::net::SocketAddrV4::new(target, 0)),
        MsgFlags::empty(),
    );
    json!({ "socket": "ok", "sent": look::outcome(sent) })
}

/// The names and hardware addresses of the interfaces.
fn interfaces(_: &Value) -> Value {
    let folder = std::fs::read_dir("/sys/class/net").into_iter().flatten();
    let mut found: Vec<Value> = folder
        .flatten()
        .map(|entry| {
            json!([
                entry.file_name().to_string_lossy(),
                look::text(entry.path().join("address"))
            ])
        })
        .collect();
    if let Ok(list) = nix::ifaddrs::getifaddrs() {
        for one in list {
            if let Some(link) = one
                .address
                .as_ref()
                .and_then(|address| address.as_link_addr())
            {
                let bytes = link.addr().unwrap_or_default();
                let text: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                found.push(json!([one.interface_name, text.join(":")]));
            }
        }
    }
    json!({ "interfaces": found })
}

/// A socket to the host's ports, by the system call and by io_uring, which no filter of system calls sees.
fn vsock(_: &Value) -> Value {
    let by_call = socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::empty(),
        None,
    );
    let by_ring = io_uring::socket(nix::libc::AF_VSOCK);
    json!({
        "socket": look::outcome(by_call),
        "io_uring": match by_ring {
            Ok(()) => "ok".into(),
            Err((step, errno)) => json!({ "step": step, "error": format!("{errno:?}") }),
        },
    })
}

/// Says on its loopback interface that an address, `source`, is its own: an unasked answer of ARP (RFC 826), with `text` behind it.
fn neighbour_spoof(params: &Value) -> Value {
    const HARDWARE: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        None,
    );
    let socket = match socket {
        Ok(socket) => socket,
        Err(errno) => return json!({ "socket": look::error(errno) }),
    };
    let Ok(source) = text(params, "source").parse::<std::net::Ipv4Addr>() else {
        return json!({ "error": "no address" });
    };
    // To all, from this address, ARP; Ethernet, IPv4, their lengths, an answer; then sender and target.
    let mut frame = vec![0xff; 6];
    frame.extend_from_slice(&HARDWARE);
    frame.extend_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 2]);
    frame.extend_from_slice(&HARDWARE);
    frame.extend_from_slice(&source.octets());
    frame.extend_from_slice(&[0xff; 6]);
    frame.extend_from_slice(&source.octets());
    frame.extend_from_slice(text(params, "text").as_bytes());
    let sent = raw::send_frame(&socket, "lo", &frame);
    json!({ "socket": "ok", "sent": look::outcome(sent) })
}
