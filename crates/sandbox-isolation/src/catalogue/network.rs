//! Network snooping: a container without a network, and what it hears and reaches all the same.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::{brief, reads_secret};
use crate::case::{Case, Finding, Judge, Obstacle, Profile, Scene, Threat};
use crate::host;
use crate::host::speakers::{Frames, Source, Speaker, free_port};

/// A case of this file.
const NETWORK: Case = Case {
    name: "",
    threat: Threat::NetworkSnooping,
    attempt: "",
    watch: "a process that says a secret to whoever reaches it",
    expected: "the secret is not heard",
    profile: Profile::Granted,
    control: Profile::Host,
    stage: |_| Err(Obstacle(String::new())),
};

/// The datagram's source in `network_spoof`: of a range for documentation (RFC 5737).
const SPOOFED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

pub(super) const ALL: &[Case] = &[
    Case {
        name: "network_host_loopback",
        attempt: "connects to a TCP port of the host's loopback interface",
        stage: |_| tcp("127.0.0.1"),
        ..NETWORK
    },
    Case {
        name: "network_host_loopback_ipv6",
        attempt: "connects to a TCP port of the host's loopback interface, by IPv6",
        stage: |_| tcp("::1"),
        ..NETWORK
    },
    Case {
        name: "network_host_loopback_udp",
        attempt: "asks a UDP port of the host's loopback interface",
        stage: |_| {
            let secret = host::token()?;
            let (speaker, port) = Speaker::udp(secret.clone())?;
            let params = json!({ "address": "127.0.0.1", "port": port });
            let judge = reads_secret("what a process of the host's says", secret);
            Ok(Scene::new("udp_ask", params, judge).keeping(speaker))
        },
        ..NETWORK
    },
    Case {
        name: "network_abstract_socket",
        attempt: "connects to an abstract Unix socket of the host's by its name",
        stage: |_| {
            let (name, secret) = (host::token()?, host::token()?);
            let speaker = Speaker::abstract_socket(&name, secret.clone())?;
            let judge = reads_secret("what a process of the host's says", secret);
            Ok(Scene::new("abstract_connect", json!({ "name": name }), judge).keeping(speaker))
        },
        ..NETWORK
    },
    Case {
        name: "network_abstract_names",
        attempt: "lists the Unix sockets",
        watch: "an abstract socket with a secret name",
        expected: "the name is not in the list",
        stage: |_| {
            let name = host::token()?;
            let speaker = Speaker::abstract_socket(&name, String::new())?;
            let judge = reads_secret("the name of a socket of the host's", name);
            let params = json!({ "paths": ["/proc/net/unix"] });
            Ok(Scene::new("read", params, judge).keeping(speaker))
        },
        ..NETWORK
    },
    Case {
        name: "network_ports_list",
        attempt: "lists the TCP ports that are listened at",
        watch: "a port that it listens at",
        expected: "the port is not in the list",
        stage: |_| {
            let (speaker, port) = Speaker::tcp("127.0.0.1", String::new())?;
            // proc(5): the address and port in hexadecimal, then that of the other end.
            let line = format!("0100007F:{port:04X} 00000000:0000 0A");
            let judge = reads_secret("a listening port of the host's", line);
            let params = json!({ "paths": ["/proc/net/tcp"] });
            Ok(Scene::new("read", params, judge).keeping(speaker))
        },
        ..NETWORK
    },
    Case {
        name: "network_sniff",
        attempt: "listens with a packet socket to every interface for three seconds",
        watch: "datagrams that it sends itself, with a secret in each",
        stage: |_| {
            let (mark, secret) = (host::token()?, host::token()?);
            let speaker = Speaker::chatter(format!("{mark} {secret}"))?;
            let params = json!({ "wanted": mark, "for_ms": 3000 });
            let judge = reads_secret("the host's traffic", secret);
            Ok(Scene::new("sniff", params, judge).keeping(speaker))
        },
        ..NETWORK
    },
    Case {
        name: "network_spoof",
        attempt: "sends a datagram with another's source address by a raw socket",
        watch: "every frame on its own interfaces, for the datagram",
        expected: "the datagram does not arrive",
        stage: |_| {
            let mark = host::token()?;
            let frames = Frames::listen(Source::Ipv4(SPOOFED))?;
            let params = json!({
                "source": SPOOFED.to_string(), "target": "127.0.0.1", "port": 9, "text": mark,
            });
            let judge: Judge = Box::new(|seen, watched| {
                if watched == true {
                    Finding::Reached(format!("a datagram from {SPOOFED} passed on the host"))
                } else {
                    Finding::Blocked(format!("none passed on the host: {}", brief(seen)))
                }
            });
            Ok(Scene::new("spoof", params, judge)
                .watching(move |_| frames.heard(&mark).is_some().into()))
        },
        ..NETWORK
    },
    Case {
        name: "network_neighbour_spoof",
        attempt: "says on the loopback interface that another's address is its own (ARP)",
        watch: "every frame on its own interfaces, for that answer",
        expected: "the answer does not arrive",
        stage: |_| {
            let mark = host::token()?;
            let frames = Frames::listen(Source::Arp(SPOOFED))?;
            let params = json!({ "source": SPOOFED.to_string(), "text": mark });
            let judge: Judge = Box::new(|seen, watched| {
                if watched == true {
                    Finding::Reached(format!("an answer for {SPOOFED} passed on the host"))
                } else {
                    Finding::Blocked(format!("none passed on the host: {}", brief(seen)))
                }
            });
            Ok(Scene::new("neighbour_spoof", params, judge)
                .watching(move |_| frames.heard(&mark).is_some().into()))
        },
        ..NETWORK
    },
    Case {
        name: "network_neighbours",
        attempt: "lists the neighbours on the network with their hardware addresses",
        watch: "the hardware addresses of its own neighbours",
        expected: "none of them",
        stage: |_| {
            // proc_net(5): address, type, flags, hardware address, mask, interface.
            let own: Vec<String> = std::fs::read_to_string("/proc/net/arp")?
                .lines()
                .skip(1)
                .filter_map(|line| line.split_whitespace().nth(3))
                .filter(|address| *address != "00:00:00:00:00:00")
                .map(str::to_owned)
                .collect();
            if own.is_empty() {
                return Err(Obstacle("this host knows no neighbours now".to_owned()));
            }
            let judge: Judge = Box::new(move |seen, _| {
                let text = seen.to_string();
                match own.iter().find(|address| text.contains(*address)) {
                    Some(address) => Finding::Reached(format!("the host's neighbour {address}")),
                    None => Finding::Blocked(format!("none of the host's: {}", brief(seen))),
                }
            });
            let params = json!({ "paths": ["/proc/net/arp"] });
            Ok(Scene::new("read", params, judge))
        },
        ..NETWORK
    },
    Case {
        name: "network_listen_on_host",
        attempt: "listens at a port of the loopback interface",
        watch: "the port, which it connects to",
        expected: "nobody listens there",
        stage: |_| {
            let port = free_port()?;
            let secret = host::token()?;
            let params = json!({ "address": "127.0.0.1", "port": port, "text": secret });
            let judge: Judge = Box::new(move |seen, watched| {
                if watched.as_str() == Some(secret.as_str()) {
                    Finding::Reached("the container answers at the host's port".to_owned())
                } else {
                    Finding::Blocked(format!("nobody answers: {}", brief(seen)))
                }
            });
            Ok(Scene::new("tcp_listen", params, judge).watching(move |_| said_at(port)))
        },
        ..NETWORK
    },
    Case {
        name: "network_interfaces",
        attempt: "lists the interfaces and their hardware addresses",
        watch: "the hardware addresses of its own interfaces",
        expected: "none of them",
        stage: |_| {
            let own = hardware_addresses();
            if own.is_empty() {
                return Err(Obstacle(
                    "this host has no interface with a hardware address".to_owned(),
                ));
            }
            let judge: Judge = Box::new(move |seen, _| {
                let text = seen.to_string();
                match own.iter().find(|address| text.contains(*address)) {
                    Some(address) => Finding::Reached(format!("the host's interface {address}")),
                    None => Finding::Blocked(format!("only its own: {}", brief(seen))),
                }
            });
            Ok(Scene::new("interfaces", Value::Null, judge))
        },
        ..NETWORK
    },
    Case {
        name: "network_metadata_address",
        attempt: "asks for the way to 169.254.169.254, where clouds tell secrets, and sends nothing",
        watch: "whether it has a way there itself",
        expected: "there is no way",
        stage: |_| {
            let own = std::net::UdpSocket::bind("0.0.0.0:0")
                .and_then(|socket| socket.connect(("169.254.169.254", 80)));
            if own.is_err() {
                return Err(Obstacle(
                    "this host has no way to that address itself".to_owned(),
                ));
            }
            let params = json!({ "address": "169.254.169.254", "port": 80 });
            let judge: Judge = Box::new(|seen, _| {
                if seen["route"] == "ok" {
                    Finding::Reached(format!("a way: {}", brief(seen)))
                } else {
                    Finding::Blocked(format!("no way: {}", brief(seen)))
                }
            });
            Ok(Scene::new("udp_route", params, judge))
        },
        ..NETWORK
    },
    Case {
        name: "network_vsock",
        attempt: "makes a vsock socket, by the system call and by io_uring",
        watch: "whether it can make one itself",
        expected: "refused, whatever else is granted",
        control: Profile::Granted,
        stage: |_| {
            use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
            let own = socket(
                AddressFamily::Vsock,
                SockType::Stream,
                SockFlag::SOCK_CLOEXEC,
                None,
            );
            if own.is_err() {
                return Err(Obstacle("this host's kernel has no vsock".to_owned()));
            }
            let judge: Judge = Box::new(|seen, _| {
                if seen["socket"] == "ok" || seen["io_uring"] == "ok" {
                    Finding::Reached(format!("a socket to the host's ports: {}", brief(seen)))
                } else {
                    Finding::Blocked(format!("refused: {}", brief(seen)))
                }
            });
            Ok(Scene::new("vsock", Value::Null, judge))
        },
        ..NETWORK
    },
];

fn tcp(address: &'static str) -> Result<Scene, Obstacle> {
    let secret = host::token()?;
    let (speaker, port) = Speaker::tcp(address, secret.clone())?;
    let params = json!({ "address": address, "port": port });
    let judge = reads_secret("what a process of the host's says", secret);
    Ok(Scene::new("tcp_connect", params, judge).keeping(speaker))
}

/// What is said at a port of the loopback interface.
fn said_at(port: u16) -> Value {
    use std::io::Read as _;
    // Where nobody listens, there is nothing to wait for.
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);
    let mut said = String::new();
    let heard = std::net::TcpStream::connect_timeout(&([127, 0, 0, 1], port).into(), PATIENCE)
        .and_then(|stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.take(64).read_to_string(&mut said)
        });
    match heard {
        Ok(_) => said.into(),
        Err(_) => Value::Null,
    }
}

/// The hardware addresses of this host's interfaces, without those that are all zeros.
fn hardware_addresses() -> Vec<String> {
    let folder = std::fs::read_dir("/sys/class/net").into_iter().flatten();
    folder
        .flatten()
        .map(|entry| host::first_line(entry.path().join("address")))
        .filter(|address| address.len() == 17 && address != "00:00:00:00:00:00")
        .collect()
}
