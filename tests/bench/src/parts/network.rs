//! A container's network: through the bridge that CNI's plugin makes, to the host's side of it.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use sandbox_harness::bundle::{self, PROBE};
use sandbox_harness::netns::HostNet;
use sandbox_harness::process;
use serde_json::{Value as Json, json};

use super::SHIMS;
use super::stdio::mebibytes;
use crate::lab::{About, Lab, Root};
use crate::report::{Part, Unit, Value};
use crate::stats::Summary;

const ABOUT: About = About {
    name: "network",
    title: "Network",
    about: "TCP between a container and the host's side of the bridge that CNI's `bridge` plugin makes, in network namespaces of the benchmark's own. A round trip is a byte \
            there and back, the median of two hundred; the throughput is that of 32 MiB in one connection.",
    one_scale: false,
};

/// Where Debian's packages and everybody else's put the plugins.
const PLUGINS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];
const PORT: u16 = 7;
const ROUND_TRIPS: usize = 200;
const BYTES: usize = 32 << 20;
/// The longest silence.
const SILENCE: Duration = Duration::from_secs(60);

pub(super) fn measure(lab: &Lab) -> Part {
    lab.measure(&ABOUT, &SHIMS, lab.runs(), |subject| {
        let wire = Wire::new(lab)?;
        let mut spec = bundle::spec(&[PROBE, "answer", &PORT.to_string()]);
        let namespaces = spec["linux"]["namespaces"].as_array_mut();
        namespaces
            .context("a spec has namespaces")?
            .push(json!({"type": "network", "path": wire.pod.path()}));
        let (task, _) = lab.start_task_of(SHIMS[subject].runtime, Root::Image, &spec)?;
        let address = wire.address;
        let values = wire.host.within(move || talk(address))?;
        task.end()?;
        Ok(values)
    })
}

/// The host's side and the container's. What is on both goes with them.
struct Wire {
    host: HostNet,
    pod: HostNet,
    address: SocketAddr,
}

impl Wire {
    fn new(lab: &Lab) -> Result<Self> {
        let plugins = PLUGINS
            .iter()
            .find(|folder| Path::new(folder).join("bridge").is_file())
            .context("the CNI plugins are not installed (Debian: containernetworking-plugins)")?;
        let (host, pod) = (HostNet::new()?, HostNet::new()?);
        let name = lab.name();
        let configuration = json!({
            "cniVersion": "0.4.0", "name": name, "type": "bridge", "bridge": "br0", "isGateway": true,
            "ipam": {
                "type": "host-local", "dataDir": lab.world().path().join("ipam"),
                "ranges": [[{"subnet": "10.99.0.0/24"}]],
            },
        });
        let mut command = host.command(&Command::new(Path::new(plugins).join("bridge")));
        command
            .env("CNI_COMMAND", "ADD")
            .env("CNI_CONTAINERID", &name)
            .env("CNI_NETNS", pod.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", plugins);
        let made = process::run(
            &mut command,
            configuration.to_string().as_bytes(),
            lab.limit(),
        )?;
        let made: Json = serde_json::from_str(&made.expect_code(0)?.text())?;
        let address = made["ips"][0]["address"].as_str().unwrap_or_default();
        let (address, _) = address
            .split_once('/')
            .with_context(|| format!("no address in {made}"))?;
        let address = SocketAddr::new(address.parse::<IpAddr>()?, PORT);
        Ok(Self { host, pod, address })
    }
}

/// A connection for one thing, and its bytes.
fn connect(address: SocketAddr, what: u8, bytes: usize) -> Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&address, SILENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    stream.write_all(&[what])?;
    stream.write_all(&(bytes as u64).to_le_bytes())?;
    Ok(stream)
}

fn talk(address: SocketAddr) -> Result<Vec<Value>> {
    let mut byte = [0u8; 1];
    let mut echo = connect(address, b'e', 0)?;
    let mut trips = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let begun = Instant::now();
        echo.write_all(&byte)?;
        echo.read_exact(&mut byte)?;
        trips.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    drop(echo);
    let trips = Summary::of(&trips).context("there were round trips")?;

    let mut chunk = vec![0u8; 64 << 10];
    let mut inwards = connect(address, b'i', BYTES)?;
    let begun = Instant::now();
    for _ in 0..BYTES / chunk.len() {
        inwards.write_all(&chunk)?;
    }
    inwards.read_exact(&mut byte)?;
    let going_in = begun.elapsed();

    let mut outwards = connect(address, b'o', BYTES)?;
    let begun = Instant::now();
    let mut left = BYTES;
    while left > 0 {
        let length = outwards.read(&mut chunk)?;
        ensure!(length > 0, "{left} bytes did not come");
        left = left.saturating_sub(length);
    }
    let coming_out = begun.elapsed();

    let rate = |what: &str, spent: Duration| {
        let spent = spent.max(Duration::from_nanos(1)).as_secs_f64();
        Value::new(what, Unit::MebibytesPerSecond, mebibytes(BYTES) / spent)
    };
    Ok(vec![
        Value::new("round trip of a byte", Unit::Microseconds, trips.median),
        rate("into the container", going_in),
        rate("out of the container", coming_out),
    ])
}
