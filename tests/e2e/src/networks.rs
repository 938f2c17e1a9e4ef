//! `sandboxctl`'s networks, made with the CNI plugins. The "host" of each case is a network namespace of its own, in which
//! `sandboxctl` runs: bridges, forwarding and iptables rules are that namespace's.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use sandbox_harness::netns::HostNet;
use sandbox_harness::{Finished, World, process};
use serde_json::Value;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("networks_bridge_reaches_and_is_reached", bridge),
    ("networks_created_one_is_as_asked_for", created),
    ("networks_two_do_not_reach_each_other", apart),
    ("networks_none_is_loopback_alone", none),
    ("networks_killed_attendant_leaves_nothing", killed_attendant),
    (
        "networks_removal_of_a_starting_container_leaves_nothing",
        removed_while_starting,
    ),
];

/// A network namespace in the place of the host's, in which `sandboxctl` runs.
struct Host(HostNet);

impl Host {
    fn new() -> Result<Self> {
        Ok(Self(HostNet::new()?))
    }

    /// Runs `sandboxctl` there.
    fn sandboxctl(&self, world: &World, words: &[&str]) -> Result<Finished> {
        let mut command = self.0.command(&world.sandboxctl_command(words));
        world.adopt(&mut command);
        process::run(&mut command, b"", world.setup().limit)
    }

    /// What a server in the container answers at this place.
    fn get(&self, place: &str) -> Result<String> {
        let place = place.to_owned();
        self.0.within(move || {
            let mut stream =
                TcpStream::connect(&place).with_context(|| format!("nobody answers at {place}"))?;
            stream.set_read_timeout(Some(Duration::from_secs(120)))?;
            stream.write_all(b"GET /hostname HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })
    }

    fn rules(&self) -> Result<String> {
        let mut rules = self.0.command(&Command::new("iptables-save"));
        let rules = process::run(&mut rules, b"", Duration::from_secs(60))?;
        Ok(rules.expect_code(0)?.text())
    }

    /// Nothing of a container with this address, or port, is in the namespace; bridges stay.
    fn expect_clean(&self, address: &str) -> Result<()> {
        self.0
            .wait_without(&["link"], "veth")
            .context("an interface is left")?;
        let rules = self.rules()?;
        ensure!(!rules.contains(address), "a rule is left: {rules}");
        Ok(())
    }
}

fn inspect(host: &Host, world: &World, name: &str) -> Result<Value> {
    let text = host
        .sandboxctl(world, &["inspect", name])?
        .expect_code(0)?
        .text();
    let all: Value = serde_json::from_str(&text)?;
    Ok(all[0].clone())
}

/// A server that answers every request with a file of the container's `/etc`, and says when it listens.
const SERVER: &str = "busybox httpd -p 80 -h /etc && echo up && cat";

/// No container is made with these ports, and the message says so.
fn refuses_ports(host: &Host, world: &World, ports: &[&str], words: &[&str]) -> Result<()> {
    let ports = ports.iter().flat_map(|port| ["-p", port]);
    let run = ["run", "--rm", "--network", "bridge"].into_iter();
    let all: Vec<&str> = run.chain(ports).chain(["demo", "true"]).collect();
    let refused = host.sandboxctl(world, &all)?.expect_code(125)?;
    refused.expect_stderr(words)?;
    Ok(())
}

/// Starts [`SERVER`] on the network `bridge` as `web`, with these ports, and waits until it is there. Returns what `inspect` says of its network, its
/// address and its gateway.
fn web_server(host: &Host, world: &World, ports: &[&str]) -> Result<(Value, String, String)> {
    let run = ["run", "-d", "-i", "--network", "bridge"].into_iter();
    let ports = ports.iter().flat_map(|port| ["-p", port]);
    let name = ["--name", "web", "-h", "web", "demo", "sh", "-c", SERVER];
    let all: Vec<&str> = run.chain(ports).chain(name).collect();
    host.sandboxctl(world, &all)?.expect_code(0)?;
    process::wait_until("the server", world.setup().limit, || {
        let logs = host.sandboxctl(world, &["logs", "web"]).ok()?;
        logs.text().contains("up").then_some(())
    })?;
    let mut seen = inspect(host, world, "web")?;
    let network = seen["NetworkSettings"].take();
    let text = |key: &str| network[key].as_str().unwrap_or_default().to_owned();
    let (address, gateway) = (text("IPAddress"), text("Gateway"));
    Ok((network, address, gateway))
}

fn bridge(world: &World) -> Result<()> {
    let host = Host::new()?;
    let ports = ["8080:80", "127.0.0.1:8081:80/tcp"];
    let (network, address, gateway) = web_server(&host, world, &ports)?;
    ensure!(address.starts_with("10.232."), "{network}");
    ensure!(
        network["Ports"]["80/tcp"][0]["HostPort"] == "8080",
        "{network}"
    );
    for place in [
        format!("{address}:80"),
        format!("{gateway}:8080"),
        "127.0.0.1:8080".to_owned(),
        "127.0.0.1:8081".to_owned(),
    ] {
        let answer = host.get(&place)?;
        ensure!(answer.ends_with("\r\n\r\nweb\n"), "{place}: {answer:?}");
    }
    let ports = host.sandboxctl(world, &["port", "web"])?.expect_code(0)?;
    ports.expect_stdout("80/tcp -> 0.0.0.0:8080\n80/tcp -> 127.0.0.1:8081\n")?;
    refuses_ports(&host, world, &["8080:80"], &["8080", "already"])?;
    refuses_ports(&host, world, &["8090:80", "8090:81"], &["8090", "twice"])?;

    // Another container reaches the first one, and a server of the host's.
    let at = format!("{gateway}:9000");
    let listener = host.0.within(move || Ok(TcpListener::bind(at)?))?;
    let server = std::thread::spawn(move || -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        let mut request = [0; 4096];
        let _ = stream.read(&mut request)?;
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nthe host\n")?;
        Ok(())
    });
    let script = format!(
        "busybox wget -q -O - http://{address}/hostname && busybox wget -q -O - http://{gateway}:9000/; \
         tail -n 1 /etc/hosts | cut -f 1; cat /sys/class/net/eth0/address; grep outside /etc/hosts | tr '\t' ' '"
    );
    let asked = [
        "run",
        "--rm",
        "--network",
        "bridge",
        "--mac-address",
        "02:00:5e:00:00:09",
        "--add-host",
        "outside:host-gateway",
        "demo",
        "sh",
        "-c",
        &script,
    ];
    let text = host.sandboxctl(world, &asked)?.expect_code(0)?.text();
    server
        .join()
        .map_err(|_| anyhow::anyhow!("the server panicked"))??;
    let lines: Vec<&str> = text.lines().collect();
    ensure!(lines.len() == 5, "{text}");
    ensure!(lines[..2] == ["web", "the host"], "{text}");
    ensure!(lines[2].starts_with("10.232."), "{text}");
    ensure!(lines[3] == "02:00:5e:00:00:09", "{text}");
    ensure!(lines[4] == format!("{gateway} outside"), "{text}");

    host.sandboxctl(world, &["rm", "-f", "web"])?
        .expect_code(0)?;
    host.expect_clean(&address)
}

fn created(world: &World) -> Result<()> {
    let host = Host::new()?;
    let create = [
        "network",
        "create",
        "--subnet",
        "10.77.0.0/24",
        "--ipv6",
        "--mtu",
        "1400",
        "blue",
    ];
    host.sandboxctl(world, &create)?
        .expect_code(0)?
        .expect_stdout("blue\n")?;
    host.sandboxctl(world, &create)?
        .expect_code(125)?
        .expect_stderr(&["blue", "already"])?;
    let run = [
        "run",
        "--name",
        "one",
        "--network",
        "blue",
        "--ip",
        "10.77.0.9",
        "demo",
        "sh",
        "-c",
        "cat /sys/class/net/eth0/mtu; busybox ip -4 -o addr show dev eth0 | grep -o '10.77.0.9/24'; \
         busybox ip -6 route | grep -c '^default'; until busybox ping -c 1 -w 10 10.77.0.1 > /dev/null; do sleep 1; done; echo reached",
    ];
    host.sandboxctl(world, &run)?
        .expect_code(0)?
        .expect_stdout("1400\n10.77.0.9/24\n1\nreached\n")?;
    host.sandboxctl(world, &["network", "rm", "blue"])?
        .expect_code(125)?
        .expect_stderr(&["used by one"])?;
    host.sandboxctl(world, &["rm", "one"])?.expect_code(0)?;
    host.sandboxctl(world, &["network", "ls", "-q"])?
        .expect_code(0)?
        .expect_stdout("blue\n")?;
    host.sandboxctl(world, &["network", "rm", "blue"])?
        .expect_code(0)?;
    host.0
        .wait_without(&["link"], "sb-")
        .context("the bridge is left")?;
    host.sandboxctl(world, &["run", "--rm", "--network", "blue", "demo", "true"])?
        .expect_code(125)?
        .expect_stderr(&["there is no network \"blue\""])?;
    Ok(())
}

/// The control is a container of the same network, by the same request.
fn apart(world: &World) -> Result<()> {
    let host = Host::new()?;
    host.sandboxctl(world, &["network", "create", "blue"])?
        .expect_code(0)?;
    let (_, address, gateway) = web_server(&host, world, &["8080:80"])?;
    // Its own network works, by which it is seen that the rest is refused and not merely broken; this host is reached too.
    let script = format!(
        "busybox timeout 10 busybox wget -q -O - http://{address}/hostname || echo refused; \
         busybox timeout 10 busybox wget -q -O - http://{gateway}:8080/hostname || echo refused; \
         own=$(busybox ip -4 route | busybox awk '$1 == \"default\" {{print $3}}'); \
         until busybox ping -c 1 -w 10 $own > /dev/null; do sleep 1; done; echo own"
    );
    for (name, expected) in [
        ("bridge", "web\nweb\nown\n"),
        ("blue", "refused\nrefused\nown\n"),
    ] {
        let run = [
            "run",
            "--rm",
            "--network",
            name,
            "demo",
            "sh",
            "-c",
            &script,
        ];
        host.sandboxctl(world, &run)?
            .expect_code(0)?
            .expect_stdout(expected)
            .with_context(|| format!("from the network {name}"))?;
    }
    // Whoever is no container of another network gets in.
    let answer = host.get("127.0.0.1:8080")?;
    ensure!(answer.ends_with("\r\n\r\nweb\n"), "{answer:?}");
    host.sandboxctl(world, &["rm", "-f", "web"])?
        .expect_code(0)?;
    Ok(())
}

fn none(world: &World) -> Result<()> {
    world
        .sandboxctl(&[
            "run",
            "--rm",
            "--network",
            "none",
            "demo",
            "ls",
            "/sys/class/net",
        ])?
        .expect_code(0)?
        .expect_stdout("lo\n")?;
    world
        .sandboxctl(&[
            "run",
            "--rm",
            "--network",
            "none",
            "-p",
            "80:80",
            "demo",
            "true",
        ])?
        .expect_code(125)?
        .expect_stderr(&["-p needs a network"])?;
    world
        .sandboxctl(&[
            "run",
            "--rm",
            "--network",
            "none",
            "--add-host",
            "outside:host-gateway",
            "demo",
            "true",
        ])?
        .expect_code(125)?
        .expect_stderr(&["host-gateway needs a network"])?;
    Ok(())
}

fn killed_attendant(world: &World) -> Result<()> {
    let host = Host::new()?;
    let run = [
        "run",
        "-d",
        "-i",
        "--network",
        "bridge",
        "--name",
        "victim",
        "-p",
        "8080:80",
        "demo",
        "cat",
    ];
    host.sandboxctl(world, &run)?.expect_code(0)?;
    let seen = inspect(&host, world, "victim")?;
    let address = seen["NetworkSettings"]["IPAddress"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    ensure!(!address.is_empty(), "{seen}");
    world.kill_process(" attend ")?;
    host.sandboxctl(world, &["ps", "-a"])?.expect_code(0)?;
    host.expect_clean(&address)?;
    host.sandboxctl(world, &["rm", "victim"])?.expect_code(0)?;
    Ok(())
}

/// Below what anything waits for that does not come, and far above what a machine needs that is emulated.
const PROMPT: Duration = Duration::from_secs(15);

fn removed_while_starting(world: &World) -> Result<()> {
    let host = Host::new()?;
    let run = [
        "run",
        "-d",
        "--network",
        "bridge",
        "--name",
        "early",
        "-p",
        "8080:80",
        "demo",
        "sleep",
        "1000",
    ];
    let mut command = host.0.command(&world.sandboxctl_command(&run));
    world.adopt(&mut command);
    let starting = process::Running::start(&mut command, world.setup().limit)?;
    // The machine boots by then, or is about to.
    process::wait_until("its port", world.setup().limit, || {
        host.rules().ok()?.contains("8080").then_some(())
    })?;
    let begun = Instant::now();
    host.sandboxctl(world, &["rm", "-f", "early"])?
        .expect_code(0)?
        .expect_stdout("early\n")?;
    ensure!(begun.elapsed() < PROMPT, "it took {:?}", begun.elapsed());
    ensure!(starting.finish()?.code != 0, "it was started");
    host.expect_clean("8080")?;
    world.expect_nothing_left()
}
